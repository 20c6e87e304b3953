package conmon

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// The header is what monitors are compiled from; this package repeats it.
func TestHeaderConstants(t *testing.T) {
	text, err := os.ReadFile("monitor/protocol.h")
	if err != nil {
		t.Fatal(err)
	}
	header := map[string]uint64{}
	for _, m := range regexp.MustCompile(`(?m)^\t([A-Z][A-Z0-9_]*) = (0x[0-9a-f]+|[0-9]+)\b`).FindAllStringSubmatch(string(text), -1) {
		n, err := strconv.ParseUint(m[2], 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		header[m[1]] = n
	}
	want := map[string]uint64{
		"PROTOCOL_VERSION": protocolVersion, "PACKET_MAX": packetMax, "DESCRIPTORS_MAX": descriptorsMax,
		"LINE_MAX": lineMax, "SLOTS": slots, "SLOT_FILES": slotFiles,
		"HELLO": typeHello, "HELLO_OK": typeHelloOK, "LAUNCH": typeLaunch, "CREATED": typeCreated,
		"START": typeStart, "STARTED": typeStarted, "KILL": typeKill, "EXEC": typeExec,
		"EXEC_STARTED": typeExecStarted, "EXEC_EXITED": typeExecExited, "REOPEN_LOG": typeReopenLog,
		"STATUS": typeStatus, "STATUS_REPLY": typeStatusReply, "SHUTDOWN": typeShutdown,
		"EXITED": typeExited, "OK": typeOK, "FAILED": typeFailed,
		"ATTACH": typeAttach, "DETACHED": typeDetached, "RESIZE": typeResize,
		"HELLO_OK_ATTACH": helloOKAttach, "ATTACH_STDIN": attachStdin, "ATTACH_STDOUT": attachStdout,
		"ATTACH_STDERR": attachStderr, "ATTACH_CLOSE_STDIN": attachCloseStdin,
		"DETACHED_END": detachedEnd, "DETACHED_SLOW": detachedSlow,
		"LAUNCH_TERMINAL": launchTerminal, "LAUNCH_STDIN": launchStdin, "EXEC_KILL_ON_HANGUP": execKillOnHangup,
		"EXIT_START_FAILED": exitStartFailed, "EXIT_NO_RECORD": exitNoRecord,
		"WHERE_PROTOCOL": whereProtocol, "WHERE_MONITOR": whereMonitor, "WHERE_STEP": whereStep, "WHERE_STATE": whereState,
		"AT_PLACE": atPlace, "AT_PROGRAM": atProgram, "AT_PIPE": atPipe, "AT_STATUS_SOCKET": atStatusSocket,
		"AT_PIDNS": atPIDNS, "AT_CLONE": atClone, "AT_WATCH": atWatch, "AT_CHILD": atChild, "AT_KILL": atKill, "AT_EXECS": atExecs,
		"AT_ATTACH": atAttach, "AT_RESIZE": atResize,
		"STATE_EMPTY": uint64(StateEmpty), "STATE_CREATED": uint64(StateCreated),
		"STATE_RUNNING": uint64(StateRunning), "STATE_EXITED": uint64(StateExited),
		// Used by this package's tests only.
		"OP_JUMP": opJump, "OP_FAIL": opFail, "OP_READY": opReady, "OP_REAP": opReap, "OP_CLOSE": opClose, "OP_CLONE": opClone,
		"STEP_KEEP": flagKeep, "STEP_EXACT": flagExact,
		// Limits that only the monitor needs to know.
		"CONNECTIONS_MAX": 64, "ATTACH_MAX": 16, "EXECS_MAX": 256, "LINE_DEFAULT": 16384, "SLOT_INIT": 3, "ARGS": 6,
	}
	delete(header, "PROGRAM_MAX") // an expression
	for name, n := range want {
		if got, ok := header[name]; !ok || got != n {
			t.Errorf("%s is %d (%v) in the header, %d here", name, got, ok, n)
		}
		delete(header, name)
	}
	for name := range header {
		t.Errorf("%s of the header is not known here", name)
	}
}

func TestHeaderLayout(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("needs a C compiler")
	}
	want := map[string]int{
		"sizeof(struct packet)": headerSize, "sizeof(struct hello)": helloSize, "sizeof(struct hello_ok)": helloSize,
		"sizeof(struct launch)": launchSize, "sizeof(struct started)": startedSize, "sizeof(struct kill)": killSize,
		"sizeof(struct exec)": execSize, "sizeof(struct exit)": exitSize, "sizeof(struct status)": statusSize,
		"sizeof(struct failed)": failedSize, "sizeof(struct detached)": detachedSize, "sizeof(struct resize)": resizeSize, "sizeof(struct report)": reportSize,
		"sizeof(struct program)": programHeader, "sizeof(struct step)": programStep,
		"offsetof(struct packet, flags)": 2, "offsetof(struct packet, id)": 4,
		"offsetof(struct packet, length)": 8, "offsetof(struct packet, zero)": 12,
		"offsetof(struct hello, version_max)": 4, "offsetof(struct hello_ok, monitor_pid)": 4,
		"offsetof(struct launch, log_line_bytes)": 4, "offsetof(struct launch, place_fds)": 8,
		"offsetof(struct started, ns)": 8, "offsetof(struct kill, exec_id)": 4,
		"offsetof(struct resize, height)": 4, "offsetof(struct failed, err)": 4, "offsetof(struct failed, step)": 8,
		"offsetof(struct exit, signal)": 4, "offsetof(struct exit, oom_killed)": 8, "offsetof(struct exit, flags)": 12,
		"offsetof(struct exit, started_ns)": 16, "offsetof(struct exit, finished_ns)": 24,
		"offsetof(struct status, pid)": 4, "offsetof(struct status, created_ns)": 8,
		"offsetof(struct status, started_ns)": 16, "offsetof(struct status, log_bytes)": 24,
		"offsetof(struct status, dropped_bytes)": 32, "offsetof(struct status, exit)": 40,
		"offsetof(struct report, step)": 4, "offsetof(struct report, err)": 8,
		"offsetof(struct program, steps)": 16, "offsetof(struct program, steps_off)": 24,
		"offsetof(struct program, relocs_off)": 32, "offsetof(struct program, clone_flags)": 40,
		"offsetof(struct program, pidns_slot)": 48, "offsetof(struct program, slots_used)": 56,
		"offsetof(struct step, errnos1)": 8, "offsetof(struct step, skip1)": 24, "offsetof(struct step, save)": 28,
		"offsetof(struct step, flags)": 30, "offsetof(struct step, args)": 32,
	}
	var source strings.Builder
	source.WriteString("#include <stddef.h>\n#include \"protocol.h\"\n")
	for expression, n := range want {
		source.WriteString("_Static_assert(" + expression + " == " + strconv.Itoa(n) + ", \"" + expression + "\");\n")
	}
	file := filepath.Join(t.TempDir(), "layout.c")
	if err := os.WriteFile(file, []byte(source.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(testContext(t), cc, "-fsyntax-only", "-Imonitor", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestPacketRoundTrip(t *testing.T) {
	p := packet{kind: typeFailed, id: 77, body: words(whereStep, 2, 30, 0)}
	got, err := decodePacket(p.encode(nil))
	if err != nil || got.kind != p.kind || got.id != p.id || !bytes.Equal(got.body, p.body) {
		t.Error(got, err)
	}
	if f := got.failed(); *f != (failed{whereStep, 2, 30}) {
		t.Error(f)
	}
}

func FuzzDecodePacket(f *testing.F) {
	f.Add((&packet{kind: typeOK, id: 1}).encode(nil))
	f.Add((&packet{kind: typeStatusReply, id: 1, body: make([]byte, statusSize)}).encode(nil))
	f.Add([]byte{17, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodePacket(b)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Error(err)
			}
			return
		}
		switch p.kind { // what is decoded must not reach beyond the packet
		case typeStatusReply:
			_ = p.status().State.String()
		case typeExited, typeExecExited:
			_ = decodeExit(p.body)
		case typeFailed:
			if p.failed().failure(nil).Error() == "" {
				t.Error("no text")
			}
		case typeCreated, typeStarted, typeExecStarted:
			p.started()
		}
	})
}

func TestStepError(t *testing.T) {
	tests := map[string]string{
		"mount /proc (step 31 of 74)": "mount /proc: operation not permitted (step 31 of 74)",
		"the end":                     "the end: operation not permitted",
		"":                            ": operation not permitted",
	}
	for name, want := range tests {
		e := &StepError{Name: name, Errno: 1}
		if e.Error() != want {
			t.Errorf("%q, want %q", e, want)
		}
	}
}
