package sandbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strconv"

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
		fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		o.add(fd)
		_ = unix.Close(fd)
	}
	return o
}

// add counts the descriptors in a directory of a process.
func (o *OpenFiles) add(dir int) {
	var st unix.Stat_t
	if unix.Fstat(dir, &st) != nil {
		return
	}
	n := int(st.Size) // since Linux 6.2 the number of descriptors
	if n > 0 && o.Files+n > maxLookedAt {
		o.Files, o.SocketsKnown = o.Files+n, false
		return
	}
	var buf [4096]byte
	files := 0
	for {
		size, err := unix.Getdents(dir, buf[:])
		if err != nil || size <= 0 {
			break // all seen, or it has ended
		}
		for data := buf[:size]; len(data) > 0; {
			var name []byte
			name, data = cutEntry(data)
			if len(name) == 0 || name[0] < '0' || name[0] > '9' {
				continue // malformed, "." or ".."
			}
			files++
			if isSocket(dir, name) {
				o.Sockets++
			}
		}
		if files >= maxLookedAt {
			o.SocketsKnown = false
			break
		}
		if files == n {
			break // without asking whether there are more
		}
	}
	o.Files += max(files, n)
}

// cutEntry cuts the first entry off what getdents64(2) returns.
func cutEntry(data []byte) (name, rest []byte) {
	const length, start = 16, 19 // of the record's length and of the name
	if len(data) < start {
		return nil, nil
	}
	size := int(binary.NativeEndian.Uint16(data[length:]))
	if size < start || size > len(data) {
		return nil, nil
	}
	name, _, _ = bytes.Cut(data[start:size], []byte{0})
	return name, data[size:]
}

// isSocket tells what a descriptor is from its link alone.
func isSocket(dir int, name []byte) bool {
	var target [64]byte
	n, err := unix.Readlinkat(dir, string(name), target[:])
	return err == nil && bytes.HasPrefix(target[:n], []byte("socket:"))
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
