package localregistry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/cri-runtime/cri-runtime/critest/images"
)

// Options say how a registry is served.
type Options struct {
	Listen   string // "127.0.0.1:0": any free port
	TLS      bool   // with a certificate of its own authority
	Client   bool   // with TLS: ask clients for a certificate of that authority
	User     string // "": everybody may read
	Password string
	Token    bool // ask for a bearer token instead of basic credentials
}

// Server is a registry that runs.
type Server struct {
	// Address is host:port.
	Address string
	// CA is the authority's certificate in PEM, nil without TLS.
	CA []byte
	// Client is a certificate with its key in PEM that Options.Client lets in.
	Client []byte

	store   http.Handler
	options Options
	server  *http.Server
	done    chan struct{}

	mu     sync.Mutex // guards faults and counts
	faults map[string]Fault
	counts map[string]int
}

// ErrNotLoopback is returned for an address that others could reach.
var ErrNotLoopback = errors.New("only loopback addresses are served")

// Start serves an empty registry.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	host, _, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen address %q: %w", o.Listen, err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("listen on %s: %w", o.Listen, ErrNotLoopback)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", o.Listen, err)
	}
	s := &Server{
		Address: l.Addr().String(),
		store:   registry.New(registry.Logger(log.New(io.Discard, "", 0))),
		options: o, done: make(chan struct{}),
		faults: map[string]Fault{}, counts: map[string]int{},
	}
	if o.TLS {
		pair, ca, client, err := certificate(net.ParseIP(host))
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		s.CA, s.Client = ca, client
		config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
		if o.Client {
			config.ClientCAs = x509.NewCertPool()
			config.ClientCAs.AppendCertsFromPEM(ca)
			config.ClientAuth = tls.RequireAndVerifyClientCert
		}
		l = tls.NewListener(l, config)
	}
	s.server = &http.Server{
		Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: time.Minute,
		ErrorLog: log.New(io.Discard, "", 0),
	}
	go func() {
		defer close(s.done)
		_ = s.server.Serve(l)
	}()
	return s, nil
}

// Close ends the server and the requests that hang in it.
func (s *Server) Close() error {
	err := s.server.Close()
	<-s.done
	return err
}

// Fill stores the whole catalog.
func (s *Server) Fill(ctx context.Context) ([]images.Named, error) {
	catalog, err := images.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range catalog {
		if err := s.Push(ctx, n); err != nil {
			return nil, err
		}
	}
	return catalog, nil
}

// Push stores one image. No credentials are asked for and no fault applies.
func (s *Server) Push(ctx context.Context, n images.Named) error {
	if err := n.Artifact.Push(ctx, s.store, n.Repository, n.Tag); err != nil {
		return fmt.Errorf("store %s:%s: %w", n.Repository, n.Tag, err)
	}
	return nil
}

// Requests tells how many requests had a path that contains part.
func (s *Server) Requests(part string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for path, count := range s.counts {
		if strings.Contains(path, part) {
			n += count
		}
	}
	return n
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.counts[r.Method+" "+r.URL.Path]++
	s.mu.Unlock()
	if r.URL.Path == "/token" {
		s.token(w, r)
		return
	}
	if !s.allowed(r) {
		s.challenge(w)
		return
	}
	if f, ok := s.faultFor(r.URL.Path); ok {
		if f == Slow {
			s.trickle(w, r)
			return
		}
		f.serve(w, r, s.store)
		return
	}
	s.store.ServeHTTP(w, r)
}
