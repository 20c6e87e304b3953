/*
 * Fuzz target of all that reads what others wrote: packets, launch programs,
 * the OOM counter and the workload's output. The log is also compared with
 * what went in. With -DPLAIN it makes its own inputs and needs no libFuzzer.
 */
#include "monitor.h"

/* Of libc only this: its headers do not go together with sys.h. */
void *malloc(size_t);
void *realloc(void *, size_t);
void free(void *);
_Noreturn void abort(void);
int puts(const char *);
void *memcpy(void *, const void *, size_t);
void *memset(void *, int, size_t);
void *memchr(const void *, int, size_t);
int memcmp(const void *, const void *, size_t);
size_t strlen(const char *);
int memfd_create(const char *, unsigned);

static void require(bool holds, const char *what)
{
	if (holds)
		return;
	puts(what);
	abort();
}

/* A log line's head, checked; the content's start. */
static const char *line_head(const char *line, const char *end, const char *stream, char *tag)
{
	const char *form = "dddd-dd-ddTdd:dd:dd.dddddddddZ ";
	size_t n = strlen(form);

	require(end - line > LINE_HEAD, "a line has a head");
	for (size_t i = 0; i < n; i++)
		require(form[i] == 'd' ? line[i] >= '0' && line[i] <= '9' : line[i] == form[i], "time stamp");
	require(!memcmp(line + n, stream, 6), "stream");
	*tag = line[n + 7];
	require((*tag == 'P' || *tag == 'F') && line[n + 6] == ' ' && line[n + 8] == ' ', "tag");
	return line + LINE_HEAD;
}

/* Puts the content of a log back together. */
static size_t content(const char *log, size_t length, const char *stream, char *to)
{
	size_t n = 0;

	for (const char *line = log; line < log + length;) {
		const char *end = memchr(line, '\n', (size_t)(log + length - line));
		char tag;
		require(end != NULL, "the log ends with a newline");
		const char *text = line_head(line, end + 1, stream, &tag);
		u32 size = (u32)(end - text);
		require(tag == 'P' ? size == m.line_bytes : size <= m.line_bytes, "size of a piece");
		memcpy(to + n, text, size);
		n += size;
		if (tag == 'F')
			to[n++] = '\n';
		line = end + 1;
	}
	return n;
}

static void log_target(const u8 *data, size_t length)
{
	u32 index, at = 0;

	if (length < 4)
		return;
	memset(&m, 0, sizeof m);
	log_start();
	index = data[0] & 1;
	m.line_bytes = 1 + (u32)(data[1] | data[2] << 8);
	m.epoll = m.stream[0].fd = m.stream[1].fd = -1;
	m.log = memfd_create("log", 0);
	const u8 *text = data + 4;
	u32 size = (u32)length - 4, step = data[3] ? data[3] * 97u : 1;
	while (at < size) {
		u32 n = size - at < step ? size - at : step;
		stream_line(index, text + at, n);
		at += n;
	}
	stream_end(index);
	log_flush();
	long total = SYS(lseek, m.log, 0, SEEK_END);
	require(total >= 0, "a log");
	char *log = malloc((size_t)total + 1), *back = malloc((size_t)total + 1);
	require(SYS(pread64, m.log, log, total, 0) == total && m.log_bytes == (u64)total, "log_bytes");
	size_t n = content(log, (size_t)total, index ? "stderr" : "stdout", back);
	if (size && text[size - 1] != '\n')
		require(n-- == size + 1u, "an unfinished line is finished");
	require(n == size && !memcmp(back, text, size), "the log holds what was written");
	free(log);
	free(back);
	shut(&m.log);
}

/* What is left in a pipe, added to what a client was told. */
static u32 hear(s32 fd)
{
	u8 heard[4096];
	u32 n = 0;

	for (long got; fd >= 0 && (got = SYS(read, fd, heard, sizeof heard)) > 0;)
		n += (u32)got;
	return n;
}

/*
 * Clients come, type, listen and leave in any order. Nothing may be lost but by those
 * who were given up, and no descriptor stays.
 */
