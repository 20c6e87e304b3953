package sandbox

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// injectDevices applies what the node's CDI specifications say of the devices that config
// names. Specifications are the administrator's, and read anew each time: a
// device plugin writes them when it likes.
func (s *Store) injectDevices(spec *specs.Spec, config *runtimeapi.ContainerConfig) error {
	var names []string
	for _, d := range config.GetCDIDevices() {
		if !slices.Contains(names, d.GetName()) {
			names = append(names, d.GetName())
		}
	}
	if len(names) == 0 {
		return nil
	}
	const field = "config.CDI_devices"
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(s.config.CDISpecDirs...))
	if err != nil {
		return fmt.Errorf("%s: read the specifications in %s: %w", field, strings.Join(s.config.CDISpecDirs, ", "), err)
	}
	if missing, err := cache.InjectDevices(spec, names...); err != nil {
		if len(missing) > 0 {
			// A specification that cannot be read is why a device may be missing.
			for path, problems := range cache.GetErrors() {
				err = errors.Join(err, fmt.Errorf("%s: %w", path, errors.Join(problems...)))
			}
			return fmt.Errorf("%s: no specification in %s has %s: %w: %w",
				field, strings.Join(s.config.CDISpecDirs, ", "), strings.Join(missing, ", "), err, ErrInvalid)
		}
		return fmt.Errorf("%s: apply %s: %w: %w", field, strings.Join(names, ", "), err, ErrInvalid)
	}
	for _, no := range []struct {
		what string
		set  bool
	}{
		{"hooks", spec.Hooks != nil},
		{"intelRdt", spec.Linux.IntelRdt != nil},
		{"netDevices", len(spec.Linux.NetDevices) > 0},
	} {
		if no.set {
			return fmt.Errorf("%s: the specification of %s asks for %s: %w", field, strings.Join(names, " or "), no.what, ErrUnsupported)
		}
	}
	return nil
}
