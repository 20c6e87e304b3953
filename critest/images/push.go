package images

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
)

// Push stores a in the registry that h serves, as repository repo and tag tag.
func (a Artifact) Push(ctx context.Context, h http.Handler, repo, tag string) error {
	for _, b := range a.Blobs {
		url := "/v2/" + repo + "/blobs/uploads/?digest=" + Digest(b)
		if err := send(ctx, h, http.MethodPost, url, "application/octet-stream", b); err != nil {
			return err
		}
	}
	for _, c := range a.Children {
		if err := c.Push(ctx, h, repo, c.Digest()); err != nil {
			return err
		}
	}
	return send(ctx, h, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, a.MediaType, a.Manifest)
}

func send(ctx context.Context, h http.Handler, method, url, mediaType string, body []byte) error {
	req := httptest.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	req.Header.Set("Content-Type", mediaType)
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, req)
	if answer.Code/100 != 2 {
		return fmt.Errorf("%s %s: status %d %s: %w", method, url, answer.Code, answer.Body, ErrRefused)
	}
	return nil
}
