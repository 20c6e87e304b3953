package imageservice

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// session is the talk with the hosts of one image during one pull.
type session struct {
	name       name
	repository string // without the registry
	configDir  string
	creds      credentials
	hosts      []*host
	transports []*transport
	known      map[digest.Digest][]byte // documents that came with an answer; written by resolve only
	progress   *tracked                 // nil: nobody looks
	source     string                   // host that served a manifest last, or the archive
	archive    *imported                // what is asked instead of the hosts; nil: the hosts
}

// newSession reads the hosts of the image's registry. The caller closes it.
func (s *Store) newSession(_ context.Context, n name, creds credentials) (*session, error) {
	list, err := endpoints(s.config.RegistryConfigDir, n.domain)
	if err != nil {
		return nil, fmt.Errorf("hosts of %s: %w", n.domain, err)
	}
	sess := &session{
		name: n, repository: strings.TrimPrefix(n.repository, n.domain+"/"), configDir: s.config.RegistryConfigDir,
		creds: creds, known: map[digest.Digest][]byte{},
	}
	for i := range list {
		// Only the last host is asked again: before it, the next one is faster.
		attempts := 1
		if i == len(list)-1 {
			attempts = patientAttempts
		}
		t, err := s.newTransport(&list[i], attempts)
		if err != nil {
			return nil, fmt.Errorf("hosts of %s: %w", n.domain, err)
		}
		h := &host{endpoint: list[i], client: &http.Client{Transport: t}}
		h.client.CheckRedirect = h.follow
		h.auth = newAuthorizer(creds.forHost(h, n.domain), sess.repository, h.client, &list[i])
		sess.hosts = append(sess.hosts, h)
		sess.transports = append(sess.transports, t)
	}
	return sess, nil
}

func (sess *session) close() {
	for _, t := range sess.transports {
		t.base.CloseIdleConnections()
		t.away.CloseIdleConnections()
	}
}

// hostErrors are what all hosts of an image answered; the last one, the
// registry itself, says of which kind the whole is.
type hostErrors []error

