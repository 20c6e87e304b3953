/*
 * The container's output, as CRI wants it in a file: one time stamp per line,
 * the stream's name, F for the end of a line and P for a piece of one.
 */
#include "monitor.h"

/* The slack at each end lets copying and searching go in whole words. */
static u8 in[2][IN_SIZE] __attribute__((aligned(PAGE)));
static u8 out[OUT_SIZE] __attribute__((aligned(PAGE)));

enum { OUT_START = 1, TAG = 38 };	/* out[0]: a newline for a torn log */

void log_start(void)
{
	__builtin_memcpy(m.line_head, "2006-01-02T15:04:05.123456789Z stdout F ", LINE_HEAD);
}

static void digits(u8 *end, u32 n, u64 value)
{
	while (n--) {
		*--end = (u8)('0' + value % 10);
		value /= 10;
	}
}

/* Days since 1970 to a date, by counting in years that begin in March. */
static void stamp_day(u64 day)
{
	u64 z = day + 719468, era = z / 146097, doe = z % 146097;
	u64 yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	u64 doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
	u64 month = (5 * doy + 2) / 153;

	digits(m.line_head + 10, 2, doy - (153 * month + 2) / 5 + 1);
	month = month < 10 ? month + 3 : month - 9;
	digits(m.line_head + 7, 2, month);
	digits(m.line_head + 4, 4, (yoe + era * 400 + (month <= 2)) % 10000);
}

/* One reading of the clock serves all lines that one read has brought. */
static void stamp(u32 index)
{
	u64 now = now_ns(), second = now / 1000000000 % 86400;

	stamp_day(now / 1000000000 / 86400);
	digits(m.line_head + 13, 2, second / 3600);
	digits(m.line_head + 16, 2, second / 60 % 60);
	digits(m.line_head + 19, 2, second % 60);
	digits(m.line_head + 29, 9, now % 1000000000);
	__builtin_memcpy(m.line_head + 31, index ? "stderr" : "stdout", 6);
}

/* What cannot be written is dropped and counted; the workload goes on. */
void log_flush(void)
{
	u8 *start = out + OUT_START, *from = start, *end = start + m.out_length;

	if (!m.out_length)
		return;
	m.out_length = 0;
	if (m.torn)
		*--from = '\n';
	while (from < end) {
		long n = SYS(write, m.log, from, end - from);
		if (n <= 0) {
			m.dropped_bytes += (u64)(end - (from < start ? start : from));
			return;
		}
		from += n;
		m.log_bytes += (u64)n;
		m.torn = from[-1] != '\n';
	}
}

static void copy(u8 *to, const u8 *from, u32 length)
{
	u8 chunk[CHUNK];

	for (s64 left = length; left > 0; left -= CHUNK, to += CHUNK, from += CHUNK) {
		__builtin_memcpy(chunk, from, CHUNK);
		__builtin_memcpy(to, chunk, CHUNK);
	}
}

static void emit(u8 tag, const u8 *text, u32 length)
{
	if (m.out_length >= FLUSH_AT)
		log_flush();
	u8 *to = out + OUT_START + m.out_length;

	m.line_head[TAG] = tag;
	__builtin_memcpy(to, m.line_head, LINE_HEAD);
	copy(to + LINE_HEAD, text, length);
	to[LINE_HEAD + length] = '\n';
	m.out_length += LINE_HEAD + length + 1;
}

#if defined(__x86_64__)

typedef char chunk __attribute__((vector_size(CHUNK)));

/* A bit for each newline of the 16 bytes at p. */
static u32 newlines(const u8 *p)
{
	chunk c;

	__builtin_memcpy(&c, p, CHUNK);
	return (u32)__builtin_ia32_pmovmskb128((chunk)(c == '\n'));
}

#else

/* The same with words, without a carry from one byte to the next. */
static u32 newlines(const u8 *p)
{
	const u64 lows = 0x7f7f7f7f7f7f7f7f;
	u64 word[2];

	__builtin_memcpy(word, p, CHUNK);
	for (u32 i = 0; i < 2; i++) {
		word[i] ^= 0x0a0a0a0a0a0a0a0a;
		word[i] = ~(((word[i] & lows) + lows) | word[i] | lows) >> 7;
		word[i] = word[i] * 0x0102040810204080 >> 56;
	}
	return (u32)(word[0] | word[1] << 8);
}

#endif

/* Finds the next newline; end when there is none. */
static const u8 *newline(const u8 *p, const u8 *end)
{
	for (; p < end; p += CHUNK) {
		u32 found = newlines(p);
		if (found) {
			p += __builtin_ctz(found);
			break;
		}
	}
	return p < end ? p : end;
}

/* Takes n bytes that follow what is held, and writes the lines they complete. */
static void take(u32 index, u32 n)
{
	struct stream *s = &m.stream[index];
	const u8 *line = in[index], *from = line + s->held, *end = from + n;

	stamp(index);
	for (;;) {
		const u8 *stop = newline(from, end);
		for (; stop - line > m.line_bytes; line += m.line_bytes)
			emit('P', line, m.line_bytes);
		if (stop == end)
			break;
		emit('F', line, (u32)(stop - line));
		line = from = stop + 1;
	}
	s->held = (u32)(end - line);
	if (line != in[index])	/* down, so that overlapping does no harm */
		copy(in[index], line, s->held);
}

void stream_end(u32 index)
{
	struct stream *s = &m.stream[index];

	if (s->held) {
		stamp(index);
		emit('F', in[index], s->held);
		s->held = 0;
	}
	unwatch(&s->fd);
	attach_output_end(index);
}

/* Reads once; false when there is nothing more to be had now. */
bool stream_read(u32 index)
{
	struct stream *s = &m.stream[index];

	if (s->fd < 0)
		return false;
	long n = SYS(read, s->fd, in[index] + s->held, READ_MAX);
	if (n == -EAGAIN)
		return false;
	m.idle_memory = true;
	if (n <= 0) {	/* EIO is how a terminal ends */
		stream_end(index);
		return false;
	}
	if (n == READ_MAX && !s->wide) {	/* fewer waits for both; a quiet workload keeps its memory */
		s->wide = true;
		SYS(fcntl, s->fd, F_SETPIPE_SZ, PIPE_SIZE);
	}
	if (m.attached)
		attach_output(index, in[index] + s->held, (u32)n);
	take(index, (u32)n);
	return true;
}

/*
 * Init is dead: what it wrote is in the pipe, and a pipe holds 1 MiB at most.
 * Whoever else still writes must not keep the exit from being told.
 */
void stream_drain(u32 index)
{
	for (u32 i = 0; i < 64 && stream_read(index); i++)
		;
}

/* For the fuzzer: output as if it had been read. */
void stream_line(u32 index, const u8 *data, u32 length)
{
	for (u32 i = 0; i < length; i++)
		in[index][m.stream[index].held + i] = data[i];
	take(index, length);
}

/* Gives the pages of a burst back; an idle monitor keeps next to none. */
void log_trim(void)
{
	for (u32 i = 0; i < 2; i++) {
		u32 keep = (m.stream[i].held + PAGE - 1) & ~(u32)(PAGE - 1);
		SYS(madvise, in[i] + keep, IN_SIZE - keep, MADV_DONTNEED);
	}
	SYS(madvise, out, OUT_SIZE, MADV_DONTNEED);
	m.idle_memory = false;
}
