package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

func TestCodes(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want codes.Code
	}{
		{errPanic, codes.Internal},
		{errUnimplemented, codes.Unimplemented},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{sandbox.ErrNotFound, codes.NotFound},
		{sandbox.ErrInvalid, codes.InvalidArgument},
		{sandbox.ErrState, codes.FailedPrecondition},
		{sandbox.ErrUnsupported, codes.Unimplemented},
		{oci.ErrInvalid, codes.InvalidArgument},
		{oci.ErrUnsupported, codes.Unimplemented},
		{oci.ErrNotFound, codes.FailedPrecondition},
		{invalid("config", "is missing"), codes.InvalidArgument},
		{imageservice.ErrNotFound, codes.NotFound},
		{imageservice.ErrInvalidReference, codes.InvalidArgument},
		{imageservice.ErrAmbiguous, codes.InvalidArgument},
		{imageservice.ErrUnauthorized, codes.PermissionDenied},
		{imageservice.ErrDenied, codes.Unknown},
		{imageservice.ErrRegistryUnavailable, codes.Unknown},
		{imageservice.ErrStalled, codes.Unknown},
		{imageservice.ErrDigestMismatch, codes.DataLoss},
		{imageservice.ErrUnsupported, codes.FailedPrecondition},
		{imageservice.ErrMalformedManifest, codes.DataLoss},
		{imageservice.ErrMalformedLayer, codes.DataLoss},
		{imageservice.ErrTooLarge, codes.ResourceExhausted},
		{imageservice.ErrLocked, codes.Unavailable},
		{imageservice.ErrClosed, codes.Unavailable},
		{unix.EPERM, codes.Unknown},
		{errors.New("anything else"), codes.Unknown},
		{errors.Join(sandbox.ErrNotFound, context.Canceled), codes.Canceled},
		{errors.Join(context.DeadlineExceeded, imageservice.ErrStalled), codes.Unknown},
	} {
		t.Run(tc.err.Error(), func(t *testing.T) {
			wrapped := fmt.Errorf("start container x: %w", tc.err)
			got := status.Convert(statusOf(wrapped))
			if got.Code() != tc.want {
				t.Errorf("code %v, want %v", got.Code(), tc.want)
			}
			if !strings.Contains(got.Message(), "start container x: ") {
				t.Errorf("message %q has lost its stage", got.Message())
			}
		})
	}
	if statusOf(nil) != nil {
		t.Error("nil is an error")
	}
}

// TestPolicyDenies has the word by which the kubelet knows that the policy
// denied an image, and the code without which it does not look for it.
func TestPolicyDenies(t *testing.T) {
	got := status.Convert(statusOf(fmt.Errorf("pull image x: %w by the rule for y", imageservice.ErrDenied)))
	if got.Code() != codes.Unknown || got.Message() != "SignatureValidationFailed: pull image x: denied by the rule for y" {
		t.Errorf("got %v", got)
	}
}

func TestRegistryUnavailable(t *testing.T) {
	for _, err := range []error{imageservice.ErrRegistryUnavailable, imageservice.ErrStalled} {
		text := status.Convert(statusOf(fmt.Errorf("pull image x: %w", err))).Message()
		if !strings.HasPrefix(text, "RegistryUnavailable: pull image x: ") {
			t.Errorf("%q does not start with the word that the kubelet looks for", text)
		}
	}
}

func TestStatusText(t *testing.T) {
	long := errors.New(strings.Repeat("é", maxErrorText))
	text := status.Convert(statusOf(long)).Message()
	if len(text) > maxErrorText+10 || !utf8.ValidString(text) || !strings.HasSuffix(text, " [cut]") {
		t.Errorf("long text: %d bytes, ends in %q", len(text), text[len(text)-20:])
	}
	if text := status.Convert(statusOf(errors.New("a\xffb"))).Message(); text != "a\uFFFDb" {
		t.Errorf("invalid UTF-8: %q", text)
	}
}

func TestRedact(t *testing.T) {
	err := redact(fmt.Errorf("login of me:pa55 with t0k3n: %w", imageservice.ErrUnauthorized), "pa55", "", "t0k3n")
	if got, want := err.Error(), "login of me:[redacted] with [redacted]: registry denied access"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(err, imageservice.ErrUnauthorized) {
		t.Error("the error lost its kind")
	}
	if redact(nil, "x") != nil {
		t.Error("nil became an error")
	}
}
