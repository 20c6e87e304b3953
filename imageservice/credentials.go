package imageservice

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
)

// credentials are an Auth in the form that the registry client asks for.
type credentials struct {
	username string
	secret   string // password, or with no username an identity token
	bearer   string // registry token
	server   string // the only host that may see them, "" for all hosts of the image
}

var errBadAuth = errors.New(`auth is not base64 of "username:password"`)

// newCredentials reads an Auth; nil stands for none.
func newCredentials(auth *Auth) (credentials, error) {
	if auth == nil {
		return credentials{}, nil
	}
	c := credentials{server: authHost(auth.ServerAddress)}
	switch {
	case auth.Username != "":
		c.username, c.secret = auth.Username, auth.Password
	case auth.IdentityToken != "":
		c.secret = auth.IdentityToken
	case auth.RegistryToken != "":
		c.bearer = auth.RegistryToken
	case auth.Auth != "":
		// The decoder's own error would quote what it could not read.
		plain, err := base64.StdEncoding.DecodeString(auth.Auth)
		if err != nil {
			return credentials{}, fmt.Errorf("%w: %w", ErrUnauthorized, errBadAuth)
		}
		user, password, ok := strings.Cut(string(plain), ":")
		if !ok {
			return credentials{}, fmt.Errorf("%w: %w", ErrUnauthorized, errBadAuth)
		}
		c.username, c.secret = user, strings.Trim(password, "\x00")
	}
	return c, nil
}

// authHost returns the host of a server address, which may be a URL such as
// https://index.docker.io/v1/.
func authHost(address string) string {
	if address == "" {
		return ""
	}
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return "invalid" // fits no host
	}
	return hubHost(u.Host)
}

// hubHost gives the hosts of Docker Hub one name.
func hubHost(host string) string {
	switch host {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// key identifies the credentials without showing them.
func (c credentials) key() string {
	h := sha256.New()
	for _, part := range []string{c.username, c.secret, c.bearer, c.server} {
		h.Write(strconv.AppendInt(nil, int64(len(part)), 10))
		h.Write([]byte(":" + part))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// secrets are the texts that no error may contain.
func (c credentials) secrets() []string {
	var texts []string
	for _, t := range []string{c.secret, c.bearer} {
		if t != "" {
			texts = append(texts, t, url.QueryEscape(t))
		}
	}
	if c.secret != "" {
		texts = append(texts, base64.StdEncoding.EncodeToString([]byte(c.username+":"+c.secret)))
	}
	return texts
}

// grant limits credentials to the hosts that are configured for an image, so
// that a redirect elsewhere cannot collect them.
type grant struct {
	credentials
	hosts []string
}

func (g *grant) allows(host string) bool {
	return slices.Contains(g.hosts, host) && (g.server == "" || g.server == hubHost(host))
}

// get is what the registry client asks for each host.
func (g *grant) get(host string) (username, secret string, err error) {
	if !g.allows(host) {
		return "", "", nil
	}
	return g.username, g.secret, nil
}

// follow returns how a registry's redirects are followed: to a host that is not
// configured for the image without credentials. (The HTTP client alone takes
// another port of the same host for the same.)
func (g *grant) follow(authorizer docker.Authorizer) func(*http.Request, []*http.Request) error {
	const maxRedirects = 10
	return func(req *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return fmt.Errorf("more than %d redirects", maxRedirects)
		}
		req.Header.Del("Authorization")
		if !g.allows(req.URL.Host) {
			return nil
		}
		return authorizer.Authorize(req.Context(), req)
	}
}

// Authorize sends a registry token; with it, grant is the client's Authorizer.
func (g *grant) Authorize(_ context.Context, r *http.Request) error {
	if g.allows(r.URL.Host) {
		r.Header.Set("Authorization", "Bearer "+g.bearer)
	}
	return nil
}

// AddResponses has no second answer to a 401.
func (g *grant) AddResponses(context.Context, []*http.Response) error {
	return errdefs.ErrNotImplemented
}
