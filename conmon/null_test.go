package conmon

import (
	"errors"
	"io"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNullIsNobodys(t *testing.T) {
	bin := testBinary(t)
	fd := int(bin.null.Fd())
	path := "/proc/self/fd/" + strconv.Itoa(fd)
	for name, change := range map[string]func() error{
		"fchmod": func() error { return unix.Fchmod(fd, 0o600) },
		"fchown": func() error { return unix.Fchown(fd, 4711, 4711) },
		"chmod":  func() error { return unix.Chmod(path, 0o600) },
		"chown":  func() error { return unix.Chown(path, 4711, 4711) },
		"utimes": func() error { return unix.Utimes(path, make([]unix.Timeval, 2)) },
		"xattr":  func() error { return unix.Fsetxattr(fd, "trusted.x", []byte("x"), 0) },
	} {
		if err := change(); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v, want %v", name, err, unix.EROFS)
		}
	}
	again, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for _, f := range []*os.File{bin.null, again} {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode != unix.S_IFCHR|0o666 || st.Rdev != unix.Mkdev(1, 3) || st.Uid != 0 {
			t.Errorf("%+v, %v", st, err)
		}
		if n, err := f.WriteString("x"); n != 1 || err != nil {
			t.Error(n, err)
		}
		if got, err := io.ReadAll(f); len(got) != 0 || err != nil {
			t.Error(got, err)
		}
	}
	if name, err := os.Readlink(path); name != os.DevNull || err != nil {
		t.Error(name, err)
	}
}
