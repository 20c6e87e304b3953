package localregistry

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"time"
)

// Fault is a way to break an answer.
type Fault int

// The faults.
const (
	// Hang answers nothing until the client goes away.
	Hang Fault = iota
	// HangInBody sends the first half and then nothing until the client goes away.
	HangInBody
	// Truncate sends half of the announced body and closes the connection.
	Truncate
	// Tamper changes a few bytes in the middle of the body.
	Tamper
	// Swell sends more than was announced by the descriptor.
	Swell
	// Unavailable answers 503.
	Unavailable
	// Loop redirects to the same place for ever.
	Loop
	// Slow sends the body a little at a time until the faults end.
	Slow
)

const (
	slowPiece = 4 << 10
	slowPause = 10 * time.Millisecond
)

// Break applies f to every request whose path contains part.
func (s *Server) Break(part string, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[part] = f
}

// Mend ends the faults.
func (s *Server) Mend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.faults)
}

func (s *Server) faultFor(path string) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for part, f := range s.faults {
		if strings.Contains(path, part) {
			return f, true
		}
	}
	return 0, false
}

// trickle sends body in pieces until the fault is mended, then the rest.
func (s *Server) trickle(w http.ResponseWriter, r *http.Request) {
	answer := httptest.NewRecorder()
	s.store.ServeHTTP(answer, r)
	for k, v := range answer.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(answer.Code)
	body := answer.Body.Bytes()
	tick := time.NewTicker(slowPause)
	defer tick.Stop()
	for len(body) > 0 {
		n := min(slowPiece, len(body))
		if f, broken := s.faultFor(r.URL.Path); !broken || f != Slow {
			n = len(body)
		}
		if _, err := w.Write(body[:n]); err != nil {
			return
		}
		body = body[n:]
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

func (f Fault) serve(w http.ResponseWriter, r *http.Request, store http.Handler) {
	switch f {
	case Hang:
		<-r.Context().Done()
		return
	case Unavailable:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case Loop:
		http.Redirect(w, r, r.URL.String(), http.StatusTemporaryRedirect)
		return
	case HangInBody, Truncate, Tamper, Swell, Slow:
	}
	answer := httptest.NewRecorder()
	store.ServeHTTP(answer, r)
	body := answer.Body.Bytes()
	for k, v := range answer.Header() {
		w.Header()[k] = v
	}
	switch f {
	case Tamper:
		body = append([]byte(nil), body...)
		for i := len(body) / 2; i < len(body)/2+8 && i < len(body); i++ {
			body[i] ^= 1
		}
	case Swell:
		w.Header().Del("Content-Length")
		body = append(append([]byte(nil), body...), make([]byte, 1<<20)...)
	case HangInBody, Truncate:
		body = body[:len(body)/2]
	case Hang, Unavailable, Loop, Slow:
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(body)
	if f == HangInBody {
		if flusher, ok := w.(http.Flusher); ok {
			flusher.Flush()
		}
		<-r.Context().Done()
	}
}
