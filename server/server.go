package server

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

const (
	runtimeName = "cri-runtime"
	// kubeletVersion is the value that the kubelet's API has had since its
	// beginning: it is the version of VersionRequest, not of the runtime.
	kubeletVersion = "0.1.0"
	apiVersion     = "v1"

	defaultStopGrace = 5 * time.Second
)

// ImageStore is what the server needs of the images on this machine.
// *imageservice.Store implements it.
type ImageStore interface {
	// Pull fetches what name means at its registry; auth may be nil.
	Pull(ctx context.Context, name string, auth *imageservice.Auth) (*imageservice.Image, error)
	// Image returns the image with that id, name or digest.
	Image(ref string) (*imageservice.Image, error)
	// Images returns all images. The server changes neither list nor images.
	Images() []*imageservice.Image
	// Remove takes all names of the image away, and its data once nothing holds it.
	Remove(ctx context.Context, ref string) error
	// Usage returns what the images take on disk.
	Usage() (imageservice.Usage, error)
}

// ImageHolds keeps the data of images that containers use.
// *imageservice.Store implements it.
type ImageHolds interface {
	// Hold keeps the image's data until Release is called with the same user.
	Hold(imageID, user string) error
	// Release ends a hold; one that isn't there is no error.
	Release(imageID, user string)
}

// ImageDetails tells more about images than CRI asks for.
// *imageservice.Store implements it.
type ImageDetails interface {
	// Details describes the image with that id, name or digest.
	Details(ref string) (*imageservice.Details, error)
}

// Images is the whole of what the server needs of package imageservice.
type Images interface {
	ImageStore
	ImageHolds
	ImageDetails
}

// Config is what a Server is made of. The functions are called from several
// goroutines at once; nil functions are left out.
type Config struct {
	// Runtime holds sandboxes and containers. The caller closes it, after Serve
	// has returned.
	Runtime *sandbox.Store
	// Images holds the images.
	Images Images
	// RuntimeReady says why no container at all can be started, nil when they can.
	RuntimeReady func() error
	// NetworkReady says why pods can have no network, nil when they can.
	NetworkReady func() error
	// NetworkStatus is shown as JSON by a verbose Status.
	NetworkStatus func() any
	// PodSubnets takes the subnets that the cluster gives to this node's pods.
	PodSubnets func(subnets []netip.Prefix) error
	// Version is the version of this daemon; what is no semantic version is
	// shown as a pre-release of 0.0.0, for the kubelet refuses anything else.
	Version string
	// CgroupDriver is "cgroupfs" or "systemd".
	CgroupDriver string
	// Notes are sentences on what this machine keeps the daemon from doing.
	Notes func() []string
	// EffectiveConfig is shown as JSON by a verbose Status; it holds no secrets.
	EffectiveConfig any
	// Handlers are the runtime handlers that requests may name, and what each
	// can do. Empty: only the default handler, with no optional feature.
	Handlers []*runtimeapi.RuntimeHandler
	// Features is what the runtime can do with every handler; nil: none.
	Features *runtimeapi.RuntimeFeatures
	// Observe is told of each RPC that was answered; nil: nobody is.
	Observe func(method, code string, took time.Duration)
	// Streaming says where the streams of Exec, Attach and PortForward are served.
	Streaming StreamingConfig
	// StopGrace bounds how long RPCs under way may take once Serve is told to
	// stop; 0 means 5 s.
	StopGrace time.Duration
}

// Server answers CRI requests.
type Server struct {
	config    Config
	version   string
	holds     *holds
	streaming *streaming
	ending    chan struct{} // closed when Serve is told to stop
	metrics   []metric      // of containers
	podTable  []metric
	devices   *deviceNames
}

// New checks config and holds the images of the containers that exist. After
// it, and not before, images that nothing holds may be collected.
func New(config Config) (*Server, error) {
	switch {
	case config.Runtime == nil:
		return nil, errors.New("server: Config.Runtime is nil")
	case config.Images == nil:
		return nil, errors.New("server: Config.Images is nil")
	}
	if _, err := cgroupDriver(config.CgroupDriver); err != nil {
		return nil, err
	}
	if len(config.Handlers) == 0 {
		config.Handlers = []*runtimeapi.RuntimeHandler{{Features: &runtimeapi.RuntimeHandlerFeatures{}}}
	}
	if config.Features == nil {
		config.Features = &runtimeapi.RuntimeFeatures{}
	}
	if config.StopGrace <= 0 {
		config.StopGrace = defaultStopGrace
	}
	streams, err := newStreaming(config.Streaming, storeContainers{config.Runtime})
	if err != nil {
		return nil, err
	}
	s := &Server{
		config: config, version: semanticVersion(config.Version), holds: newHolds(config.Images, config.Runtime), streaming: streams,
		ending: make(chan struct{}), metrics: metricTable(), podTable: podMetricTable(), devices: newDeviceNames(),
	}
	for _, c := range config.Runtime.Containers() {
		holdExisting(config.Images, c.Status())
	}
	return s, nil
}

// runtimeService and imageService are the two gRPC services; RPCs that they
// do not define are answered by the embedded types, see unimplemented.go.
type runtimeService struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	*Server
}

type imageService struct {
	runtimeapi.UnimplementedImageServiceServer
	*Server
}

// knownHandler says that a request may name this runtime handler.
func (s *Server) knownHandler(field, name string) error {
	var names []string
	for _, h := range s.config.Handlers {
		if h.GetName() == name {
			return nil
		}
		names = append(names, fmt.Sprintf("%q", h.GetName()))
	}
	if name == "" {
		return nil // CRI: the empty string is the default handler
	}
	return invalid(field, "no runtime handler %q, there is %s", name, strings.Join(names, ", "))
}

func cgroupDriver(name string) (runtimeapi.CgroupDriver, error) {
	switch name {
	case "cgroupfs":
		return runtimeapi.CgroupDriver_CGROUPFS, nil
	case "systemd":
		return runtimeapi.CgroupDriver_SYSTEMD, nil
	}
	return 0, fmt.Errorf("server: cgroup driver %q: neither cgroupfs nor systemd", name)
}

// semanticVersion makes a version that the kubelet can parse: it gives up on
// a runtime whose version isn't semantic, such as that of a build from a branch.
func semanticVersion(version string) string {
	plain := strings.TrimPrefix(version, "v")
	if regexp.MustCompile(`^\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?$`).MatchString(plain) {
		return plain
	}
	text := strings.Trim(regexp.MustCompile(`[^0-9A-Za-z-]+`).ReplaceAllString(plain, "-"), "-")
	// The word keeps a commit's hash of digits only from being a number with
	// leading zeros, which isn't semantic either.
	return strings.TrimSuffix("0.0.0-devel-"+text, "-")
}
