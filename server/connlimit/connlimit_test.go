package connlimit

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

const patience = 20 * time.Second

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

func wantClosed(t *testing.T, c net.Conn) {
	t.Helper()
	var timeout net.Error
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the connection is open: %v", err)
	}
}

// Silent clients in any number keep nobody from being served, and what was
// taken over stays.
func TestHTTP(t *testing.T) {
	const most = 8
	taken := make(chan net.Conn, 1)
	h := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/take" {
			return
		}
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		taken <- c
	})}
	HTTP(h, most)
	l := listen(t)
	served := make(chan error, 1)
	go func() { served <- h.Serve(l) }()
	session := dial(t, l)
	if _, err := io.WriteString(session, "GET /take HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	ours := <-taken
	defer ours.Close()
	var silent []net.Conn
	for range 10 * most {
		silent = append(silent, dial(t, l))
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("with %d silent clients: %v", len(silent), err)
	}
	_ = resp.Body.Close()
	for _, c := range silent[:9*most] {
		wantClosed(t, c)
	}
	if _, err := io.WriteString(ours, "x"); err != nil {
		t.Error(err)
	}
	if _, err := session.Read(make([]byte, 1)); err != nil {
		t.Errorf("a connection that a handler has: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

func TestListener(t *testing.T) {
	const most = 3
	var refused atomic.Int64
	inner := listen(t)
	l := Listener(inner, most, func() { refused.Add(1) })
	accepted := make(chan net.Conn, 2*most)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	var open []net.Conn
	for range most {
		dial(t, inner)
		open = append(open, <-accepted)
	}
	wantClosed(t, dial(t, inner))
	if refused.Load() != 1 {
		t.Errorf("refused %d", refused.Load())
	}
	for range 2 { // closing twice makes room once
		_ = open[0].Close()
	}
	dial(t, inner)
	open = append(open, <-accepted)
	wantClosed(t, dial(t, inner))
	for _, c := range open {
		_ = c.Close()
	}
	_ = l.Close()
	if _, ok := <-accepted; ok {
		t.Error("one too many was accepted")
	}
}
