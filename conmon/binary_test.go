package conmon

import (
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The executable is found whatever numbers the files have that a child is given, those just below its own too.
func TestSpawnWhateverNumbers(t *testing.T) {
	bin := testBinary(t)
	null := bin.null.Fd()
	// Another number, with room below it.
	high, err := unix.FcntlInt(uintptr(bin.fd), unix.F_DUPFD_CLOEXEC, 500)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(high)
	for distance := 1; distance < 12; distance++ {
		for _, count := range []int{1, 6, 20} {
			b := &Binary{fd: high, null: bin.null}
			last := high - distance
			if err := unix.Dup3(int(null), last, unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			files := make([]uintptr, count)
			for i := range files {
				files[i] = null // mostly lower than what it becomes
			}
			files[0] = uintptr(last)
			pid, err := b.spawn([]string{"cri-monitor"}, files, &syscall.SysProcAttr{})
			unix.Close(last)
			if err != nil {
				t.Errorf("%d files, the highest %d below the executable: %v", count, distance, err)
				continue
			}
			// Without a socket it ends at once.
			if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
				t.Error(err)
			}
		}
	}
}
