package sandbox

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCountFiles(t *testing.T) {
	self := []int{os.Getpid()}
	before := CountFiles(self)
	const pairs = 200 // more than one read of the directory has
	for range pairs {
		s, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]int, 2)
		if err := unix.Pipe2(p, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for _, fd := range append(p, s[:]...) {
				_ = unix.Close(fd)
			}
		})
	}
	after := CountFiles(self)
	if after.Files-before.Files != 4*pairs || after.Sockets-before.Sockets != 2*pairs || !after.SocketsKnown {
		t.Errorf("%+v, then %+v", before, after)
	}
	if none := CountFiles([]int{1 << 30}); none.Files != 0 || !none.SocketsKnown {
		t.Errorf("of no process: %+v", none)
	}
}

func FuzzCutEntry(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x18\x00\x0a12\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for len(data) > 0 {
			name, rest := cutEntry(data)
			if len(rest) >= len(data) || len(name) > len(data) {
				t.Fatalf("%q, %q of %q", name, rest, data)
			}
			data = rest
		}
	})
}
