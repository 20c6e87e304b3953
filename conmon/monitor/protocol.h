/*
 * The wire protocol between daemon and monitor; ../PROTOCOL.md explains it.
 * Everything here is frozen: an old monitor outlives the daemon that started it.
 */
#ifndef PROTOCOL_H
#define PROTOCOL_H

#include <stdint.h>

enum {
	PROTOCOL_VERSION = 1,
	PACKET_MAX = 256,	/* no packet is longer */
	DESCRIPTORS_MAX = 253,	/* the kernel's limit for one message */
	CONNECTIONS_MAX = 64,
	ATTACH_MAX = 16,	/* attachments at one time */
	EXECS_MAX = 256,	/* exec processes that live at one time */
	LINE_MAX = 65536,	/* upper limit of log_line_bytes */
	LINE_DEFAULT = 16384,
};

enum type {
	HELLO = 1,
	HELLO_OK = 2,
	LAUNCH = 3,
	CREATED = 4,
	START = 5,
	STARTED = 6,
	KILL = 7,
	EXEC = 8,
	EXEC_STARTED = 9,
	EXEC_EXITED = 10,
	REOPEN_LOG = 11,
	STATUS = 12,
	STATUS_REPLY = 13,
	SHUTDOWN = 14,
	EXITED = 15,
	OK = 16,
	FAILED = 17,
	ATTACH = 18,
	DETACHED = 19,
	RESIZE = 20,
};

enum flag {
	HELLO_OK_ATTACH = 1,	/* knows ATTACH and RESIZE */
	LAUNCH_TERMINAL = 1,
	LAUNCH_STDIN = 2,
	EXEC_KILL_ON_HANGUP = 1,
	ATTACH_STDIN = 1,
	ATTACH_STDOUT = 2,
	ATTACH_STDERR = 4,
	ATTACH_CLOSE_STDIN = 8,
	EXIT_START_FAILED = 1,
	EXIT_NO_RECORD = 2,
};

enum detached_why {
	DETACHED_END = 0,
	DETACHED_SLOW = 1,
};

enum where {
	WHERE_PROTOCOL = 1,
	WHERE_MONITOR = 2,
	WHERE_STEP = 3,
	WHERE_STATE = 4,
};

/* What the monitor itself was doing when where is WHERE_MONITOR. */
enum monitor_step {
	AT_PLACE = 1,
	AT_PROGRAM = 2,
	AT_PIPE = 3,
	AT_STATUS_SOCKET = 4,
	AT_PIDNS = 5,
	AT_CLONE = 6,
	AT_WATCH = 7,
	AT_CHILD = 8,	/* the child ended before it was ready, saying nothing */
	AT_KILL = 9,
	AT_EXECS = 10,	/* EXECS_MAX are running */
	AT_ATTACH = 11,
	AT_RESIZE = 12,
};

enum state {
	STATE_EMPTY = 0,
	STATE_CREATED = 1,
	STATE_RUNNING = 2,
	STATE_EXITED = 3,
};

struct packet {
	uint16_t type;
	uint16_t flags;
	uint32_t id;
	uint32_t length;
	uint32_t zero;
};

struct hello {
	uint32_t version_min;
	uint32_t version_max;
};

struct hello_ok {
	uint32_t version;
	uint32_t monitor_pid;
};

struct launch {
	uint32_t program_fds;
	uint32_t log_line_bytes;
	uint32_t place_fds;
	uint32_t zero;
};

struct started {	/* CREATED, STARTED, EXEC_STARTED */
	uint32_t pid;
	uint32_t zero;
	uint64_t ns;
};

struct kill {
	uint32_t signal;
	uint32_t exec_id;
};

struct exec {
	uint32_t program_fds;
	uint32_t zero;
};

struct exit {
	uint32_t code;
	uint32_t signal;
	uint32_t oom_killed;
	uint32_t flags;
	uint64_t started_ns;
	uint64_t finished_ns;
};

struct status {
	uint32_t state;
	uint32_t pid;
	uint64_t created_ns;
	uint64_t started_ns;
	uint64_t log_bytes;
	uint64_t dropped_bytes;
	struct exit exit;
};

struct failed {
	uint32_t where;
	uint32_t err;
	uint32_t step;
	uint32_t zero;
};

struct detached {
	uint32_t why;
	uint32_t zero;
};

struct resize {
	uint32_t width;
	uint32_t height;
};

#define PROGRAM_MAGIC 0x31474f5250495243ul	/* "CRIPROG1" */

enum {
	SLOTS = 256,
	SLOT_INIT = 3,
	SLOT_FILES = 8,
	ARGS = 6,
	PROGRAM_MAX = 64 << 20,

	STEP_KEEP = 1,
	STEP_EXACT = 2,

	OP_JUMP = 0x10000,
	OP_FAIL = 0x10001,
	OP_READY = 0x10002,
	OP_REAP = 0x10003,
	OP_CLOSE = 0x10004,
	OP_CLONE = 0x10005,
};

struct program {
	uint64_t magic;
	uint64_t total;
	uint32_t steps;
	uint32_t relocs;
	uint64_t steps_off;
	uint64_t relocs_off;
	uint64_t clone_flags;
	int32_t pidns_slot;
	int32_t cgroup_slot;
	uint32_t slots_used;
	uint32_t zero;
	uint64_t reserved;
};

struct step {
	uint32_t nr;
	uint16_t data_mask;
	uint16_t slot_mask;
	uint64_t errnos1;
	uint64_t errnos2;
	uint16_t skip1;
	uint16_t skip2;
	int16_t save;
	uint16_t flags;
	uint64_t args[ARGS];
};

/* What a program says while it runs: to the monitor, or on cri-pause's pipe. */
struct report {
	uint32_t kind;	/* 'R': ready, 'E': a step failed, 'C': a clone goes on */
	uint32_t step;	/* 'C': the clone's pid */
	uint32_t err;
};

#endif
