package localregistry

import (
	"fmt"
	"net/http"
)

// bearer is the token that the token service hands out.
const bearer = "token-of-the-test-registry"

func (s *Server) allowed(r *http.Request) bool {
	if s.options.User == "" {
		return true
	}
	if s.options.Token {
		return r.Header.Get("Authorization") == "Bearer "+bearer
	}
	return s.credentials(r)
}

func (s *Server) credentials(r *http.Request) bool {
	user, password, ok := r.BasicAuth()
	return ok && user == s.options.User && password == s.options.Password
}

func (s *Server) challenge(w http.ResponseWriter) {
	how := `Basic realm="test registry"`
	if s.options.Token {
		scheme := "http"
		if s.options.TLS {
			scheme = "https"
		}
		how = fmt.Sprintf(`Bearer realm="%s://%s/token",service="test registry"`, scheme, s.Address)
	}
	w.Header().Set("WWW-Authenticate", how)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnauthorized)
	fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
}

// token answers both forms of the request: GET with basic credentials and
// POST with an OAuth 2 password grant.
func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	good := s.credentials(r)
	if r.Method == http.MethodPost {
		r.Body = http.MaxBytesReader(w, r.Body, 1<<16)
		good = r.PostFormValue("username") == s.options.User && r.PostFormValue("password") == s.options.Password
	}
	w.Header().Set("Content-Type", "application/json")
	if !good {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	fmt.Fprintf(w, `{"token":%q,"access_token":%q,"expires_in":300}`, bearer, bearer)
}
