package imageservice

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestIngestIsSpread(t *testing.T) {
	needRoot(t)
	s := openStore(t, nil)
	var st unix.Statfs_t
	if err := unix.Statfs(s.config.Root, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type != unix.EXT4_SUPER_MAGIC {
		t.Skip("the temporary directory is not on ext4")
	}
	d, err := os.Open(s.path("ingest"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	flags, err := unix.IoctlGetInt(int(d.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&topDirectory == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
}

func TestSpreadElsewhere(t *testing.T) {
	if err := spread("/proc"); err != nil {
		t.Errorf("a file system without flags: %v", err)
	}
	if err := spread("/proc/absent"); err == nil {
		t.Error("an absent directory")
	}
}
