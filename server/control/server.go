package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime/debug"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/server/connlimit"
)

const (
	maxBody        = 64 << 10 // of JSON
	maxHeader      = 16 << 10
	maxAtOnce      = 64
	maxConnections = 512      // of each server; everybody may connect to the one of the metrics
	maxDrained     = 16 << 30 // of a body that is refused
	headerTimeout  = 10 * time.Second
	answerTimeout  = 30 * time.Second // for what is no stream
	streamTimeout  = time.Minute      // for the next piece of one
	idleTimeout    = time.Minute
	stopGrace      = 2 * time.Second
	progressPeriod = 200 * time.Millisecond
)

// Images is what the interface needs of the images on this machine: reading.
// *imageservice.Store implements all of it.
type Images interface {
	Images() []*imageservice.Image
	Details(ref string) (*imageservice.Details, error)
	Pulls() []imageservice.PullProgress
	Traffic() imageservice.Traffic
	Usage() (imageservice.Usage, error)
}

// Work is what changes images, or takes long.
type Work interface {
	Pull(ctx context.Context, name string, auth *imageservice.Auth) (*imageservice.Image, error)
	Remove(ctx context.Context, ref string) error
	Check(ctx context.Context, options imageservice.CheckOptions) (*imageservice.CheckReport, error)
	Import(ctx context.Context, archive io.Reader, as string) ([]*imageservice.Image, error)
	Export(ctx context.Context, ref string) (*imageservice.Export, error)
}

// Store is both. *imageservice.Store implements it.
type Store interface {
	Images
	Work
}

// Server answers requests on the control socket.
type Server struct {
	store   Store
	memory  func() any
	metrics *Metrics
	slots   chan struct{}
	handler http.Handler
}

// New makes a server. metrics begin to show the store; they serve one Server.
// memory returns what the daemon knows at one moment, to be shown as JSON.
func New(store Store, metrics *Metrics, memory func() any) *Server {
	s := &Server{store: store, memory: memory, metrics: metrics, slots: make(chan struct{}, maxAtOnce)}
	metrics.watch(store)
	mux := http.NewServeMux()
	for pattern, answer := range map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /v1/memory":         s.remember,
		"GET /v1/pulls":          s.pulls,
		"GET /v1/images":         s.list,
		"DELETE /v1/images":      s.remove,
		"GET /v1/images/inspect": s.inspect,
		"POST /v1/images/pull":   s.pull,
		"POST /v1/images/check":  s.check,
		"POST /v1/images/import": s.load,
		"GET /v1/images/export":  s.save,
	} {
		mux.Handle(pattern, s.answered(answer))
	}
	mux.Handle("GET /metrics", metrics.Handler())
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	s.handler = mux
	return s
}

// Serve answers requests on l, and closes it, until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return serve(ctx, l, s.handler) }

// ServeMetrics answers requests for metrics on l, and closes it, until ctx ends.
func (m *Metrics) ServeMetrics(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	return serve(ctx, l, mux)
}

func serve(ctx context.Context, l net.Listener, handler http.Handler) error {
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	h := &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: log.New(io.Discard, "", 0), BaseContext: func(net.Listener) context.Context { return requests },
	}
	connlimit.HTTP(h, maxConnections)
	served := make(chan error, 1)
	go func() { served <- h.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	cancel() // pulls and archives end; what they had begun is undone
	grace, stop := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer stop()
	err := h.Shutdown(grace)
	if err != nil {
		err = h.Close()
	}
	if served := <-served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// answered turns a handler's error into an answer, and bounds how many run.
func (s *Server) answered(answer func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		default:
			fail(w, r, errBusy)
			return
		}
		defer func() {
			if p := recover(); p != nil {
				klog.ErrorS(nil, "Panic", "path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				panic(http.ErrAbortHandler)
			}
		}()
		if err := answer(w, r); err != nil {
			fail(w, r, err)
		}
	})
}

func fail(w http.ResponseWriter, r *http.Request, err error) {
	f := faultOf(err)
	klog.InfoS("Control request failed", "method", r.Method, "path", r.URL.Path, "reason", f.reason, "why", err.Error())
	w.WriteHeader(f.status)
	_ = json.NewEncoder(w).Encode(errorOf(err)) // nobody is left to tell
}

func errorOf(err error) *Error {
	return &Error{Reason: faultOf(err).reason, Text: strings.ToValidUTF8(err.Error(), "\uFFFD")}
}

// reply sends a whole answer.
func reply(w http.ResponseWriter, value any) error {
	if err := deadlines(w, answerTimeout); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // nobody is left to tell
	return nil
}

// deadlines gives the client time to send and to take what comes next.
func deadlines(w http.ResponseWriter, d time.Duration) error {
	c, at := http.NewResponseController(w), time.Now().Add(d)
	return errors.Join(c.SetReadDeadline(at), c.SetWriteDeadline(at))
}

// body decodes the JSON of a request: one value, no unknown key, not large.
func body(w http.ResponseWriter, r *http.Request, value any) error {
	if err := deadlines(w, answerTimeout); err != nil {
		return err
	}
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(value); err != nil {
		return fmt.Errorf("%w: body: %w", errRequest, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: body: there is more after the JSON value", errRequest)
	}
	// The server reads on in the background to see a client that goes away.
	return http.NewResponseController(w).SetReadDeadline(time.Time{})
}

// remember answers with what the daemon knows; a check compares it with the
// records and the host.
func (s *Server) remember(w http.ResponseWriter, _ *http.Request) error { return reply(w, s.memory()) }

// query returns a parameter that must be there.
func query(r *http.Request, key string) (string, error) {
	value := r.URL.Query().Get(key)
	if value == "" {
		return "", fmt.Errorf("%w: query: %s is missing", errRequest, key)
	}
	return value, nil
}
