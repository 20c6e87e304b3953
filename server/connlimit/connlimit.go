package connlimit

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// HTTP makes h keep at most most connections that no handler has taken over:
// with one more the oldest is closed. Who connects and says nothing makes room
// for those who come later. It is called before h serves, and once.
func HTTP(h *http.Server, most int) {
	b := &bound{most: most, at: map[net.Conn]*list.Element{}, order: list.New()}
	h.ConnState = b.changed
}

// bound are the connections of an HTTP server, the oldest first.
type bound struct {
	most int

	mu    sync.Mutex
	at    map[net.Conn]*list.Element // guarded by mu
	order *list.List                 // of net.Conn, guarded by mu
}

func (b *bound) changed(c net.Conn, state http.ConnState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch state {
	case http.StateNew:
		if b.order.Len() >= b.most {
			oldest := b.order.Front()
			if victim, ok := oldest.Value.(net.Conn); ok {
				b.drop(victim)
				// Closing TLS says goodbye, which may take a while.
				go func() { _ = victim.Close() }()
			}
		}
		b.at[c] = b.order.PushBack(c)
	case http.StateHijacked, http.StateClosed:
		b.drop(c)
	case http.StateActive, http.StateIdle:
	}
}

func (b *bound) drop(c net.Conn) {
	if e := b.at[c]; e != nil {
		b.order.Remove(e)
		delete(b.at, c)
	}
}

// Listener returns l with at most most connections open at once: a further one
// is closed at once, and refused, if not nil, is called for it.
func Listener(l net.Listener, most int, refused func()) net.Listener {
	if refused == nil {
		refused = func() {}
	}
	return &listener{Listener: l, slots: make(chan struct{}, most), refused: refused}
}

type listener struct {
	net.Listener
	slots   chan struct{}
	refused func()
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &conn{Conn: c, leave: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			_ = c.Close() // nothing was said
			l.refused()
		}
	}
}

type conn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.leave()
	return c.Conn.Close()
}
