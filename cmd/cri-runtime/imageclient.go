package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/server/control"
)

const (
	maxAnswer    = 256 << 20 // of JSON
	maxErrorText = 16 << 10
)

// controlClient asks a daemon on its control socket.
type controlClient struct {
	socket string
	http   *http.Client
}

func newControlClient(state string) *controlClient {
	c := &controlClient{socket: controlSocket(state)}
	c.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
		},
	}}
	return c
}

// do sends a request and returns the answer, or an error with what the daemon
// said. The caller closes the answer's body.
func (c *controlClient) do(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "control", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorText))
	if err != nil {
		return nil, fmt.Errorf("read the daemon's answer: %w", err)
	}
	var answer control.Error
	if json.Unmarshal(content, &answer) != nil || answer.Text == "" {
		return nil, fmt.Errorf("%w: %s %s: %s: %s", errDaemon, method, path, resp.Status, printable(strings.TrimSpace(string(content))))
	}
	return nil, daemonError(answer)
}

// daemonError is what the daemon answered.
func daemonError(e control.Error) error { return fmt.Errorf("%w: %s", errDaemon, printable(e.Text)) }

// explain says what to do when there is no daemon.
func (c *controlClient) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w on %s: start one with \"systemctl start cri-runtime\" or \"cri-runtime serve\", "+
			"or name the state directory of the one that runs with --state", errNoDaemon, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: %w: it is for root alone", c.socket, fs.ErrPermission)
	case errors.Is(err, context.Canceled):
		return errInterrupted
	}
	return fmt.Errorf("ask the daemon on %s: %w", c.socket, err)
}

// get decodes the answer to a request into value.
func (c *controlClient) get(ctx context.Context, method, path string, query url.Values, value any) error {
	resp, err := c.do(ctx, method, path, query, nil)
	if err != nil {
		return err
	}
	return decodeAnswer(resp, value)
}

// post sends a JSON value.
func (c *controlClient) post(ctx context.Context, path string, body any) (*http.Response, error) {
	content, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return c.do(ctx, http.MethodPost, path, nil, bytes.NewReader(content))
}

func decodeAnswer(resp *http.Response, value any) error {
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(value); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}

// printable keeps what an image or a registry wrote from acting on a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, text)
}
