package imageservice

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	userAgent        = "cri-runtime"
	maxTokenAnswer   = 1 << 20
	maxChallenge     = 16 << 10 // bytes of WWW-Authenticate that are read
	minTokenLife     = 60 * time.Second
	tokenSafetyTime  = 5 * time.Second
	schemeBasic      = "basic"
	schemeBearer     = "bearer"
	errNoCredentials = authError("it wants a user and a password, none were given for it")
)

// authError is a reason for which a host gets no credentials.
type authError string

func (e authError) Error() string { return string(e) }

// authorizer answers the challenges of one host with the credentials that are
// meant for it.
type authorizer struct {
	creds      credentials // none, unless they are for this host
	origin     string      // of the host
	repository string
	client     *http.Client // for token servers

	turn   chan struct{} // holds one value; taken by who changes what is below
	scheme string
	ask    challenge
	token  string
	ends   time.Time
}

func newAuthorizer(creds credentials, repository string, client *http.Client, e *endpoint) *authorizer {
	a := &authorizer{creds: creds, repository: repository, turn: make(chan struct{}, 1)}
	a.origin = e.scheme + "://" + plainHost(e.scheme, e.host)
	tokens := *client
	tokens.CheckRedirect = a.follow
	a.client = &tokens
	return a
}

// follow keeps a user's secrets with the token server that was named.
func (a *authorizer) follow(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("%w: more than %d in a row", errRedirect, maxRedirects)
	}
	if a.creds.secret != "" && origin(req.URL) != origin(via[0].URL) {
		return fmt.Errorf("%w: the token server sent us, with credentials, to %s", errRedirect, req.URL.Host)
	}
	return a.checkRealm(req.URL)
}

func (a *authorizer) lock(ctx context.Context) error {
	select {
	case a.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *authorizer) unlock() { <-a.turn }

// authorize adds what the host asked for so far, and returns the token.
func (a *authorizer) authorize(ctx context.Context, req *http.Request) (used string, err error) {
	if a.creds.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+a.creds.bearer)
		return a.creds.bearer, nil
	}
	if err := a.lock(ctx); err != nil {
		return "", err
	}
	defer a.unlock()
	switch a.scheme {
	case schemeBasic:
		req.SetBasicAuth(a.creds.username, a.creds.secret)
	case schemeBearer:
		if time.Now().After(a.ends) {
			if err := a.fetch(ctx); err != nil {
				return "", err
			}
		}
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	return a.token, nil
}

// challenge prepares for a 401's demands; used is the token that it refused.
func (a *authorizer) challenge(ctx context.Context, resp *http.Response, used string) error {
	if a.creds.bearer != "" {
		return authError("it does not take the registry token")
	}
	if err := a.lock(ctx); err != nil {
		return err
	}
	defer a.unlock()
	if a.scheme == schemeBearer && a.token != used {
		return nil // another download got a new one
	}
	asked := parseChallenges(resp.Header.Values("WWW-Authenticate"))
	for _, c := range asked {
		if c.scheme == schemeBearer {
			a.scheme, a.ask = schemeBearer, c
			return a.fetch(ctx)
		}
	}
	for _, c := range asked {
		if c.scheme != schemeBasic {
			continue
		}
		if a.creds.username == "" || a.creds.secret == "" {
			return errNoCredentials
		}
		if a.scheme == schemeBasic {
			return authError("it does not take the user and password")
		}
		a.scheme = schemeBasic
		return nil
	}
	return authError("it asks for no kind of authentication that is known here")
}

// checkRealm refuses token servers that would weaken the registry's own
// connection.
func (a *authorizer) checkRealm(u *url.URL) error {
	secure := strings.HasPrefix(a.origin, "https://")
	switch {
	case u.Scheme != "https" && u.Scheme != "http", u.Host == "", u.User != nil:
		return authError("its token server is not at an http or https address")
	case u.Scheme == "http" && secure:
		return authError("it speaks HTTPS, but its token server " + u.Host + " plain HTTP")
	}
	return nil
}

