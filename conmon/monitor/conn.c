/*
 * Connections and their packets. Nothing here waits: a client that does not
 * take its answers loses its connection.
 */
#include "monitor.h"

/* Received descriptors; a handler that keeps one puts -1 in its place. */
struct request {
	const struct packet *p;
	const void *body;
	s32 conn;
	s32 *fd;
	u32 fds;
};

void conn_accept(void)
{
	struct ucred peer = { 0, ~0u, 0 };
	u32 length = sizeof peer, i = 0, room = ANSWERS_ROOM;
	s32 fd = (s32)SYS(accept4, m.listener, 0, 0, O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		return;
	SYS(getsockopt, fd, SOL_SOCKET, SO_PEERCRED, &peer, &length);
	SYS(setsockopt, fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
	while (i < CONNECTIONS_MAX && m.conn[i].fd >= 0)
		i++;
	if (peer.uid != m.uid || i == CONNECTIONS_MAX || failed(watch(fd, EPOLLIN, ON_CONN, i))) {
		shut(&fd);
		return;
	}
	m.conn[i].fd = fd;
	m.conn[i].hello = false;
	m.conns++;
}

/* A container that is not created yet has nobody but the one who asked for it. */
void conn_drop(u32 index)
{
	if (m.conn[index].fd < 0)
		return;
	unwatch(&m.conn[index].fd);
	m.conns--;
	attach_forget((s32)index);
	for (u32 i = 0; i < m.children; i++) {
		struct child *c = &m.child[i];
		if (c->phase == FREE || c->conn != (s32)index)
			continue;
		c->conn = -1;
		if (c->kill_on_hangup || (i == 0 && c->phase == SETUP))
			child_kill(i, SIGKILL);
	}
}

void answer(s32 conn, u16 type, u32 id, const void *body, u32 length)
{
	struct {
		struct packet p;
		u8 body[sizeof(struct status)];
	} a = { { type, type == HELLO_OK ? HELLO_OK_ATTACH : 0, id, (u32)sizeof a.p + length, 0 }, { 0 } };

	if (conn < 0 || m.conn[conn].fd < 0)
		return;
	if (length)
		__builtin_memcpy(a.body, body, length);
	if (SYS(sendto, m.conn[conn].fd, &a, a.p.length, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0) != (long)a.p.length)
		conn_drop((u32)conn);
	else if (type == EXITED)
		m.told = true;
}

void answer_failed(s32 conn, u32 id, u32 where, u32 err, u32 step)
{
	struct failed body = { where, err, step, 0 };

	answer(conn, FAILED, id, &body, sizeof body);
}

void tell_exit(void)
{
	for (s32 i = 0; i < CONNECTIONS_MAX; i++)
		if (m.conn[i].fd >= 0 && m.conn[i].hello)
			answer(i, EXITED, 0, &m.exit, sizeof m.exit);
}

static void hello(const struct request *r)
{
	const struct hello *b = r->body;
	struct hello_ok body = { PROTOCOL_VERSION, m.pid };

	if (b->version_min > PROTOCOL_VERSION || b->version_max < PROTOCOL_VERSION) {
		answer_failed(r->conn, r->p->id, WHERE_PROTOCOL, EPROTONOSUPPORT, 0);
		return;
	}
	m.conn[r->conn].hello = true;
	answer(r->conn, HELLO_OK, r->p->id, &body, sizeof body);
	if (m.state == STATE_EXITED)
		answer(r->conn, EXITED, 0, &m.exit, sizeof m.exit);
}

/* Moves the monitor itself: written by a single thread, "0" costs no grace period. */
static long take_place(const struct request *r, const struct launch *b)
{
	for (u32 i = 0; i < b->place_fds; i++) {
		long n = SYS(write, r->fd[4 + i], "0", 1);
		if (failed(n))
			return n;
	}
	return 0;
}

static s32 take_fd(const struct request *r, u32 index)
{
	s32 fd = r->fd[index];

	r->fd[index] = -1;
	return fd;
}

/* Pipes for the output, read by us without ever waiting. */
static long make_pipes(u16 flags, s32 *stdio)
{
	s32 pair[2];
	long r = 0;

	if (flags & LAUNCH_TERMINAL)
		return 0;
	if (flags & LAUNCH_STDIN) {
		if (failed(r = SYS(pipe2, pair, O_CLOEXEC)))
			return r;
		stdio[0] = pair[0];
		m.stdin = pair[1];
	} else {
		stdio[0] = (s32)SYS(fcntl, 0, F_DUPFD_CLOEXEC, 3);
	}
	for (u32 i = 0; i < 2 && !failed(r); i++) {
		if (failed(r = SYS(pipe2, pair, O_CLOEXEC)))
			return r;
		stdio[1 + i] = pair[1];
		m.stream[i].fd = pair[0];
		SYS(fcntl, pair[0], F_SETFL, O_NONBLOCK);
		r = watch(pair[0], EPOLLIN, ON_STREAM, i);
	}
	return r;
}

static void launch(const struct request *r)
{
	const struct launch *b = r->body;
	struct failed why = { 0 };
	struct spawn s = {
		.program = r->fd[0], .files = r->fd + 4 + b->place_fds, .nfiles = b->program_fds,
		.stdio = { -1, -1, -1 }, .init = -1,
	};
	long err;

	if (m.state != STATE_EMPTY || m.child[0].phase != FREE || m.ending) {
		answer_failed(r->conn, r->p->id, WHERE_STATE, EBUSY, 0);
		return;
	}
	if (failed(err = take_place(r, b))) {
		why = (struct failed){ WHERE_MONITOR, (u32)-err, AT_PLACE, 0 };
	} else if (failed(err = make_pipes(r->p->flags, s.stdio))) {
		why = (struct failed){ WHERE_MONITOR, (u32)-err, AT_PIPE, 0 };
	} else {
		m.exit_dir = take_fd(r, 1);
		m.log = take_fd(r, 2);
		m.oom = take_fd(r, 3);
		m.line_bytes = b->log_line_bytes ? b->log_line_bytes : LINE_DEFAULT;
		m.terminal = r->p->flags & LAUNCH_TERMINAL;
		m.want_stdin = r->p->flags & LAUNCH_STDIN;
		m.child[0].conn = r->conn;
		m.child[0].id = r->p->id;
		if (child_spawn(0, &s, &why))
			m.init_pid = m.child[0].pid;
	}
	for (u32 i = 0; i < 3; i++)
		shut(&s.stdio[i]);
	if (why.where == 0 || m.child[0].phase != FREE)
		return;
	m.ending = true;
	answer_failed(r->conn, r->p->id, why.where, why.err, why.step);
}

static void start(const struct request *r)
{
	if (m.state == STATE_CREATED && m.child[0].phase == READY)
		init_start(r->conn, r->p->id);
	else
		answer_failed(r->conn, r->p->id, WHERE_STATE, m.state == STATE_EXITED ? ESRCH : EBUSY, 0);
}

/* Init, or a process that this very connection has asked for. */
static void kill_child(const struct request *r)
{
	const struct kill *b = r->body;
	u32 i = 0;

	if (b->exec_id)
		for (i = 1; i < m.children; i++)
			if (m.child[i].phase != FREE && m.child[i].conn == r->conn && m.child[i].id == b->exec_id)
				break;
	if (i == CHILDREN || m.child[i].phase == FREE || m.state == STATE_EMPTY) {
		answer_failed(r->conn, r->p->id, WHERE_STATE, ESRCH, 0);
		return;
	}
	long err = SYS(pidfd_send_signal, m.child[i].pidfd, b->signal, 0, 0);
	if (failed(err))
		answer_failed(r->conn, r->p->id, WHERE_MONITOR, (u32)-err, AT_KILL);
	else
		answer(r->conn, OK, r->p->id, 0, 0);
}

static void exec(const struct request *r)
{
	const struct exec *b = r->body;
	struct failed why = { WHERE_MONITOR, EAGAIN, AT_EXECS, 0 };
	struct spawn s = {
		.program = r->fd[0], .files = r->fd + 4, .nfiles = b->program_fds,
		.stdio = { r->fd[1], r->fd[2], r->fd[3] }, .init = m.child[0].pidfd,
	};
	u32 i = 1;

	if (m.state != STATE_RUNNING) {
		answer_failed(r->conn, r->p->id, WHERE_STATE, ESRCH, 0);
		return;
	}
	while (i < CHILDREN && m.child[i].phase != FREE)
		i++;
	if (i < CHILDREN) {
		m.child[i].conn = r->conn;
		m.child[i].id = r->p->id;
		m.child[i].kill_on_hangup = r->p->flags & EXEC_KILL_ON_HANGUP;
		if (child_spawn(i, &s, &why)) {
			m.execs++;
			return;
		}
	}
	answer_failed(r->conn, r->p->id, why.where, why.err, why.step);
}

static void reopen(const struct request *r)
{
	if (m.state == STATE_EMPTY) {
		answer_failed(r->conn, r->p->id, WHERE_STATE, ESRCH, 0);
		return;
	}
	log_flush();
	shut(&m.log);
	m.log = take_fd(r, 0);
	m.torn = false;
	answer(r->conn, OK, r->p->id, 0, 0);
}

static void attach(const struct request *r)
{
	u16 flags = r->p->flags;

	if ((m.state != STATE_CREATED && m.state != STATE_RUNNING) || (flags & ATTACH_STDIN && m.stdin < 0)) {
		answer_failed(r->conn, r->p->id, WHERE_STATE, m.state == STATE_EXITED ? ESRCH : EPIPE, 0);
		return;
	}
	u32 err = attach_add(r->conn, r->p->id, flags, r->fd);
	if (err)
		answer_failed(r->conn, r->p->id, WHERE_MONITOR, err, AT_ATTACH);
	else
		answer(r->conn, OK, r->p->id, 0, 0);
}

static void resize(const struct request *r)
{
	const struct resize *b = r->body;
	struct { u16 rows, columns, x, y; } size = { (u16)b->height, (u16)b->width, 0, 0 };

	if (!m.terminal || m.stream[0].fd < 0) {
		answer_failed(r->conn, r->p->id, WHERE_STATE, ENOTTY, 0);
		return;
	}
	long err = SYS(ioctl, m.stream[0].fd, TIOCSWINSZ, &size);
	if (failed(err))
		answer_failed(r->conn, r->p->id, WHERE_MONITOR, (u32)-err, AT_RESIZE);
	else
		answer(r->conn, OK, r->p->id, 0, 0);
}

static void status(const struct request *r)
{
	struct status body = {
		.state = m.state, .pid = m.state == STATE_EXITED ? 0 : (u32)m.init_pid,
		.created_ns = m.created_ns, .started_ns = m.exit.started_ns,
		.log_bytes = m.log_bytes, .dropped_bytes = m.dropped_bytes, .exit = m.exit,
	};

	answer(r->conn, STATUS_REPLY, r->p->id, &body, sizeof body);
}

static void shutdown(const struct request *r)
{
	if (m.child[0].phase != FREE) {
		answer_failed(r->conn, r->p->id, WHERE_STATE, EBUSY, 0);
		return;
	}
	answer(r->conn, OK, r->p->id, 0, 0);
	m.ending = true;
}

/* 0, or the errno of a packet that is not what it should be. */
u32 packet_check(const u8 *data, u32 length, u32 descriptors)
{
	const struct packet *p = (const void *)data;
	u64 body = 0, fds = 0;
	u16 flags = 0;

	if (length < sizeof *p || p->length != length || p->zero)
		return EPROTO;
	switch (p->type) {
	case HELLO:
		body = sizeof(struct hello);
		break;
	case LAUNCH:
		body = sizeof(struct launch);
		flags = LAUNCH_TERMINAL | LAUNCH_STDIN;
		break;
	case KILL:
		body = sizeof(struct kill);
		break;
	case EXEC:
		body = sizeof(struct exec);
		flags = EXEC_KILL_ON_HANGUP;
		break;
	case ATTACH:
		flags = ATTACH_STDIN | ATTACH_STDOUT | ATTACH_STDERR | ATTACH_CLOSE_STDIN;
		break;
	case RESIZE:
		body = sizeof(struct resize);
		break;
	case START:
	case REOPEN_LOG:
	case STATUS:
	case SHUTDOWN:
		break;
	default:
		return ENOSYS;
	}
	if (length != sizeof *p + body || p->flags & ~flags)
		return EPROTO;
	if (p->type == LAUNCH) {
		const struct launch *b = (const void *)(p + 1);
		fds = 4ul + b->place_fds + b->program_fds;
		if (b->zero || b->log_line_bytes > LINE_MAX || b->program_fds > SLOTS - SLOT_FILES)
			return EPROTO;
	} else if (p->type == EXEC) {
		const struct exec *b = (const void *)(p + 1);
		fds = 4ul + b->program_fds;
		if (b->zero || b->program_fds > SLOTS - SLOT_FILES || p->id == 0)
			return EPROTO;
	} else if (p->type == RESIZE) {
		const struct resize *b = (const void *)(p + 1);
		if (b->width > 0xffff || b->height > 0xffff)
			return EPROTO;
	} else if (p->type == ATTACH) {
		fds = (u64)(p->flags & 1) + (p->flags >> 1 & 1) + (p->flags >> 2 & 1);
		if (fds == 0 || p->id == 0)
			return EPROTO;
	} else if (p->type == REOPEN_LOG) {
		fds = 1;
	}
	return fds == descriptors ? 0 : EPROTO;
}

static void dispatch(const struct request *r)
{
	switch (r->p->type) {
	case HELLO: hello(r); break;
	case LAUNCH: launch(r); break;
	case START: start(r); break;
	case KILL: kill_child(r); break;
	case EXEC: exec(r); break;
	case REOPEN_LOG: reopen(r); break;
	case ATTACH: attach(r); break;
	case RESIZE: resize(r); break;
	case STATUS: status(r); break;
	case SHUTDOWN: shutdown(r); break;
	}
}

void conn_readable(u32 index)
{
	struct iovec iov = { m.received.bytes, sizeof m.received };
	struct msghdr msg = { .iov = &iov, .iovs = 1, .control = &m.control, .control_length = sizeof m.control };
	struct request r = { &m.received.packet, &m.received.packet + 1, (s32)index, m.control.fd, 0 };

	if (m.conn[index].fd < 0)
		return;
	long n = SYS(recvmsg, m.conn[index].fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n == -EAGAIN)
		return;
	if (n <= 0) {
		conn_drop(index);
		return;
	}
	if (msg.control_length >= sizeof m.control.head && m.control.head.type == SCM_RIGHTS)
		r.fds = (u32)((m.control.head.length - sizeof m.control.head) / sizeof(s32));

	u32 err = packet_check(m.received.bytes, (u32)n, r.fds);
	if (msg.flags & (MSG_TRUNC | MSG_CTRUNC))
		err = EPROTO;
	if (!err && !m.conn[index].hello && m.received.packet.type != HELLO)
		err = EPROTO;
	if (err)
		answer_failed((s32)index, n >= (long)sizeof(struct packet) ? m.received.packet.id : 0, WHERE_PROTOCOL, err, 0);
	else
		dispatch(&r);
	for (u32 i = 0; i < r.fds; i++)
		shut(&m.control.fd[i]);
}
