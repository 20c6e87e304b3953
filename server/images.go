package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/imageservice"
)

// ListImages lists the images, or the one that the filter names.
func (s *imageService) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	images, err := s.listed(req.GetFilter())
	return &runtimeapi.ListImagesResponse{Images: images}, err
}

// StreamImages lists the same in several messages, for nodes whose images do
// not fit into one.
func (s *imageService) StreamImages(req *runtimeapi.StreamImagesRequest, stream runtimeapi.ImageService_StreamImagesServer) error {
	images, err := s.listed(req.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(images, func(batch []*runtimeapi.Image) error {
		return stream.Send(&runtimeapi.StreamImagesResponse{Images: batch})
	})
}

// listed returns the images that pass a filter: by id, tag or digest.
func (s *imageService) listed(filter *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	if err := s.checkSpec("filter.image", filter.GetImage()); err != nil {
		return nil, err
	}
	if name := filter.GetImage().GetImage(); name != "" {
		image, err := s.lookUp(name)
		if err != nil || image == nil {
			return nil, err
		}
		return []*runtimeapi.Image{imageItem(image)}, nil
	}
	images := s.config.Images.Images()
	items := make([]*runtimeapi.Image, 0, len(images))
	for _, image := range images {
		items = append(items, imageItem(image))
	}
	return items, nil
}

// ImageStatus describes an image; one that isn't there is nil, not an error.
func (s *imageService) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if err := s.checkImageSpec("image", req.GetImage()); err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{}
	image, err := s.lookUp(req.GetImage().GetImage())
	if err != nil || image == nil {
		return resp, err
	}
	resp.Image = imageItem(image)
	if req.GetVerbose() {
		details, err := s.imageInfo(image)
		if err != nil {
			return nil, err
		}
		resp.Info = map[string]string{"info": toJSON(details)}
	}
	return resp, nil
}

// PullImage fetches an image and answers with its id.
func (s *imageService) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if err := s.checkImageSpec("image", req.GetImage()); err != nil {
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
	if err := s.checkImageSpec("image", req.GetImage()); err != nil {
		return nil, err
	}
	name := req.GetImage().GetImage()
	if err := s.config.Images.Remove(ctx, name); err != nil && !errors.Is(err, imageservice.ErrNotFound) {
		return nil, fmt.Errorf("remove image %s: %w", name, err)
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo says what images and the writable layers of containers take on
// disk. A kubelet takes two equal mount points for one file system, and that is
// what they mostly are: the directories differ, the one that is named is the
// same, so that the kubelet does not collect for one what it freed for the
// other.
func (s *imageService) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	usage, err := s.config.Images.Usage()
	if err != nil {
		return nil, fmt.Errorf("usage of the images' file system: %w", err)
	}
	containers := s.config.Runtime.Filesystem()
	path := containers.Path
	if sameFilesystem(usage.Path, path) {
		path = usage.Path
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     filesystem(usage.Path, usage.Bytes, usage.Inodes, time.Now()),
		ContainerFilesystems: filesystem(path, containers.Bytes, containers.Inodes, containers.At),
	}, nil
}

func filesystem(path string, bytes, inodes uint64, at time.Time) []*runtimeapi.FilesystemUsage {
	return []*runtimeapi.FilesystemUsage{{
		Timestamp:  at.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: path},
		UsedBytes:  &runtimeapi.UInt64Value{Value: bytes},
		InodesUsed: &runtimeapi.UInt64Value{Value: inodes},
	}}
}

// sameFilesystem tells whether two directories are on one device. Those that
// cannot be looked at are taken for such, as they are by default.
func sameFilesystem(a, b string) bool {
	var one, two unix.Stat_t
	if unix.Stat(a, &one) != nil || unix.Stat(b, &two) != nil {
		return true
	}
	return one.Dev == two.Dev
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
