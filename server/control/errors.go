package control

import (
	"context"
	"errors"
	"net/http"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/imageservice"
)

var (
	// errRequest: the request is wrong; the text says how.
	errRequest = errors.New("bad request")
	// errBusy: as many requests as there may be at once are under way.
	errBusy = errors.New("too many requests at once; try again later")
)

// fault is one row of the table from errors to what a client and a metric are
// told.
type fault struct {
	err    error
	status int
	reason string // also a label of a metric
}

// faultOf finds the first row that fits.
func faultOf(err error) fault {
	for _, row := range []fault{
		{errRequest, http.StatusBadRequest, "bad_request"},
		{errBusy, http.StatusServiceUnavailable, "busy"},
		{imageservice.ErrStalled, http.StatusGatewayTimeout, "stalled"}, // may wrap a deadline that isn't the client's
		{context.DeadlineExceeded, http.StatusRequestTimeout, "cancelled"},
		{context.Canceled, http.StatusRequestTimeout, "cancelled"},
		{imageservice.ErrNotFound, http.StatusNotFound, "not_found"},
		{imageservice.ErrInvalidReference, http.StatusBadRequest, "invalid_reference"},
		{imageservice.ErrAmbiguous, http.StatusConflict, "ambiguous"},
		{imageservice.ErrUnauthorized, http.StatusForbidden, "unauthorized"},
		{imageservice.ErrDenied, http.StatusForbidden, "denied"},
		{imageservice.ErrRegistryUnavailable, http.StatusBadGateway, "registry_unavailable"},
		{imageservice.ErrDigestMismatch, http.StatusUnprocessableEntity, "digest_mismatch"},
		{imageservice.ErrUnsupported, http.StatusUnprocessableEntity, "unsupported"},
		{imageservice.ErrMalformedManifest, http.StatusUnprocessableEntity, "malformed"},
		{imageservice.ErrMalformedLayer, http.StatusUnprocessableEntity, "malformed"},
		{imageservice.ErrMalformedArchive, http.StatusUnprocessableEntity, "malformed"},
		{imageservice.ErrTooLarge, http.StatusRequestEntityTooLarge, "too_large"},
		{imageservice.ErrClosed, http.StatusServiceUnavailable, "closed"},
		{unix.ENOSPC, http.StatusInsufficientStorage, "disk_full"},
		{unix.EDQUOT, http.StatusInsufficientStorage, "disk_full"},
	} {
		if errors.Is(err, row.err) {
			return row
		}
	}
	return fault{err: err, status: http.StatusInternalServerError, reason: "other"}
}
