package imageservice

import (
	"os"

	"golang.org/x/sys/unix"
)

// topDirectory is FS_TOPDIR_FL of ext2, ext3 and ext4.
const topDirectory = 0x20000

// spread tells ext4 that the directories made in a directory have nothing to do
// with each other, as those in /home: it then puts each layer elsewhere on the
// disk. Otherwise the layers of all images share one group of inodes, whose lock
// the unpackers of a pull wait for; and where ext4 has no journal, each file
// that is made there costs a look at every inode that was freed there within
// the last minutes: up to twice the processor time for an image of small files
// after the removal of another. A hint that cannot be given changes nothing.
func spread(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	flags, err := unix.IoctlGetInt(int(d.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&topDirectory == 0 {
		_ = unix.IoctlSetPointerInt(int(d.Fd()), unix.FS_IOC_SETFLAGS, flags|topDirectory) // no other file system has it
	}
	return nil
}
