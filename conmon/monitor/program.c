/*
 * The launch program: checked in full before anything is cloned, then run by
 * the child, which is a copy of this process and nobody else's.
 */
#include "monitor.h"

static bool slot_given(s32 slot, u32 files, bool exec)
{
	return slot == -1 || (exec && slot == SLOT_INIT) ||
	       (slot >= SLOT_FILES && slot < SLOT_FILES + (s32)files);
}

static bool pseudo_check(const struct step *s, u64 left, bool exec)
{
	if (s->data_mask || s->slot_mask || s->save != -1)
		return false;
	switch (s->nr) {
	case OP_JUMP:
		return s->args[0] <= left;
	case OP_FAIL:
		return s->args[0] >= 1 && s->args[0] < 4096;
	case OP_READY:
		return !exec && (s->args[0] == ~0ul || s->args[0] < SLOTS);
	case OP_REAP:
		return !exec;
	case OP_CLOSE:
		return true;
	case OP_CLONE:
		return !exec && !(s->args[0] & ~CLONE_NEW_ANY);
	}
	return false;
}

static bool step_check(const struct step *s, u64 left, u64 data, u64 total, bool exec)
{
	if (s->skip1 > left || s->skip2 > left || (s->data_mask & s->slot_mask))
		return false;
	if (s->data_mask >> ARGS || s->slot_mask >> ARGS)
		return false;
	if (s->flags & ~(STEP_KEEP | STEP_EXACT) || s->save < -1 || s->save >= SLOTS)
		return false;
	if (s->nr >= OP_JUMP)
		return pseudo_check(s, left, exec);
	for (u32 i = 0; i < ARGS; i++) {
		if (s->data_mask >> i & 1 && (s->args[i] < data || s->args[i] > total))
			return false;
		if (s->slot_mask >> i & 1 && s->args[i] >= SLOTS)
			return false;
	}
	return true;
}

/*
 * Steps come before relocations and these before the data, and neither a
 * relocation nor an argument points before the data: no program can change
 * its own steps after this check.
 */
bool program_check(const u8 *base, u64 size, u32 files, bool exec)
{
	const struct program *p = (const void *)base;
	u64 data;

	if (size < sizeof *p || size > PROGRAM_MAX || p->magic != PROGRAM_MAGIC || p->total != size)
		return false;
	if (p->zero || p->reserved || p->slots_used > SLOTS || p->steps == 0)
		return false;
	if (p->clone_flags & ~CLONE_NEW_ANY)
		return false;
	if (!slot_given(p->pidns_slot, files, exec) || !slot_given(p->cgroup_slot, files, exec))
		return false;
	if (p->steps_off % 8 || p->steps_off < sizeof *p || p->steps_off > size)
		return false;
	if (p->steps > (size - p->steps_off) / sizeof(struct step))
		return false;
	data = p->steps_off + p->steps * sizeof(struct step);
	if (p->relocs_off % 8 || p->relocs_off < data || p->relocs_off > size)
		return false;
	if (p->relocs > (size - p->relocs_off) / sizeof(u64))
		return false;
	data = p->relocs_off + p->relocs * sizeof(u64);

	const struct step *s = (const void *)(base + p->steps_off);
	for (u32 i = 0; i < p->steps; i++)
		if (!step_check(&s[i], p->steps - i - 1, data, size, exec))
			return false;
	const u64 *at = (const void *)(base + p->relocs_off);
	for (u32 i = 0; i < p->relocs; i++) {
		if (at[i] % 8 || at[i] < data || at[i] > size || size - at[i] < sizeof(u64))
			return false;
		u64 to = *(const u64 *)(base + at[i]);
		if (to < data || to > size)
			return false;
	}
	return true;
}

/*
 * Maps a program that nobody can change any more: without the seals, its
 * sender could alter it after the check, or cut it short under our feet.
 */
