package imageservice

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

const (
	hostsFile     = "hosts.toml"
	defaultHosts  = "_default" // the directory for registries without one of their own
	maxHostsFile  = 1 << 20
	maxHosts      = 64
	hubHostName   = "registry-1.docker.io"
	defaultDialer = 30 * time.Second
)

// errHosts: the administrator's description of a registry cannot be followed.
var errHosts = errors.New("invalid registry configuration")

// endpoint is one place that serves a registry's content, as hosts.toml
// describes it.
type endpoint struct {
	scheme  string // "https", "http", or "" for HTTPS first and HTTP when the peer speaks that
	host    string // host or host:port
	path    string // of the API's root, such as /v2
	server  bool   // the registry itself, not a mirror of it
	pull    bool   // may serve content by digest
	resolve bool   // may say what a tag stands for

	authorities []string    // files with certificates
	clients     [][2]string // files with a certificate and its key
	skipVerify  bool
	header      map[string][]string
	dialTimeout time.Duration
}

// hostTable is a table of hosts.toml, as containerd documents it.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`     // a file or several
	Client       any            `toml:"client"` // a file, several, or pairs of certificate and key
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"` // a text or several each
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

type hostTables struct {
	hostTable
	Server string               `toml:"server"`
	Host   map[string]hostTable `toml:"host"`
}

// endpoints returns where the content of a registry may be, in the order in
// which they are asked.
func endpoints(root, domain string) ([]endpoint, error) {
	dir, err := hostDir(root, domain)
	if err != nil {
		return nil, err
	}
	if dir == "" {
		return []endpoint{ownEndpoint(domain)}, nil
	}
	file := filepath.Join(dir, hostsFile)
	content, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return certificateDir(dir, domain)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errHosts, err)
	}
	list, err := parseHosts(content, dir, domain)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errHosts, file, err)
	}
	return list, nil
}

// hostDir finds the directory of a registry: HOST_PORT_, HOST:PORT or _default.
func hostDir(root, domain string) (string, error) {
	if root == "" {
		return "", nil
	}
	names := []string{domain, defaultHosts}
	if i := strings.LastIndexByte(domain, ':'); i > 0 {
		names = slices.Insert(names, 0, domain[:i]+"_"+domain[i+1:]+"_")
	}
	for _, n := range names {
		dir := filepath.Join(root, n)
		info, err := os.Stat(dir)
		if err == nil && info.IsDir() {
			return dir, nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("%w: %w", errHosts, err)
		}
	}
	return "", nil
}

// ownEndpoint is a registry that nothing is configured about: HTTPS, and only
// on loopback HTTP where the peer speaks no TLS.
func ownEndpoint(domain string) endpoint {
	e := endpoint{scheme: "https", host: domain, path: "/v2", server: true, pull: true, resolve: true, dialTimeout: defaultDialer}
	if domain == "docker.io" {
		e.host = hubHostName
	}
	if isLoopback(domain) {
		switch port(domain) {
		case "", "443":
		case "80":
			e.scheme = "http"
		default:
			e.scheme = ""
		}
	}
	return e
}

// certificateDir reads a directory as Docker has them: *.crt are authorities,
// *.cert with *.key client certificates.
func certificateDir(dir, domain string) ([]endpoint, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errHosts, err)
	}
	e := ownEndpoint(domain)
	for _, f := range files {
		p := filepath.Join(dir, f.Name())
		switch filepath.Ext(p) {
		case ".crt":
			e.authorities = append(e.authorities, p)
		case ".cert":
			key := strings.TrimSuffix(p, ".cert") + ".key"
			if _, err := os.Stat(key); err != nil {
				key = p // both in one file
			}
			e.clients = append(e.clients, [2]string{p, key})
		}
	}
	return []endpoint{e}, nil
}

// parseHosts reads a hosts.toml. Mirrors come in the order of the file, then
// the server. A key that is not known is an error: a misspelt "capabilities"
// would trust a mirror with tags.
func parseHosts(content []byte, dir, domain string) ([]endpoint, error) {
	if len(content) > maxHostsFile {
		return nil, fmt.Errorf("larger than %d bytes", maxHostsFile)
	}
	var file hostTables
	err := toml.NewDecoder(bytes.NewReader(content)).DisallowUnknownFields().Decode(&file)
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		row, _ := unknown.Errors[0].Position()
		return nil, fmt.Errorf("line %d: unknown key %q", row, strings.Join(unknown.Errors[0].Key(), "."))
	}
	if err != nil {
		return nil, err
	}
	order, err := hostOrder(content)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(file.Host)) {
		if !slices.Contains(order, name) {
			return nil, fmt.Errorf("host %q: write it as a table, [host.%q], so that the hosts have an order", name, name)
		}
	}
	if len(order) > maxHosts {
		return nil, fmt.Errorf("%d hosts, at most %d are asked", len(order), maxHosts)
	}
	list := make([]endpoint, 0, len(order)+1)
	for _, name := range order {
		e, err := file.Host[name].endpoint(name, dir)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", name, err)
		}
		list = append(list, e)
	}
	own, err := file.server(dir, domain)
	if err != nil {
		return nil, fmt.Errorf("server %q: %w", file.Server, err)
	}
	return append(list, own), nil
}

