/*
 * The end of init: the truth about it on disk first, then to whoever listens.
 */
#include "monitor.h"

/* Finds "oom_kill N" in memory.events or memory.oom_control. */
u32 oom_kills(const u8 *text, u32 length)
{
	static const char name[] = "oom_kill ";
	const u32 n = sizeof name - 1;

	for (u32 i = 0; i + n < length; i++) {
		u32 k = 0;
		while (k < n && text[i + k] == (u8)name[k])
			k++;
		if (k < n || (i > 0 && text[i - 1] != '\n'))
			continue;
		u64 value = 0;
		for (i += n; i < length && text[i] >= '0' && text[i] <= '9' && value < ~0u; i++)
			value = value * 10 + text[i] - '0';
		return value < ~0u ? (u32)value : ~0u;
	}
	return 0;
}

static u32 oom_read(void)
{
	u8 text[512];
	long n = SYS(pread64, m.oom, text, sizeof text, 0);

	return failed(n) ? 0 : oom_kills(text, (u32)n);
}

static u8 *put(u8 *to, const char *name, u64 value)
{
	u8 number[20], *digit = number + sizeof number;

	while (*name)
		*to++ = (u8)*name++;
	do
		*--digit = (u8)('0' + value % 10);
	while (value /= 10);
	while (digit < number + sizeof number)
		*to++ = *digit++;
	*to++ = '\n';
	return to;
}

/* CRC-32C, bit by bit: it is two hundred bytes, once. */
static u32 crc32c(const u8 *from, const u8 *to)
{
	u32 crc = ~0u;

	while (from < to) {
		crc ^= *from++;
		for (u32 i = 0; i < 8; i++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
	}
	return ~crc;
}

/* The exit record, whose last line is the sum of those before it. */
u32 exit_text(const struct exit *e, u8 text[RECORD_MAX])
{
	u8 *end = text;

	end = put(end, "version ", PROTOCOL_VERSION);
	end = put(end, "code ", e->code);
	end = put(end, "signal ", e->signal);
	end = put(end, "oom_killed ", e->oom_killed);
	end = put(end, "flags ", e->flags);
	end = put(end, "started_ns ", e->started_ns);
	end = put(end, "finished_ns ", e->finished_ns);
	end = put(end, "crc32c ", crc32c(text, end));
	return (u32)(end - text);
}

/* 0 or -errno. */
static long record(const struct exit *e)
{
	u8 text[RECORD_MAX];
	u32 length = exit_text(e, text);

	long fd = SYS(openat, m.exit_dir, "exit.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (failed(fd))
		return fd;
	bool whole = SYS(write, fd, text, length) == (long)length;
	SYS(close, fd);
	return whole ? SYS(renameat, m.exit_dir, "exit.new", m.exit_dir, "exit") : -ENOSPC;
}

/* What a shell would say of a command that could not be run. */
static u32 start_code(u32 err)
{
	switch (err) {
	case ENOENT:
	case ENOTDIR:
		return 127;
	case EACCES:
	case EPERM:
	case ENOEXEC:
	case EISDIR:
	case ELOOP:
	case ETXTBSY:
	case ELIBBAD:
		return 126;
	}
	return 128;
}

/* LAUNCH did not get as far as READY: nothing was created, nothing remains. */
static void launch_failed(struct child *c)
{
	if (c->step_failed)
		answer_failed(c->conn, c->id, WHERE_STEP, c->err, c->step);
	else
		answer_failed(c->conn, c->id, WHERE_MONITOR, oom_read() ? ENOMEM : ECHILD, AT_CHILD);
	m.ending = true;
}

void init_exited(const struct siginfo *info)
{
	struct child *c = &m.child[0];

	c->phase = FREE;
	if (m.state == STATE_EMPTY) {
		launch_failed(c);
		return;
	}
	m.state = STATE_EXITED;
	m.exit.finished_ns = now_ns();
	m.exit.code = (u32)info->status;
	if (info->code != CLD_EXITED) {
		m.exit.signal = m.exit.code;
		m.exit.code += 128;
	}
	if (c->step_failed) {
		m.exit.code = start_code(c->err);
		m.exit.flags |= EXIT_START_FAILED;
	}
	m.exit.oom_killed = oom_read();
	shut(&m.peer);
	stream_drain(0);
	stream_drain(1);
	log_flush();
	long err = record(&m.exit);
	/* Where the directory was removed the container was, and nobody will ask. */
	m.recorded = !failed(err) || err == -ENOENT;
	m.exit.flags |= failed(err) ? EXIT_NO_RECORD : 0;
	shut(&m.oom);
	shut(&m.exit_dir);
	input_end();
	if (c->step_failed)
		answer_failed(c->conn, c->id, WHERE_STEP, c->err, c->step);
	else if (c->conn >= 0)	/* killed between START and execve */
		answer_failed(c->conn, c->id, WHERE_STATE, ESRCH, 0);
	tell_exit();
}
