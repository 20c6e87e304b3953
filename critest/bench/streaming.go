package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	streamMiB    = 256
	streamRounds = 3
	pieceMiB     = 4
)

// streaming measures interactive streams with the clients of kubectl, over
// SPDY, which is what the peer speaks, too: from the request to the first byte
// of output, and how fast bytes come out of an exec, of an attached container
// and through a forwarded port.
func (b *bench) streaming(ctx context.Context) error {
	first := make([]samples, len(b.runtimes))
	took := make([][3]samples, len(b.runtimes))
	pods := make([]*pod, len(b.runtimes))
	for k, r := range b.runtimes {
		p, err := b.newPod(r, false)
		if err != nil {
			return err
		}
		p.stdin = true
		if err := p.up(ctx, []string{"sh", "-c", "echo up; while read n; do dd if=/dev/zero bs=64k count=$n 2>/dev/null; done"}); err != nil {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
		pods[k] = p
	}
	for range b.options.n {
		for k, p := range pods {
			if err := idle(ctx, b.options.gap); err != nil {
				return err
			}
			begin, seen := time.Now(), &firstByte{}
			if err := p.execStream(ctx, seen, "echo", "x"); err != nil {
				return fmt.Errorf("%s: exec: %w", p.on.Name, err)
			}
			first[k] = append(first[k], seen.at.Sub(begin))
		}
	}
	for range streamRounds {
		for k, p := range pods {
			for i, f := range []func(context.Context) error{p.execBytes, p.attachBytes, p.forwardBytes} {
				begin := time.Now()
				if err := f(ctx); err != nil {
					return fmt.Errorf("%s: stream %d: %w", p.on.Name, i, err)
				}
				took[k][i] = append(took[k][i], time.Since(begin))
			}
		}
	}
	b.table.durations("exec stream, first byte", "<= 10", first)
	for i, name := range []string{"exec output", "attach output, with the log", "port-forward"} {
		rate := make([]float64, len(b.runtimes))
		for k := range rate {
			rate[k] = streamMiB * 1.048576 / took[k][i].quantile(0.5) * 1000
		}
		b.table.figure(name, "MB/s", ">= 500 or 1.5 times", true, rate)
	}
	var errs []error
	for _, p := range pods {
		errs = append(errs, p.down(ctx))
	}
	return errors.Join(errs...)
}

// firstByte notes when the first output comes, and counts.
type firstByte struct {
	at time.Time
	n  int64
}

func (f *firstByte) Write(p []byte) (int, error) {
	if f.n == 0 {
		f.at = time.Now()
	}
	f.n += int64(len(p))
	return len(p), nil
}

func (p *pod) execStream(ctx context.Context, out io.Writer, command ...string) error {
	answer, err := p.on.raw().Exec(ctx, &runtimeapi.ExecRequest{ContainerId: p.container, Cmd: command, Stdout: true})
	if err != nil {
		return err
	}
	return stream(ctx, answer.Url, remotecommand.StreamOptions{Stdout: out})
}

func stream(ctx context.Context, address string, o remotecommand.StreamOptions) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("the stream's address: %w", err)
	}
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
	if err != nil {
		return fmt.Errorf("stream: %w", err)
	}
	return e.StreamWithContext(ctx, o)
}

func (p *pod) execBytes(ctx context.Context) error {
	seen := &firstByte{}
	if err := p.execStream(ctx, seen, "dd", "if=/dev/zero", "bs=64k", "count="+strconv.Itoa(streamMiB*16)); err != nil {
		return err
	}
	return enough(seen.n)
}

func enough(n int64) error {
	if n < streamMiB<<20 {
		return fmt.Errorf("%d bytes of %d: %w", n, streamMiB<<20, io.ErrUnexpectedEOF)
	}
	return nil
}

// attachBytes attaches and asks for piece after piece: a client that stays far
// behind a container is detached rather than the container slowed down.
func (p *pod) attachBytes(ctx context.Context) error {
	answer, err := p.on.raw().Attach(ctx, &runtimeapi.AttachRequest{ContainerId: p.container, Stdin: true, Stdout: true})
	if err != nil {
		return err
	}
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	in, ask := io.Pipe()
	defer ask.Close()
	seen := &pieces{more: make(chan struct{}, 1), leave: leave}
	seen.more <- struct{}{}
	go func() {
		for range seen.more {
			if _, err := io.WriteString(ask, strconv.Itoa(pieceMiB*16)+"\n"); err != nil {
				return
			}
		}
	}()
	err = stream(ctx, answer.Url, remotecommand.StreamOptions{Stdin: in, Stdout: seen})
	close(seen.more)
	if seen.n >= streamMiB<<20 {
		return nil
	}
	return errors.Join(err, enough(seen.n))
}

// pieces asks for one more with each that came, and leaves after the last.
type pieces struct {
	firstByte
	more  chan struct{}
	leave func()
}

func (e *pieces) Write(p []byte) (int, error) {
	before := e.n >> 20 / pieceMiB
	n, err := e.firstByte.Write(p)
	switch {
	case e.n >= streamMiB<<20:
		e.leave()
	case e.n>>20/pieceMiB > before:
		e.more <- struct{}{}
	}
	return n, err
}

// forwardBytes reads from a server on the pod's network, which is the host's.
func (p *pod) forwardBytes(ctx context.Context) (err error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.CopyN(c, zeros{}, streamMiB<<20)
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return fmt.Errorf("the server's port: %w", err)
	}
	answer, err := p.on.raw().PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: p.id})
	if err != nil {
		return err
	}
	u, err := url.Parse(answer.Url)
	if err != nil {
		return fmt.Errorf("the stream's address: %w", err)
	}
	tripper, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		return fmt.Errorf("forward: %w", err)
	}
	dialer := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: tripper}, http.MethodPost, u)
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	f, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{"0:" + port}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		return fmt.Errorf("forward: %w", err)
	}
	go func() { ended <- f.ForwardPorts() }()
	defer func() {
		close(stop)
		err = errors.Join(err, <-ended)
	}()
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		return fmt.Errorf("forward: %w", err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		return fmt.Errorf("forward: %w", err)
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer c.Close()
	n, err := io.Copy(io.Discard, c)
	return errors.Join(err, enough(n))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func (r *runtime) raw() runtimeapi.RuntimeServiceClient {
	return runtimeapi.NewRuntimeServiceClient(r.Conn)
}
