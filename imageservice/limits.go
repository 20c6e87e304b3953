package imageservice

// limits bound what one layer may ask of this machine. Real layers stay far
// below them; a test lowers them.
type limits struct {
	entries     int   // of the archive
	directories int   // whose attributes wait for the end of the archive
	implicit    int   // directories that the archive does not describe
	replaced    int   // directories with content that a later entry replaces
	bytes       int64 // of the decompressed archive, and of all files with their holes
	depth       int   // components of a path
	path        int   // bytes of a path or of a link's target
	xattrs      int   // bytes of one entry's extended attributes
	acls        int   // bytes of all directories' default ACLs
}

func defaultLimits() limits {
	return limits{
		entries:     4 << 20,
		directories: 1 << 20,
		implicit:    64 << 10,
		replaced:    1 << 10,
		bytes:       1 << 40,
		depth:       512,
		path:        4095,
		xattrs:      256 << 10,
		acls:        16 << 20,
	}
}
