package critest

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/images"
	"github.com/cri-runtime/cri-runtime/critest/localregistry"
)

// TestDebianRegistry pulls from Debian's docker-registry: TLS, a user, HTTP/2,
// and through mirrors of which one is down and one is busy.
func TestDebianRegistry(t *testing.T) {
	begin(t)
	differs(t, "it asks mirrors for tags in another order")
	dir := t.TempDir()
	registry, err := localregistry.StartDebian(t.Context(), dir)
	if errors.Is(err, localregistry.ErrNotInstalled) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := registry.Close(); err != nil {
			t.Error(err)
		}
	}()
	name := images.Named{Repository: "team/busybox", Tag: "1", Artifact: artifact(t, "busybox")}
	if err := registry.Push(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, registry.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	configure := func(host, text string) {
		t.Helper()
		if err := node.ConfigureRegistry(host, text); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := node.ConfigureRegistry(host, ""); err != nil {
				t.Error(err)
			}
		})
	}
	user := &runtimeapi.AuthConfig{Username: localregistry.DebianUser, Password: localregistry.DebianPassword}
	ref := registry.Address + "/team/busybox:1"
	if _, err := pull(t, ref, user); err == nil || !strings.Contains(err.Error(), "unknown authority") || !strings.Contains(err.Error(), "hosts.toml") {
		t.Errorf("an unknown authority on loopback: %v", err)
	}
	configure(registry.Address, fmt.Sprintf("ca = %q\n", ca))
	if _, err := pull(t, ref, nil); err == nil {
		t.Error("it was pulled without a user")
	}
	if _, err := pull(t, ref, user); err != nil {
		t.Fatal(err)
	}
	if log := registry.Log(); !strings.Contains(log, "HTTP/2.0") {
		t.Errorf("HTTP/2 was not used: %s", log[max(0, len(log)-1000):])
	}
	forget(t, ref)

	asked := make(chan string, 100)
	busy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case asked <- r.Header.Get("Authorization") + "?" + r.URL.RawQuery:
		default:
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer busy.Close()
	down := httptest.NewServer(nil)
	down.Close()
	configure("mirrored.example", fmt.Sprintf("server = %q\nca = %q\n[host.%q]\n[host.%q]\n",
		"https://"+registry.Address, ca, down.URL, busy.URL))
	if _, err := pull(t, "mirrored.example/team/busybox:1", user); err != nil {
		t.Fatal(err)
	}
	if got := <-asked; got != "?ns=mirrored.example" {
		t.Errorf("the mirror was asked with %q", got)
	}
}
