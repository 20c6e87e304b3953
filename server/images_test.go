package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/imageservice"
)

const (
	busyboxID     = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	busyboxTag    = "docker.io/library/busybox:1"
	busyboxDigest = "docker.io/library/busybox@sha256:2222222222222222222222222222222222222222222222222222222222222222"
	mirrorTag     = "mirror.example:5000/busybox:1"
	mirrorDigest  = "mirror.example:5000/busybox@sha256:3333333333333333333333333333333333333333333333333333333333333333"
)

func busybox() *imageservice.Image {
	return &imageservice.Image{
		ID:          busyboxID,
		RepoTags:    []string{busyboxTag, mirrorTag},
		RepoDigests: []string{busyboxDigest, mirrorDigest},
		Size:        4711,
		Config:      imagespec.Image{Config: imagespec.ImageConfig{User: "1000:100", StopSignal: "SIGQUIT"}},
		Layers:      []string{"/layers/a"},
		Pinned:      true,
	}
}

func imageSpec(name string) *runtimeapi.ImageSpec { return &runtimeapi.ImageSpec{Image: name} }

func TestImages(t *testing.T) {
	captureLog(t, "0")
	images := newMemoryImages(busybox(), &imageservice.Image{ID: "sha256:4"})
	client := runtimeapi.NewImageServiceClient(serve(t, testConfig(t, images)).conn)
	ctx := t.Context()

	list, err := client.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.GetImages()) != 2 {
		t.Fatalf("list: %v, %v", list, err)
	}
	for filter, n := range map[string]int{busyboxTag: 1, busyboxID: 1, "none": 0} {
		list, err := client.ListImages(ctx, &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: imageSpec(filter)}})
		if err != nil || len(list.GetImages()) != n {
			t.Errorf("list %s: %v, %v", filter, list, err)
		}
	}

	st, err := client.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: imageSpec(mirrorTag), Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	image := st.GetImage()
	if image.GetId() != busyboxID || image.GetSize() != 4711 || image.GetUid().GetValue() != 1000 || image.GetUsername() != "" ||
		!image.GetPinned() || len(image.GetRepoTags()) != 2 || len(image.GetRepoDigests()) != 2 {
		t.Errorf("status %v", image)
	}
	var details imageDetails
	err = json.Unmarshal([]byte(st.GetInfo()["info"]), &details)
	if err != nil || details.ImageSpec.Config.User != "1000:100" || details.Source != "mirror.example" ||
		details.ChainID != busyboxID || len(details.Layers) != 1 || details.Layers[0].SharedBy != 2 {
		t.Errorf("info %v, %v", st.GetInfo(), err)
	}
	for name, code := range map[string]codes.Code{"none": codes.OK, "BAD": codes.InvalidArgument} {
		st, err := client.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: imageSpec(name)})
		if status.Code(err) != code || st.GetImage() != nil {
			t.Errorf("status of %s: %v, %v", name, st, err)
		}
	}

	usage, err := client.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil || len(usage.GetImageFilesystems()) != 1 || len(usage.GetContainerFilesystems()) != 1 {
		t.Fatalf("usage: %v, %v", usage, err)
	}
	u := usage.GetImageFilesystems()[0]
	if u.GetFsId().GetMountpoint() != "/images" || u.GetUsedBytes().GetValue() != 4096 || u.GetInodesUsed().GetValue() != 7 || u.GetTimestamp() <= 0 {
		t.Errorf("usage %v", u)
	}

	u = usage.GetContainerFilesystems()[0]
	if u.GetFsId().GetMountpoint() != "/images" || u.GetUsedBytes().GetValue() != 0 || u.GetTimestamp() <= 0 {
		t.Errorf("usage of containers %v", u)
	}

	for range 2 { // the second finds nothing, which is no error
		if _, err := client.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: imageSpec(busyboxTag)}); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if _, err := client.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: imageSpec("BAD")}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("remove BAD: %v", err)
	}
}

// imagesElsewhere are images on a file system of their own.
type imagesElsewhere struct {
	*memoryImages
	path string
}

func (i imagesElsewhere) Usage() (imageservice.Usage, error) {
	return imageservice.Usage{Path: i.path, Bytes: 1, Inodes: 1}, nil
}

// The kubelet takes image and container file systems for one when they have the
// same mount point, and evicts by two thresholds when they do not.
func TestImageFsInfoSplit(t *testing.T) {
	captureLog(t, "0")
	for path, split := range map[string]bool{"/proc": true, t.TempDir(): false} {
		config := testConfig(t, imagesElsewhere{newMemoryImages(), path})
		usage, err := runtimeapi.NewImageServiceClient(serve(t, config).conn).ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
		if err != nil {
			t.Fatal(err)
		}
		images, containers := usage.GetImageFilesystems()[0].GetFsId().GetMountpoint(), usage.GetContainerFilesystems()[0].GetFsId().GetMountpoint()
		want := path
		if split {
			want = config.Runtime.Filesystem().Path
		}
		if images != path || containers != want {
			t.Errorf("images at %s are told as %s, containers as %s, want %s", path, images, containers, want)
		}
	}
}

