package doctor

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

const mib = 1 << 20

// there returns the path or the nearest directory above it that exists: before
// the first start the daemon's directories do not.
func (e *exam) there(dir string) string {
	for dir != "/" && dir != "." && !e.exists(dir) {
		dir = path.Dir(dir)
	}
	return dir
}

// mountOf returns the mount that a path is on.
func (e *exam) mountOf(name string) (on mount) {
	for _, m := range e.mounts() {
		if (m.at == "/" || m.at == name || strings.HasPrefix(name, m.at+"/")) && len(m.at) >= len(on.at) {
			on = m // of two on one place the later one is seen
		}
	}
	return on
}

func (e *exam) diskSpace() string {
	var seen []string
	for _, d := range []struct {
		dir         string
		least, good uint64
		what        string
	}{
		{e.RootDir, 256 * mib, 2048 * mib, "images and writable layers"},
		{e.StateDir, 4 * mib, 64 * mib, "sockets and records of running pods"},
	} {
		v, err := e.Kernel.Volume(e.path(e.there(d.dir)))
		if err != nil {
			e.warn(err.Error(), "whether there is room is not known", "look at "+d.dir)
			continue
		}
		free := fmt.Sprintf("%s: %d MiB of %d free", d.dir, v.FreeBytes/mib, v.Bytes/mib)
		seen = append(seen, free)
		const change = "remove what is not needed (crictl rmi --prune), or give it a larger file system"
		switch {
		case v.FreeBytes < d.least:
			e.fail(free, "nothing more fits: "+d.what, change)
		case v.FreeBytes < d.good || v.FreeBytes < v.Bytes/20:
			e.warn(free, "soon nothing more fits: "+d.what+"; the kubelet evicts pods", change)
		}
		if v.Inodes > 0 && v.FreeInodes < v.Inodes/20 {
			e.warn(fmt.Sprintf("%s: %d of %d inodes free", d.dir, v.FreeInodes, v.Inodes), "soon no file can be made, with room left: "+d.what,
				"remove what is not needed, or use a file system with more inodes (mkfs.ext4 -i 8192, xfs, btrfs)")
		}
	}
	return strings.Join(seen, "; ")
}

// diskFilesystem looks whether overlay can have its upper layers below the root.
func (e *exam) diskFilesystem() string {
	m := e.mountOf(e.RootDir)
	seen := fmt.Sprintf("%s is on %s", e.RootDir, m.kind)
	const none = "no container can have a root file system"
	switch m.kind {
	case "overlay", "nfs", "nfs4", "cifs", "smb3", "9p", "vfat", "exfat", "squashfs", "iso9660", "erofs", "fuseblk", "ecryptfs", "ceph":
		e.fail(seen, none+": overlay does not write to it", "put root on ext4, xfs or btrfs")
		return ""
	case "tmpfs", "ramfs":
		e.warn(seen, "images take memory, and are pulled again after each boot", "put root on ext4, xfs or btrfs")
	case "":
		e.warn("the mount of "+e.RootDir+" is not found", "whether overlay can write to it is not known", "mount procfs on /proc")
		return ""
	default:
		if strings.HasPrefix(m.kind, "fuse.") {
			e.warn(seen, "overlay may refuse it, and each file of a container costs a switch to its server", "put root on ext4, xfs or btrfs")
		}
	}
	if slices.Contains(m.options, "ro") {
		e.fail(seen+", read-only", "nothing can be stored", "mount -o remount,rw "+m.at+"; see dmesg, a kernel does this after an error of the disk")
	}
	if typed, err := e.Kernel.Typed(e.path(e.there(e.RootDir))); err != nil {
		e.warn(err.Error(), "whether directories tell types is not known", "look at "+e.RootDir)
	} else if !typed {
		e.fail(seen+", whose directories do not tell the types of entries", none+": overlay cannot tell removed files", "mkfs.xfs -n ftype=1 (xfs), mkfs.ext4 -O filetype")
	}
	return seen + " (noexec, nodev and nosuid there would do no harm)"
}

func (e *exam) diskState() string {
	m := e.mountOf(e.StateDir)
	if m.kind != "tmpfs" && m.kind != "ramfs" {
		e.warn(fmt.Sprintf("%s is on %s", e.StateDir, m.kind), "each start of a pod writes to a disk, and a boot finds what was there before it",
			`mount -t tmpfs tmpfs /run, or set state to a directory of one`)
	}
	if slices.Contains(m.options, "ro") {
		e.fail(e.StateDir+" is read-only", "the daemon does not start", "mount -o remount,rw "+m.at)
	}
	return e.StateDir + " is on " + m.kind
}

// newestRecord is when the last record of a pod or container was written.
func (e *exam) newestRecord() (newest time.Time) {
	for _, kind := range []struct{ dir, file string }{{"sandboxes", "sandbox.json"}, {"containers", "container.json"}} {
		dir := path.Join(e.RootDir, kind.dir)
		for _, id := range e.list(dir) {
			if stat, err := os.Lstat(e.path(path.Join(dir, id, kind.file))); err == nil && stat.ModTime().After(newest) {
				newest = stat.ModTime()
			}
		}
	}
	return newest
}
