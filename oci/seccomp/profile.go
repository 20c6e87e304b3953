package seccomp

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unicode/utf8"

	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// MaxProfileBytes is the largest JSON profile that LoadProfile reads.
const MaxProfileBytes = 1 << 20

// KernelVersion is the version of a kernel, as far as profiles depend on it.
type KernelVersion struct {
	Version    uint64 // the 6 of 6.18.44
	Patchlevel uint64 // the 18 of 6.18.44
}

// ParseKernelVersion reads the release that uname(2) reports.
func ParseKernelVersion(release string) (KernelVersion, error) {
	var k KernelVersion
	if _, err := fmt.Sscanf(release, "%d.%d", &k.Version, &k.Patchlevel); err != nil {
		return KernelVersion{}, fmt.Errorf("kernel release %q: want VERSION.PATCHLEVEL: %w", release, err)
	}
	return k, nil
}

// atLeast tells whether k is at least the given version.
func (k KernelVersion) atLeast(v *moby.KernelVersion) bool {
	if k.Version != v.Kernel {
		return k.Version > v.Kernel
	}
	return k.Patchlevel >= v.Major
}

// Default is the RuntimeDefault profile for a container with these
// capabilities (its bounding set, in the form CAP_NAME) on a machine of this
// binary's architecture.
func Default(caps []string, kernel KernelVersion) (*specs.LinuxSeccomp, error) {
	return DefaultFor(runtime.GOARCH, caps, kernel)
}

// DefaultFor is Default for another architecture, as Go names it.
func DefaultFor(arch string, caps []string, kernel KernelVersion) (*specs.LinuxSeccomp, error) {
	p, err := resolve(moby.DefaultProfile(), host{arch, caps, kernel})
	if err != nil {
		return nil, fmt.Errorf("default seccomp profile: %w", err)
	}
	return p, nil
}

// LoadProfile reads a Localhost profile: JSON as in the runtime specification,
// or with the additions of docker and podman (archMap, includes, excludes),
// which are resolved as in Default. Its contents are checked: a profile that
// loads compiles, unless its program is too long for the kernel.
func LoadProfile(data []byte, caps []string, kernel KernelVersion) (*specs.LinuxSeccomp, error) {
	return LoadProfileFor(runtime.GOARCH, data, caps, kernel)
}

// LoadProfileFor is LoadProfile for another architecture, as Go names it.
func LoadProfileFor(arch string, data []byte, caps []string, kernel KernelVersion) (*specs.LinuxSeccomp, error) {
	if len(data) > MaxProfileBytes {
		return nil, fmt.Errorf("%w: %d bytes of JSON, at most %d", ErrTooLarge, len(data), MaxProfileBytes)
	}
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("%w: the JSON text is not UTF-8", ErrInvalid)
	}
	var raw moby.Seccomp
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, fmt.Errorf("%w: %s", ErrInvalid, jsonError(err))
	}
	p, err := resolve(&raw, host{arch, caps, kernel})
	if err != nil {
		return nil, err
	}
	if err := check(p); err != nil {
		return nil, err
	}
	return p, nil
}

// jsonError says where the JSON is wrong.
func jsonError(err error) string {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Sprintf("JSON, byte %d: %s", syntax.Offset, syntax.Error())
	}
	var kind *json.UnmarshalTypeError
	if errors.As(err, &kind) {
		return fmt.Sprintf("%s: a JSON %s does not fit %s", kind.Field, kind.Value, kind.Type)
	}
	return err.Error()
}

// check finds the errors that Compile would find.
func check(p *specs.LinuxSeccomp) error {
	if err := checkArchitectures(p.Architectures); err != nil {
		return err
	}
	if _, err := filterFlags(p.Flags); err != nil {
		return err
	}
	var c compiler
	_, err := c.parse(p)
	return err
}

// host is what the conditions of a profile ask for.
type host struct {
	arch   string
	caps   []string
	kernel KernelVersion
}

// native gives the architecture as profiles name it.
func (h host) native() specs.Arch {
	switch h.arch {
	case "amd64":
		return specs.ArchX86_64
	case "arm64":
		return specs.ArchAARCH64
	}
	return ""
}

// resolve drops the rules whose conditions do not hold. The profile is used up.
func resolve(raw *moby.Seccomp, h host) (*specs.LinuxSeccomp, error) {
	if h.native() == "" {
		return nil, fmt.Errorf("%w: no system call table for architecture %q", ErrUnsupported, h.arch)
	}
	if len(raw.Architectures) != 0 && len(raw.ArchMap) != 0 {
		return nil, fmt.Errorf("%w: architectures and archMap exclude each other", ErrInvalid)
	}
	out := raw.LinuxSeccomp
	for _, a := range raw.ArchMap {
		if a.Arch == h.native() {
			out.Architectures = append([]specs.Arch{a.Arch}, a.SubArches...)
			break
		}
	}
	if len(raw.Syscalls) > maxGroups {
		return nil, fmt.Errorf("%w: syscalls: %d entries, at most %d", ErrTooLarge, len(raw.Syscalls), maxGroups)
	}
	out.Syscalls = make([]specs.LinuxSyscall, 0, len(raw.Syscalls))
	for i, s := range raw.Syscalls {
		if s == nil {
			return nil, fmt.Errorf("syscalls[%d]: %w: null", i, ErrInvalid)
		}
		if s.Name != "" { //nolint:staticcheck // SA1019: old profiles, the form of docker before 1.13, are still in use
			if len(s.Names) != 0 {
				return nil, fmt.Errorf("syscalls[%d]: %w: name and names exclude each other", i, ErrInvalid)
			}
			s.Names = []string{s.Name} //nolint:staticcheck // SA1019: see above
		}
		if h.meets(s.Includes, s.Excludes) {
			out.Syscalls = append(out.Syscalls, s.LinuxSyscall)
		}
	}
	return &out, nil
}

// meets tells whether a rule with these conditions holds: everything that
// includes asks for must be there, and nothing that excludes names.
func (h host) meets(includes, excludes *moby.Filter) bool {
	has := func(c string) bool { return slices.Contains(h.caps, c) }
	if x := excludes; x != nil {
		if slices.Contains(x.Arches, h.arch) || slices.ContainsFunc(x.Caps, has) {
			return false
		}
		if x.MinKernel != nil && h.kernel.atLeast(x.MinKernel) {
			return false
		}
	}
	if x := includes; x != nil {
		if len(x.Arches) > 0 && !slices.Contains(x.Arches, h.arch) {
			return false
		}
		for _, c := range x.Caps {
			if !has(c) {
				return false
			}
		}
		if x.MinKernel != nil && !h.kernel.atLeast(x.MinKernel) {
			return false
		}
	}
	return true
}