const struct program *program_map(s32 fd, u32 files, bool exec, u32 *err)
{
	long seals = SYS(fcntl, fd, F_GET_SEALS);
	long size = SYS(lseek, fd, 0, SEEK_END);

	*err = EBADMSG;
	if (failed(seals) || (seals & SEALS) != SEALS) {
		*err = EPERM;
		return NULL;
	}
	if (failed(size) || size < (long)sizeof(struct program) || size > PROGRAM_MAX)
		return NULL;
	long base = SYS(mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (failed(base)) {
		*err = (u32)-base;
		return NULL;
	}
	if (!program_check((const u8 *)base, (u64)size, files, exec)) {
		SYS(munmap, base, size);
		return NULL;
	}
	return (const struct program *)base;
}

static _Noreturn void report_failure(s32 report, u32 step, u32 err)
{
	struct report r = { 'E', step, err };

	SYS(write, report, &r, sizeof r);
	leave(127);
}

/* Tells r, with a descriptor if there is one to hand over. */
static long tell(s32 report, struct report r, long with)
{
	struct iovec iov = { &r, sizeof r };
	struct {
		struct cmsghdr head;
		s32 fd;
	} control = { { sizeof control.head + sizeof control.fd, SOL_SOCKET, SCM_RIGHTS }, (s32)with };
	struct msghdr msg = { .iov = &iov, .iovs = 1, .control = &control, .control_length = sizeof control };

	if (with < 0)
		return SYS(write, report, &r, sizeof r);
	return SYS(sendmsg, report, &msg, 0);
}

/*
 * Goes on in a clone, a child of our own parent, in new namespaces that belong to
 * the user namespace we have entered meanwhile: a PID namespace cannot be entered
 * otherwise than by being born in it. The clone waits for our end, so that its
 * parent learns of it before it hears from it.
 */
static long go_on_in_clone(u64 flags, s32 report, bool monitored)
{
	s32 pidfd = -1, end[2];
	u8 none;
	struct clone_args args = { .flags = flags | CLONE_PARENT | CLONE_PIDFD, .pidfd = (u64)&pidfd };

	long r = SYS(pipe2, end, O_CLOEXEC);
	if (failed(r))
		return r;
	r = SYS(clone3, &args, sizeof args);
	if (failed(r))
		return r;
	if (r > 0) {
		struct report say = { 'C', (u32)r, 0 };
		if (failed(tell(report, say, monitored ? pidfd : -1)))
			SYS(pidfd_send_signal, pidfd, SIGKILL, 0, 0);
		leave(0);
	}
	SYS(close, end[1]);
	SYS(read, end[0], &none, 1);
	SYS(close, end[0]);
	return 0;
}

/* Waits for START. When the monitor is gone there is nobody to live for. */
static void await_start(s32 report)
{
	u8 go;

	if (SYS(read, report, &go, 1) != 1)
		leave(127);
}

static long step_call(const struct step *s, u8 *base, const long *slot)
{
	long a[ARGS];

	for (u32 i = 0; i < ARGS; i++) {
		a[i] = (long)s->args[i];
		if (s->data_mask >> i & 1)
			a[i] = (long)(base + s->args[i]);
		else if (s->slot_mask >> i & 1)
			a[i] = slot[s->args[i]];
	}
	if (s->flags & STEP_EXACT) {
		long want = a[ARGS - 1];
		long got = syscall6(s->nr, a[0], a[1], a[2], a[3], a[4], 0);
		return failed(got) || got == want ? got : -EIO;
	}
	return syscall6(s->nr, a[0], a[1], a[2], a[3], a[4], a[5]);
}

_Noreturn void program_run(u8 *base, long *slot, s32 report, bool wait)
{
	const struct program *p = (const void *)base;
	const struct step *s = (const void *)(base + p->steps_off);
	const u64 *at = (const void *)(base + p->relocs_off);
	u32 kept = 0, i;

	for (i = 0; i < p->relocs; i++)
		*(u64 *)(base + at[i]) += (u64)base;
	for (i = 0; i < p->steps; i++) {
		long terminal, result = 0;

		switch (s[i].nr) {
		case OP_JUMP:
			i += (u32)s[i].args[0];
			continue;
		case OP_FAIL:
			report_failure(report, i, kept ? kept : (u32)s[i].args[0]);
		case OP_READY:
			terminal = s[i].args[0] == ~0ul ? -1 : slot[s[i].args[0]];
			result = tell(report, (struct report){ 'R', 0, 0 }, terminal);
			if (!failed(result) && wait)
				await_start(report);
			break;
		case OP_REAP:
			reap_forever();
		case OP_CLOSE:	/* closed before execve looks up a path like /proc/self/fd/N, not by it */
			if (report > 3)
				SYS(close_range, 3, report - 1, 0);
			SYS(close_range, report + 1, ~0u, 0);
			break;
		case OP_CLONE:
			result = go_on_in_clone(s[i].args[0], report, wait);
			break;
		default:
			result = step_call(&s[i], base, slot);
		}
		if (!failed(result)) {
			if (s[i].save >= 0)
				slot[s[i].save] = result;
			continue;
		}
		u64 bit = -result < 64 ? 1ul << -result : 0;
		if (s[i].errnos1 & bit) {
			i += s[i].skip1;
		} else if (s[i].errnos2 & bit) {
			if (s[i].flags & STEP_KEEP)
				kept = (u32)-result;
			i += s[i].skip2;
		} else {
			report_failure(report, i, (u32)-result);
		}
	}
	report_failure(report, p->steps, ENOEXEC);	/* ran off its end */
}
