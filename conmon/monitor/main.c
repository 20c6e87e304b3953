/*
 * The monitor: one container's launcher, parent, log writer and exec server.
 * It decides nothing; the daemon's packets and programs say what to do.
 */
#include "monitor.h"

struct monitor m __attribute__((aligned(PAGE)));

enum { LISTENER_FD = 3, IDLE_MS = 1000, EVENTS = 16, TIMER_SLACK = 50000 /* ns, the kernel's default */ };

u64 now_ns(void)
{
	struct timespec t = { 0, 0 };

	SYS(clock_gettime, CLOCK_REALTIME, &t);
	return (u64)t.sec * 1000000000ul + (u64)t.nsec;
}

_Noreturn void leave(int code)
{
	for (;;)
		SYS(exit_group, code);
}

void shut(s32 *fd)
{
	if (*fd >= 0)
		SYS(close, *fd);
	*fd = -1;
}

long watch(s32 fd, u32 events, enum source source, u32 index)
{
	struct epoll_event e = { events, (u64)source << 32 | index };

	return SYS(epoll_ctl, m.epoll, EPOLL_CTL_ADD, fd, &e);
}

/* A child may hold a copy for a moment, so closing alone would leave it watched. */
void unwatch(s32 *fd)
{
	if (*fd >= 0)
		SYS(epoll_ctl, m.epoll, EPOLL_CTL_DEL, *fd, 0);
	shut(fd);
}

/*
 * No signal moves the monitor, and none is ignored: ignored signals would stay
 * so in the workload, as would whatever the daemon was started with.
 */
static void reset_signals(void)
{
	u64 all = ~0ul;

	SYS(rt_sigprocmask, SIG_SETMASK, &all, 0, sizeof all);
	for (int i = 1; i <= SIGNALS; i++) {
		struct sigaction a = { .flags = i == SIGCHLD ? SA_NOCLDSTOP : 0 };
		SYS(rt_sigaction, i, &a, 0, sizeof a.mask);
	}
}

static bool set_up(void)
{
	u64 child = 1ul << (SIGCHLD - 1);

	reset_signals();
	SYS(setsid, 0);
	m.listener = LISTENER_FD;
	m.self = m.exit_dir = m.oom = m.stdin = m.peer = m.log = -1;
	m.stream[0].fd = m.stream[1].fd = -1;
	for (u32 i = 0; i < CONNECTIONS_MAX; i++)
		m.conn[i].fd = -1;
	log_start();
	m.uid = (u32)SYS(getuid, 0);
	m.pid = (u32)SYS(getpid, 0);
	m.epoll = (s32)SYS(epoll_create1, O_CLOEXEC);
	m.signals = (s32)SYS(signalfd4, -1, &child, sizeof child, O_CLOEXEC | O_NONBLOCK);
	SYS(fcntl, m.listener, F_SETFL, O_NONBLOCK);
	SYS(prctl, PR_SET_NAME, "cri-monitor");
	SYS(prctl, PR_SET_DUMPABLE, 0);
	SYS(prctl, PR_SET_CHILD_SUBREAPER, 1);
	SYS(prctl, PR_SET_TIMERSLACK, TIMER_SLACK);	/* the daemon's is none of the workload's business */
	return !failed(watch(m.listener, EPOLLIN, ON_LISTENER, 0)) && !failed(watch(m.signals, EPOLLIN, ON_SIGNAL, 0));
}

static void handle(u64 data)
{
	u32 index = (u32)data;

	switch ((enum source)(data >> 32)) {
	case ON_LISTENER:
		conn_accept();
		break;
	case ON_SIGNAL:
		children_reap();
		break;
	case ON_CONN:
		conn_readable(index);
		break;
	case ON_STREAM:
		stream_read(index);
		break;
	case ON_REPORT:
		child_report(index);
		break;
	case ON_ATTACH:
		attach_ready(index);
		break;
	case ON_STDIN:
		input_room();
		break;
	}
}

/* Nothing is left to do; an exit that could not be recorded waits for a listener. */
static bool finished(void)
{
	if (m.ending)
		return m.child[0].phase == FREE;
	if (m.state == STATE_EMPTY)
		return m.conns == 0 && m.child[0].phase == FREE;
	return m.state == STATE_EXITED && m.stream[0].fd < 0 && m.stream[1].fd < 0 &&
	       m.execs == 0 && (m.recorded || m.told);
}

static bool same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

int monitor_main(int argc, char **argv)
{
	struct epoll_event event[EVENTS];
	int timeout = 0;	/* a daemon that wants us is connected already */

	if (argc > 0 && same(argv[0], "cri-pause"))
		return pause_main(argc, argv);
	if (!set_up())
		return 1;
	do {
		long n = SYS(epoll_pwait, m.epoll, event, EVENTS, timeout, 0, 8);
		for (long i = 0; i < n; i++)
			handle(event[i].data);
		log_flush();
		if (n == 0 && m.idle_memory)
			log_trim();
		timeout = m.idle_memory ? IDLE_MS : -1;
	} while (!finished());
	for (u32 i = 1; i < m.children; i++)
		if (m.child[i].phase != FREE)
			child_kill(i, SIGKILL);
	return 0;
}
