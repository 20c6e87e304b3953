package server

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

var (
	// ErrInUse says that another daemon has the socket open.
	ErrInUse = errors.New("in use by another daemon")
	// ErrAddress says that nothing can listen at the address; the text says why.
	ErrAddress = errors.New("invalid listen address")

	// errPanic: a handler panicked; the log has the stack.
	errPanic = errors.New("internal error")
	// errUnimplemented: this version does not have the RPC.
	errUnimplemented = errors.New("not implemented")

	// errTooMany: as many requests wait for the clients of their streams as may.
	errTooMany = errors.New("too many requests")
	// errProtocol: a client of streams does something that its protocol does not have.
	errProtocol = errors.New("not as the protocol says")
	// errClientGone: the client of a stream has closed its connection.
	errClientGone = errors.New("the client is gone")
	// errIdle: nothing moved on a stream's connection.
	errIdle = errors.New("nothing was sent or received")
	// errShutDown: the daemon stops; its successor will serve.
	errShutDown = errors.New("the daemon is shutting down")
)

// maxErrorText bounds what a client is told, in bytes: the text travels in an
// HTTP header, and some of it may come from images.
const maxErrorText = 8 << 10

// codeOf is the one table from errors to gRPC codes. The first match counts:
// what the client did (gave up, or ran into its own deadline) comes before
// what became of the operation because of it.
func codeOf(err error) codes.Code {
	for _, row := range []struct {
		err  error
		code codes.Code
	}{
		{errPanic, codes.Internal},
		{errUnimplemented, codes.Unimplemented},
		{errTooMany, codes.ResourceExhausted},
		{errShutDown, codes.Unavailable},
		{imageservice.ErrStalled, codes.Unknown}, // may wrap a deadline that isn't the client's
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{sandbox.ErrNotFound, codes.NotFound},
		{sandbox.ErrInvalid, codes.InvalidArgument},
		{sandbox.ErrState, codes.FailedPrecondition},
		{sandbox.ErrUnsupported, codes.Unimplemented},
		{sandbox.ErrOverrun, codes.ResourceExhausted},
		{sandbox.ErrTooMany, codes.ResourceExhausted},
		{sandbox.ErrClosed, codes.Unavailable},
		{oci.ErrInvalid, codes.InvalidArgument},
		{oci.ErrUnsupported, codes.Unimplemented},
		// What the request names is missing on the host or in the image: NotFound
		// would tell the kubelet that the pod or the container is gone.
		{oci.ErrNotFound, codes.FailedPrecondition},
		{imageservice.ErrNotFound, codes.NotFound},
		{imageservice.ErrInvalidReference, codes.InvalidArgument},
		{imageservice.ErrAmbiguous, codes.InvalidArgument},
		{imageservice.ErrUnauthorized, codes.PermissionDenied},
		// The kubelet would say PermissionDenied, but knows the reason by the first
		// word of an Unknown error only.
		{imageservice.ErrDenied, codes.Unknown},
		{imageservice.ErrRegistryUnavailable, codes.Unknown},
		{imageservice.ErrDigestMismatch, codes.DataLoss},
		{imageservice.ErrUnsupported, codes.FailedPrecondition},
		{imageservice.ErrMalformedManifest, codes.DataLoss},
		{imageservice.ErrMalformedLayer, codes.DataLoss},
		{imageservice.ErrTooLarge, codes.ResourceExhausted},
		{imageservice.ErrLocked, codes.Unavailable},
		{imageservice.ErrClosed, codes.Unavailable},
	} {
		if errors.Is(err, row.err) {
			return row.code
		}
	}
	// The kubelet cuts the code off an Unknown pull error before it shows the
	// text, so system calls' errors read best this way.
	return codes.Unknown
}

// statusOf turns any error of a handler into what the client gets.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	text := strings.ToValidUTF8(err.Error(), "\uFFFD")
	if errors.Is(err, imageservice.ErrRegistryUnavailable) || errors.Is(err, imageservice.ErrStalled) {
		// The kubelet knows this case by the first word of an Unknown error.
		text = crierrors.ErrRegistryUnavailable.Error() + ": " + text
	}
	if errors.Is(err, imageservice.ErrDenied) {
		text = crierrors.ErrSignatureValidationFailed.Error() + ": " + text
	}
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + " [cut]"
	}
	return status.Error(codeOf(err), text)
}

// quoted cuts a name that was not checked, lest it fill the text of an error.
func quoted(name string) string {
	const limit = 253 // as Kubernetes bounds names
	if len(name) > limit {
		return strings.ToValidUTF8(name[:limit], "") + "[cut]"
	}
	return name
}

// redacted is an error whose text had secrets in it.
type redacted struct {
	error
	text string
}

// Error implements error.
func (r redacted) Error() string { return r.text }

// Unwrap gives the original error to errors.Is.
func (r redacted) Unwrap() error { return r.error }

// redact takes secrets out of an error's text, whatever put them in.
func redact(err error, secrets ...string) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	for _, secret := range secrets {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "[redacted]")
		}
	}
	return redacted{error: err, text: text}
}
