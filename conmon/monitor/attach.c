/*
 * Attached clients: what they type goes to the workload, what it writes to
 * them. Pipes between them and us are the only buffers. Who reads them keeps up
 * by itself with any client, so a full one means that it has not run: it gets
 * some milliseconds, and has then lost its attachment.
 */
#include "monitor.h"

enum { AT_ONCE = 65536 };

static void attach_over(u32 index, u32 why)
{
	struct attach *a = &m.attach[index];
	struct detached body = { why, 0 };

	if (!a->used)
		return;
	for (u32 k = 0; k < 3; k++)
		unwatch(&a->fd[k]);
	a->used = false;
	m.attached--;
	answer(a->conn, DETACHED, a->id, &body, sizeof body);
}

static void attach_shut(u32 index, u32 k)
{
	struct attach *a = &m.attach[index];

	unwatch(&a->fd[k]);
	if (a->fd[0] < 0 && a->fd[1] < 0 && a->fd[2] < 0)
		attach_over(index, DETACHED_END);
}

/* The workload's input has ended, or nobody reads it any more. */
void input_end(void)
{
	unwatch(&m.stdin);
	m.stdin_full = false;
	for (u32 i = 0; i < ATTACH_MAX; i++)
		if (m.attach[i].used && m.attach[i].fd[0] >= 0)
			attach_shut(i, 0);
}

static void input_done(u32 index)
{
	bool last = m.attach[index].close_stdin;

	attach_shut(index, 0);
	if (last)
		input_end();
}

/* The hang-up of a client that is not read now would wake us again and again: not watched at all. */
static void input_watch(bool full)
{
	m.stdin_full = full;
	if (full)
		watch(m.stdin, EPOLLOUT, ON_STDIN, 0);
	else
		SYS(epoll_ctl, m.epoll, EPOLL_CTL_DEL, m.stdin, 0);
	for (u32 i = 0; i < ATTACH_MAX; i++) {
		if (!m.attach[i].used || m.attach[i].fd[0] < 0)
			continue;
		if (full)
			SYS(epoll_ctl, m.epoll, EPOLL_CTL_DEL, m.attach[i].fd[0], 0);
		else
			watch(m.attach[i].fd[0], EPOLLIN, ON_ATTACH, i * 3);
	}
}

/* There is room for input again. */
void input_room(void)
{
	if (m.stdin_full)
		input_watch(false);
}

static void input_move(u32 index)
{
	struct attach *a = &m.attach[index];

	if (m.stdin_full)	/* since this round's events were taken */
		return;
	long n = SYS(splice, a->fd[0], 0, m.stdin, 0, AT_ONCE, SPLICE_F_NONBLOCK);
	if (n == -EAGAIN)
		input_watch(true);
	else if (n == 0)
		input_done(index);
	else if (n < 0)
		input_end();
}

/* One of an attachment's descriptors can be read, or its far end is gone. */
void attach_ready(u32 which)
{
	u32 index = which / 3, k = which % 3;

	if (!m.attach[index].used || m.attach[index].fd[k] < 0)
		return;
	if (k == 0)
		input_move(index);
	else
		attach_shut(index, k);
}

/* 0, or the errno of what was not taken. */
static long put(s32 fd, const u8 *data, u32 length)
{
	struct pollfd room = { fd, 4 /* POLLOUT */, 0 };

	while (length) {
		struct timespec t = { 0, PATIENCE_NS };
		long n = SYS(write, fd, data, length);
		if (n > 0) {
			data += n;
			length -= (u32)n;
		} else if (n != -EAGAIN || SYS(ppoll, &room, 1, &t, 0, 0) <= 0) {
			return n;
		}
	}
	return 0;
}

void attach_output(u32 index, const u8 *data, u32 length)
{
	for (u32 i = 0; i < ATTACH_MAX && m.attached; i++) {
		struct attach *a = &m.attach[i];
		if (!a->used || a->fd[1 + index] < 0)
			continue;
		long r = put(a->fd[1 + index], data, length);
		if (r == -EPIPE)
			attach_shut(i, 1 + index);
		else if (r < 0)
			attach_over(i, DETACHED_SLOW);
	}
}

void attach_output_end(u32 index)
{
	for (u32 i = 0; i < ATTACH_MAX && m.attached; i++)
		if (m.attach[i].used && m.attach[i].fd[1 + index] >= 0)
			attach_shut(i, 1 + index);
}

/* Whoever asked is gone; the pipes say whether the client is. */
void attach_forget(s32 conn)
{
	for (u32 i = 0; i < ATTACH_MAX; i++)
		if (m.attach[i].used && m.attach[i].conn == conn)
			m.attach[i].conn = -1;
}

/* Takes over the descriptors that flags name; 0, or an errno. */
u32 attach_add(s32 conn, u32 id, u16 flags, s32 *fd)
{
	u32 i = 0;

	while (i < ATTACH_MAX && m.attach[i].used)
		i++;
	if (i == ATTACH_MAX)
		return EAGAIN;
	struct attach *a = &m.attach[i];
	*a = (struct attach){ .fd = { -1, -1, -1 }, .conn = conn, .id = id, .used = true,
			      .close_stdin = flags & ATTACH_CLOSE_STDIN };
	m.attached++;
	for (u32 k = 0; k < 3; k++) {
		if (!(flags & 1 << k))
			continue;
		a->fd[k] = *fd;
		*fd++ = -1;
		SYS(fcntl, a->fd[k], F_SETFL, O_NONBLOCK);
		if (k == 0 && m.stdin_full)
			continue;
		/* Of the outputs only the end is of interest, which is always told. */
		long r = watch(a->fd[k], k ? 0 : EPOLLIN, ON_ATTACH, i * 3 + k);
		if (failed(r)) {
			a->conn = -1;	/* FAILED is the answer */
			attach_over(i, DETACHED_END);
			return (u32)-r;
		}
	}
	return 0;
}
