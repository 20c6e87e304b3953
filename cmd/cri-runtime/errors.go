package main

import "errors"

var (
	// errConfig: a configuration file or flag is wrong; the text says which and why.
	errConfig = errors.New("invalid configuration")
	// errInUse: another daemon works on the directory.
	errInUse = errors.New("in use by another cri-runtime")
	// errNotOurs: a directory open to other users holds something else.
	errNotOurs = errors.New("directory holds other files")
	// errNoDaemon: nobody answers on the control socket.
	errNoDaemon = errors.New("no daemon answers")
	// errDaemon: the daemon could not do what it was asked for; the text says why.
	errDaemon = errors.New("the daemon says")
	// errDamaged: a check found damage that is still there.
	errDamaged = errors.New("damaged")
	// errFindings: a check found what does not fit together.
	errFindings = errors.New("findings")
	// errUnfit: something on this host keeps pods from running.
	errUnfit = errors.New("checks failed")
	// errInterrupted: a signal ended the command.
	errInterrupted = errors.New("interrupted")
)
