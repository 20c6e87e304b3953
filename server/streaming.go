package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/sandbox"
	"github.com/cri-runtime/cri-runtime/server/connlimit"
)

const (
	defaultIdleTimeout     = 4 * time.Hour
	defaultCreationTimeout = 30 * time.Second

	maxHeaderBytes = 64 << 10
	headerTimeout  = 10 * time.Second
	// Pods of the host's network can connect: who comes without a token stays
	// until others come. With one he is a client of the kubelet's.
	maxStrangers = 512
	maxSessions  = 1024 // from which on no more are begun
	maxForwarded = 8192 // connections to pods, of all sessions
	// sweepInterval is how often sessions are looked at whose clients may have
	// gone without a word that was read.
	sweepInterval = 5 * time.Second
)

// StreamingConfig says where clients of Exec, Attach and PortForward connect
// to. The zero value means a random port of 127.0.0.1, without TLS.
type StreamingConfig struct {
	Address string // an IP address
	Port    int
	// CertFile and KeyFile turn TLS on; they are read again for each handshake.
	CertFile, KeyFile string
	// IdleTimeout ends a session on whose connection nothing moves.
	IdleTimeout time.Duration
	// CreationTimeout bounds the wait for the streams that a client has to open.
	CreationTimeout time.Duration
}

// containers is what the streams lead to. [storeContainers] is the real one.
type containers interface {
	Exec(ctx context.Context, id string, command []string, s sandbox.Streams) (int32, error)
	Attach(ctx context.Context, id string, s sandbox.Streams) error
	Dial(ctx context.Context, pod string, port uint16) (net.Conn, error)
}

// streaming serves the streams of Exec, Attach and PortForward. The RPCs
// return URLs with a token; the client connects there and the token is used up.
type streaming struct {
	config     StreamingConfig
	containers containers
	tokens     *tokens
	handlers   sync.WaitGroup
	forwarded  chan struct{} // has one for each connection to a pod

	mu    sync.Mutex
	base  *url.URL              // nil while nothing listens; guarded by mu
	ended bool                  // no handler may begin; guarded by mu
	open  map[*session]struct{} // guarded by mu
}

// session is the upgraded connection of a client.
type session struct {
	socket net.Conn
	cancel context.CancelCauseFunc
	unread int // input that the last sweep saw on a connection that the client has closed; -1: it has not
}

func newStreaming(config StreamingConfig, c containers) (*streaming, error) {
	if config.Address == "" {
		config.Address = "127.0.0.1"
	}
	if _, err := netip.ParseAddr(config.Address); err != nil {
		return nil, fmt.Errorf("server: streaming address %q: %w", config.Address, err)
	}
	if config.IdleTimeout <= 0 {
		config.IdleTimeout = defaultIdleTimeout
	}
	if config.CreationTimeout <= 0 {
		config.CreationTimeout = defaultCreationTimeout
	}
	s := &streaming{config: config, containers: c, tokens: newTokens(time.Now), open: map[*session]struct{}{}, forwarded: make(chan struct{}, maxForwarded)}
	if config.CertFile != "" || config.KeyFile != "" {
		if _, err := s.certificate(nil); err != nil {
			return nil, fmt.Errorf("server: streaming: %w", err)
		}
	}
	return s, nil
}

func (s *streaming) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(s.config.CertFile, s.config.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("load the certificate: %w", err)
	}
	return &pair, nil
}

