package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const maxDevices = 4096 // below one host_path

// defaultDeviceRules allow the devices that every container has, and making
// nodes of any kind: opening them is what is controlled.
func defaultDeviceRules() []specs.LinuxDeviceCgroup {
	rule := func(kind, access string, numbers ...int64) specs.LinuxDeviceCgroup {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: access}
		if len(numbers) > 0 {
			r.Major = &numbers[0]
		}
		if len(numbers) > 1 {
			r.Minor = &numbers[1]
		}
		return r
	}
	return []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		rule("c", "m"),
		rule("b", "m"),
		rule("c", "rwm", 1, 3),    // null
		rule("c", "rwm", 1, 5),    // zero
		rule("c", "rwm", 1, 7),    // full
		rule("c", "rwm", 1, 8),    // random
		rule("c", "rwm", 1, 9),    // urandom
		rule("c", "rwm", 5, 0),    // tty
		rule("c", "rwm", 5, 1),    // console
		rule("c", "rwm", 5, 2),    // ptmx
		rule("c", "rwm", 136),     // pts/*
		rule("c", "rwm", 10, 200), // net/tun
	}
}

func allDeviceRules() []specs.LinuxDeviceCgroup {
	return []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
}

func checkDevices(list []*runtimeapi.Device) error {
	if err := checkCount("config.devices", len(list), maxListed); err != nil {
		return err
	}
	for i, d := range list {
		field := index("config.devices", i)
		if d == nil {
			return invalid(field, "is empty")
		}
		if _, err := absolutePath(field+".host_path", d.GetHostPath()); err != nil {
			return err
		}
		target, err := absolutePath(field+".container_path", d.GetContainerPath())
		if err != nil {
			return err
		}
		if target == "/" || target == "/dev" || strings.HasPrefix(target+"/", "/proc/") || strings.HasPrefix(target+"/", "/sys/") {
			return invalid(field+".container_path", "%q is no place for a device", target)
		}
		if p := d.GetPermissions(); p == "" || strings.Trim(p, "rwm") != "" {
			return invalid(field+".permissions", "%.64q is not made of r, w and m", p)
		}
	}
	return nil
}

// devices returns the nodes to make beyond the default ones and the rules of
// the device cgroup.
func (c *Container) devices() ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	privileged := c.Config.GetLinux().GetSecurityContext().GetPrivileged()
	rules := defaultDeviceRules()
	var nodes []specs.LinuxDevice
	added := 0
	if privileged {
		rules = allDeviceRules()
		nodes = slices.Clone(c.Host.PrivilegedDevices)
	}
	for i, d := range c.Config.GetDevices() {
		field := index("config.devices", i)
		found := c.Devices[d.GetHostPath()]
		if len(found) == 0 {
			return nil, nil, notFound(field+".host_path", "there is no device at %q on the node", d.GetHostPath())
		}
		for _, node := range found {
			node.Path = devicePath(d, node.Path)
			nodes = slices.DeleteFunc(nodes, func(n specs.LinuxDevice) bool { return n.Path == node.Path })
			nodes = append(nodes, node)
			if added++; added > maxDevices {
				return nil, nil, invalid(field+".host_path", "there are more than %d devices up to here", maxDevices)
			}
			if !privileged {
				major, minor := node.Major, node.Minor
				rules = append(rules, specs.LinuxDeviceCgroup{
					Allow: true, Type: node.Type, Major: &major, Minor: &minor, Access: accessOf(d.GetPermissions()),
				})
			}
		}
	}
	// Below a volume the node would be made in the volume: with the host's /dev
	// mounted, on the host.
	nodes = slices.DeleteFunc(nodes, func(n specs.LinuxDevice) bool {
		return slices.ContainsFunc(c.Config.GetMounts(), func(m *runtimeapi.Mount) bool {
			return strings.HasPrefix(n.Path, path.Clean(m.GetContainerPath())+"/")
		})
	})
	return nodes, rules, nil
}

// accessOf brings permissions into the kernel's order, each once.
func accessOf(permissions string) string {
	out := ""
	for _, p := range "rwm" {
		if strings.ContainsRune(permissions, p) {
			out += string(p)
		}
	}
	return out
}

// HostDevices lists the device nodes below /dev that a privileged container
// gets: all but those that every container has of its own.
func HostDevices() ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	err := filepath.WalkDir("/dev", func(p string, entry fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				return nil // gone, or not ours to see
			}
			return err
		}
		switch p {
		case "/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev":
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		case "/dev/console", "/dev/full", "/dev/null", "/dev/ptmx", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero":
			return nil
		}
		if entry.Type()&fs.ModeDevice == 0 {
			return nil
		}
		d, err := readDevice(p, p)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		out = append(out, d)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list devices of the node: %w", err)
	}
	return out, nil
}

// readDevice looks at the node p, which the result calls name.
func readDevice(p, name string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		return specs.LinuxDevice{}, &os.PathError{Op: "stat", Path: p, Err: err}
	}
	kind := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	default:
		return specs.LinuxDevice{}, fmt.Errorf("%s: not a device: %w", p, ErrInvalid)
	}
	mode := os.FileMode(st.Mode & 0o7777)
	return specs.LinuxDevice{
		Path: name, Type: kind, FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
		Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
	}, nil
}

// ReadDevices looks at the host_path of each of config.devices: a device, a
// link to one, or a directory of them. The result is Container.Devices.
func ReadDevices(config *runtimeapi.ContainerConfig) (map[string][]specs.LinuxDevice, error) {
	if err := checkDevices(config.GetDevices()); err != nil {
		return nil, err
	}
	out := make(map[string][]specs.LinuxDevice, len(config.GetDevices()))
	for i, d := range config.GetDevices() {
		field := index("config.devices", i) + ".host_path"
		found, err := devicesAt(field, path.Clean(d.GetHostPath()))
		if err != nil {
			return nil, err
		}
		out[d.GetHostPath()] = found
	}
	return out, nil
}

func devicesAt(field, hostPath string) ([]specs.LinuxDevice, error) {
	st, err := os.Stat(hostPath)
	if err != nil {
		return nil, notFound(field, "%v", err)
	}
	if !st.IsDir() {
		d, err := readDevice(hostPath, hostPath)
		if err != nil {
			return nil, invalid(field, "%v", err)
		}
		return []specs.LinuxDevice{d}, nil
	}
	target, err := filepath.EvalSymlinks(hostPath)
	if err != nil {
		return nil, notFound(field, "%v", err)
	}
	var out []specs.LinuxDevice
	err = filepath.WalkDir(target, func(p string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.Type()&fs.ModeDevice == 0 {
			return nil
		}
		if len(out) == maxDevices {
			return invalid(field, "more than %d devices below %s", maxDevices, hostPath)
		}
		d, err := readDevice(p, path.Join(hostPath, strings.TrimPrefix(p, target)))
		out = append(out, d)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list devices of %s: %w", hostPath, err)
	}
	return out, nil
}
