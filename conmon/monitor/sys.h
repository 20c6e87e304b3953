/*
 * The kernel's interface, as far as the monitor uses it: there is no libc.
 */
#ifndef SYS_H
#define SYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t s32;
typedef int64_t s64;

#if defined(__x86_64__)

enum {
	NR_read = 0, NR_write = 1, NR_close = 3, NR_lseek = 8, NR_mmap = 9,
	NR_munmap = 11, NR_rt_sigaction = 13, NR_rt_sigprocmask = 14, NR_ioctl = 16,
	NR_pread64 = 17, NR_madvise = 28, NR_getpid = 39, NR_sendto = 44,
	NR_sendmsg = 46, NR_recvmsg = 47, NR_socketpair = 53,
	NR_setsockopt = 54, NR_getsockopt = 55, NR_fcntl = 72, NR_getuid = 102, NR_setsid = 112,
	NR_rt_sigtimedwait = 128, NR_prctl = 157, NR_clock_gettime = 228,
	NR_exit_group = 231, NR_epoll_ctl = 233, NR_waitid = 247,
	NR_openat = 257, NR_renameat = 264, NR_ppoll = 271, NR_splice = 275, NR_epoll_pwait = 281,
	NR_accept4 = 288, NR_signalfd4 = 289, NR_epoll_create1 = 291,
	NR_pipe2 = 293, NR_setns = 308,
};

static inline long syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

#define EPOLL_PACKED __attribute__((packed))

#elif defined(__aarch64__)

enum {
	NR_epoll_create1 = 20, NR_epoll_ctl = 21, NR_epoll_pwait = 22,
	NR_fcntl = 25, NR_ioctl = 29, NR_renameat = 38, NR_openat = 56, NR_close = 57,
	NR_pipe2 = 59, NR_lseek = 62, NR_read = 63, NR_write = 64,
	NR_pread64 = 67, NR_ppoll = 73, NR_splice = 76, NR_signalfd4 = 74, NR_exit_group = 94,
	NR_waitid = 95, NR_clock_gettime = 113, NR_rt_sigaction = 134,
	NR_rt_sigprocmask = 135, NR_rt_sigtimedwait = 137, NR_setsid = 157,
	NR_prctl = 167, NR_getpid = 172, NR_getuid = 174,
	NR_socketpair = 199, NR_sendto = 206, NR_setsockopt = 208, NR_getsockopt = 209,
	NR_sendmsg = 211, NR_recvmsg = 212, NR_munmap = 215, NR_mmap = 222,
	NR_madvise = 233, NR_accept4 = 242, NR_setns = 268,
};

static inline long syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
}

#define EPOLL_PACKED

#else
#error "no system call numbers for this architecture"
#endif

enum {	/* the same everywhere */
	NR_pidfd_send_signal = 424, NR_pidfd_open = 434, NR_clone3 = 435,
	NR_close_range = 436,
};

#define SYS_PAD(nr, a, b, c, d, e, f, ...) \
	syscall6(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
/* SYS(read, fd, p, n): result, or -errno. */
#define SYS(name, ...) SYS_PAD(NR_##name, __VA_ARGS__, 0, 0, 0, 0, 0, 0)

static inline bool failed(long result)
{
	return (u64)result > -4096ul;
}

enum {
	ENOENT = 2, ESRCH = 3, EIO = 5, ENOEXEC = 8, ECHILD = 10, EAGAIN = 11,
	ENOMEM = 12, EACCES = 13, EBUSY = 16, ENOTDIR = 20, EINVAL = 22, ENOTTY = 25, EPIPE = 32,
	EISDIR = 21, ETXTBSY = 26, ENOSPC = 28, ENOSYS = 38, ELOOP = 40, EPROTO = 71, EBADMSG = 74,
	ELIBBAD = 80, EPERM = 1, EPROTONOSUPPORT = 93,

	O_RDWR = 02, O_WRONLY = 01, O_CREAT = 0100, O_TRUNC = 01000,
	O_NONBLOCK = 04000, O_NOCTTY = 0400, O_CLOEXEC = 02000000,
	TIOCSWINSZ = 0x5414, TIOCGPTPEER = 0x5441, SPLICE_F_NONBLOCK = 2,
	F_SETFL = 4, F_DUPFD_CLOEXEC = 1030, F_SETPIPE_SZ = 1031, F_GET_SEALS = 1034,
	SEALS = 2 | 4 | 8,	/* SHRINK, GROW, WRITE */
	SEEK_END = 2,

	PROT_READ = 1, PROT_WRITE = 2, MAP_PRIVATE = 2, MADV_DONTNEED = 4,

	PR_SET_DUMPABLE = 4, PR_SET_NAME = 15, PR_SET_TIMERSLACK = 29, PR_SET_CHILD_SUBREAPER = 36,

	SIGINT = 2, SIGKILL = 9, SIGTERM = 15, SIGCHLD = 17, SIGNALS = 64,
	SIG_SETMASK = 2, SA_NOCLDSTOP = 1,

	P_ALL = 0, WEXITED = 4, WNOHANG = 1, CLD_EXITED = 1,

	EPOLLIN = 1, EPOLLOUT = 4, EPOLL_CTL_ADD = 1, EPOLL_CTL_DEL = 2, EPOLL_CTL_MOD = 3,

	AF_UNIX = 1, SOCK_SEQPACKET = 5, SOL_SOCKET = 1, SO_PEERCRED = 17, SO_SNDBUFFORCE = 32,
	SCM_RIGHTS = 1, MSG_CTRUNC = 8, MSG_TRUNC = 0x20, MSG_DONTWAIT = 0x40,
	MSG_NOSIGNAL = 0x4000, MSG_CMSG_CLOEXEC = 0x40000000,

	CLOCK_REALTIME = 0,
};

#define CLONE_NEWPID 0x20000000ul
#define CLONE_PIDFD 0x1000ul
#define CLONE_PARENT 0x8000ul
#define CLONE_INTO_CGROUP 0x200000000ul
/* NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET */
#define CLONE_NEW_ANY (0x80ul | 0x20000ul | 0x2000000ul | 0x7c000000ul)

struct clone_args {
	u64 flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
		set_tid, set_tid_size, cgroup;
};

struct epoll_event {
	u32 events;
	u64 data;
} EPOLL_PACKED;

struct iovec {
	void *base;
	u64 length;
};

struct msghdr {
	void *name;
	u32 name_length;
	struct iovec *iov;
	u64 iovs;
	void *control;
	u64 control_length;
	u32 flags;
};

struct cmsghdr {
	u64 length;
	s32 level;
	s32 type;
};

struct ucred {
	s32 pid;
	u32 uid;
	u32 gid;
};

struct siginfo {	/* as waitid fills it in */
	s32 signo, error, code, pad, pid;
	u32 uid;
	s32 status;
	s32 rest[25];
};

struct sigaction {
	u64 handler, flags, restorer, mask;
};

struct pollfd { s32 fd; int16_t events, revents; };

struct timespec {
	s64 sec;
	s64 nsec;
};

#endif
