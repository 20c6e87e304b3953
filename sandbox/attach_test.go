package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// interactive runs a container with stdin, and with a terminal and stdin_once as wanted.
func (f *fixture) interactive(name string, change func(*runtimeapi.ContainerConfig), command ...string) *Container {
	f.t.Helper()
	b, err := f.store.Run(context.Background(), f.podConfig("pod", runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER), "")
	if err != nil {
		f.t.Fatal(err)
	}
	config := containerConfig(name, runtimeapi.NamespaceMode_CONTAINER, command...)
	config.Stdin = true
	if change != nil {
		change(config)
	}
	c, err := b.CreateContainer(context.Background(), config, f.image)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := c.Start(context.Background()); err != nil {
		f.t.Fatal(err)
	}
	return c
}

const echoLines = `while read -r x; do echo "out $x"; echo "err $x" >&2; done; echo end`

// session attaches k until the context's end and returns how it ended.
func session(ctx context.Context, c *Container, k *client) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- c.Attach(ctx, k.streams) }()
	return ended
}

func TestAttachSeveralClients(t *testing.T) {
	f := setUp(t)
	c := f.interactive("c", nil, "sh", "-c", echoLines)
	ctx, leave := context.WithCancel(testContext(t))
	one, two := newClient(t, false), newClient(t, false)
	endOne, endTwo := session(ctx, c, one), session(testContext(t), c, two)
	// Each has seen what the other typed, so both are attached.
	for one.stdout.String() == "" || two.stdout.String() == "" {
		one.say(t, "ping\n")
		two.say(t, "ping\n")
	}
	one.say(t, "1\n")
	two.stdout.await(t, "out 1\n")
	two.stderr.await(t, "err 1\n")
	leave()
	if err := <-endOne; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	two.say(t, "2\n")
	two.stdout.await(t, "out 2\n")
	two.stdin.Close() // without stdin_once the container's stdin stays open
	three := newClient(t, false)
	endThree := session(testContext(t), c, three)
	three.say(t, "3\n")
	two.stdout.await(t, "out 3\n")
	if err := c.kill(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-endTwo, <-endThree); err != nil {
		t.Error(err)
	}
	if !two.stdout.closed || !two.stderr.closed || !strings.HasSuffix(two.stdout.String(), "out 3\n") {
		t.Errorf("%q, closed %v", two.stdout, two.stdout.closed)
	}
}

