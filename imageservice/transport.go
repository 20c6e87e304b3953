package imageservice

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
)

const (
	patientAttempts = 4                      // for the last host of an image
	firstBackoff    = 200 * time.Millisecond // doubles with each attempt
	maxRetryAfter   = 30 * time.Second       // the longest wait a registry may ask for
	maxErrorBody    = 64 << 10
	maxErrorText    = 300
)

// statusError is an answer other than what was asked for.
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
	base     *http.Transport // to host
	away     *http.Transport // to where host sends us
	host     string
	either   bool // host may turn out to speak plain HTTP
	attempts int
	timeout  time.Duration
}

// route makes one request by the connections that it may use.
func (t *transport) route(req *http.Request) (*http.Response, error) {
	if scheme := req.URL.Scheme; plainHost(scheme, req.URL.Host) != plainHost(scheme, t.host) {
		if proxy, err := t.base.Proxy(req); err == nil && proxy == nil {
			return t.away.RoundTrip(req)
		}
		return t.base.RoundTrip(req) // where the proxy may connect to is its matter
	}
	resp, err := t.base.RoundTrip(req)
	var other tls.RecordHeaderError
	if !t.either || !errors.As(err, &other) || string(other.RecordHeader[:]) != "HTTP/" {
		return resp, err
	}
	plain := req.Clone(req.Context())
	plain.URL.Scheme = "http"
	if resp, err = t.base.RoundTrip(plain); err == nil {
		resp.Request = req
	}
	return resp, err
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
	resp, err := t.route(req.WithContext(ctx))
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

func busyCode(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// busyAnswer returns an error for an answer that a later request may not get.
func busyAnswer(req *http.Request, resp *http.Response) *statusError {
	if !busyCode(resp.StatusCode) {
		return nil
	}
	return answerOf(req, resp)
}

// answerOf reads what a registry says besides its status.
func answerOf(req *http.Request, resp *http.Response) *statusError {
	e := &statusError{method: req.Method, host: req.URL.Host, path: req.URL.Path, code: resp.StatusCode}
	e.after = retryAfter(resp.Header.Get("Retry-After"))
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // the status alone will do
	var answer struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &answer) != nil {
		return e
	}
	var texts []string
	for _, a := range answer.Errors {
		texts = append(texts, strings.ToLower(a.Code)+": "+a.Message)
	}
	e.text = cut(printable(strings.Join(texts, ", ")), maxErrorText)
	return e
}

// retryAfter reads both forms of the header: seconds, and a time.
func retryAfter(text string) time.Duration {
	if seconds, err := strconv.Atoi(text); err == nil {
		return time.Duration(max(0, min(seconds, 1<<20))) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, time.Until(at).Round(time.Second))
	}
	return 0
}

// printable keeps what a registry writes from shaping our log.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
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
	if errors.Is(err, syscall.ECONNREFUSED) && isLoopback(req.URL.Host) {
		return false // nothing between us and it was in the way
	}
	return brokenConnection(err) && !errors.Is(err, errInternalAddress)
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
