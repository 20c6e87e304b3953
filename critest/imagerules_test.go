package critest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
	"github.com/cri-runtime/cri-runtime/critest/images"
	"github.com/cri-runtime/cri-runtime/critest/localregistry"
)

// configured starts a daemon of the test's own with more configuration.
func configured(t *testing.T, text string) {
	t.Helper()
	elsewhere(t, func(*harness.Options) {})
	if err := os.WriteFile(filepath.Join(node.Dir, "config.toml.d", "test.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := node.Restart(t.Context(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// blobManifest is a manifest whose layers are given blobs.
func blobManifest(t *testing.T, artifactType, configType string, layers ...map[string]any) images.Artifact {
	t.Helper()
	config := []byte("{}")
	a := images.Artifact{MediaType: images.OCIManifest, Blobs: [][]byte{config}}
	for _, l := range layers {
		content, _ := l["content"].([]byte)
		delete(l, "content")
		l["digest"], l["size"] = images.Digest(content), len(content)
		a.Blobs = append(a.Blobs, content)
	}
	m := map[string]any{
		"schemaVersion": 2, "mediaType": a.MediaType, "layers": layers,
		"config": map[string]any{"mediaType": configType, "digest": images.Digest(config), "size": len(config)},
	}
	if artifactType != "" {
		m["artifactType"] = artifactType
	}
	var err error
	if a.Manifest, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	return a
}

// signature is one of cosign's, for a repository's digest.
func signature(t *testing.T, key *ecdsa.PrivateKey, repository, digest string) images.Artifact {
	t.Helper()
	text := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},`+
		`"type":"cosign container image signature"},"optional":null}`, repository, digest)
	sum := sha256.Sum256(text)
	value, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return blobManifest(t, "", images.OCIConfig, map[string]any{
		"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "content": text,
		"annotations": map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(value)},
	})
}

func TestImagePolicy(t *testing.T) {
	differs(t, "has none")
	begin(t)
	server, err := localregistry.Start(t.Context(), localregistry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for _, repo := range []string{"signed/x", "refused/x"} {
		if err := server.Push(t.Context(), images.Named{Repository: repo, Tag: "1", Artifact: artifact(t, "busybox")}); err != nil {
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.pub")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	configured(t, fmt.Sprintf("[[image.policy.rules]]\nprefix = \"%[1]s/refused\"\ntype = \"reject\"\n"+
		"[[image.policy.rules]]\nprefix = \"%[1]s/signed\"\ntype = \"sigstore\"\nkeys = [%[2]q]\n", server.Address, file))
	before := stored(t)
	refuse := func(repo string) {
		t.Helper()
		_, err := pull(t, server.Address+"/"+repo+":1", nil)
		if err == nil || !strings.Contains(err.Error(), "SignatureValidationFailed: ") || !strings.Contains(err.Error(), server.Address+"/"+strings.TrimSuffix(repo, "/x")) {
			t.Errorf("%s: %v", repo, err)
		}
		wantStored(t, before)
		if n := server.Requests("/" + repo + "/blobs/" + images.Digest(artifact(t, "busybox").Blobs[0])); n != 0 {
			t.Errorf("%s: a layer was asked for %d times", repo, n)
		}
	}
	refuse("refused/x")
	refuse("signed/x")
	digest := artifact(t, "busybox").Digest()
	tag := strings.Replace(digest, ":", "-", 1) + ".sig"
	push := func(a images.Artifact) {
		t.Helper()
		if err := server.Push(t.Context(), images.Named{Repository: "signed/x", Tag: tag, Artifact: a}); err != nil {
			t.Fatal(err)
		}
	}
	push(signature(t, key, server.Address+"/other/x", digest))
	if _, err := node.Images.PullImage(t.Context(), spec(server.Address+"/signed/x:1"), nil, nil); err == nil || !strings.Contains(err.Error(), "another name") {
		t.Errorf("signed for another name: %v", err)
	}
	push(signature(t, key, server.Address+"/signed/x", digest))
	if _, err := pull(t, server.Address+"/signed/x:1", nil); err != nil {
		t.Errorf("signed: %v", err)
	}
}

func TestArtifactAsVolume(t *testing.T) {
	differs(t, "has no image volumes")
	begin(t)
	ref := depot.Address + "/artifact:1"
	a := blobManifest(t, "application/x-model", "application/vnd.oci.empty.v1+json",
		map[string]any{"mediaType": "application/octet-stream", "content": []byte("weights\n"), "annotations": map[string]string{"org.opencontainers.image.title": "model/weights"}},
		map[string]any{"mediaType": "text/plain", "content": []byte("read me\n"), "annotations": map[string]string{"org.opencontainers.image.title": "README"}})
	if err := depot.Push(t.Context(), images.Named{Repository: "artifact", Tag: "1", Artifact: a}); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Images.PullImage(t.Context(), spec(ref), nil, nil); err != nil {
		t.Fatal(err)
	}
	p := run(t)
	volume := mounts(&runtimeapi.Mount{ContainerPath: "/v", Image: spec(ref), Readonly: true})
	if got := p.output("cat /v/model/weights /v/README; touch /v/x 2>/dev/null || echo read-only", volume); got != "weights\nread me\nread-only" {
		t.Errorf("%q", got)
	}
	err := p.refused("true", func(c *runtimeapi.ContainerConfig) { c.Image = spec(ref) })
	if err == nil || !strings.Contains(err.Error(), "artifact") {
		t.Errorf("a container of an artifact: %v", err)
	}
	// It stays for its user through removal and a start of the daemon, and goes with it.
	id := imageStatus(t, ref).Id
	record := filepath.Join(node.Dir, "root", "images", "records", strings.TrimPrefix(id, "sha256:"))
	c := p.start("sleep 1000", volume)
	forget(t, ref)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		restart(t, sig, func() {})
		if got := c.exec(0, "cat", "/v/model/weights", "/v/README"); got != "weights\nread me\n" {
			t.Errorf("after the removal and a start: %q", got)
		}
		if imageStatus(t, ref) != nil {
			t.Error("the removed artifact is listed again")
		}
	}
	if _, err := os.Stat(record); err != nil {
		t.Error(err)
	}
	c.stop(0)
	c.remove()
	await(t, "the artifact's record to go with its last user", func() bool {
		_, err := os.Stat(record)
		return errors.Is(err, fs.ErrNotExist)
	})
}

func TestClientCertificate(t *testing.T) {
	differs(t, "reads another kind of hosts.toml")
	begin(t)
	server, err := localregistry.Start(t.Context(), localregistry.Options{TLS: true, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := server.Push(t.Context(), images.Named{Repository: "x", Tag: "1", Artifact: artifact(t, "busybox")}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string][]byte{"ca.pem": server.CA, "client.pem": server.Client} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := node.ConfigureRegistry(server.Address, ""); err != nil {
			t.Error(err)
		}
	})
	ca, ref := fmt.Sprintf("ca = %q\n", filepath.Join(dir, "ca.pem")), server.Address+"/x:1"
	for _, c := range []struct{ name, text, want string }{
		{"none", ca, "certificate required"},
		{"missing file", ca + `client = "/missing/client.pem"`, "/missing/client.pem"},
		{"no key", ca + fmt.Sprintf("client = %q", filepath.Join(dir, "ca.pem")), "client certificate"},
		{"one file", ca + fmt.Sprintf("client = %q", filepath.Join(dir, "client.pem")), ""},
		{"pair", ca + fmt.Sprintf("client = [[%[1]q, %[1]q]]", filepath.Join(dir, "client.pem")), ""},
	} {
		if err := node.ConfigureRegistry(server.Address, c.text); err != nil {
			t.Fatal(err)
		}
		_, err := node.Images.PullImage(t.Context(), spec(ref), nil, nil)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		forget(t, ref)
	}
}

func TestPinnedImage(t *testing.T) {
	differs(t, "is configured otherwise")
	begin(t)
	configured(t, fmt.Sprintf("[image]\npinned = [%q]\n", depot.Address+"/cri-runtime/busybox:*"))
	if s := imageStatus(t, image(t, "busybox")); !s.Pinned {
		t.Error("it is not pinned")
	}
	if s := imageStatus(t, image(t, "layers")); s.Pinned {
		t.Error("another image is pinned")
	}
	forget(t, image(t, "busybox")) // the kubelet does not, an administrator may
	if s := imageStatus(t, depot.Address+"/cri-runtime/busybox:latest"); s != nil {
		t.Errorf("%v", s)
	}
}
