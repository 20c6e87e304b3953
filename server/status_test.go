package server

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/imageservice"
)

func TestVersion(t *testing.T) {
	client := runtimeapi.NewRuntimeServiceClient(serve(t, testConfig(t, newMemoryImages())).conn)
	v, err := client.Version(t.Context(), &runtimeapi.VersionRequest{Version: "0.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	if v.GetRuntimeName() != "cri-runtime" || v.GetRuntimeVersion() != "1.2.3" || v.GetRuntimeApiVersion() != "v1" || v.GetVersion() != "0.1.0" {
		t.Errorf("got %v", v)
	}
}

func TestSemanticVersion(t *testing.T) {
	for in, want := range map[string]string{
		"1.2.3":                  "1.2.3",
		"v0.1.0":                 "0.1.0",
		"v0.1.0-3-gabcdef-dirty": "0.1.0-3-gabcdef-dirty",
		"v1.0.0+build.5":         "1.0.0+build.5",
		"":                       "0.0.0-devel",
		"0123456":                "0.0.0-devel-0123456",
		"719c0f1":                "0.0.0-devel-719c0f1",
		"feature/x y":            "0.0.0-devel-feature-x-y",
		"(devel)":                "0.0.0-devel-devel",
		"1.2":                    "0.0.0-devel-1-2",
		"1.2.3-\n\"x\"-\x00-":    "0.0.0-devel-1-2-3--x",
	} {
		got := semanticVersion(in)
		if got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
		if again := semanticVersion(got); again != got {
			t.Errorf("%q became %q, which isn't semantic", in, got)
		}
	}
}

func TestStatus(t *testing.T) {
	config := testConfig(t, newMemoryImages())
	var networkErr error
	config.NetworkReady = func() error { return networkErr }
	config.NetworkStatus = func() any { return map[string]string{"name": "bridge"} }
	config.Notes = func() []string { return []string{"the daemon lacks CAP_SYS_RESOURCE", "no AppArmor"} }
	config.EffectiveConfig = map[string]any{"root": "/var/lib/x", "bad": func() {}}
	config.Handlers = []*runtimeapi.RuntimeHandler{{Features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}}}
	config.Features = &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true}
	client := runtimeapi.NewRuntimeServiceClient(serve(t, config).conn)

	resp, err := client.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	conditions := resp.GetStatus().GetConditions()
	if len(conditions) != 2 || !conditions[0].GetStatus() || !conditions[1].GetStatus() ||
		conditions[0].GetType() != "RuntimeReady" || conditions[1].GetType() != "NetworkReady" ||
		conditions[0].GetMessage() != "the daemon lacks CAP_SYS_RESOURCE; no AppArmor" {
		t.Errorf("conditions %v", conditions)
	}
	if !resp.GetRuntimeHandlers()[0].GetFeatures().GetRecursiveReadOnlyMounts() || !resp.GetFeatures().GetSupplementalGroupsPolicy() {
		t.Errorf("features %v %v", resp.GetRuntimeHandlers(), resp.GetFeatures())
	}
	for _, key := range []string{"config", "network", "notes", "version", "golang"} {
		if !json.Valid([]byte(resp.GetInfo()[key])) {
			t.Errorf("info %s is not JSON: %q", key, resp.GetInfo()[key])
		}
	}

	networkErr = errors.New("no conflist in /etc/cni/net.d")
	resp, err = client.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	network := resp.GetStatus().GetConditions()[1]
	if network.GetStatus() || network.GetReason() != "NetworkPluginNotReady" || network.GetMessage() != "no conflist in /etc/cni/net.d" {
		t.Errorf("network %v", network)
	}
	if len(resp.GetInfo()) != 0 {
		t.Errorf("info without verbose: %v", resp.GetInfo())
	}
}

func TestStatusDefaults(t *testing.T) {
	client := runtimeapi.NewRuntimeServiceClient(serve(t, testConfig(t, newMemoryImages())).conn)
	resp, err := client.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if h := resp.GetRuntimeHandlers(); len(h) != 1 || h[0].GetName() != "" || h[0].GetFeatures() == nil || resp.GetFeatures() == nil {
		t.Errorf("got %v", resp)
	}
}

func TestRuntimeConfig(t *testing.T) {
	for driver, want := range map[string]runtimeapi.CgroupDriver{
		"cgroupfs": runtimeapi.CgroupDriver_CGROUPFS,
		"systemd":  runtimeapi.CgroupDriver_SYSTEMD,
	} {
		config := testConfig(t, newMemoryImages())
		config.CgroupDriver = driver
		client := runtimeapi.NewRuntimeServiceClient(serve(t, config).conn)
		resp, err := client.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
		if err != nil || resp.GetLinux().GetCgroupDriver() != want {
			t.Errorf("%s: %v, %v", driver, resp, err)
		}
	}
}

// TestPullForHandler gets the same image for every handler: all of them run
// programs of this node's platform.
func TestPullForHandler(t *testing.T) {
	captureLog(t, "0")
	images := newMemoryImages()
	images.pull = func(context.Context, string, *imageservice.Auth) (*imageservice.Image, error) { return busybox(), nil }
	config := testConfig(t, images)
	config.Handlers = []*runtimeapi.RuntimeHandler{{Name: ""}, {Name: "plain"}}
	client := runtimeapi.NewImageServiceClient(serve(t, config).conn)
	for handler, want := range map[string]codes.Code{"": codes.OK, "plain": codes.OK, "kata": codes.InvalidArgument} {
		spec := &runtimeapi.ImageSpec{Image: busyboxTag, RuntimeHandler: handler}
		resp, err := client.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: spec})
		if status.Code(err) != want || err == nil && resp.GetImageRef() != busyboxID {
			t.Errorf("%q: %v, %v", handler, resp, err)
		}
	}
}

func TestArtifactIsNotRun(t *testing.T) {
	if err := checkRunnable(busyboxTag, busybox()); err != nil {
		t.Error(err)
	}
	err := statusOf(checkRunnable("models/m:1", &imageservice.Image{ID: busyboxID, Artifact: "application/vnd.example"}))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "config.image") || !strings.Contains(err.Error(), "volume") {
		t.Errorf("got %v", err)
	}
}

func TestHandlers(t *testing.T) {
	config := testConfig(t, newMemoryImages())
	config.Handlers = []*runtimeapi.RuntimeHandler{{Name: ""}, {Name: "plain"}}
	s, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]codes.Code{"": codes.OK, "plain": codes.OK, "kata": codes.InvalidArgument} {
		if err := statusOf(s.knownHandler("runtime_handler", name)); status.Code(err) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
}
