package critest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// transports are the two ways in which kubectl's own client speaks.
var transports = []string{"SPDY", "WebSocket"}

// eachTransport runs a test over both.
func eachTransport(t *testing.T, test func(t *testing.T, transport string)) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			if transport == "WebSocket" {
				differs(t, "its WebSocket knows no v5.channel.k8s.io")
			}
			test(t, transport)
		})
	}
}

// stream connects to the URL of an Exec or Attach and waits for its end.
func stream(ctx context.Context, transport, address string, o remotecommand.StreamOptions) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	config := &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	var e remotecommand.Executor
	if transport == "SPDY" {
		e, err = remotecommand.NewSPDYExecutor(config, http.MethodPost, u)
	} else {
		e, err = remotecommand.NewWebSocketExecutor(config, http.MethodGet, address)
	}
	if err != nil {
		return err
	}
	return e.StreamWithContext(ctx, o)
}

// execURL asks for the streams that o has.
func (c *container) execURL(o remotecommand.StreamOptions, command ...string) string {
	c.t.Helper()
	answer, err := raw.Exec(c.t.Context(), &runtimeapi.ExecRequest{
		ContainerId: c.id, Cmd: command, Tty: o.Tty,
		Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return answer.Url
}

func (c *container) execStream(transport string, o remotecommand.StreamOptions, command ...string) error {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*patience)
	defer cancel()
	return stream(ctx, transport, c.execURL(o, command...), o)
}

// exitCode is what a client makes of the end of a stream.
func exitCode(t *testing.T, err error) int {
	t.Helper()
	var exit utilexec.CodeExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	}
	t.Fatal(err)
	return -1
}

func TestExecStreams(t *testing.T) {
	begin(t)
	c := run(t).start("sleep 1000")
	eachTransport(t, func(t *testing.T, transport string) {
		for _, test := range []struct {
			name, script, stdin string
			code                int
			stdout, stderr      string
		}{
			{"success", "true", "", 0, "", ""},
			{"both outputs", "echo out; echo err >&2", "", 0, "out\n", "err\n"},
			{"code", "echo x; exit 3", "", 3, "x\n", ""},
			{"code 255", "exit 255", "", 255, "", ""},
			{"signal", "kill -9 $$", "", 137, "", ""},
			{"end of input", "cat; echo end", "a\nb\n", 0, "a\nb\nend\n", ""},
			{"input that nobody reads", "exit 4", strings.Repeat("x", 1<<20), 4, "", ""},
			{"no terminal", "test -t 0 || echo none", "", 0, "none\n", ""},
			{"a child holds the output", "sleep 1000 & echo parent", "", 0, "parent\n", ""},
		} {
			t.Run(test.name, func(t *testing.T) {
				var stdout, stderr bytes.Buffer
				o := remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr}
				if test.stdin != "" {
					o.Stdin = strings.NewReader(test.stdin)
				}
				code := exitCode(t, c.execStream(transport, o, "sh", "-c", test.script))
				if code != test.code || stdout.String() != test.stdout || stderr.String() != test.stderr {
					t.Errorf("code %d, %q, %q", code, stdout.String(), stderr.String())
				}
			})
		}
		t.Run("missing command", func(t *testing.T) {
			err := c.execStream(transport, remotecommand.StreamOptions{Stdout: io.Discard}, "/no/such/thing")
			var exit utilexec.CodeExitError
			if err == nil || errors.As(err, &exit) && exit.Code != 126 && exit.Code != 127 {
				t.Errorf("%v, want an error or code 126 or 127", err)
			}
		})
	})
	if c.status().State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Error("the container has ended")
	}
	c.exec(0, "sh", "-c", "pkill sleep; true")
}

