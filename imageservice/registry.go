package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
)

// session is the talk with the hosts of one image during one pull.
type session struct {
	name       name
	creds      credentials
	transports []*http.Transport
	resolver   remotes.Resolver
	fetcher    remotes.Fetcher
	progress   *tracked // nil: nobody looks
}

// quiet keeps the registry client's own log lines out of ours: what matters of
// them is in the errors it returns.
func quiet(ctx context.Context) context.Context { return logTo(ctx, io.Discard, logrus.PanicLevel) }

func logTo(ctx context.Context, w io.Writer, level logrus.Level) context.Context {
	l := &logrus.Logger{Out: w, Formatter: &logrus.TextFormatter{DisableTimestamp: true}, Level: level}
	return log.WithLogger(ctx, logrus.NewEntry(l))
}

// configuredHosts reads hosts.toml. A file that cannot be understood is only
// logged by the client, which then asks hosts that nobody meant; here it is an
// error.
func configuredHosts(ctx context.Context, options dockerconfig.HostOptions, domain string) ([]docker.RegistryHost, error) {
	var complaints strings.Builder
	hosts, err := dockerconfig.ConfigureHosts(logTo(ctx, &complaints, logrus.ErrorLevel), options)(domain)
	if err == nil && complaints.Len() > 0 {
		err = errors.New(strings.TrimSpace(complaints.String()))
	}
	if err != nil {
		return nil, fmt.Errorf("read the hosts of %s: %w", domain, err)
	}
	return hosts, nil
}

// newSession reads the hosts of the image's registry. The caller closes it.
func (s *Store) newSession(ctx context.Context, n name, creds credentials) (*session, error) {
	sess := &session{name: n, creds: creds}
	g := &grant{credentials: creds}
	options := dockerconfig.HostOptions{
		Credentials: g.get,
		UpdateClient: func(client *http.Client) error {
			base, ok := client.Transport.(*http.Transport)
			if !ok {
				return nil // a host with only headers of its own shares the client
			}
			base.ResponseHeaderTimeout = 0 // ours, in transport, is for the whole exchange
			base.MaxIdleConnsPerHost = s.config.MaxParallelLayers + 1
			base.ReadBufferSize = 64 << 10
			sess.transports = append(sess.transports, base)
			client.Transport = &transport{base: base, attempts: patientAttempts, timeout: s.config.NoProgressTimeout}
			return nil
		},
	}
	if s.config.RegistryConfigDir != "" {
		options.HostDir = dockerconfig.HostDirFromRoot(s.config.RegistryConfigDir)
	}
	hosts, err := configuredHosts(ctx, options, n.domain)
	if err != nil {
		return nil, err
	}
	for i := range hosts {
		g.hosts = append(g.hosts, hosts[i].Host)
		if creds.bearer != "" {
			hosts[i].Authorizer = g
		}
		// Only the last host is asked again: before it, the next one is faster.
		client := *hosts[i].Client
		if t, ok := client.Transport.(*transport); ok && i < len(hosts)-1 {
			client.Transport = &transport{base: t.base, attempts: 1, timeout: t.timeout}
		}
		client.CheckRedirect = g.follow(hosts[i].Authorizer)
		hosts[i].Client = &client
	}
	sess.resolver = docker.NewResolver(docker.ResolverOptions{
		Hosts: func(string) ([]docker.RegistryHost, error) { return hosts, nil },
	})
	sess.fetcher, err = sess.resolver.Fetcher(ctx, n.String())
	if err != nil {
		return nil, sess.explain(err)
	}
	return sess, nil
}

func (sess *session) close() {
	for _, t := range sess.transports {
		t.CloseIdleConnections()
	}
}

// resolve asks what the name stands for now.
func (sess *session) resolve(ctx context.Context) (ocispec.Descriptor, error) {
	_, desc, err := sess.resolver.Resolve(ctx, sess.name.String())
	if err != nil {
		return desc, sess.explain(err)
	}
	if sess.name.digest != "" && desc.Digest != sess.name.digest {
		return desc, fmt.Errorf("%w: the registry resolved %s to %s", ErrDigestMismatch, sess.name, desc.Digest)
	}
	return desc, nil
}