static void attach_target(const u8 *data, size_t length)
{
	s32 far[ATTACH_MAX][3], workload[2];	/* the clients' ends; the workload's stdin */
	u32 said[ATTACH_MAX][3], n = 0;
	u64 sigpipe = 1ul << 12;	/* no signal moves the monitor */

	SYS(rt_sigprocmask, SIG_SETMASK, &sigpipe, 0, sizeof sigpipe);
	memset(&m, 0, sizeof m);
	memset(far, -1, sizeof far);
	for (u32 i = 0; i < CONNECTIONS_MAX; i++)
		m.conn[i].fd = -1;
	m.epoll = (s32)SYS(epoll_create1, O_CLOEXEC);
	m.stream[0].fd = m.stream[1].fd = -1;
	SYS(pipe2, workload, O_NONBLOCK);
	m.stdin = workload[1];
	for (; length >= 2; data += 2, length -= 2) {
		u32 i = data[1] % ATTACH_MAX;
		switch (data[0] % 7) {
		case 0: {
			u16 flags = data[1] & 15;
			s32 given[3] = { -1, -1, -1 }, mine[3] = { -1, -1, -1 }, pair[2];
			u32 slot = 0, fds = 0;
			while (slot < ATTACH_MAX && m.attach[slot].used)
				slot++;
			if (!(flags & 7) || (flags & 1 && m.stdin < 0))
				break;
			for (u32 k = 0; k < 3; k++) {
				if (!(flags & 1 << k) || SYS(pipe2, pair, O_NONBLOCK) != 0)
					continue;
				given[fds++] = pair[k > 0];
				mine[k] = pair[k == 0];
			}
			require(attach_add(-1, ++n, flags, given) == (slot < ATTACH_MAX ? 0 : EAGAIN), "room for a client");
			for (u32 k = 0; k < 3; k++) {
				shut(&given[k]);
				s32 *to = slot < ATTACH_MAX ? &far[slot][k] : &mine[k];
				shut(to);
				*to = slot < ATTACH_MAX ? mine[k] : -1;
				if (slot < ATTACH_MAX)
					said[slot][k] = 0;
			}
			break;
		}
		case 1:
			if (far[i][0] >= 0)
				SYS(write, far[i][0], data, data[1]);
			break;
		case 2:
			attach_ready(i * 3 + data[1] / 16 % 3);	/* also without a reason */
			break;
		case 3:
			attach_output(data[1] & 1, (const u8 *)&m, data[1] * 16u);
			for (u32 k = 0; k < ATTACH_MAX; k++)
				if (m.attach[k].used && m.attach[k].fd[1 + (data[1] & 1)] >= 0)
					said[k][1 + (data[1] & 1)] += data[1] * 16u;
			break;
		case 4:
			shut(&far[i][data[1] / 16 % 3]);
			break;
		case 5:
			hear(workload[0]);
			input_room();
			break;
		case 6:
			if (data[1] > 250)
				input_end();
			else if (data[1] > 245)
				attach_output_end(data[1] & 1);
			break;
		}
	}
	u32 used = 0;
	for (u32 i = 0; i < ATTACH_MAX; i++) {
		used += m.attach[i].used;
		for (u32 k = 1; k < 3; k++)
			if (m.attach[i].used && m.attach[i].fd[k] >= 0 && far[i][k] >= 0)
				require(hear(far[i][k]) == said[i][k], "a client has heard everything");
	}
	require(used == m.attached, "attachments are counted");
	input_end();
	attach_output_end(0);
	attach_output_end(1);
	require(m.attached == 0 && m.stdin < 0, "all is over");
	for (u32 i = 0; i < ATTACH_MAX; i++)
		for (u32 k = 0; k < 3; k++)
			shut(&far[i][k]);
	shut(&workload[0]);
	shut(&m.epoll);
}

/* The record of any exit fits, and ends with its sum, here computed by a table. */
static void exit_target(const u8 *data, size_t length)
{
	static const char name[] = "crc32c ";
	struct exit e = { 0 };
	u8 *text = malloc(RECORD_MAX);
	u32 table[256], crc = ~0u, said = 0, at;

	memcpy(&e, data, length < sizeof e ? length : sizeof e);
	u32 n = exit_text(&e, text);
	require(n < RECORD_MAX && text[n - 1] == '\n', "a record of whole lines");
	for (at = n - 1; at > 0 && text[at - 1] != '\n'; at--)
		;
	require(n - at > sizeof name && !memcmp(text + at, name, sizeof name - 1), "the sum is last");
	for (u32 i = at + sizeof name - 1; i < n - 1; i++)
		said = said * 10 + text[i] - '0';
	for (u32 i = 0; i < 256; i++) {
		table[i] = i;
		for (u32 k = 0; k < 8; k++)
			table[i] = table[i] & 1 ? table[i] >> 1 ^ 0x82f63b78u : table[i] >> 1;
	}
	for (u32 i = 0; i < at; i++)
		crc = table[(crc ^ text[i]) & 255] ^ crc >> 8;
	require(said == ~crc, "the sum is right");
	free(text);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t length);
int LLVMFuzzerTestOneInput(const u8 *data, size_t length)
{
	if (length < 2 || length > READ_MAX)
		return 0;
	u8 mode = data[0], more = data[1];
	u8 *copy = malloc(length - 2 + 1);	/* so that reading too far is seen */
	memcpy(copy, data + 2, length - 2);
	u8 *exact = realloc(copy, length - 2 ? length - 2 : 1);
	length -= 2;
	switch (mode % 6) {
	case 0:
		packet_check(exact, (u32)length, more);
		break;
	case 1:
		program_check(exact, length, more % (SLOTS - SLOT_FILES + 1), mode & 8);
		break;
	case 2:
		oom_kills(exact, (u32)length);
		break;
	case 3:
		log_target(exact, length);
		break;
	case 4:
		attach_target(exact, length);
		break;
	case 5:
		exit_target(exact, length);
		break;
	}
	free(exact);
	return 0;
}

#ifdef PLAIN

static u32 next(u64 *state)
{
	*state = *state * 6364136223846793005ul + 1442695040888963407ul;
	return (u32)(*state >> 33);
}

int main(void)
{
	static u8 input[READ_MAX];
	u64 state = 1;

	for (u32 i = 0; i < 4000; i++) {
		u32 length = next(&state) % (i % 8 ? 600 : READ_MAX), newlines = 1 + next(&state) % 200;
		for (u32 k = 0; k < length; k++)
			input[k] = next(&state) % newlines ? (u8)next(&state) : '\n';
		if (i % 2)
			input[0] = i % 4 == 1 ? 3 : 4;
		LLVMFuzzerTestOneInput(input, length);
	}
	puts("ok");
	return 0;
}

#endif
