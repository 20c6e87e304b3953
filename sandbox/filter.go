package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/oci/seccomp"
)

// confine gives spec the seccomp profile that config asks for, resolved for
// the spec's capabilities. kind and path are those of oci.SeccompProfile.
func (s *Store) confine(spec *specs.Spec, kind runtimeapi.SecurityProfile_ProfileType, path string) error {
	if kind == runtimeapi.SecurityProfile_Unconfined || spec.Linux.Seccomp == nil {
		spec.Linux.Seccomp = nil
		return nil
	}
	kernel, err := seccomp.ParseKernelVersion(s.host.Kernel)
	if err != nil {
		return err
	}
	caps := spec.Process.Capabilities.Bounding
	if kind == runtimeapi.SecurityProfile_RuntimeDefault {
		spec.Linux.Seccomp, err = s.filters.Default(caps, kernel)
		return err
	}
	data, err := readProfile(path)
	if err != nil {
		return err
	}
	if spec.Linux.Seccomp, err = s.filters.LoadProfile(data, caps, kernel); err != nil {
		return fmt.Errorf("seccomp profile %s: %w", path, err)
	}
	return nil
}

func readProfile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w: %w", err, ErrInvalid)
		}
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, seccomp.MaxProfileBytes+1))
}

// compileOptions fills in what all programs of a container have in common.
func (s *Store) compileOptions(o *oci.CompileOptions, cg *oci.Cgroup, profile *specs.LinuxSeccomp) error {
	o.TaskFiles, o.CgroupV2, o.Hierarchies = cg.JoinPaths(), s.cgroups.V2(), s.v1
	o.LastCap = s.lastCap()
	if profile == nil {
		return nil
	}
	f, err := s.filters.Compile(profile, runtime.GOARCH)
	if err != nil {
		return err
	}
	o.Seccomp, o.SeccompFlags = f.Instructions, f.Flags
	return nil
}

func (s *Store) lastCap() int { return len(s.host.Capabilities) - 1 }
