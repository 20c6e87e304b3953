package imageservice

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"k8s.io/klog/v2"
)

// maxReopened is how often in a row a download is resumed without a byte more.
const maxReopened = 3

// blobReader downloads a blob. A connection that breaks is made again from
// where it broke, with a range request where the registry serves those.
type blobReader struct {
	ctx    context.Context //nolint:containedctx // io.Reader has no other way to get it
	sess   *session
	desc   ocispec.Descriptor
	rc     io.ReadCloser
	offset int64
	broken int     // in a row without progress
	whole  bool    // the registry serves no ranges: what was read already is skipped
	avoid  []*host // that sent something else than the blob
	served []*host // that sent some of it, the first one first
}

// wrongBlob is a download that failed by what a host sent: another host may
// have the right thing.
type wrongBlob struct{ error }

func (w wrongBlob) Unwrap() error { return w.error }

// blob gives take a reader of a blob, and as long as that ends in a wrongBlob
// one of the next host. The last host's error says of which kind the whole is.
func (sess *session) blob(ctx context.Context, desc ocispec.Descriptor, take func(*blobReader) error) error {
	var errs hostErrors
	var avoid []*host
	for {
		blob := &blobReader{ctx: ctx, sess: sess, desc: desc, avoid: avoid}
		err := take(blob)
		_ = blob.Close() // verified, or failed already
		if err == nil {
			return nil
		}
		if errs = append(errs, err); len(errs) > 1 {
			err = errs
		}
		var wrong wrongBlob
		if ctx.Err() != nil || !errors.As(errs[len(errs)-1], &wrong) || len(blob.served) == 0 {
			return err
		}
		avoid = append(avoid, blob.served[0])
		if !slices.ContainsFunc(sess.hosts, func(h *host) bool { return pulls(h) && !slices.Contains(avoid, h) }) {
			return err
		}
		klog.ErrorS(wrong, "A host of a registry sent something else than a blob, the next host is asked",
			"host", blob.served[0].host, "image", sess.name.String(), "blob", desc.Digest)
	}
}

// Read returns io.EOF only at the size that the descriptor names.
func (b *blobReader) Read(p []byte) (int, error) {
	for {
		n, err := b.read(p)
		b.offset += int64(n)
		if n > 0 {
			b.broken = 0
			return n, nil // an error comes again
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) && b.offset >= b.desc.Size {
			return 0, io.EOF
		}
		b.broken++
		b.whole = b.whole || noRanges(err)
		if b.broken > maxReopened || !b.resumable(err) {
			return 0, b.fail(err)
		}
		if b.rc != nil {
			_ = b.rc.Close() // it is broken
			b.rc = nil
		}
		if err := pause(b.ctx, backoff(b.broken, nil)); err != nil {
			return 0, err
		}
	}
}

func (b *blobReader) read(p []byte) (int, error) {
	if b.rc == nil {
		from := b.offset
		if b.whole {
			from = 0
		}
		rc, source, err := b.sess.open(b.ctx, b.desc, from, b.avoid)
		if err != nil {
			return 0, err
		}
		if source != nil {
			b.served = append(b.served, source)
		}
		b.rc = rc
		if _, err := io.CopyN(io.Discard, rc, b.offset-from); err != nil {
			return 0, err
		}
	}
	return b.rc.Read(p)
}

// noRanges tells whether a registry refused to go on from the middle.
func noRanges(err error) bool {
	var answer *statusError
	return errors.Is(err, errNoRanges) || errors.As(err, &answer) && answer.code == http.StatusRequestedRangeNotSatisfiable
}

func (b *blobReader) resumable(err error) bool {
	if b.ctx.Err() != nil || errors.Is(err, ErrStalled) {
		return false
	}
	var answer *statusError
	if errors.As(err, &answer) && !noRanges(err) {
		return false // transport was patient already
	}
	// A plain end is the registry's whole answer: its blob is too short.
	return b.offset > 0 && err != io.EOF && (brokenConnection(err) || noRanges(err)) //nolint:errorlint // io.EOF alone, not what wraps it
}

func (b *blobReader) fail(err error) error {
	if cause := context.Cause(b.ctx); cause != nil {
		return cause
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return wrongBlob{&cutShort{want: b.desc.Size, got: b.offset}}
	}
	return wrongBlob{b.sess.explain(err)}
}

// Close ends the download.
func (b *blobReader) Close() error {
	if b.rc == nil {
		return nil
	}
	rc := b.rc
	b.rc = nil
	return rc.Close()
}
