/*
 * Children: cloned, watched until their execve, reaped.
 */
#include "monitor.h"

static s32 slot_fd(s32 slot, const struct spawn *s)
{
	return slot == SLOT_INIT ? s->init : s->files[slot - SLOT_FILES];
}

/* Children born from here on belong into that namespace; ours is named by m.self. */
static long enter_pidns(s32 fd)
{
	if (m.self < 0) {	/* the way back, opened while it cannot fail half way */
		long self = SYS(pidfd_open, m.pid, 0);
		if (failed(self))
			return self;
		m.self = (s32)self;
	}
	long r = SYS(setns, fd, CLONE_NEWPID);
	if (!failed(r))
		m.astray = fd != m.self;
	return r;
}

/*
 * Leaves the child with what the program names and nothing of ours: a copy of
 * a connection or of the listener would hide our death from the daemon.
 */
static void close_all_but(const long *slot, s32 report)
{
	for (long from = 3;;) {
		long next = report >= from ? report : -1;
		for (u32 i = 0; i < SLOTS; i++)
			if (slot[i] >= from && (next < 0 || slot[i] < next))
				next = slot[i];
		if (next < 0) {
			SYS(close_range, from, ~0u, 0);
			return;
		}
		if (next > from)
			SYS(close_range, from, next - 1, 0);
		from = next + 1;
	}
}

static _Noreturn void become(const struct program *p, const struct spawn *s, s32 report)
{
	long slot[SLOTS];
	u64 none = 0;

	for (u32 i = 0; i < SLOTS; i++)
		slot[i] = -1;
	for (u32 i = 0; i < 3; i++)
		slot[i] = s->stdio[i];
	slot[SLOT_INIT] = s->init;
	for (u32 i = 0; i < s->nfiles; i++)
		slot[SLOT_FILES + i] = s->files[i];
	close_all_but(slot, report);
	SYS(rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
	program_run((u8 *)p, slot, report, true);
}

/* Clones the child, in the PID namespace that the program asks for. */
static long fork_child(struct child *c, const struct program *p, const struct spawn *s, struct failed *why)
{
	struct clone_args args = {
		.flags = p->clone_flags | CLONE_PIDFD,
		.pidfd = (u64)&c->pidfd,
		.exit_signal = SIGCHLD,
	};

	if (p->cgroup_slot >= 0) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (u64)slot_fd(p->cgroup_slot, s);
	}
	if (m.astray || p->pidns_slot >= 0) {
		long r = enter_pidns(p->pidns_slot >= 0 ? slot_fd(p->pidns_slot, s) : m.self);
		if (failed(r)) {
			why->step = AT_PIDNS;
			return r;
		}
	}
	why->step = AT_CLONE;
	long pid = SYS(clone3, &args, sizeof args);
	if (pid != 0 && m.astray)
		enter_pidns(m.self);
	return pid;
}

/* Starts child[index]; its program runs on its own, child_report hears of it. */
bool child_spawn(u32 index, const struct spawn *s, struct failed *why)
{
	struct child *c = &m.child[index];
	s32 pair[2] = { -1, -1 };
	long r;

	why->where = WHERE_PROTOCOL;
	const struct program *p = program_map(s->program, s->nfiles, s->init >= 0, &why->err);
	if (!p)
		return false;
	why->where = WHERE_MONITOR;
	why->step = AT_STATUS_SOCKET;
	r = SYS(socketpair, AF_UNIX, SOCK_SEQPACKET | O_CLOEXEC, 0, pair);
	if (!failed(r)) {
		why->step = AT_WATCH;
		r = watch(pair[0], EPOLLIN, ON_REPORT, index);
	}
	if (!failed(r)) {
		r = fork_child(c, p, s, why);
		if (r == 0)
			become(p, s, pair[1]);
	}
	SYS(munmap, p, p->total);
	shut(&pair[1]);
	if (failed(r)) {
		shut(&pair[0]);
		why->err = (u32)-r;
		return false;
	}
	c->pid = (s32)r;
	c->report = pair[0];
	c->phase = SETUP;
	c->started_ns = 0;
	c->step_failed = false;
	if (index >= m.children)
		m.children = index + 1;
	return true;
}

static s32 report_fd(struct msghdr *msg, const struct cmsghdr *head)
{
	s32 fd = -1;

	if (msg->control_length >= sizeof *head + sizeof fd && head->type == SCM_RIGHTS)
		__builtin_memcpy(&fd, head + 1, sizeof fd);
	return fd;
}