// fetch gets a token: with credentials by OAuth's POST first, which some
// servers don't have, then by GET. The caller holds the turn.
func (a *authorizer) fetch(ctx context.Context) error {
	realm, err := url.Parse(a.ask.params["realm"])
	if err != nil {
		return authError("its token server's address cannot be read")
	}
	if err := a.checkRealm(realm); err != nil {
		return err
	}
	scopes := strings.Fields(a.ask.params["scope"])
	if len(scopes) == 0 {
		scopes = []string{"repository:" + a.repository + ":pull"}
	}
	var answer *tokenAnswer
	if a.creds.secret != "" {
		answer, err = a.post(ctx, realm, scopes)
		var refused *statusError
		if errors.As(err, &refused) && a.creds.username != "" && wantsGet(refused.code) {
			answer, err = a.get(ctx, realm, scopes)
		}
	} else {
		answer, err = a.get(ctx, realm, scopes)
	}
	if err != nil {
		return fmt.Errorf("token of %s: %w", realm.Host, err)
	}
	life := max(time.Duration(min(answer.ExpiresIn, 1<<20))*time.Second, minTokenLife)
	a.token, a.ends = answer.AccessToken, time.Now().Add(life-tokenSafetyTime)
	return nil
}

// wantsGet tells whether a token server may only know the older way.
func wantsGet(code int) bool {
	return code == http.StatusBadRequest || code == http.StatusUnauthorized ||
		code == http.StatusNotFound || code == http.StatusMethodNotAllowed
}

type tokenAnswer struct {
	Token       string `json:"token"`
	AccessToken string `json:"access_token"`
	ExpiresIn   int    `json:"expires_in"`
}

func (a *authorizer) post(ctx context.Context, realm *url.URL, scopes []string) (*tokenAnswer, error) {
	form := url.Values{"service": {a.ask.params["service"]}, "scope": {strings.Join(scopes, " ")}, "client_id": {userAgent}}
	if a.creds.username == "" {
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", a.creds.secret)
	} else {
		form.Set("grant_type", "password")
		form.Set("username", a.creds.username)
		form.Set("password", a.creds.secret)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return a.send(req)
}

func (a *authorizer) get(ctx context.Context, realm *url.URL, scopes []string) (*tokenAnswer, error) {
	u := *realm
	query := u.Query()
	if service := a.ask.params["service"]; service != "" {
		query.Set("service", service)
	}
	for _, s := range scopes {
		query.Add("scope", s)
	}
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if a.creds.username != "" {
		req.SetBasicAuth(a.creds.username, a.creds.secret)
	}
	return a.send(req)
}

func (a *authorizer) send(req *http.Request) (_ *tokenAnswer, err error) {
	req.Header.Set("User-Agent", userAgent)
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode >= http.StatusMultipleChoices {
		return nil, answerOf(resp.Request, resp)
	}
	content, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenAnswer+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxTokenAnswer {
		return nil, fmt.Errorf("%w: the answer has more than %d bytes", ErrTooLarge, maxTokenAnswer)
	}
	answer := &tokenAnswer{}
	if json.Unmarshal(content, answer) != nil { // the decoder's error could quote the token
		return nil, authError("the answer is not JSON with a token")
	}
	if answer.AccessToken == "" {
		answer.AccessToken = answer.Token
	}
	if answer.AccessToken == "" {
		return nil, authError("the answer has no token")
	}
	return answer, nil
}

// challenge is one demand of a WWW-Authenticate header.
type challenge struct {
	scheme string // lower case
	params map[string]string
}

// parseChallenges reads WWW-Authenticate headers (RFC 9110, 11.6.1) up to the
// first thing in each that makes no sense.
func parseChallenges(headers []string) []challenge {
	var list []challenge
	read := 0
	for _, text := range headers {
		if read += len(text); read > maxChallenge {
			return list
		}
		for text != "" {
			var word string
			word, text = token(strings.TrimLeft(text, ", \t"))
			if word == "" {
				break
			}
			value, rest, isParam := parameter(text)
			switch {
			case !isParam:
				list = append(list, challenge{scheme: strings.ToLower(word), params: map[string]string{}})
			case len(list) > 0:
				list[len(list)-1].params[strings.ToLower(word)] = value
				text = rest
			default:
				text = ""
			}
		}
	}
	return list
}

// parameter reads `="value"` or `=value`.
func parameter(text string) (value, rest string, ok bool) {
	text, ok = strings.CutPrefix(strings.TrimLeft(text, " \t"), "=")
	if !ok {
		return "", "", false
	}
	text = strings.TrimLeft(text, " \t")
	if !strings.HasPrefix(text, `"`) {
		value, rest = token(text)
		return value, rest, true
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch text[i] {
		case '"':
			return b.String(), text[i+1:], true
		case '\\':
			if i++; i < len(text) {
				b.WriteByte(text[i])
			}
		default:
			b.WriteByte(text[i])
		}
	}
	return "", "", true // never closed
}

// token cuts off what may be a word of a header.
func token(text string) (word, rest string) {
	end := strings.IndexFunc(text, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r)
	})
	if end < 0 {
		end = len(text)
	}
	return text[:end], text[end:]
}