func (e hostErrors) Error() string {
	texts := make([]string, len(e))
	for i, err := range e {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (e hostErrors) Unwrap() error { return e[len(e)-1] }

// each asks the hosts that fit, in their order, until one serves.
func (sess *session) each(ctx context.Context, fits func(*host) bool, ask func(*host) error) error {
	var errs hostErrors
	for _, h := range sess.hosts {
		if !fits(h) {
			continue
		}
		err := ask(h)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return fmt.Errorf("%w: no host in %s has the capability", errHosts, hostsFile)
	}
	return errs
}

func pulls(h *host) bool { return h.pull }

// resolve asks what the name stands for now.
func (sess *session) resolve(ctx context.Context) (desc ocispec.Descriptor, err error) {
	what := sess.name.tag
	fits := func(h *host) bool { return h.pull && h.resolve }
	if sess.name.digest != "" {
		what, fits = sess.name.digest.String(), pulls
	}
	err = sess.each(ctx, fits, func(h *host) error {
		desc, err = sess.manifest(ctx, h, what, sess.name.digest)
		return err
	})
	if err != nil {
		return desc, sess.explain(err)
	}
	return desc, nil
}

func acceptManifests() http.Header {
	return http.Header{"Accept": {strings.Join([]string{
		ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, typeDockerIndex, typeDockerManifest, "*/*;q=0.5",
	}, ", ")}}
}

// manifest describes a manifest of one host: by HEAD, which registries count
// less, or by GET for those that answer HEAD with too little.
func (sess *session) manifest(ctx context.Context, h *host, what string, want digest.Digest) (ocispec.Descriptor, error) {
	address := h.url(sess.name.domain, sess.repository, "manifests/"+what)
	resp, err := h.do(ctx, http.MethodHead, address, acceptManifests())
	var answer *statusError
	if errors.As(err, &answer) && (answer.code == http.StatusMethodNotAllowed || answer.code == http.StatusForbidden) {
		// The answer to a GET says why.
		return sess.getManifest(ctx, h, address, want)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	_ = resp.Body.Close() // a HEAD has none
	desc := ocispec.Descriptor{MediaType: mediaType(resp), Digest: want, Size: resp.ContentLength}
	if said := digest.Digest(resp.Header.Get("Docker-Content-Digest")); said.Validate() == nil && want == "" {
		desc.Digest = said
	}
	if desc.Digest == "" || desc.Size < 0 || resp.Header.Get("Content-Encoding") != "" {
		return sess.getManifest(ctx, h, address, want)
	}
	if desc.Size > maxDocument {
		return desc, fmt.Errorf("%w: %s has a manifest of %d bytes, at most %d are read", ErrTooLarge, h.host, desc.Size, maxDocument)
	}
	return desc, nil
}

func (sess *session) getManifest(ctx context.Context, h *host, address string, want digest.Digest) (ocispec.Descriptor, error) {
	content, kind, err := h.get(ctx, address, acceptManifests())
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	got := digest.FromBytes(content)
	if want != "" {
		if got = want.Algorithm().FromBytes(content); got != want {
			return ocispec.Descriptor{}, fmt.Errorf("%w: %s sent %s for %s", ErrDigestMismatch, h.host, got, want)
		}
	}
	sess.known[got], sess.source = content, h.host
	return ocispec.Descriptor{MediaType: kind, Digest: got, Size: int64(len(content))}, nil
}

// get reads a document whose size nobody named.
func (h *host) get(ctx context.Context, address string, header http.Header) (content []byte, kind string, err error) {
	resp, err := h.do(ctx, http.MethodGet, address, header)
	if err != nil {
		return nil, "", err
	}
	body, err := decoded(resp)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	content, err = io.ReadAll(io.LimitReader(body, maxDocument+1))
	if err != nil {
		return nil, "", err
	}
	if len(content) > maxDocument {
		return nil, "", fmt.Errorf("%w: %s sent more than %d bytes for a manifest", ErrTooLarge, h.host, maxDocument)
	}
	return content, mediaType(resp), nil
}

func mediaType(resp *http.Response) string {
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.TrimSpace(kind)
}

// decoded undoes a Content-Encoding that was not asked for. The body is the
// caller's to close, also the response's own on an error.
func decoded(resp *http.Response) (io.ReadCloser, error) {
	switch encoding := strings.ToLower(resp.Header.Get("Content-Encoding")); encoding {
	case "", "identity":
		return resp.Body, nil
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(resp.Body)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%w: Content-Encoding: %w", ErrDigestMismatch, err), resp.Body.Close())
		}
		return &encodedBody{Reader: z, body: resp.Body}, nil
	default:
		return nil, errors.Join(fmt.Errorf("%w: %s sent a Content-Encoding of %q", ErrUnsupported, resp.Request.URL.Host,
			cut(encoding, maxErrorText)), resp.Body.Close())
	}
}

type encodedBody struct {
	io.Reader
	body io.Closer
}

func (b *encodedBody) Close() error { return b.body.Close() }

// errNoRanges: the host cannot go on from the middle of a blob.
var errNoRanges = errors.New("the registry serves no ranges")

// open starts the download of a blob from an offset on, and returns which host
// sends it; of an archive none does. Locations that a descriptor names itself are
// not followed: an image chooses no host to ask.
func (sess *session) open(ctx context.Context, desc ocispec.Descriptor, offset int64, avoid []*host) (rc io.ReadCloser, from *host, err error) {
	if sess.archive != nil {
		rc, err = sess.archive.open(desc, offset)
		return rc, nil, err
	}
	what, header := "blobs/", http.Header{}
	if manifestType(desc.MediaType) {
		what = "manifests/"
		header.Set("Accept", desc.MediaType+", */*;q=0.5")
	}
	if offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	fits := func(h *host) bool { return pulls(h) && !slices.Contains(avoid, h) }
	err = sess.each(ctx, fits, func(h *host) error {
		address := h.url(sess.name.domain, sess.repository, what+desc.Digest.String())
		resp, err := h.do(ctx, http.MethodGet, address, header)
		if err == nil {
			rc, err = body(resp, desc.Size, offset)
		}
		if err == nil && what == "manifests/" {
			sess.source = h.host // one document is read at a time
		}
		from = h
		return err
	})
	return rc, from, err
}

// body returns the part of a blob from offset on, also of a host that ignores
// ranges, and an error instead of more bytes than the blob has.
func body(resp *http.Response, size, offset int64) (io.ReadCloser, error) {
	partial := resp.StatusCode == http.StatusPartialContent
	encoded := resp.Header.Get("Content-Encoding") != ""
	if partial && (encoded || !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset))) {
		return nil, errors.Join(errNoRanges, resp.Body.Close())
	}
	rc, err := decoded(resp)
	if err != nil {
		return nil, err
	}
	b := &sizedBody{body: rc, left: size}
	if partial {
		b.left -= offset
	} else if _, err := io.CopyN(io.Discard, b, offset); err != nil {
		return nil, errors.Join(err, rc.Close())
	}
	return b, nil
}