// With stdin_once the first input that ends is the last one.
func TestAttachStdinOnce(t *testing.T) {
	f := setUp(t)
	once := func(c *runtimeapi.ContainerConfig) { c.StdinOnce = true }
	c := f.interactive("c", once, "sh", "-c", echoLines+"; exit 3")
	out := newSink()
	if err := c.Attach(testContext(t), Streams{Stdin: strings.NewReader("1\n"), Stdout: out}); err != nil {
		t.Error(err)
	}
	if st := f.await(c); st.ExitCode != 3 || out.String() != "out 1\nend\n" {
		t.Errorf("code %d, %q", st.ExitCode, out)
	}
	if err := c.Attach(testContext(t), Streams{Stdout: newSink()}); !errors.Is(err, ErrState) {
		t.Error("attach to what has exited:", err)
	}

	// A client that leaves has ended its input too.
	c = f.interactive("d", once, "sh", "-c", echoLines+"; sleep 1000")
	ctx, leave := context.WithCancel(testContext(t))
	k := newClient(t, false)
	ended := session(ctx, c, k)
	k.say(t, "1\n")
	k.stdout.await(t, "out 1\n")
	watcher := newClient(t, false)
	watcher.streams.Stdin = nil
	watching := session(testContext(t), c, watcher)
	leave()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	awaitLog(t, c, "stdout F end\n")
	if err := c.Attach(testContext(t), Streams{Stdin: strings.NewReader("x"), Stdout: newSink()}); !errors.Is(err, ErrState) {
		t.Error("stdin is closed:", err)
	}
	if err := c.kill(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := <-watching; err != nil {
		t.Error(err)
	}
}

// awaitLog waits until a container's log holds text.
func awaitLog(t *testing.T, c *Container, text string) {
	t.Helper()
	for ctx := testContext(t); ; {
		log, err := os.ReadFile(c.Status().LogPath)
		if err != nil || ctx.Err() != nil {
			t.Fatalf("no %q in %q: %v", text, log, err)
		}
		if strings.Contains(string(log), text) {
			return
		}
	}
}

// A terminal goes on when its client leaves and when the daemon is another.
func TestAttachTerminalSurvivesRestart(t *testing.T) {
	f := setUp(t)
	c := f.interactive("c", func(c *runtimeapi.ContainerConfig) { c.Tty, c.StdinOnce = true, true },
		"sh", "-c", `busybox stty -echo; busybox tty; ls -l /dev/console; x=start; while echo "got $x"; do read -r x || exit; eval "$x"; done`)
	first := newClient(t, true)
	ctx, leave := context.WithCancel(testContext(t))
	ended := session(ctx, c, first)
	first.resize <- TerminalSize{Width: 100, Height: 40}
	first.say(t, "until [ \"$(busybox stty size)\" = '40 100' ]; do :; done; echo sized\n")
	first.stdout.await(t, "sized\r\n")
	leave()
	<-ended
	f.restart()
	c, err := f.store.Container(c.id)
	if err != nil {
		t.Fatal(err)
	}
	second := newClient(t, true)
	ended = session(testContext(t), c, second)
	second.say(t, "busybox stty size; echo hello > /dev/console; exit 5\n")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := second.stdout.String(); !strings.HasSuffix(got, "40 100\r\nhello\r\n") {
		t.Errorf("%q", got)
	}
	if st := f.await(c); st.ExitCode != 5 {
		t.Error(st.ExitCode)
	}
	log, err := os.ReadFile(c.Status().LogPath)
	if err != nil || strings.Contains(string(log), "stderr") {
		t.Error(err)
	}
	for _, want := range []string{"stdout F /dev/pts/0\r\n", "136,", "stdout F got start\r\n", "stdout F sized\r\n", "stdout F hello\r\n"} {
		if !strings.Contains(string(log), want) {
			t.Errorf("no %q in %s", want, log)
		}
	}
}

// A client that takes nothing is given up; container, log and others go on.
func TestAttachFrozenClient(t *testing.T) {
	f := setUp(t)
	c := f.interactive("c", nil, "sh", "-c", "read x; busybox seq 1 3000000; echo done; sleep 1000")
	never, w := io.Pipe()
	defer never.Close()
	frozen := make(chan error, 1)
	r, in := io.Pipe()
	go func() { frozen <- c.Attach(testContext(t), Streams{Stdin: r, Stdout: w}) }()
	if _, err := io.WriteString(in, "go\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-frozen; !errors.Is(err, ErrSlow) {
		t.Error(err)
	}
	awaitLog(t, c, "stdout F done\n")
	in.Close()
}

func TestAttachRefused(t *testing.T) {
	f := setUp(t)
	c := f.run(f.pod(), "c", "sleep", "1000")
	if err := c.Attach(testContext(t), Streams{Stdin: strings.NewReader(""), Stdout: newSink()}); !errors.Is(err, ErrState) {
		t.Error(err)
	}
}

// Exits in a pod are known at once: one container's process ends all the
// others, which share its PID namespace, and each has its own code.
func TestExitsInAPod(t *testing.T) {
	f := setUp(t)
	b, err := f.store.Run(testContext(t), f.podConfig("pod", runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_POD), "")
	if err != nil {
		t.Fatal(err)
	}
	start := func(name, script string) *Container {
		c, err := b.CreateContainer(testContext(t), containerConfig(name, runtimeapi.NamespaceMode_POD, "sh", "-c", script), f.image)
		if err == nil {
			err = c.Start(testContext(t))
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := start("first", "sleep 1000; :")
	var all []*Container
	var sessions []<-chan error
	for i := range 12 {
		c := start(fmt.Sprint("c", i), fmt.Sprintf("trap 'exit %d' TERM; echo up; while :; do sleep 2000 & wait; done", i+1))
		awaitLog(t, c, "up")
		k := newClient(t, false)
		k.streams.Stdin = nil
		all, sessions = append(all, c), append(sessions, session(testContext(t), c, k))
	}
	f.exec(first, "sh", "-c", "kill $(ps | busybox awk '/trap .exit/ && !/awk/ { print $1 }')")
	for i, c := range all {
		if st := f.await(c); st.ExitCode != int32(i+1) {
			t.Errorf("container %d: code %d, %s", i, st.ExitCode, st.Reason)
		}
		if err := <-sessions[i]; err != nil && !errors.Is(err, ErrState) { // it may have come too late
			t.Error(err)
		}
	}
	if s := first.Status().State; s != stateRunning {
		t.Error(s)
	}
}
