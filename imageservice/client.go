package imageservice

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/http/httpproxy"
)

const (
	maxRedirects       = 10
	maxResponseHeaders = 256 << 10
	tlsTimeout         = 10 * time.Second
	idleTimeout        = 30 * time.Second
	keepAlive          = 30 * time.Second
)

var (
	errInternalAddress = errors.New("a registry may not send us to this node's own or to link-local addresses")
	errRedirect        = errors.New("refused redirect")
)

// Proxy says by which proxies registries are reached. All fields empty stand
// for HTTP_PROXY, HTTPS_PROXY and NO_PROXY of the environment.
type Proxy struct {
	HTTP  string // URL for http registries
	HTTPS string // URL for https registries
	None  string // hosts, domains and networks that are reached directly, separated by commas
}

// function returns what chooses the proxy of a URL.
func (p Proxy) function() (func(*url.URL) (*url.URL, error), error) {
	if p == (Proxy{}) {
		return httpproxy.FromEnvironment().ProxyFunc(), nil
	}
	for _, text := range []string{p.HTTP, p.HTTPS} {
		if text == "" {
			continue
		}
		if u, err := url.Parse(text); err != nil || u.Host == "" {
			return nil, errors.New("proxy: it is not SCHEME://[USER:PASSWORD@]HOST:PORT") // it may hold a password
		}
	}
	return (&httpproxy.Config{HTTPProxy: p.HTTP, HTTPSProxy: p.HTTPS, NoProxy: p.None}).ProxyFunc(), nil
}

// origin is what may see the same secrets.
func origin(u *url.URL) string { return u.Scheme + "://" + plainHost(u.Scheme, u.Host) }

// plainHost leaves out a port that the scheme implies.
func plainHost(scheme, host string) string {
	host = strings.ToLower(host)
	switch scheme {
	case "https":
		return strings.TrimSuffix(host, ":443")
	case "http":
		return strings.TrimSuffix(host, ":80")
	}
	return host
}

func port(host string) string {
	_, p, _ := net.SplitHostPort(host)
	return p
}

// isLoopback tells whether a host is this machine by its very name.
func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.Unmap().IsLoopback()
}

// tlsConfig reads an endpoint's certificates.
func (e *endpoint) tlsConfig() (*tls.Config, error) {
	config := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: e.skipVerify, // the administrator's word
	}
	if len(e.authorities) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("system's certificates: %w", err)
		}
		for _, file := range e.authorities {
			content, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("%w: ca: %w", errHosts, err)
			}
			if !pool.AppendCertsFromPEM(content) {
				return nil, fmt.Errorf("%w: ca: %s holds no certificate in PEM", errHosts, file)
			}
		}
		config.RootCAs = pool
	}
	for _, pair := range e.clients {
		certificate, err := tls.LoadX509KeyPair(pair[0], pair[1])
		if err != nil {
			return nil, fmt.Errorf("%w: client certificate %s: %w", errHosts, pair[0], err)
		}
		config.Certificates = append(config.Certificates, certificate)
	}
	return config, nil
}

// newTransport makes the connections to one endpoint and to where it sends us.
func (s *Store) newTransport(e *endpoint, attempts int) (*transport, error) {
	config, err := e.tlsConfig()
	if err != nil {
		return nil, err
	}
	proxy := func(req *http.Request) (*url.URL, error) { return s.proxy(req.URL) }
	dialer := &net.Dialer{Timeout: e.dialTimeout, KeepAlive: keepAlive}
	base := &http.Transport{
		Proxy:                  proxy,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    tlsTimeout,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    s.config.MaxParallelLayers + 1,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxResponseHeaders,
		ReadBufferSize:         64 << 10,
	}
	// Elsewhere nothing is proved by the endpoint's certificate and nothing
	// taken on trust; its authority may know its token server too.
	away := base.Clone()
	away.TLSClientConfig.Certificates = nil
	away.TLSClientConfig.InsecureSkipVerify = false
	away.DialContext = (&net.Dialer{
		Timeout: e.dialTimeout, KeepAlive: keepAlive,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			return outside(address, isLoopback(e.host))
		},
	}).DialContext
	return &transport{
		base: base, away: away, host: e.host, either: e.scheme == "",
		attempts: attempts, timeout: s.config.NoProgressTimeout,
	}, nil
}