// listen makes the socket; from then on there are URLs.
func (s *streaming) listen(ctx context.Context) (net.Listener, error) {
	address := net.JoinHostPort(s.config.Address, strconv.Itoa(s.config.Port))
	network := "tcp"
	if ip, err := netip.ParseAddr(s.config.Address); err == nil && ip.Is4() {
		network = "tcp4" // tcp would make [::] of 0.0.0.0
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("listen for streams on %s: %w", address, err)
	}
	base := &url.URL{Scheme: "http", Host: clientAddress(l.Addr())}
	if s.config.CertFile != "" {
		base.Scheme = "https"
		l = tls.NewListener(l, &tls.Config{GetCertificate: s.certificate, MinVersion: tls.VersionTLS12})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.base = base
	klog.InfoS("Serving streams", "url", base.String())
	if ip, err := netip.ParseAddr(s.config.Address); err == nil && !ip.IsLoopback() && base.Scheme == "http" {
		klog.InfoS("Streams are neither encrypted nor local: set a certificate, or a loopback address", "address", s.config.Address)
	}
	return l, nil
}

// clientAddress is what the kubelet on this machine connects to.
func clientAddress(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return a.String()
	}
	local := *tcp
	local.IP = net.IPv6loopback
	if tcp.IP.To4() != nil {
		local.IP = net.IPv4(127, 0, 0, 1)
	}
	return local.String()
}

// serve answers clients on l until ctx ends, and then ends all sessions; what
// runs in containers goes on, but for commands of Exec.
func (s *streaming) serve(ctx context.Context, l net.Listener) error {
	life, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(errShutDown)
	var protocols http.Protocols
	protocols.SetHTTP1(true) // a connection of HTTP/2 cannot be taken over
	h := &http.Server{
		Handler: s, ReadHeaderTimeout: headerTimeout, IdleTimeout: headerTimeout, MaxHeaderBytes: maxHeaderBytes,
		Protocols: &protocols, ErrorLog: klog.NewStandardLogger("INFO"),
		BaseContext: func(net.Listener) context.Context { return life },
	}
	connlimit.HTTP(h, maxStrangers)
	served := make(chan error, 1)
	go func() { served <- h.Serve(l) }()
	sweep := time.NewTicker(sweepInterval)
	defer sweep.Stop()
	for {
		select {
		case <-sweep.C:
			s.sweep()
		case err := <-served:
			cancel(errShutDown)
			return errors.Join(fmt.Errorf("serve streams on %s: %w", l.Addr(), err), s.end())
		case <-ctx.Done():
			_ = h.Close() // of the listener, and of connections that are no session
			err := <-served
			cancel(errShutDown)
			if errors.Is(err, http.ErrServerClosed) {
				err = nil
			}
			return errors.Join(err, s.end())
		}
	}
}

// end waits for the sessions, whose contexts have ended, to take leave of
// their clients, and closes the connections of those that do not.
func (s *streaming) end() error {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		s.handlers.Wait()
	}()
	timer := time.NewTimer(2 * linger)
	defer timer.Stop()
	select {
	case <-idle:
		return nil
	case <-timer.C:
	}
	s.mu.Lock()
	for se := range s.open {
		_ = se.socket.Close() // to make whoever reads or writes end
	}
	count := len(s.open)
	s.mu.Unlock()
	timer.Reset(2 * linger)
	select {
	case <-idle:
		return nil
	case <-timer.C:
		return fmt.Errorf("stop serving streams: %d sessions do not end", count)
	}
}

// sweep ends sessions that their read loops cannot see the end of: a client
// may have gone while its input waits for a command that does not read.
func (s *streaming) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for se := range s.open {
		if err := se.check(s.config.IdleTimeout); err != nil {
			se.cancel(err)
			_ = se.socket.Close()
		}
	}
}

// check asks the kernel, which knows when anything was sent or received last.
func (se *session) check(idle time.Duration) error {
	socket := se.socket
	if wrapped, ok := socket.(interface{ NetConn() net.Conn }); ok { // of TLS or WebSocket
		socket = wrapped.NetConn()
	}
	if wrapped, ok := socket.(*tls.Conn); ok {
		socket = wrapped.NetConn()
	}
	tcp, ok := socket.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return errClientGone
	}
	var tcpInfo *unix.TCPInfo
	var unread int
	var callErr error
	err = raw.Control(func(fd uintptr) {
		if tcpInfo, callErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); callErr == nil {
			unread, callErr = unix.IoctlGetInt(int(fd), unix.SIOCINQ)
		}
	})
	if err != nil || callErr != nil {
		return errClientGone
	}
	quiet := time.Duration(min(tcpInfo.Last_data_sent, tcpInfo.Last_data_recv)) * time.Millisecond
	before := se.unread
	se.unread = -1
	switch tcpInfo.State {
	case unix.BPF_TCP_CLOSE:
		return errClientGone
	case unix.BPF_TCP_CLOSE_WAIT:
		if unread == before {
			return errClientGone
		}
		se.unread = unread
	}
	if quiet > idle {
		return fmt.Errorf("%w for %v", errIdle, idle)
	}
	return nil
}