// What goes in comes out, every byte, at full speed in both directions.
func TestExecStreamsLargeData(t *testing.T) {
	begin(t)
	c := run(t).start("sleep 1000")
	data := make([]byte, 32<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	eachTransport(t, func(t *testing.T, transport string) {
		var stdout bytes.Buffer
		o := remotecommand.StreamOptions{Stdin: bytes.NewReader(data), Stdout: &stdout}
		if err := c.execStream(transport, o, "cat"); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(stdout.Bytes(), data) {
			t.Errorf("%d bytes came back of %d, or others", stdout.Len(), len(data))
		}
	})
}

// terminalSizes gives a client its terminal's sizes.
type terminalSizes chan remotecommand.TerminalSize

func (s terminalSizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

// screen is what a terminal shows, and can be waited on.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *screen) await(t *testing.T, text string) {
	t.Helper()
	await(t, fmt.Sprintf("%q on the screen", text), func() bool { return strings.Contains(s.String(), text) })
}

func TestExecTerminal(t *testing.T) {
	begin(t)
	c := run(t).start("sleep 1000")
	eachTransport(t, func(t *testing.T, transport string) {
		stdin, keyboard := io.Pipe()
		defer keyboard.Close()
		sizes := make(terminalSizes, 4)
		defer close(sizes)
		shows := &screen{}
		o := remotecommand.StreamOptions{Stdin: stdin, Stdout: shows, Tty: true, TerminalSizeQueue: sizes}
		ended := make(chan error, 1)
		sizes <- remotecommand.TerminalSize{Width: 91, Height: 33}
		go func() { ended <- c.execStream(transport, o, "sh") }()
		types := func(line string) {
			t.Helper()
			if _, err := io.WriteString(keyboard, line+"\n"); err != nil {
				t.Fatal(err)
			}
		}
		types("until [ \"$(stty size)\" = '33 91' ]; do :; done; tty; echo first-$(stty size)")
		shows.await(t, "first-33 91")
		shows.await(t, "/dev/pts/")
		sizes <- remotecommand.TerminalSize{Width: 120, Height: 50}
		types("until [ \"$(stty size)\" = '50 120' ]; do :; done; echo second-$(stty size)")
		shows.await(t, "second-50 120")
		types("echo runs-$((3+4)); sleep 1000")
		shows.await(t, "runs-7")                                    // the terminal is not the shell's line editor's any more
		if _, err := io.WriteString(keyboard, "\x03"); err != nil { // ^C goes to the foreground alone
			t.Fatal(err)
		}
		types("echo still-$((1+1))")
		shows.await(t, "still-2")
		types("exit 7")
		if code := exitCode(t, <-ended); code != 7 {
			t.Errorf("code %d, want 7", code)
		}
	})
}

func TestHundredsOfExecStreams(t *testing.T) {
	begin(t)
	const sessions = 200
	c := run(t).start("sleep 1000")
	eachTransport(t, func(t *testing.T, transport string) {
		var all sync.WaitGroup
		for i := range sessions {
			all.Go(func() {
				var stdout bytes.Buffer
				want := fmt.Sprintf("session %d\n", i)
				o := remotecommand.StreamOptions{Stdin: strings.NewReader(want), Stdout: &stdout, Stderr: io.Discard}
				err := c.execStream(transport, o, "sh", "-c", "cat; exit $1", "sh", fmt.Sprint(i%5))
				var exit utilexec.CodeExitError
				if i%5 != 0 && (!errors.As(err, &exit) || exit.Code != i%5) || i%5 == 0 && err != nil || stdout.String() != want {
					t.Errorf("session %d: %v, %q", i, err, stdout.String())
				}
			})
		}
		all.Wait()
	})
}

// A client that goes away takes its command along: the clean-up of begin finds
// no process, no cgroup and no descriptor of the daemon left.
func TestExecClientVanishes(t *testing.T) {
	begin(t)
	differs(t, "it lets the commands of clients that vanish run")
	c := run(t).start("sleep 1000")
	eachTransport(t, func(t *testing.T, transport string) {
		for _, test := range []struct {
			name   string
			script string
			o      remotecommand.StreamOptions
		}{
			{"silent", "echo here; exec sleep 4711", remotecommand.StreamOptions{}},
			{"busy", "echo here; yes; sleep 4711", remotecommand.StreamOptions{}},
			{"with input", "echo here; cat; sleep 4711", remotecommand.StreamOptions{Stdin: blocked{}}},
			{"terminal", "echo here; exec sleep 4711", remotecommand.StreamOptions{Stdin: blocked{}, Tty: true}},
			{"ignores everything", "trap '' HUP TERM INT PIPE; echo here; while :; do sleep 4711; done", remotecommand.StreamOptions{Stdin: blocked{}, Tty: true}},
		} {
			t.Run(test.name, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				shows := &first{text: "here", seen: make(chan struct{})}
				test.o.Stdout = shows
				address := c.execURL(test.o, "sh", "-c", test.script)
				ended := make(chan error, 1)
				go func() { ended <- stream(ctx, transport, address, test.o) }()
				<-shows.seen
				cancel()
				<-ended
				await(t, "the command's end", func() bool { return !alive(t, "sleep 4711") && !alive(t, "yes") })
			})
		}
	})
}

// blocked is an input on which nothing comes.
type blocked struct{}

func (blocked) Read([]byte) (int, error) { select {} }

// first is an output that tells when it has seen a text, and forgets the rest.
type first struct {
	text string
	got  string
	seen chan struct{}
}

func (f *first) Write(p []byte) (int, error) {
	if !strings.Contains(f.got, f.text) {
		if f.got += string(p); strings.Contains(f.got, f.text) {
			close(f.seen)
		}
	}
	return len(p), nil
}

