package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/imageservice"
)

// ListImages lists the images, or the one that the filter names.
func (s *imageService) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	resp := &runtimeapi.ListImagesResponse{}
	if name := req.GetFilter().GetImage().GetImage(); name != "" {
		image, err := s.lookUp(name)
		if err != nil || image == nil {
			return resp, err
		}
		resp.Images = append(resp.Images, imageItem(image))
		return resp, nil
	}
	for _, image := range s.config.Images.Images() {
		resp.Images = append(resp.Images, imageItem(image))
	}
	return resp, nil
}

// ImageStatus describes an image; one that isn't there is nil, not an error.
func (s *imageService) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if err := checkImage("image", req.GetImage()); err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{}
	image, err := s.lookUp(req.GetImage().GetImage())
	if err != nil || image == nil {
		return resp, err
	}
	resp.Image = imageItem(image)
	if req.GetVerbose() {
		resp.Info = map[string]string{"info": toJSON(imageInfo(image))}
	}
	return resp, nil
}

// PullImage fetches an image and answers with its id.
func (s *imageService) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if err := checkImage("image", req.GetImage()); err != nil {
		return nil, err
	}
	if err := s.knownHandler("image.runtime_handler", req.GetImage().GetRuntimeHandler()); err != nil {
		return nil, err
	}
	name := req.GetImage().GetImage()
	image, err := s.config.Images.Pull(ctx, name, credentials(req.GetAuth()))
	if err != nil {
		a := req.GetAuth()
		err = redact(err, a.GetPassword(), a.GetAuth(), a.GetIdentityToken(), a.GetRegistryToken())
		return nil, fmt.Errorf("pull image %s: %w", name, err)
	}
	return &runtimeapi.PullImageResponse{ImageRef: image.ID}, nil
}

// RemoveImage takes all names of an image away; one that isn't there is removed.
func (s *imageService) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if err := checkImage("image", req.GetImage()); err != nil {
		return nil, err
	}
	name := req.GetImage().GetImage()
	if err := s.config.Images.Remove(ctx, name); err != nil && !errors.Is(err, imageservice.ErrNotFound) {
		return nil, fmt.Errorf("remove image %s: %w", name, err)
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo says what images take on disk. Containers' files are on the
// same file system; the entry for them has the same figures, because a kubelet
// that takes its statistics from cAdvisor refuses a response without one, and
// reads no figures from it as long as the mount points are equal.
func (s *imageService) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	usage, err := s.config.Images.Usage()
	if err != nil {
		return nil, fmt.Errorf("usage of the images' file system: %w", err)
	}
	entries := []*runtimeapi.FilesystemUsage{{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: usage.Path},
		UsedBytes:  &runtimeapi.UInt64Value{Value: usage.Bytes},
		InodesUsed: &runtimeapi.UInt64Value{Value: usage.Inodes},
	}}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: entries, ContainerFilesystems: entries}, nil
}

// lookUp returns nil for an image that isn't there.
func (s *imageService) lookUp(name string) (*imageservice.Image, error) {
	image, err := s.config.Images.Image(name)
	switch {
	case errors.Is(err, imageservice.ErrNotFound):
		return nil, nil //nolint:nilnil // CRI: an image that isn't there is no error
	case err != nil:
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	return image, nil
}

func credentials(a *runtimeapi.AuthConfig) *imageservice.Auth {
	if a == nil {
		return nil
	}
	return &imageservice.Auth{
		Username:      a.GetUsername(),
		Password:      a.GetPassword(),
		Auth:          a.GetAuth(),
		ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(),
		RegistryToken: a.GetRegistryToken(),
	}
}