// Every image comes exactly once, in messages that no kubelet finds too large.
func TestStreamImages(t *testing.T) {
	captureLog(t, "0")
	const n = 2000
	store := make([]*imageservice.Image, 0, n)
	for i := range n {
		image := &imageservice.Image{ID: fmt.Sprintf("sha256:%064d", i)}
		for tag := range 30 {
			image.RepoTags = append(image.RepoTags, fmt.Sprintf("registry.example/%s:%d-%d", strings.Repeat("x", 100), i, tag))
		}
		store = append(store, image)
	}
	client := runtimeapi.NewImageServiceClient(serve(t, testConfig(t, newMemoryImages(store...))).conn)
	receive := func(filter string) (messages int, ids map[string]int) {
		t.Helper()
		req := &runtimeapi.StreamImagesRequest{}
		if filter != "" {
			req.Filter = &runtimeapi.ImageFilter{Image: imageSpec(filter)}
		}
		stream, err := client.StreamImages(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		ids = map[string]int{}
		for {
			resp, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return messages, ids
			}
			if err != nil {
				t.Fatal(err)
			}
			messages++
			if size := proto.Size(resp); size > maxBatchBytes+1000 || len(resp.GetImages()) == 0 {
				t.Errorf("a message of %d images, %d bytes", len(resp.GetImages()), size)
			}
			for _, image := range resp.GetImages() {
				ids[image.GetId()]++
			}
		}
	}
	messages, ids := receive("")
	if len(ids) != n || messages < 2 {
		t.Errorf("%d images in %d messages", len(ids), messages)
	}
	for id, times := range ids {
		if times != 1 {
			t.Errorf("%s came %d times", id, times)
		}
	}
	if messages, ids = receive(store[7].RepoTags[3]); messages != 1 || ids[store[7].ID] != 1 {
		t.Errorf("filtered: %d messages, %v", messages, ids)
	}
	if messages, _ = receive("none"); messages != 0 {
		t.Errorf("nothing in %d messages", messages)
	}
}

func TestPull(t *testing.T) {
	images := newMemoryImages()
	var got *imageservice.Auth
	images.pull = func(_ context.Context, _ string, auth *imageservice.Auth) (*imageservice.Image, error) {
		got = auth
		return busybox(), nil
	}
	client := runtimeapi.NewImageServiceClient(serve(t, testConfig(t, images)).conn)
	resp, err := client.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: imageSpec(mirrorTag)})
	if err != nil || resp.GetImageRef() != busyboxID || got != nil {
		t.Fatalf("anonymous: %v, %v, auth %v", resp, err, got)
	}
	_, err = client.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: imageSpec(mirrorTag), Auth: &runtimeapi.AuthConfig{
		Username: "u", Password: "p", Auth: "a", ServerAddress: "s", IdentityToken: "i", RegistryToken: "r",
	}})
	want := imageservice.Auth{Username: "u", Password: "p", Auth: "a", ServerAddress: "s", IdentityToken: "i", RegistryToken: "r"}
	if err != nil || got == nil || *got != want {
		t.Errorf("with credentials: %v, auth %v", err, got)
	}
}

// Credentials reach neither the log, at any verbosity, nor the client, even if
// the registry client puts them into its error.
func TestPullHidesCredentials(t *testing.T) {
	log := captureLog(t, "10")
	images := newMemoryImages()
	images.pull = func(_ context.Context, name string, auth *imageservice.Auth) (*imageservice.Image, error) {
		return nil, fmt.Errorf("GET https://u:%s@r/%s %s %s %s: %w",
			auth.Password, name, auth.Auth, auth.IdentityToken, auth.RegistryToken, imageservice.ErrUnauthorized)
	}
	client := runtimeapi.NewImageServiceClient(serve(t, testConfig(t, images)).conn)
	_, err := client.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: imageSpec("x"), Auth: &runtimeapi.AuthConfig{
		Username: "u", Password: "hush-1", Auth: "hush-2", IdentityToken: "hush-3", RegistryToken: "hush-4",
	}})
	if status.Code(err) != codes.PermissionDenied || strings.Contains(err.Error(), "hush") {
		t.Errorf("client sees %v", err)
	}
	if text := log.String(); strings.Contains(text, "hush") || !strings.Contains(text, `image="x"`) {
		t.Errorf("log:\n%s", text)
	}
}

func TestImageUser(t *testing.T) {
	for _, tc := range []struct {
		user string
		uid  int64 // -1: none
		name string
	}{
		{"", -1, ""},
		{"0", 0, ""},
		{"000", 0, ""},
		{"1000", 1000, ""},
		{"1000:1000", 1000, ""},
		{"2147483647", 2147483647, ""},
		{"2147483648", -1, "2147483648"},
		{"4294967296", -1, "4294967296"},
		{"99999999999999999999", -1, "99999999999999999999"},
		{"-1", -1, "-1"},
		{"+0", -1, "+0"},
		{" 0", -1, " 0"},
		{"0x0", -1, "0x0"},
		{"web", -1, "web"},
		{"web:web", -1, "web"},
		{":100", -1, ""},
	} {
		image := &imageservice.Image{}
		image.Config.Config.User = tc.user
		uid, name := imageUser(image)
		switch {
		case tc.uid < 0 && uid != nil, tc.uid >= 0 && (uid == nil || uid.GetValue() != tc.uid), name != tc.name:
			t.Errorf("%q: got %v, %q", tc.user, uid, name)
		}
	}
}

func TestImageSizeIsNeverZero(t *testing.T) {
	if got := imageItem(&imageservice.Image{}).GetSize(); got != 1 {
		t.Errorf("got %d", got)
	}
}
