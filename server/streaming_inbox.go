package server

import (
	"errors"
	"io"
	"sync"
)

const (
	// inboxFirst and inboxMost are the sizes of an inbox: few sessions get more
	// than a line at a time.
	inboxFirst = 4 << 10
	inboxMost  = 256 << 10
)

// errStreamReset says that the client took a stream back, or is gone.
var errStreamReset = errors.New("the client has reset the stream")

// inbox holds what a client has sent on one stream until somebody reads it. It
// has one writer, the connection's read loop, and one reader.
type inbox struct {
	mu      sync.Mutex
	changed *sync.Cond
	buf     []byte // a ring: length bytes from start on
	start   int
	length  int
	end     error // what follows the bytes: io.EOF or errStreamReset
}

func newInbox() *inbox {
	b := &inbox{}
	b.changed = sync.NewCond(&b.mu)
	return b
}

// fill moves count bytes from r into the inbox, without a copy in between,
// and waits for the reader when it is full. After the end bytes are dropped.
func (b *inbox) fill(r io.Reader, count int) error {
	for count > 0 {
		room := b.room(count)
		if room == nil {
			_, err := io.CopyN(io.Discard, r, int64(count))
			return err
		}
		n, err := r.Read(room)
		b.mu.Lock()
		if b.end == nil {
			b.length += n
		}
		b.changed.Broadcast()
		b.mu.Unlock()
		count -= n
		if err != nil {
			return err
		}
	}
	return nil
}

// room returns a part of the ring that may be written to; nil after the end.
func (b *inbox) room(wanted int) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.end == nil && b.length == len(b.buf) {
		if len(b.buf) == inboxMost {
			b.changed.Wait()
			continue
		}
		// A reader that is writing a part of the old ring goes on with that.
		grown := make([]byte, min(inboxMost, max(inboxFirst, 4*len(b.buf))))
		n := copy(grown, b.buf[b.start:])
		copy(grown[n:], b.buf[:b.start])
		b.buf, b.start = grown, 0
	}
	if b.end != nil {
		return nil
	}
	at := (b.start + b.length) % len(b.buf)
	return b.buf[at : at+min(wanted, len(b.buf)-at, len(b.buf)-b.length)]
}

// finish says what comes after the bytes; the first end counts, but a reset
// also takes the bytes away.
func (b *inbox) finish(end error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.end == nil || errors.Is(end, errStreamReset) {
		b.end = end
	}
	if errors.Is(b.end, errStreamReset) {
		b.length = 0
	}
	b.changed.Broadcast()
}

// next waits for bytes and returns some of them; taken frees them.
func (b *inbox) next() ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.length == 0 && b.end == nil {
		b.changed.Wait()
	}
	if b.length == 0 {
		return nil, b.end
	}
	return b.buf[b.start : b.start+min(b.length, len(b.buf)-b.start)], nil
}

func (b *inbox) taken(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n = min(n, b.length) // a reset may have been faster
	if len(b.buf) > 0 {
		b.start = (b.start + n) % len(b.buf)
	}
	b.length -= n
	b.changed.Broadcast()
}

// Read implements io.Reader.
func (b *inbox) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	part, err := b.next()
	if err != nil {
		return 0, err
	}
	n := copy(p, part)
	b.taken(n)
	return n, nil
}

// WriteTo implements io.WriterTo: w gets the bytes without a copy in between.
func (b *inbox) WriteTo(w io.Writer) (total int64, err error) {
	for {
		part, err := b.next()
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(part)
		total += int64(n)
		b.taken(n)
		if err != nil {
			return total, err
		}
	}
}
