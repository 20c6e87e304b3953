package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

const (
	patientAttempts = 4                      // for the last host of an image
	firstBackoff    = 200 * time.Millisecond // doubles with each attempt
	maxRetryAfter   = 30 * time.Second       // the longest wait a registry may ask for
	maxErrorBody    = 64 << 10
	maxErrorText    = 300
)

// statusError is an answer that says "not now". It is no http.Response, so
// that the registry client above does not repeat the request at once.
type statusError struct {
	method, host, path string
	code               int
	text               string // what the registry said, cut short
	after              time.Duration
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%s answered %d %s to %s %s", e.host, e.code, http.StatusText(e.code), e.method, e.path)
	if e.text != "" {
		text += ": " + e.text
	}
	if e.after > maxRetryAfter {
		text += fmt.Sprintf(" (asks to come back in %s)", e.after)
	}
	return text
}

// transport repeats requests that failed for a passing reason, and gives up a
// host that sends nothing for the timeout: neither the head of an answer nor
// the next piece of its body.
type transport struct {
	base     http.RoundTripper
	attempts int
	timeout  time.Duration
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	for attempt := 1; ; attempt++ {
		resp, err := t.once(req)
		if err == nil {
			busy := busyAnswer(req, resp)
			if busy == nil {
				return resp, nil
			}
			_ = resp.Body.Close()
			err = busy
		}
		if attempt >= t.attempts || !passing(req, err) {
			return nil, err
		}
		if err := pause(req.Context(), backoff(attempt, err)); err != nil {
			return nil, err
		}
		if req, err = again(req); err != nil {
			return nil, err
		}
	}
}

// once makes one request under the timeout.
func (t *transport) once(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	stalled := fmt.Errorf("%w: %s for %s", ErrStalled, req.URL.Host, t.timeout)
	timer := time.AfterFunc(t.timeout, func() { cancel(stalled) })
	resp, err := t.base.RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &guardedBody{body: resp.Body, ctx: ctx, cancel: cancel, timer: timer, timeout: t.timeout}
	return resp, nil
}

// guardedBody cancels the request when one Read takes longer than the timeout.
// Time between reads does not count: there the disk is slow, not the registry.
type guardedBody struct {
	body    io.ReadCloser
	ctx     context.Context //nolint:containedctx // the request's own; its cause tells why a read ended
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	timeout time.Duration
}

func (g *guardedBody) Read(p []byte) (int, error) {
	g.timer.Reset(g.timeout)
	n, err := g.body.Read(p)
	g.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(g.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (g *guardedBody) Close() error {
	g.timer.Stop()
	err := g.body.Close()
	g.cancel(nil)
	return err
}

// busyAnswer returns an error for an answer that a later request may not get.
func busyAnswer(req *http.Request, resp *http.Response) *statusError {
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
	default:
		return nil
	}
	e := &statusError{method: req.Method, host: req.URL.Host, path: req.URL.Path, code: resp.StatusCode}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.after = time.Duration(min(seconds, 1<<20)) * time.Second
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // the status alone will do
	var answer docker.Errors
	if json.Unmarshal(body, &answer) == nil && answer.Len() > 0 {
		e.text = cut(answer.Error(), maxErrorText)
	}
	return e
}

// passing tells whether the same request may succeed a little later.
func passing(req *http.Request, err error) bool {
	if req.Context().Err() != nil || errors.Is(err, ErrStalled) {
		return false
	}
	var busy *statusError
	if errors.As(err, &busy) {
		return busy.after <= maxRetryAfter
	}
	return brokenConnection(err) && !docker.IsLocalhost(req.URL.Host)
}

// brokenConnection tells whether err is a connection's, not the peer's verdict
// or a wrong name or certificate.
func brokenConnection(err error) bool {
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return false
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Op != "remote error" // a TLS alert
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// backoff returns how long to wait after the failed attempt of that number.
func backoff(attempt int, err error) time.Duration {
	wait := firstBackoff << (attempt - 1)
	wait += rand.N(wait / 2) // clients that failed together come back apart
	var busy *statusError
	if errors.As(err, &busy) {
		wait = max(wait, busy.after)
	}
	return wait
}

// pause waits, but not beyond ctx.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// again prepares a request to be sent once more.
func again(req *http.Request) (*http.Request, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return req, nil
	}
	if req.GetBody == nil {
		return nil, fmt.Errorf("repeat %s %s: its body is gone", req.Method, req.URL.Host)
	}
	body, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	next := req.Clone(req.Context())
	next.Body = body
	return next, nil
}

func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return text[:n] + "..."
}
