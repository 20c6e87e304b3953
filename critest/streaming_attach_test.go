package critest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"

	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// interactive gives a container an input.
func interactive(c *runtimeapi.ContainerConfig) { c.Stdin = true }

// terminal gives it a terminal, too.
func terminal(c *runtimeapi.ContainerConfig) { c.Stdin, c.Tty = true, true }

// once ends the container's input with the first client's.
func once(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }

// attachURL asks for the streams that o has.
func (c *container) attachURL(t *testing.T, o remotecommand.StreamOptions) string {
	t.Helper()
	answer, err := raw.Attach(t.Context(), &runtimeapi.AttachRequest{
		ContainerId: c.id, Tty: o.Tty, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
	})
	if err != nil {
		t.Fatal(err)
	}
	return answer.Url
}

// attached is kubectl attached to a container.
type attached struct {
	t              *testing.T
	keyboard       *io.PipeWriter
	stdout, stderr *screen
	sizes          terminalSizes
	leave          context.CancelFunc
	ended          <-chan error
}

// attach connects a client with all streams that the container has.
func (c *container) attach(t *testing.T, transport string) *attached {
	t.Helper()
	stdin, keyboard := io.Pipe()
	a := &attached{t: t, keyboard: keyboard, stdout: &screen{}, stderr: &screen{}, sizes: make(terminalSizes, 4)}
	o := remotecommand.StreamOptions{Stdin: stdin, Stdout: a.stdout, Stderr: a.stderr}
	if c.config.Tty {
		o.Stderr, o.Tty, o.TerminalSizeQueue = nil, true, a.sizes
	}
	address := c.attachURL(t, o)
	var ctx context.Context
	ctx, a.leave = context.WithCancel(t.Context())
	ended := make(chan error, 1)
	a.ended = ended
	go func() {
		ended <- stream(ctx, transport, address, o)
		stdin.Close()
		close(ended)
	}()
	t.Cleanup(func() {
		a.leave()
		<-ended
		close(a.sizes)
	})
	return a
}

func (a *attached) types(text string) {
	a.t.Helper()
	if _, err := io.WriteString(a.keyboard, text); err != nil {
		a.t.Fatal(err)
	}
}

// echoes waits until the container answers this client: it is attached then.
func (a *attached) echoes(word string) {
	a.t.Helper()
	a.types(word + "\n")
	a.stdout.await(a.t, "out "+word+"\n")
}

const echoScript = `while read -r x; do echo "out $x"; echo "err $x" >&2; done; echo over; exit 5`

// What one client types is seen by all, and logged; they come and go.
func TestAttach(t *testing.T) {
	begin(t)
	eachTransport(t, func(t *testing.T, transport string) {
		c := run(t).start(echoScript, interactive)
		one, two := c.attach(t, transport), c.attach(t, transport)
		one.echoes("1")
		two.echoes("2")
		one.stdout.await(t, "out 2\n")
		one.stderr.await(t, "err 2\n")
		one.leave()
		if err := <-one.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("a client that has left: %v", err)
		}
		two.echoes("3")
		again := c.attach(t, transport)
		again.echoes("4")
		two.stdout.await(t, "out 4\n")
		if got := again.stdout.String(); strings.Contains(got, "3") {
			t.Errorf("output from before it was attached: %q", got)
		}
		two.keyboard.Close() // the end of a client's input is not the container's
		again.echoes("5")
		two.stdout.await(t, "out 5\n")
		c.prints("out 5")
		c.stop(0)
		for _, a := range []*attached{two, again} {
			if err := <-a.ended; err != nil {
				t.Errorf("the container's end: %v", err)
			}
		}
		if r := c.wait(); r.stdout != "out 1\nout 2\nout 3\nout 4\nout 5\n" || r.stderr != "err 1\nerr 2\nerr 3\nerr 4\nerr 5\n" || r.code != 137 {
			t.Errorf("%+v", r)
		}
	})
}

func TestAttachStdinOnce(t *testing.T) {
	begin(t)
	eachTransport(t, func(t *testing.T, transport string) {
		c := run(t).start(echoScript, once)
		a := c.attach(t, transport)
		a.echoes("1")
		a.keyboard.Close()
		if err := <-a.ended; err != nil {
			t.Error(err)
		}
		if r := c.wait(); r.code != 5 || r.stdout != "out 1\nover\n" || !strings.HasSuffix(a.stdout.String(), "over\n") {
			t.Errorf("%+v; the client saw %q", r, a.stdout)
		}
	})
}

func TestAttachTerminal(t *testing.T) {
	begin(t)
	eachTransport(t, func(t *testing.T, transport string) {
		c := run(t).start("exec sh -i", terminal)
		a := c.attach(t, transport)
		a.sizes <- remotecommand.TerminalSize{Width: 91, Height: 33}
		a.types("until [ \"$(stty size)\" = '33 91' ]; do :; done; echo first-$(stty size)\n")
		a.stdout.await(t, "first-33 91")
		a.sizes <- remotecommand.TerminalSize{Width: 120, Height: 50}
		a.types("until [ \"$(stty size)\" = '50 120' ]; do :; done; echo second-$(stty size)\n")
		a.stdout.await(t, "second-50 120")
		a.leave()
		<-a.ended
		b := c.attach(t, transport)
		b.types("echo again-$((1+1))\n")
		b.stdout.await(t, "again-2")
		b.types("exit 7\n")
		if err := <-b.ended; err != nil {
			t.Error(err)
		}
		if r := c.wait(); r.code != 7 {
			t.Errorf("code %d, want 7", r.code)
		}
	})
}

// A client that takes nothing is in nobody's way: the container goes on, its log
// is complete and other clients see everything.
func TestAttachFrozenClient(t *testing.T) {
	begin(t)
	const rounds, size = 40, 1_000_000 // more than all buffers on the way hold
	eachTransport(t, func(t *testing.T, transport string) {
		c := run(t).start(fmt.Sprintf(`while read x; do yes %099d | head -n %d; done; exit 3`, 0, size/100), once)
		way := newWay(t, c.attachURL(t, remotecommand.StreamOptions{Stdout: io.Discard}))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			ended <- stream(ctx, transport, way.address, remotecommand.StreamOptions{Stdout: io.Discard})
		}()
		way.await(t)
		way.freeze()
		other := c.attach(t, transport)
		for i := range rounds {
			other.types("go\n")
			await(t, "output at the other client", func() bool { return len(other.stdout.String()) == (i+1)*size })
		}
		other.keyboard.Close()
		if r := c.wait(); r.code != 3 || len(r.stdout) != rounds*size {
			t.Errorf("code %d, %d bytes in the log", r.code, len(r.stdout))
		}
		way.cut()
		cancel()
		<-ended
	})
}

// Containers outlive the daemon; clients come back to its successor.
func TestAttachAfterRestart(t *testing.T) {
	begin(t)
	differs(t, "its shim keeps streams of its own")
	eachTransport(t, func(t *testing.T, transport string) {
		p := run(t)
		c, tty := p.start(echoScript, interactive), p.start("exec sh -i", terminal)
		before := c.attach(t, transport)
		before.echoes("1")
		restart(t, syscall.SIGKILL, func() {
			<-before.ended // SPDY cannot tell it from any other end
		})
		after := c.attach(t, transport)
		after.echoes("2")
		screen := tty.attach(t, transport)
		screen.types("echo again-$((1+1))\n")
		screen.stdout.await(t, "again-2")
		c.prints("out 2")
	})
}
