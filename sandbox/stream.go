package sandbox

import "io"

// TerminalSize is the size of a terminal in characters.
type TerminalSize struct{ Width, Height uint16 }

// Streams are the client's ends of an exec or an attach. A nil stream is not
// wanted; with Terminal there is no Stderr. Whoever gets Streams reads Stdin and Resize
// until they end or the call returns, and closes Stdout and Stderr when their
// output is complete.
type Streams struct {
	Stdin    io.Reader
	Stdout   io.WriteCloser
	Stderr   io.WriteCloser
	Terminal bool
	Resize   <-chan TerminalSize
}
