package critest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"k8s.io/client-go/tools/remotecommand"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// way lies between one client and the daemon's streams, and can be cut.
type way struct {
	address string // where the client finds it
	server  chan *net.TCPConn
	there   *net.TCPConn // the connection to the daemon, once await has returned
	frozen  atomic.Bool  // nothing is taken from the daemon any more
	stopped chan struct{}
	sent    atomic.Int64 // bytes to the daemon
	got     atomic.Int64 // bytes from it
}

// newWay makes a way to the URL of a stream.
func newWay(t *testing.T, address string) *way {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	daemon := u.Host
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u.Host = l.Addr().String()
	w := &way{address: u.String(), server: make(chan *net.TCPConn, 1), stopped: make(chan struct{})}
	go func() {
		defer close(w.stopped)
		client, err := l.Accept()
		if err != nil {
			return
		}
		defer client.Close()
		there, err := net.Dial("tcp", daemon)
		if err != nil {
			return
		}
		w.server <- there.(*net.TCPConn)
		back := make(chan struct{})
		go func() {
			defer close(back)
			w.carry(client, there, &w.got, &w.frozen)
		}()
		w.carry(there, client, &w.sent, &atomic.Bool{})
		<-back
	}()
	t.Cleanup(func() {
		l.Close()
		if w.there != nil {
			w.there.Close()
		}
		<-w.stopped
	})
	return w
}

// carry copies until an end or, from its next read on, for as long as it is frozen.
func (w *way) carry(to io.WriteCloser, from io.Reader, count *atomic.Int64, frozen *atomic.Bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if frozen.Load() {
			return // what is read from now on stays in the kernel
		}
		if _, writeErr := to.Write(buf[:n]); writeErr != nil || err != nil {
			to.Close()
			return
		}
		count.Add(int64(n))
	}
}

// await waits for the client.
func (w *way) await(t *testing.T) {
	t.Helper()
	w.there = <-w.server
	await(t, "an answer to the client", func() bool { return w.got.Load() > 0 })
}

func (w *way) freeze() { w.frozen.Store(true) }

// cut breaks the connection as the end of a client's process does: with a reset
// if anything that it has not read is there.
func (w *way) cut() { w.there.Close() }

// reset breaks the connection whatever there is.
func (w *way) reset() {
	_ = w.there.SetLinger(0)
	w.there.Close()
}

// goroutines counts those of the daemon.
func goroutines(t *testing.T) int {
	t.Helper()
	text := control(t, "/debug/pprof/goroutine?debug=1")
	found := regexp.MustCompile(`total (\d+)`).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("no number of goroutines in %.200q", text)
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// control reads a page of the control socket.
func control(t *testing.T, path string) string {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(node.Dir, "state", "control.sock"))
	}}
	resp, err := (&http.Client{Transport: transport}).Get("http://control" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// descriptors counts the daemon's open files, and the terminals among them.
func descriptors(t *testing.T) (all, terminals int) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", node.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.Contains(to, "ptmx") {
			terminals++
		}
	}
	return len(links), terminals
}

// A client whose connection breaks takes its command along, also with input that
// the command has not read, or output that the client has not: no process, terminal,
// descriptor or goroutine is left.
func TestExecConnectionBreaks(t *testing.T) {
	begin(t)
	differs(t, "it lets the commands of clients that vanish run")
	c := run(t).start("sleep 1000")
	for _, transport := range transports { // what is made once and kept
		if err := c.execStream(transport, remotecommand.StreamOptions{Stdout: io.Discard, Stdin: strings.NewReader("x")}, "true"); err != nil {
			t.Fatal(err)
		}
	}
	before := goroutines(t)
	files, _ := descriptors(t)
	// More than the daemon holds for a command, but not more than the kernel does.
	unread := func() io.Reader { return io.MultiReader(bytes.NewReader(make([]byte, 400<<10)), blocked{}) }
	quiet := func() io.Reader { return blocked{} }
	for _, test := range []struct {
		name, script string
		stdin        func() io.Reader
		tty, freeze  bool
		sent         int64
		end          func(*way)
	}{
		{name: "reset", script: "exec sleep 4711", stdin: quiet, end: (*way).reset},
		{name: "reset, terminal", script: "exec sleep 4711", stdin: quiet, tty: true, end: (*way).reset},
		{name: "reset, unread input", script: "exec sleep 4711", stdin: unread, sent: 400 << 10, end: (*way).reset},
		{name: "closed, unread input", script: "exec sleep 4711", stdin: unread, sent: 400 << 10, end: (*way).cut},
		{name: "closed, unread output", script: "yes; exec sleep 4711", stdin: quiet, freeze: true, end: (*way).cut},
		{name: "reset, unread output", script: "yes; exec sleep 4711", stdin: quiet, tty: true, freeze: true, end: (*way).reset},
	} {
		t.Run(test.name, func(t *testing.T) {
			eachTransport(t, func(t *testing.T, transport string) {
				shows := &first{text: "here", seen: make(chan struct{})}
				o := remotecommand.StreamOptions{Stdin: test.stdin(), Stdout: shows, Tty: test.tty}
				w := newWay(t, c.execURL(o, "sh", "-c", "echo here; "+test.script))
				ended := make(chan error, 1)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() { ended <- stream(ctx, transport, w.address, o) }()
				w.await(t)
				<-shows.seen
				if test.freeze {
					w.freeze()
				}
				await(t, "the input at the daemon", func() bool { return w.sent.Load() >= test.sent })
				test.end(w)
				cancel() // the client does not notice by itself
				<-ended
				await(t, "the command's end", func() bool { return !alive(t, "sleep 4711") && !alive(t, "yes") })
				var now, open, terminals int
				if err := harness.Until(t.Context(), patience, "the daemon to be as before", func() bool {
					now = goroutines(t)
					open, terminals = descriptors(t)
					return now <= before && open <= files && terminals == 0
				}); err != nil {
					t.Errorf("%v: %d goroutines, before %d; %d descriptors, before %d; %d terminals", err, now, before, open, files, terminals)
				}
			})
		})
	}
}