// open starts the download of a blob from an offset on. Locations that a
// descriptor names itself are not followed: an image chooses no host to ask.
func (sess *session) open(ctx context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	rc, err := sess.fetcher.Fetch(ctx, ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size})
	if err != nil {
		return nil, err
	}
	if offset > 0 {
		seeker, ok := rc.(io.Seeker)
		if !ok {
			return nil, errors.Join(errors.New("the registry client cannot resume"), rc.Close())
		}
		if _, err := seeker.Seek(offset, io.SeekStart); err != nil {
			return nil, errors.Join(err, rc.Close())
		}
	}
	return rc, nil
}

// document downloads and verifies a manifest, an index or a config.
func (sess *session) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: digest %q: %w", ErrMalformedManifest, desc.Digest, err)
	}
	if desc.Size < 0 || desc.Size > maxDocument {
		return nil, fmt.Errorf("%w: %s of %d bytes, at most %d are read", ErrTooLarge, desc.Digest, desc.Size, maxDocument)
	}
	blob := &blobReader{ctx: ctx, sess: sess, desc: desc}
	content, err := io.ReadAll(io.LimitReader(blob, maxDocument+1))
	err = errors.Join(err, blob.Close())
	if err != nil {
		return nil, fmt.Errorf("download %s: %w", desc.Digest, err)
	}
	if int64(len(content)) != desc.Size {
		return nil, fmt.Errorf("%w: %s has %d bytes instead of %d", ErrDigestMismatch, desc.Digest, len(content), desc.Size)
	}
	if got := desc.Digest.Algorithm().FromBytes(content); got != desc.Digest {
		return nil, fmt.Errorf("%w: downloaded %s, got %s", ErrDigestMismatch, desc.Digest, got)
	}
	return content, nil
}

// registryError is an error of the talk with a registry, in words that are
// safe to show.
type registryError struct {
	kind error // a sentinel
	text string
}

func (e *registryError) Error() string { return e.kind.Error() + ": " + e.text }
func (e *registryError) Unwrap() error { return e.kind }

var errRegistry = errors.New("registry")

// explain turns an error of the registry client into one of ours. The text of
// the old one is kept without what must not be shown, the old one is not.
func (sess *session) explain(err error) error {
	for _, plain := range []error{context.Canceled, context.DeadlineExceeded, ErrClosed} {
		if errors.Is(err, plain) {
			return plain
		}
	}
	var known *registryError
	if errors.As(err, &known) {
		return err
	}
	return &registryError{kind: kindOf(err), text: sess.clean(err.Error())}
}

func kindOf(err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	hasStatus := errors.As(err, &status)
	var busy *statusError
	switch {
	case errors.Is(err, ErrStalled):
		return ErrStalled
	case errors.Is(err, docker.ErrInvalidAuthorization),
		hasStatus && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden):
		return ErrUnauthorized
	case errdefs.IsNotFound(err):
		return ErrNotFound
	case errors.As(err, &busy), hasStatus && status.StatusCode >= http.StatusInternalServerError,
		brokenConnection(err), isNetwork(err):
		return ErrRegistryUnavailable
	case errdefs.IsFailedPrecondition(err):
		return ErrDigestMismatch // more bytes than the descriptor says
	}
	return errRegistry
}

func isNetwork(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) || os.IsTimeout(err)
}

// clean removes from a text what may be a secret: the queries of URLs, which
// hold the signatures of redirects, and the credentials themselves.
func (sess *session) clean(text string) string {
	for _, secret := range sess.creds.secrets() {
		text = strings.ReplaceAll(text, secret, "***")
	}
	query := regexp.MustCompile(`(https?://)([^/?#\s"@]*@)?([^?\s"]*)\?[^\s"]*`)
	return cut(query.ReplaceAllString(text, "$1$3"), 4*maxErrorText)
}
