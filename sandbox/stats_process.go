package sandbox

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLookedAt bounds the descriptors of a container that are looked at to
// tell sockets from others: a container may have millions.
const maxLookedAt = 4096

// OpenFiles is what processes have open.
type OpenFiles struct {
	Files        int
	Sockets      int
	SocketsKnown bool // false when there were too many descriptors
}

// CountFiles counts what the processes have open. One that ends meanwhile has
// nothing. No file of /proc is touched that waits for a process's memory.
func CountFiles(pids []int) OpenFiles {
	o := OpenFiles{SocketsKnown: true}
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid) + "/fd"
		var st unix.Stat_t
		if unix.Stat(dir, &st) != nil {
			continue
		}
		n := int(st.Size) // since Linux 6.2 the number of descriptors
		if n > 0 && o.Files+n > maxLookedAt {
			o.Files, o.SocketsKnown = o.Files+n, false
			continue
		}
		files, sockets, whole := lookAtFiles(dir)
		o.Files += max(files, n)
		o.Sockets += sockets
		o.SocketsKnown = o.SocketsKnown && whole
	}
	return o
}

// lookAtFiles tells files from sockets; whole is false when there were more
// than it looks at, and it counted as far as it got.
func lookAtFiles(dir string) (files, sockets int, whole bool) {
	d, err := os.Open(dir)
	if err != nil {
		return 0, 0, true // it has ended
	}
	defer d.Close()
	names, err := d.Readdirnames(maxLookedAt)
	if err != nil {
		return 0, 0, true
	}
	var target [64]byte
	for _, name := range names {
		n, err := unix.Readlinkat(int(d.Fd()), name, target[:])
		if err == nil && strings.HasPrefix(string(target[:n]), "socket:") {
			sockets++
		}
	}
	return len(names), sockets, len(names) < maxLookedAt
}

// FileLimit returns the soft limit of open files of a process; false when it has ended.
func FileLimit(pid int) (uint64, bool) {
	var limit unix.Rlimit
	for {
		err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit)
		if !errors.Is(err, unix.EINTR) {
			return limit.Cur, err == nil && pid > 0
		}
	}
}
