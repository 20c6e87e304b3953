package imageservice

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// credentials are an Auth in the form that the registry client asks for.
type credentials struct {
	username string
	secret   string // password, or with no username an identity token
	bearer   string // registry token
	server   string // the only host that may see them, "" for the image's registry
}

var errBadAuth = errors.New(`auth is not base64 of "username:password"`)

// newCredentials reads an Auth; nil stands for none.
func newCredentials(auth *Auth) (credentials, error) {
	if auth == nil {
		return credentials{}, nil
	}
	c := credentials{server: authHost(auth.ServerAddress)}
	switch {
	case auth.Username != "" && (auth.Password != "" || auth.IdentityToken == ""):
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
	return hubHost(plainHost(u.Scheme, u.Host))
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

// forHost returns the credentials as far as they are meant for a host: a
// server address decides, and without one they are for the registry itself,
// never for a mirror of it.
func (c credentials) forHost(h *host, domain string) credentials {
	own := h.server || hubHost(h.host) == hubHost(domain)
	switch {
	case c.server == "" && own:
		return c
	case c.server == hubHost(plainHost(h.scheme, h.host)), c.server == hubHost(strings.ToLower(h.host)):
		return c
	case own && c.server == hubHost(domain):
		return c // the administrator says that the registry is there
	}
	return credentials{}
}
