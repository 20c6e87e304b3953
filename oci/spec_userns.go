package oci

import (
	"cmp"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMappings is the number of lines that uid_map and gid_map hold.
const maxMappings = 340

// PodHasUserNamespace tells whether a pod has a user namespace of its own.
func PodHasUserNamespace(options *runtimeapi.NamespaceOption) bool {
	ns := options.GetUsernsOptions()
	return ns != nil && ns.GetMode() == runtimeapi.NamespaceMode_POD
}

// checkMappings accepts what the kernel does, and wants id 0 to be mapped: it owns
// what the runtime makes in the namespace.
func checkMappings(field string, list []*runtimeapi.IDMapping) error {
	mappings, err := idMappings(field, list)
	if err != nil {
		return err
	}
	if _, ok := hostID(mappings, 0); !ok {
		return invalid(field, "id 0 of the user namespace is not mapped")
	}
	return checkRanges(field, mappings)
}

// checkRanges refuses more ranges than the kernel takes, and such as overlap.
func checkRanges(field string, mappings []specs.LinuxIDMapping) error {
	if len(mappings) > maxMappings {
		return invalid(field, "%d mappings, the kernel takes %d", len(mappings), maxMappings)
	}
	for _, by := range []func(specs.LinuxIDMapping) uint32{
		func(m specs.LinuxIDMapping) uint32 { return m.ContainerID },
		func(m specs.LinuxIDMapping) uint32 { return m.HostID },
	} {
		sorted := slices.SortedFunc(slices.Values(mappings), func(a, b specs.LinuxIDMapping) int { return cmp.Compare(by(a), by(b)) })
		for i := 1; i < len(sorted); i++ {
			if by(sorted[i]) < by(sorted[i-1])+sorted[i-1].Size {
				return invalid(field, "the ranges at %d and %d overlap", by(sorted[i-1]), by(sorted[i]))
			}
		}
	}
	return nil
}

func idMappings(field string, list []*runtimeapi.IDMapping) ([]specs.LinuxIDMapping, error) {
	var out []specs.LinuxIDMapping
	for i, m := range list {
		host, inside, n := uint64(m.GetHostId()), uint64(m.GetContainerId()), uint64(m.GetLength())
		if n == 0 || host+n > math.MaxUint32 || inside+n > math.MaxUint32 {
			return nil, invalid(index(field, i), "%s is not a range of ids", fmt.Sprintf("%d ids from %d to %d", n, inside, host))
		}
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out, nil
}

// UserMappings returns the mappings of the pod's user namespace, none without one.
func UserMappings(config *runtimeapi.PodSandboxConfig) (uids, gids []specs.LinuxIDMapping, err error) {
	options := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if !PodHasUserNamespace(options) {
		return nil, nil, nil
	}
	const field = securityField + ".namespace_options.userns_options"
	if uids, err = idMappings(field+".uids", options.GetUsernsOptions().GetUids()); err != nil {
		return nil, nil, err
	}
	gids, err = idMappings(field+".gids", options.GetUsernsOptions().GetGids())
	return uids, gids, err
}

// checkBesideUserNamespace refuses the host's namespaces that a pod with a user
// namespace cannot have: neither /proc nor /dev/mqueue could be mounted.
func checkBesideUserNamespace(field string, ns *runtimeapi.NamespaceOption) error {
	if !PodHasUserNamespace(ns) {
		return nil
	}
	if ns.GetPid() == runtimeapi.NamespaceMode_NODE {
		return invalid(field+".pid", "is NODE, which is not possible with a user namespace")
	}
	if ns.GetIpc() == runtimeapi.NamespaceMode_NODE {
		return invalid(field+".ipc", "is NODE, which is not possible with a user namespace")
	}
	return nil
}

func sameUserNamespace(a, b *runtimeapi.UserNamespace) bool {
	mode := func(ns *runtimeapi.UserNamespace) runtimeapi.NamespaceMode {
		if ns == nil {
			return runtimeapi.NamespaceMode_NODE
		}
		return ns.GetMode()
	}
	same := func(a, b *runtimeapi.IDMapping) bool {
		return a.GetHostId() == b.GetHostId() && a.GetContainerId() == b.GetContainerId() && a.GetLength() == b.GetLength()
	}
	return mode(a) == mode(b) && (mode(a) == runtimeapi.NamespaceMode_NODE ||
		slices.EqualFunc(a.GetUids(), b.GetUids(), same) && slices.EqualFunc(a.GetGids(), b.GetGids(), same))
}

func (c *Container) userNamespace() bool { return PodHasUserNamespace(c.podNamespaceOptions()) }

// checkUser refuses ids that the pod's user namespace does not map: the kernel's
// answer would be EINVAL.
func (c *Container) checkUser() error {
	uids, gids, err := UserMappings(c.Pod)
	if err != nil || !c.userNamespace() {
		return err
	}
	if _, ok := hostID(uids, c.User.UID); !ok {
		return invalid(securityField+".run_as_user", "user %d is not mapped in the pod's user namespace", c.User.UID)
	}
	for _, gid := range append([]uint32{c.User.GID}, c.User.AdditionalGids...) {
		if _, ok := hostID(gids, gid); !ok {
			return invalid(securityField+".supplemental_groups", "group %d is not mapped in the pod's user namespace", gid)
		}
	}
	return nil
}

// forUserNamespace changes the default mounts where a user namespace cannot have them:
// a sysfs shows a network namespace and can be mounted only by its owner, and devpts
// knows only mapped groups.
func (c *Container) forUserNamespace(mounts []specs.Mount) []specs.Mount {
	if !c.userNamespace() {
		return mounts
	}
	_, gids, _ := UserMappings(c.Pod) // checked by checkUser
	for i := range mounts {
		m := &mounts[i]
		switch {
		case m.Type == "sysfs" && c.hostNetwork():
			m.Type, m.Source = "bind", "/sys"
			m.Options = append([]string{"bind", "rprivate"}, m.Options...)
		case m.Type == "devpts":
			if _, ok := hostID(gids, 5); !ok {
				m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "gid=5" })
			}
		}
	}
	return mounts
}