// ServeHTTP answers /VERB/TOKEN.
func (s *streaming) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	ended := s.ended
	if !ended {
		s.handlers.Add(1)
	}
	s.mu.Unlock()
	if ended {
		http.Error(w, errShutDown.Error(), http.StatusServiceUnavailable)
		return
	}
	defer s.handlers.Done()
	verb, token := path.Split(r.URL.Path)
	request := s.tokens.take(token)
	if r.Method != http.MethodGet && r.Method != http.MethodPost || request == nil || verb != "/"+verbOf(request)+"/" {
		http.Error(w, "no request waits for this token; tokens are good once, for "+tokenLife.String(), http.StatusNotFound)
		return
	}
	var err error
	var about []any
	start := time.Now()
	switch m := request.(type) {
	case *runtimeapi.ExecRequest:
		about = []any{"container", m.GetContainerId()}
		err = s.remoteCommand(w, r, wanted{m.GetStdin(), m.GetStdout(), m.GetStderr(), m.GetTty()},
			func(ctx context.Context, streams sandbox.Streams) (int32, error) {
				return s.containers.Exec(ctx, m.GetContainerId(), m.GetCmd(), streams)
			})
	case *runtimeapi.AttachRequest:
		about = []any{"container", m.GetContainerId()}
		err = s.remoteCommand(w, r, wanted{m.GetStdin(), m.GetStdout(), m.GetStderr(), m.GetTty()},
			func(ctx context.Context, streams sandbox.Streams) (int32, error) {
				return 0, s.containers.Attach(ctx, m.GetContainerId(), streams)
			})
	case *runtimeapi.PortForwardRequest:
		about = []any{"pod", m.GetPodSandboxId()}
		err = s.portForward(w, r, m.GetPort(), func(ctx context.Context, port uint16) (net.Conn, error) {
			return s.containers.Dial(ctx, m.GetPodSandboxId(), port)
		})
	}
	about = append(about, "verb", verbOf(request), "took", time.Since(start))
	if err != nil {
		about = append(about, "why", err.Error())
	}
	klog.V(logProbing).InfoS("Stream has ended", about...)
}

func verbOf(request any) string {
	switch request.(type) {
	case *runtimeapi.ExecRequest:
		return "exec"
	case *runtimeapi.AttachRequest:
		return "attach"
	}
	return "portforward"
}

// url keeps a request and returns where its client finds the streams.
func (s *streaming) url(request any) (string, error) {
	s.mu.Lock()
	base, open := s.base, len(s.open)
	s.mu.Unlock()
	switch {
	case base == nil:
		return "", fmt.Errorf("streams are not served yet: %w", errShutDown)
	case open >= maxSessions:
		return "", fmt.Errorf("%d sessions are open: %w", open, errTooMany)
	}
	token, err := s.tokens.put(request)
	if err != nil {
		return "", err
	}
	return base.JoinPath(verbOf(request), token).String(), nil
}

// begin registers a session; its context ends with the client, with the daemon
// and when the function that is returned is called.
func (s *streaming) begin(life context.Context, socket net.Conn, gone <-chan struct{}) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(life)
	se := &session{socket: socket, cancel: cancel, unread: -1}
	s.mu.Lock()
	s.open[se] = struct{}{}
	s.mu.Unlock()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-gone:
			cancel(errClientGone)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-watched
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, se)
	}
}