// A token is good for one client of one kind; there is no way in without.
func TestStreamTokens(t *testing.T) {
	begin(t)
	c := run(t).start("sleep 1000")
	get := func(address string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	o := remotecommand.StreamOptions{Stdout: io.Discard}
	used := c.execURL(o, "true")
	if err := stream(t.Context(), "SPDY", used, o); err != nil {
		t.Fatal(err)
	}
	other := c.execURL(o, "true")
	for name, address := range map[string]string{
		"used":       used,
		"other verb": strings.Replace(other, "/exec/", "/attach/", 1),
		"guessed":    used[:strings.LastIndex(used, "/")+1] + "AAAAAAAAAAAAAAAAAAAAAAAAAA",
		"none":       used[:strings.LastIndex(used, "/")+1],
	} {
		if code := get(address); code != http.StatusNotFound {
			t.Errorf("%s: HTTP status %d, want 404", name, code)
		}
	}
	if code := get(c.execURL(o, "true")); code != http.StatusBadRequest {
		t.Errorf("no upgrade: HTTP status %d, want 400", code)
	}
}

func TestStreamRequests(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("sleep 1000")
	ended := p.start("true")
	ended.wait()
	stopped := run(t)
	if err := node.CRI.StopPodSandbox(t.Context(), stopped.id); err != nil {
		t.Fatal(err)
	}
	exec := func(req *runtimeapi.ExecRequest) error {
		_, err := raw.Exec(t.Context(), req)
		return err
	}
	attach := func(req *runtimeapi.AttachRequest) error {
		_, err := raw.Attach(t.Context(), req)
		return err
	}
	forward := func(id string, ports ...int32) error {
		_, err := raw.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: id, Port: ports})
		return err
	}
	yes := []string{"true"}
	differs(t, "it answers some of these with other codes")
	for name, test := range map[string]struct {
		err  error
		code codes.Code
	}{
		"exec, no command":         {exec(&runtimeapi.ExecRequest{ContainerId: c.id, Stdout: true}), codes.InvalidArgument},
		"exec, no stream":          {exec(&runtimeapi.ExecRequest{ContainerId: c.id, Cmd: yes}), codes.InvalidArgument},
		"exec, tty and stderr":     {exec(&runtimeapi.ExecRequest{ContainerId: c.id, Cmd: yes, Tty: true, Stdout: true, Stderr: true}), codes.InvalidArgument},
		"exec, no id":              {exec(&runtimeapi.ExecRequest{Cmd: yes, Stdout: true}), codes.InvalidArgument},
		"exec, NUL":                {exec(&runtimeapi.ExecRequest{ContainerId: c.id, Cmd: []string{"a\x00"}, Stdout: true}), codes.InvalidArgument},
		"exec, unknown":            {exec(&runtimeapi.ExecRequest{ContainerId: "unknown", Cmd: yes, Stdout: true}), codes.NotFound},
		"exec, not running":        {exec(&runtimeapi.ExecRequest{ContainerId: ended.id, Cmd: yes, Stdout: true}), codes.FailedPrecondition},
		"attach, no stream":        {attach(&runtimeapi.AttachRequest{ContainerId: c.id}), codes.InvalidArgument},
		"attach, tty and stderr":   {attach(&runtimeapi.AttachRequest{ContainerId: c.id, Tty: true, Stderr: true}), codes.InvalidArgument},
		"attach, unknown":          {attach(&runtimeapi.AttachRequest{ContainerId: "unknown", Stdout: true}), codes.NotFound},
		"attach, not running":      {attach(&runtimeapi.AttachRequest{ContainerId: ended.id, Stdout: true}), codes.FailedPrecondition},
		"port-forward, unknown":    {forward("unknown"), codes.NotFound},
		"port-forward, stopped":    {forward(stopped.id), codes.FailedPrecondition},
		"port-forward, port 0":     {forward(p.id, 0), codes.InvalidArgument},
		"port-forward, port 70000": {forward(p.id, 80, 70000), codes.InvalidArgument},
		"port-forward, port -1":    {forward(p.id, -1), codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, test.err, test.code) })
	}
}

// The end of the daemon ends streams and commands of exec, but no container.
func TestShutDownEndsStreams(t *testing.T) {
	begin(t)
	differs(t, "commands go on without it")
	c := run(t).start("sleep 1000")
	eachTransport(t, func(t *testing.T, transport string) {
		shows := &first{text: "here", seen: make(chan struct{})}
		o := remotecommand.StreamOptions{Stdin: blocked{}, Stdout: shows}
		address := c.execURL(o, "sh", "-c", "echo here; exec sleep 4711")
		ended := make(chan error, 1)
		go func() { ended <- stream(t.Context(), transport, address, o) }()
		<-shows.seen
		restart(t, syscall.SIGTERM, func() {
			if err := <-ended; err == nil || !strings.Contains(err.Error(), "shutting down") {
				t.Errorf("%v, want that the daemon is shutting down", err)
			}
		})
		await(t, "the command's end", func() bool { return !alive(t, "sleep 4711") })
		if c.status().State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Error("the container has ended")
		}
	})
}
