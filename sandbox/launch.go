package sandbox

import (
	"context"
	"errors"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/conmon"
	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox/fault"
)

// compile makes the launch program. It names the cgroup, which need not be there yet.
func (l *launch) compile() (err error) {
	o := &l.options
	o.Own = [3]bool{l.config.GetStdin(), true, true}
	if err := l.store.compileOptions(o, l.cgroup, l.spec.Linux.Seccomp); err != nil {
		return err
	}
	if l.program, err = oci.Compile(l.spec, o); err != nil {
		return err
	}
	if l.sealed, err = conmon.Seal(l.program); err != nil {
		return err
	}
	l.log, err = l.openLog()
	fault.Point("create.log.opened")
	return err
}

// launch gives the monitor its work; it returns once the child waits for Start.
func (l *launch) launch(ctx context.Context) (*conmon.Monitor, error) {
	var open fileList
	defer open.close()
	files, err := l.programFiles(&open, l.program)
	if err != nil {
		return nil, err
	}
	exitDir := open.dir(l.root())
	if open.err != nil {
		return nil, open.err
	}
	fault.Point("create.files.opened")
	pending := l.pending
	l.pending = nil // from here on it ends by itself when the launch fails
	return pending.Launch(ctx, &conmon.Launch{
		Dir: l.state(), ExitDir: exitDir, Log: l.log, LogLineBytes: l.store.config.LogLineBytes, OOM: l.oom,
		Program: l.program, Sealed: l.sealed, Files: files,
		Terminal: l.spec.Process.Terminal, Stdin: l.config.GetStdin(), Place: l.store.monitors.tasks,
	})
}

// programFiles opens what the program wants, in its order.
func (l *launch) programFiles(open *fileList, program *oci.Program) ([]*os.File, error) {
	files, tasks := []*os.File(nil), l.tasks
	for _, kind := range program.Files {
		switch kind {
		case oci.FileRoot:
			files = append(files, l.rootfs)
		case oci.FileMountNS:
			ns := l.store.emptyNS
			if l.userNS != nil {
				ns = l.store.userNS
			}
			files = append(files, ns)
		case oci.FilePIDNS:
			files = append(files, open.file(pidNamespace(l.spec)))
		case oci.FileCgroup:
			files = append(files, open.keep(l.cgroup.Dir()))
		case oci.FileTasks:
			files, tasks = append(files, tasks[0]), tasks[1:]
		case oci.FileTerminal, oci.FileResume: // of other programs
		case oci.FileSource:
			files = append(files, l.sources[0])
		default: // the ones after it
			files = append(files, l.sources[kind-oci.FileSource])
		}
	}
	return files, open.err
}

func pidNamespace(spec *specs.Spec) string {
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.PIDNamespace {
			return ns.Path
		}
	}
	return ""
}

// fileList collects files to be closed together; the first error sticks.
type fileList struct {
	files []*os.File
	err   error
}

func (l *fileList) keep(f *os.File, err error) *os.File {
	if err != nil {
		l.err = errors.Join(l.err, err)
		return nil
	}
	if f != nil {
		l.files = append(l.files, f)
	}
	return f
}

func (l *fileList) file(path string) *os.File {
	return l.keep(os.OpenFile(path, os.O_RDONLY, 0))
}

func (l *fileList) dir(path string) *os.File {
	return l.keep(os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0))
}

func (l *fileList) close() {
	for _, f := range l.files {
		_ = f.Close() // read-only, or handed over already
	}
}
