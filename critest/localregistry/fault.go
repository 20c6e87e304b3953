package localregistry

import (
	"net/http"
	"net/http/httptest"
	"strings"
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
	case HangInBody, Truncate, Tamper, Swell:
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
	case Hang, Unavailable, Loop:
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