// outside refuses the addresses behind which are this node's own services or a
// cloud's metadata service.
func outside(address string, loopback bool) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	ip := at.Addr().Unmap()
	if ip.IsLoopback() && loopback {
		return nil
	}
	if ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsMulticast() {
		return fmt.Errorf("%w: %s", errInternalAddress, ip)
	}
	return nil
}

// host is an endpoint with its connections and its credentials.
type host struct {
	endpoint
	client *http.Client
	auth   *authorizer
}

// url returns the address of something of a repository.
func (h *host) url(domain, repository, rest string) string {
	scheme := h.scheme
	if scheme == "" {
		scheme = "https" // transport falls back
	}
	u := url.URL{Scheme: scheme, Host: h.host, Path: path.Join(h.path, repository, rest)}
	if !h.server || plainHost(scheme, h.host) != domain && hubHost(h.host) != hubHost(domain) {
		u.RawQuery = url.Values{"ns": {domain}}.Encode() // tells a mirror of several registries which
	}
	return u.String()
}

// follow decides on a redirect: what belongs to the registry stays there.
func (h *host) follow(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("%w: more than %d in a row", errRedirect, maxRedirects)
	}
	first := via[0]
	switch {
	case req.URL.Scheme != "https" && req.URL.Scheme != "http":
		return fmt.Errorf("%w: to the scheme %q", errRedirect, req.URL.Scheme)
	case req.URL.Scheme == "http" && first.URL.Scheme == "https" && h.scheme != "" && !byDigest(first.URL):
		return fmt.Errorf("%w: from HTTPS to HTTP for what no digest verifies", errRedirect)
	}
	if h.same(req.URL, first.URL) {
		req.Header = first.Header.Clone() // the client drops some even here
		return nil
	}
	req.Header.Del("Authorization")
	req.Header.Del("Cookie")
	req.Header.Del("Referer")
	for name := range h.header {
		req.Header.Del(name)
	}
	return nil
}

// same tells whether two addresses are of the same server.
func (h *host) same(a, b *url.URL) bool {
	return origin(a) == origin(b) || h.scheme == "" && a.Host == b.Host && a.Host == h.host
}

// byDigest tells whether what a URL names is verified by the name.
func byDigest(u *url.URL) bool { return strings.Contains(path.Base(u.Path), ":") }

// do sends one request and answers the host's challenges. The caller closes
// the body.
func (h *host) do(ctx context.Context, method, address string, header http.Header) (*http.Response, error) {
	for challenged := false; ; challenged = true {
		req, err := http.NewRequestWithContext(ctx, method, address, nil)
		if err != nil {
			return nil, err
		}
		req.Header = header.Clone()
		for name, values := range h.header {
			req.Header[http.CanonicalHeaderKey(name)] = values
		}
		req.Header.Set("User-Agent", userAgent)
		req.Header.Set("Accept-Encoding", "identity") // what is hashed is what is sent
		used, err := h.auth.authorize(ctx, req)
		if err != nil {
			return nil, err
		}
		resp, err := h.client.Do(req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode < http.StatusMultipleChoices {
			return resp, nil
		}
		answer := answerOf(resp.Request, resp)
		_ = resp.Body.Close()
		if answer.code != http.StatusUnauthorized || challenged || !h.same(resp.Request.URL, req.URL) {
			return nil, answer
		}
		if err := h.auth.challenge(ctx, resp, used); err != nil {
			var denied authError
			var other *statusError
			if errors.As(err, &denied) || errors.As(err, &other) && !busyCode(other.code) {
				err = fmt.Errorf("%w (%w)", answer, err)
			}
			return nil, err
		}
	}
}
