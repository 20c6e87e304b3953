//go:build !amd64

package lanes

func supported() bool { return false }

func blocks(*[8][width]uint32, *[width]*byte, int) { panic("no lanes on this processor") }
