/*
 * What the parts of the monitor share. One process, one thread, one container.
 */
#ifndef MONITOR_H
#define MONITOR_H

#include "protocol.h"
#include "sys.h"

enum {
	READ_MAX = 65536,
	PAGE = 4096,
	LINE_HEAD = 40,		/* "2006-01-02T15:04:05.123456789Z stdout F " */
	CHUNK = 16,		/* copying and searching may run over the end by this much */
	FLUSH_AT = 131072,	/* short lines of one read fit in below it */
	PIPE_SIZE = 262144,	/* of a busy workload */
	OUT_SIZE = FLUSH_AT + LINE_MAX + PAGE,
	IN_SIZE = LINE_MAX + READ_MAX + PAGE,
};

enum phase {
	FREE = 0,
	SETUP,		/* runs its program */
	READY,		/* init only: waits for START */
	STARTING,	/* init only: START was sent on */
	RUNNING,	/* execve succeeded */
};

struct child {
	s32 pid;
	s32 pidfd;
	s32 report;	/* our end of the socket between us and the program, -1: closed */
	s32 conn;	/* who asked and is told, -1: nobody any more */
	u32 id;		/* the request's */
	u8 phase;
	bool kill_on_hangup;
	bool step_failed;
	u32 step, err;
	u64 started_ns;
};

struct stream {
	s32 fd;		/* -1: at its end */
	u32 held;	/* bytes of an unfinished line at the start of in */
	bool wide;	/* was busy once */
};

struct attach {
	s32 fd[3];	/* -1: not wanted, or at its end */
	s32 conn;	/* who asked and is told, -1: nobody any more */
	u32 id;
	bool used, close_stdin;
};

struct conn {
	s32 fd;		/* -1: free */
	bool hello;
};

enum source { ON_LISTENER, ON_SIGNAL, ON_CONN, ON_STREAM, ON_REPORT, ON_ATTACH, ON_STDIN };

enum { CHILDREN = 1 + EXECS_MAX };

/* For the two answers of each process, a KiB each in the kernel: a slow reader of those is not hung up on. */
enum { ANSWERS_ROOM = CHILDREN * 2 * 1024 };

struct monitor {
	s32 listener, epoll, signals, self;
	u32 uid, pid;
	u8 state;
	bool terminal, ending, recorded, told;
	bool astray;		/* children would be born in a PID namespace that is not ours */
	bool stdin_full;	/* and watched */
	bool want_stdin;
	u32 conns, execs, attached;
	u32 children;		/* how much of child[] was ever used */
	s32 exit_dir, oom;
	s32 stdin;		/* the workload's, our end */
	s32 peer;		/* the terminal's slave: it stays open while init lives */
	s32 init_pid;
	u64 created_ns;
	struct exit exit;

	s32 log;
	u32 line_bytes;
	bool torn;		/* the log ends within a line */
	bool idle_memory;	/* buffers hold pages that idling need not keep */
	u32 out_length;
	u64 log_bytes, dropped_bytes;

	/* What was received last; here, so that an idle monitor needs one page. */
	union {
		struct packet packet;
		u8 bytes[PACKET_MAX];
	} received;
	struct {
		struct cmsghdr head;
		s32 fd[DESCRIPTORS_MAX + 1];
	} control;

	u8 line_head[LINE_HEAD];
	struct stream stream[2];
	struct conn conn[CONNECTIONS_MAX];
	struct attach attach[ATTACH_MAX];
	struct child child[CHILDREN];	/* 0: the container's init */
};

extern struct monitor m;

/* main.c */
int monitor_main(int argc, char **argv);
u64 now_ns(void);
long watch(s32 fd, u32 events, enum source source, u32 index);
void unwatch(s32 *fd);
void shut(s32 *fd);
_Noreturn void leave(int code);

/* conn.c */
void conn_accept(void);
void conn_readable(u32 index);
void conn_drop(u32 index);
void answer(s32 conn, u16 type, u32 id, const void *body, u32 length);
void answer_failed(s32 conn, u32 id, u32 where, u32 err, u32 step);
void tell_exit(void);
u32 packet_check(const u8 *data, u32 length, u32 descriptors);

/* attach.c */
u32 attach_add(s32 conn, u32 id, u16 flags, s32 *fd);
void attach_ready(u32 which);
void attach_output(u32 index, const u8 *data, u32 length);
void attach_output_end(u32 index);
void attach_forget(s32 conn);
void input_room(void);
void input_end(void);

/* child.c */
struct spawn {
	s32 program;
	const s32 *files;
	u32 nfiles;
	s32 stdio[3];
	s32 init;	/* pidfd for SLOT_INIT, -1 for init itself */
};
bool child_spawn(u32 index, const struct spawn *spawn, struct failed *why);
void child_report(u32 index);
void children_reap(void);
void child_kill(u32 index, s32 signal);
void init_start(s32 conn, u32 id);

/* exit.c */
void init_exited(const struct siginfo *info);
u32 oom_kills(const u8 *text, u32 length);
enum { RECORD_MAX = 192 };
u32 exit_text(const struct exit *e, u8 text[RECORD_MAX]);

/* program.c */
bool program_check(const u8 *base, u64 size, u32 files, bool exec);
const struct program *program_map(s32 fd, u32 files, bool exec, u32 *err);
_Noreturn void program_run(u8 *base, long *slot, s32 report, bool wait);

/* pause.c */
_Noreturn void reap_forever(void);
int pause_main(int argc, char **argv);

/* log.c */
void log_start(void);
bool stream_read(u32 index);
void stream_drain(u32 index);
void stream_line(u32 index, const u8 *data, u32 length);
void stream_end(u32 index);
void log_flush(void);
void log_trim(void);

#endif