/* Init has run its program up to READY: the container is created. */
static void init_ready(struct child *c, s32 terminal)
{
	struct started body = { .pid = (u32)c->pid, .ns = now_ns() };

	if (terminal >= 0 && m.terminal && m.stream[0].fd < 0) {
		SYS(fcntl, terminal, F_SETFL, O_NONBLOCK);
		m.stream[0].fd = terminal;
		watch(terminal, EPOLLIN, ON_STREAM, 0);
		if (m.want_stdin)	/* another number: it is watched by itself */
			m.stdin = (s32)SYS(fcntl, terminal, F_DUPFD_CLOEXEC, 3);
		/* A workload that closes all of its terminal may open /dev/console again. */
		m.peer = (s32)SYS(ioctl, terminal, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	} else {
		shut(&terminal);
	}
	c->phase = READY;
	m.state = STATE_CREATED;
	m.created_ns = body.ns;
	answer(c->conn, CREATED, c->id, &body, sizeof body);
	c->conn = -1;
}

/* The program goes on in a clone of the child, which then ends: not the end of anything. */
static void child_replaced(struct child *c, u32 pid, s32 pidfd)
{
	shut(&c->pidfd);
	c->pidfd = pidfd;
	c->pid = (s32)pid;
	if (c->conn < 0)	/* who asked was lost, and the child killed, before we knew of this one */
		SYS(pidfd_send_signal, pidfd, SIGKILL, 0, 0);
}

/* The program's end of the socket is gone: execve has succeeded, or the child has died. */
static void report_closed(u32 index)
{
	struct child *c = &m.child[index];
	struct started body = { .pid = (u32)c->pid, .ns = now_ns() };
	bool was_exec = index > 0 && c->phase == SETUP;

	unwatch(&c->report);
	if (c->step_failed || (!was_exec && c->phase != STARTING)) {
		if (index == 0 && c->phase == SETUP)	/* never said READY: nobody may run it */
			SYS(pidfd_send_signal, c->pidfd, SIGKILL, 0, 0);
		return;
	}
	c->phase = RUNNING;
	c->started_ns = body.ns;
	if (index == 0) {
		m.state = STATE_RUNNING;
		m.exit.started_ns = body.ns;
	}
	answer(c->conn, index ? EXEC_STARTED : STARTED, c->id, &body, sizeof body);
	if (index == 0)
		c->conn = -1;
}

void child_report(u32 index)
{
	struct child *c = &m.child[index];
	struct report r;
	struct iovec iov = { &r, sizeof r };
	struct {
		struct cmsghdr head;
		s32 fd, pad;
	} control;
	struct msghdr msg = { .iov = &iov, .iovs = 1, .control = &control, .control_length = sizeof control };

	while (c->report >= 0) {
		msg.control_length = sizeof control;
		long n = SYS(recvmsg, c->report, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n == -EAGAIN)
			return;
		s32 fd = n > 0 ? report_fd(&msg, &control.head) : -1;
		if (n == sizeof r && r.kind == 'R' && index == 0 && c->phase == SETUP) {
			init_ready(c, fd);
			continue;
		}
		if (n == sizeof r && r.kind == 'C' && fd >= 0 && index == 0 && c->phase == SETUP) {
			child_replaced(c, r.step, fd);
			continue;
		}
		shut(&fd);
		if (n == sizeof r && r.kind == 'E') {
			c->step_failed = true;
			c->step = r.step;
			c->err = r.err;
		}
		report_closed(index);
	}
}

void init_start(s32 conn, u32 id)
{
	struct child *c = &m.child[0];

	c->conn = conn;
	c->id = id;
	c->phase = STARTING;
	SYS(sendto, c->report, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
}

void child_kill(u32 index, s32 signal)
{
	SYS(pidfd_send_signal, m.child[index].pidfd, signal, 0, 0);
}

static void exec_exited(struct child *c, const struct siginfo *info)
{
	struct exit body = {
		.code = (u32)info->status,
		.started_ns = c->started_ns,
		.finished_ns = now_ns(),
	};

	if (info->code != CLD_EXITED) {
		body.signal = body.code;
		body.code += 128;
	}
	if (c->step_failed)
		answer_failed(c->conn, c->id, WHERE_STEP, c->err, c->step);
	else
		answer(c->conn, EXEC_EXITED, c->id, &body, sizeof body);
	c->phase = FREE;
	m.execs--;
}

/*
 * The one place where anything is waited for. Others than ours are orphans
 * that came to us as their subreaper.
 */
void children_reap(void)
{
	struct siginfo info;
	u8 drain[128];

	while (SYS(read, m.signals, drain, sizeof drain) > 0)
		;
	for (;;) {
		info.pid = 0;
		if (SYS(waitid, P_ALL, 0, &info, WEXITED | WNOHANG, 0) != 0 || !info.pid)
			return;
		for (u32 i = 0; i < m.children; i++) {
			struct child *c = &m.child[i];
			if (c->phase == FREE || c->pid != info.pid)
				continue;
			child_report(i);	/* its last words, that it started before it ended */
			if (c->pid != info.pid)
				break;	/* a clone has taken its place */
			if (c->report >= 0)
				unwatch(&c->report);
			shut(&c->pidfd);
			if (i == 0)
				init_exited(&info);
			else
				exec_exited(c, &info);
			break;
		}
	}
}
