package oci

import (
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultDevices are the devices that the OCI runtime specification promises to every container.
func defaultDevices() []specs.LinuxDevice {
	mode := func(name string, major, minor int64) specs.LinuxDevice {
		return specs.LinuxDevice{Path: "/dev/" + name, Type: "c", Major: major, Minor: minor}
	}
	return []specs.LinuxDevice{
		mode("null", 1, 3), mode("zero", 1, 5), mode("full", 1, 7), mode("random", 1, 8), mode("urandom", 1, 9), mode("tty", 5, 0),
	}
}

// devices appends a fresh /dev. It is filled through its own descriptor before
// and after it is attached: a symlink at /dev in the image has no effect on
// what is made where (CVE-2026-41579).
func (m *mounter) devices(name string, mnt *specs.Mount) {
	m.dev = m.filesystem(name, mnt, parseMountOptions(mnt))
	m.call("devices: clear umask", unix.SYS_UMASK, num(0))
	for _, l := range [][2]string{{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}, {"/proc/kcore", "core"}, {"pts/ptmx", "ptmx"}} {
		m.call("devices: link "+l[1], unix.SYS_SYMLINKAT, m.str(l[0]), slotArg(m.dev), m.str(l[1]))
	}
	made := map[string]bool{}
	list := append(defaultDevices(), m.spec.Linux.Devices...)
	for i := range list {
		// A device of the spec takes the place of a default one.
		if over := lastDevice(list, list[i].Path); !made[list[i].Path] {
			made[list[i].Path] = true
			m.device(&list[over])
		}
	}
	for _, d := range devDirectories() {
		m.call("devices: make directory "+d, unix.SYS_MKDIRAT, slotArg(m.dev), m.str(d), flags(0o755, "0755"))
	}
	m.call("devices: set umask", unix.SYS_UMASK, flags(0o022, "022"))
	m.attach(name, m.dev, "/dev")
}

// devDirectories are the mount points that every fresh /dev has.
func devDirectories() []string { return []string{"pts", "shm", "mqueue"} }

func lastDevice(list []specs.LinuxDevice, p string) int {
	at := 0
	for i := range list {
		if list[i].Path == p {
			at = i
		}
	}
	return at
}

// device appends the making of one device node on the fresh /dev.
func (m *mounter) device(d *specs.LinuxDevice) {
	rel, ok := strings.CutPrefix(path.Clean(d.Path), "/dev/")
	name := "device " + d.Path
	if !ok {
		m.err = fmt.Errorf("linux.devices: %s is not below /dev: %w", d.Path, ErrUnsupported)
		return
	}
	for i := range rel {
		if rel[i] == '/' {
			m.call(name+": make directory", unix.SYS_MKDIRAT, slotArg(m.dev), m.str(rel[:i]), flags(0o755, "0755")).allow(0, unix.EEXIST)
		}
	}
	mode := uint64(0o666)
	if d.FileMode != nil {
		mode = uint64(d.FileMode.Perm())
	}
	if at, ok := m.nodes[d.Path]; ok {
		m.call(name+": make place", unix.SYS_MKNODAT, slotArg(m.dev), m.str(rel), flags(unix.S_IFREG|0o666, "S_IFREG|0666"), num(0))
		m.moveTo(name+": attach", at, slotArg(m.dev), rel)
		m.close(name, at)
		return
	}
	kind, dev := uint64(unix.S_IFCHR), unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	switch d.Type {
	case "b":
		kind = unix.S_IFBLK
	case "p":
		kind, dev = unix.S_IFIFO, 0
	}
	m.call(name+": make node", unix.SYS_MKNODAT, slotArg(m.dev), m.str(rel), flags(kind|mode, fmt.Sprintf("%s|%#o", d.Type, mode)), num(dev))
	if (d.UID != nil && *d.UID != 0) || (d.GID != nil && *d.GID != 0) {
		var uid, gid uint32
		if d.UID != nil {
			uid = *d.UID
		}
		if d.GID != nil {
			gid = *d.GID
		}
		m.call(name+": set owner", unix.SYS_FCHOWNAT, slotArg(m.dev), m.str(rel), num(uid), num(gid), flags(unix.AT_SYMLINK_NOFOLLOW, "AT_SYMLINK_NOFOLLOW"))
	}
}

// terminal appends the opening of a terminal in the container's own devpts.
func (m *mounter) terminal(pts int) {
	m.master, m.pts = m.openTerminal(m.spec.Process.ConsoleSize, func(to int) {
		m.call("terminal: open ptmx", unix.SYS_OPENAT, slotArg(pts), m.str("ptmx"), flags(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, "O_RDWR|O_NOCTTY|O_CLOEXEC")).to(to)
	})
}

// console appends the mount of the terminal's slave on /dev/console.
func (m *mounter) console() {
	if m.pts < 0 || m.dev < 0 {
		return
	}
	s := m.slot()
	m.call("console: make mount point", unix.SYS_MKNODAT, slotArg(m.dev), m.str("console"), flags(unix.S_IFREG|0o620, "S_IFREG|0620"), num(0))
	m.call("console: clone the slave", unix.SYS_OPEN_TREE, slotArg(m.pts), m.str(""),
		flags(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH, "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_EMPTY_PATH")).to(s)
	m.moveTo("console: attach", s, slotArg(m.dev), "console")
	m.close("console", s)
}