// BindDevices makes the devices of spec bind mounts of the host's nodes, as a user
// namespace needs them. hostPaths tells where the node of a device is; one that
// it does not name is looked for at its own path.
func BindDevices(spec *specs.Spec, hostPaths map[string]string) error {
	for _, d := range spec.Linux.Devices {
		from := cmp.Or(hostPaths[d.Path], d.Path)
		node, err := readDevice(from, from)
		if err != nil {
			return notFound("device "+d.Path, "in a user namespace it is a mount of the host's: %v", err)
		}
		if node.Type != d.Type || node.Major != d.Major || node.Minor != d.Minor {
			return invalid("device "+d.Path, "is not the device at %s on the host, which a user namespace would need", from)
		}
		spec.Mounts = append(spec.Mounts, specs.Mount{
			Destination: d.Path, Type: "bind", Source: from, Options: []string{"bind", "rprivate", "nosuid", "noexec"},
		})
	}
	spec.Linux.Devices = nil
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if at := slices.Index(m.Options, "idmap"); at >= 0 { // CDI's word for the ids of the container
			m.Options = slices.Delete(slices.Clone(m.Options), at, at+1)
			m.UIDMappings, m.GIDMappings = spec.Linux.UIDMappings, spec.Linux.GIDMappings
		}
	}
	return nil
}

// SortMounts puts parents before children and else keeps the order.
func SortMounts(mounts []specs.Mount) {
	slices.SortStableFunc(mounts, func(a, b specs.Mount) int {
		return strings.Count(path.Clean(a.Destination), "/") - strings.Count(path.Clean(b.Destination), "/")
	})
}

// DevicePaths returns the host's path of each device in c by its path in the container.
func DevicePaths(c *Container) map[string]string {
	out := map[string]string{}
	for _, d := range c.Host.PrivilegedDevices {
		out[d.Path] = d.Path
	}
	for _, d := range c.Config.GetDevices() {
		for _, node := range c.Devices[d.GetHostPath()] {
			out[devicePath(d, node.Path)] = node.Path
		}
	}
	return out
}

// devicePath returns where the node at p, which is d's or below it, is in the container.
func devicePath(d *runtimeapi.Device, p string) string {
	rel := strings.TrimPrefix(strings.TrimPrefix(p, path.Clean(d.GetHostPath())), "/")
	return path.Join(path.Clean(d.GetContainerPath()), rel)
}