// sizedBody ends with an error where there is more than there may be.
type sizedBody struct {
	body io.ReadCloser
	left int64
}

func (b *sizedBody) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.body.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("%w: it is longer than its descriptor says", ErrDigestMismatch)
	}
	return n, err
}

func (b *sizedBody) Close() error { return b.body.Close() }

// document downloads and verifies a manifest, an index or a config.
func (sess *session) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: digest %q: %w", ErrMalformedManifest, desc.Digest, err)
	}
	if desc.Size < 0 || desc.Size > maxDocument {
		return nil, fmt.Errorf("%w: %s of %d bytes, at most %d are read", ErrTooLarge, desc.Digest, desc.Size, maxDocument)
	}
	if content := sess.known[desc.Digest]; content != nil {
		return content, nil
	}
	var content []byte
	err := sess.blob(ctx, desc, func(blob *blobReader) (err error) {
		if content, err = io.ReadAll(io.LimitReader(blob, maxDocument+1)); err != nil {
			return fmt.Errorf("download %s: %w", desc.Digest, err)
		}
		if int64(len(content)) != desc.Size {
			return wrongBlob{fmt.Errorf("%w: %s has %d bytes instead of %d", ErrDigestMismatch, desc.Digest, len(content), desc.Size)}
		}
		if got := desc.Digest.Algorithm().FromBytes(content); got != desc.Digest {
			return wrongBlob{fmt.Errorf("%w: downloaded %s, got %s", ErrDigestMismatch, desc.Digest, got)}
		}
		return nil
	})
	if err != nil {
		return nil, err
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
		if errors.Is(err, plain) && !errors.Is(err, ErrStalled) {
			return plain
		}
	}
	var known *registryError
	if errors.As(err, &known) || sess.archive != nil {
		return err
	}
	kind := kindOf(err)
	text := strings.TrimPrefix(err.Error(), kind.Error()+": ")
	return &registryError{kind: kind, text: sess.clean(text) + sess.remedy(err)}
}

func kindOf(err error) error {
	for _, known := range []error{ErrStalled, ErrTooLarge, ErrUnsupported, ErrDigestMismatch, errHosts} {
		if errors.Is(err, known) {
			return known
		}
	}
	var denied authError
	if errors.As(err, &denied) {
		return ErrUnauthorized
	}
	var answer *statusError
	if errors.As(err, &answer) {
		switch {
		case answer.code == http.StatusUnauthorized, answer.code == http.StatusForbidden:
			return ErrUnauthorized
		case answer.code == http.StatusNotFound:
			return ErrNotFound
		case busyCode(answer.code), answer.code >= http.StatusInternalServerError:
			return ErrRegistryUnavailable
		}
		return errRegistry
	}
	if errors.Is(err, errRedirect) || errors.Is(err, errInternalAddress) {
		return errRegistry
	}
	var failed net.Error
	var lookup *net.DNSError
	if brokenConnection(err) || errors.As(err, &lookup) || errors.As(err, &failed) && failed.Timeout() {
		return ErrRegistryUnavailable
	}
	return errRegistry
}

// remedy tells an administrator what to write where.
func (sess *session) remedy(err error) string {
	dir := sess.configDir
	if dir == "" {
		dir = "the registry configuration directory"
	}
	file := filepath.Join(dir, strings.ReplaceAll(sess.name.domain, ":", "_")+"_", hostsFile)
	if !strings.Contains(sess.name.domain, ":") {
		file = filepath.Join(dir, sess.name.domain, hostsFile)
	}
	var untrusted *tls.CertificateVerificationError
	switch {
	case errors.As(err, &untrusted):
		return fmt.Sprintf(` (name the file of its authority's certificate as "ca" in %s)`, file)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Sprintf(` (if it may be used without TLS, name it as server = "http://..." in %s)`, file)
	}
	return ""
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
