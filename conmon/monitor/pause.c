/*
 * cri-pause: PID 1 of a PID namespace that the containers of a pod share.
 * It holds the namespace open and buries orphans.
 */
#include "monitor.h"

enum { PROGRAM_FD = 3, REPORT_FD = 4, FIRST_FILE_FD = 5 };

/* A namespace's init gets no signal it does not take; blocked, they wait to be taken. */
static void become_pause(void)
{
	u64 all = ~0ul;

	SYS(rt_sigprocmask, SIG_SETMASK, &all, 0, sizeof all);
	SYS(prctl, PR_SET_NAME, "cri-pause");
	SYS(prctl, PR_SET_DUMPABLE, 0);
}

_Noreturn void reap_forever(void)
{
	u64 mask = 1ul << (SIGCHLD - 1) | 1ul << (SIGTERM - 1) | 1ul << (SIGINT - 1);
	struct siginfo info;

	become_pause();
	SYS(close_range, 3, ~0u, 0);	/* the far end of the report pipe sees the end */
	for (;;) {
		do
			info.pid = 0;
		while (SYS(waitid, P_ALL, 0, &info, WEXITED | WNOHANG, 0) == 0 && info.pid);
		long signal = SYS(rt_sigtimedwait, &mask, 0, 0, sizeof mask);
		if (signal == SIGTERM || signal == SIGINT)
			leave(0);
	}
}

static u32 count(const char *digits)
{
	u32 n = 0;

	while (*digits >= '0' && *digits <= '9' && n < SLOTS)
		n = n * 10 + (u32)(*digits++ - '0');
	return n;
}

int pause_main(int argc, char **argv)
{
	u32 files = argc > 1 ? count(argv[1]) : 0, err = EINVAL;
	const struct program *p = NULL;
	long slot[SLOTS];

	become_pause();
	if (files <= SLOTS - SLOT_FILES)
		p = program_map(PROGRAM_FD, files, false, &err);
	if (!p) {
		struct report r = { 'E', ~0u, err };
		SYS(write, REPORT_FD, &r, sizeof r);
		return 127;
	}
	for (u32 i = 0; i < SLOTS; i++)
		slot[i] = -1;
	for (u32 i = 0; i < 3; i++)
		slot[i] = i;
	for (u32 i = 0; i < files; i++)
		slot[SLOT_FILES + i] = FIRST_FILE_FD + (long)i;
	program_run((u8 *)p, slot, REPORT_FD, false);
}
