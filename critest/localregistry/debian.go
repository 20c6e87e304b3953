package localregistry

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/cri-runtime/cri-runtime/critest/images"
)

// Who may use Debian's registry.
const (
	DebianUser     = "me"
	DebianPassword = "secret"
	debianHash     = "me:$2y$04$f5qVOoiVpqpwlTNUI5hP9uP43o6iubhNCQi2jMoTFuSUV/.I2l49K"
	debianCommand  = "docker-registry"
)

// ErrNotInstalled is returned where Debian's registry is not installed.
var ErrNotInstalled = errors.New("the program docker-registry is not installed")

// Debian is Debian's docker-registry, with TLS and a user.
type Debian struct {
	Address string
	CA      []byte

	command *exec.Cmd
	client  *http.Client
	ended   chan struct{}

	mu  sync.Mutex
	log bytes.Buffer // guarded by mu
}

// StartDebian serves an empty registry that keeps its files below dir.
func StartDebian(ctx context.Context, dir string) (*Debian, error) {
	program, err := exec.LookPath(debianCommand)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotInstalled, err)
	}
	d := &Debian{ended: make(chan struct{})}
	config, err := d.configure(dir)
	if err != nil {
		return nil, err
	}
	d.command = exec.CommandContext(ctx, program, "serve", config)
	d.command.Env = []string{"HOME=" + dir} // REGISTRY_... would change the configuration
	out, err := d.command.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	d.command.Stdout = d.command.Stderr
	if err := d.command.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	listening := make(chan string, 1)
	go d.read(out, listening)
	select {
	case d.Address = <-listening:
		return d, nil
	case <-d.ended:
		return nil, errors.Join(fmt.Errorf("start %s: it ended: %s", program, d.Log()), d.command.Wait())
	}
}

// configure writes what the registry reads at its start.
func (d *Debian) configure(dir string) (string, error) {
	pair, ca, _, err := certificate(net.IPv4(127, 0, 0, 1))
	if err != nil {
		return "", err
	}
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return "", fmt.Errorf("encode the key: %w", err)
	}
	d.CA = ca
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	d.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	config := filepath.Join(dir, "config.yml")
	for name, content := range map[string][]byte{
		"cert.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}),
		"key.pem":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"users":    []byte(debianHash + "\n"),
		"config.yml": fmt.Appendf(nil, `version: 0.1
log: {level: info}
storage: {filesystem: {rootdirectory: %[1]q}}
http:
  addr: 127.0.0.1:0
  secret: of-a-test
  tls: {certificate: %[2]q, key: %[3]q}
auth: {htpasswd: {realm: test, path: %[4]q}}
`, filepath.Join(dir, "data"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "users")),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return "", fmt.Errorf("configure the registry: %w", err)
		}
	}
	return config, nil
}

// read keeps the log and finds the address in it.
func (d *Debian) read(out io.Reader, listening chan<- string) {
	defer close(d.ended)
	at := regexp.MustCompile(`listening on (127\.0\.0\.1:[0-9]+)`)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		d.mu.Lock()
		fmt.Fprintln(&d.log, lines.Text())
		d.mu.Unlock()
		if found := at.FindStringSubmatch(lines.Text()); found != nil {
			listening <- found[1]
		}
	}
}

// Log is what the registry has written.
func (d *Debian) Log() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

// Close ends the registry.
func (d *Debian) Close() error {
	d.client.CloseIdleConnections()
	err := d.command.Process.Kill()
	<-d.ended
	var exit *exec.ExitError
	if waitErr := d.command.Wait(); !errors.As(waitErr, &exit) {
		err = errors.Join(err, waitErr)
	}
	return err
}

// Push stores one image.
func (d *Debian) Push(ctx context.Context, n images.Named) error {
	if err := n.Artifact.Push(ctx, http.HandlerFunc(d.pass), n.Repository, n.Tag); err != nil {
		return fmt.Errorf("store %s:%s: %w", n.Repository, n.Tag, err)
	}
	return nil
}

// pass sends a request on. An upload in one request, which this registry does
// not have, becomes two.
func (d *Debian) pass(w http.ResponseWriter, r *http.Request) {
	address := "https://" + d.Address + r.URL.Path
	method := r.Method
	if digest := r.URL.Query().Get("digest"); method == http.MethodPost && digest != "" {
		answer, err := d.send(r.Context(), http.MethodPost, address, "", http.NoBody)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		method, address = http.MethodPut, answer.Header.Get("Location")+"&digest="+url.QueryEscape(digest)
		if strings.HasPrefix(address, "/") {
			address = "https://" + d.Address + address
		}
	}
	answer, err := d.send(r.Context(), method, address, r.Header.Get("Content-Type"), r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.WriteHeader(answer.StatusCode)
}

// send makes a request as the user.
func (d *Debian) send(ctx context.Context, method, address, mediaType string, body io.Reader) (*http.Response, error) {
	content, err := io.ReadAll(body)
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("make a request: %w", err)
	}
	req.SetBasicAuth(DebianUser, DebianPassword)
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	answer, err := d.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the registry: %w", err)
	}
	return answer, answer.Body.Close()
}