// server is the registry itself, asked last.
func (f *hostTables) server(dir, domain string) (endpoint, error) {
	own := ownEndpoint(domain)
	if f.Server == "" {
		described, err := f.endpoint("https://"+own.host, dir)
		described.scheme = own.scheme
		described.server = true
		return described, err
	}
	e, err := f.endpoint(f.Server, dir)
	e.server = true
	return e, err
}

// hostOrder lists the [host."..."] tables as they stand in the file.
func hostOrder(content []byte) ([]string, error) {
	var order []string
	p := unstable.Parser{}
	p.Reset(content)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		var parts []string
		for key := e.Key(); key.Next(); {
			parts = append(parts, string(key.Node().Data))
		}
		if len(parts) > 1 && parts[0] == "host" && !slices.Contains(order, parts[1]) {
			order = append(order, parts[1])
		}
	}
	return order, p.Error()
}

// endpoint reads one table.
func (t hostTable) endpoint(address, dir string) (endpoint, error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return endpoint{}, err
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return endpoint{}, fmt.Errorf("the scheme %q is neither https nor http", u.Scheme)
	case u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return endpoint{}, errors.New("it is not SCHEME://HOST[:PORT][/PATH]")
	}
	e := endpoint{scheme: u.Scheme, host: u.Host, skipVerify: t.SkipVerify, dialTimeout: defaultDialer}
	e.path = path.Clean("/" + u.Path)
	if !t.OverridePath && !strings.HasSuffix(e.path, "/v2") {
		e.path = path.Join(e.path, "v2")
	}
	if t.DialTimeout != "" {
		if e.dialTimeout, err = time.ParseDuration(t.DialTimeout); err != nil || e.dialTimeout <= 0 {
			return endpoint{}, fmt.Errorf("dial_timeout: %q is not a duration above zero", t.DialTimeout)
		}
	}
	if err := e.setCapabilities(t.Capabilities); err != nil {
		return endpoint{}, err
	}
	if e.authorities, err = texts(t.CA); err != nil {
		return endpoint{}, fmt.Errorf("ca: %w", err)
	}
	for i, file := range e.authorities {
		e.authorities[i] = below(dir, file)
	}
	if e.clients, err = pairs(t.Client, dir); err != nil {
		return endpoint{}, fmt.Errorf("client: %w", err)
	}
	e.header = make(map[string][]string, len(t.Header))
	for name, value := range t.Header {
		if e.header[name], err = texts(value); err != nil {
			return endpoint{}, fmt.Errorf("header %s: %w", name, err)
		}
	}
	return e, nil
}

func (e *endpoint) setCapabilities(names []string) error {
	if len(names) == 0 {
		e.pull, e.resolve = true, true
		return nil
	}
	for _, n := range names {
		switch strings.ToLower(n) {
		case "pull":
			e.pull = true
		case "resolve":
			e.resolve = true
		case "push", "referrers": // neither is asked of a host: signatures come from wherever images do
		default:
			return fmt.Errorf("capabilities: unknown capability %q", n)
		}
	}
	return nil
}

var errNotText = errors.New("neither a text nor a list of texts")

// texts reads a value that may be one text or several.
func texts(value any) ([]string, error) {
	switch v := value.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		var out []string
		for _, item := range v {
			text, ok := item.(string)
			if !ok {
				return nil, errNotText
			}
			out = append(out, text)
		}
		return out, nil
	}
	return nil, errNotText
}

// pairs reads client certificates: a file with both parts, several, or pairs.
func pairs(value any, dir string) ([][2]string, error) {
	if list, ok := value.([]any); ok {
		var out [][2]string
		for _, item := range list {
			files, err := texts(item)
			if err != nil || len(files) < 1 || len(files) > 2 {
				return nil, errors.New("neither a file nor a pair of certificate and key")
			}
			out = append(out, [2]string{below(dir, files[0]), below(dir, files[len(files)-1])})
		}
		return out, nil
	}
	files, err := texts(value)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	file := below(dir, files[0])
	return [][2]string{{file, file}}, nil
}

func below(dir, file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(dir, file)
}
