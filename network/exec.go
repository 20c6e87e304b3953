package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

const (
	maxStdout = 4 << 20  // of a plugin; more is an error
	maxStderr = 16 << 10 // of a plugin; more is dropped
	// A plugin's children may keep its output open after it has ended.
	drainTime = time.Second
	// How often and how long a plugin that is being written is tried again.
	busyPause = 20 * time.Millisecond
	busyTries = 50
	// What a daemon started without one would leave its plugins without:
	// they look for ip, nft and iptables.
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// runner runs plugins for libcni; each run has a deadline of its own.
type runner struct {
	version.PluginDecoder
	timeout time.Duration
	mark    string // variable that marks plugins, and what they start, as ours
}

var _ invoke.Exec = (*runner)(nil)

// FindInPath returns the path of the plugin's binary.
func (r *runner) FindInPath(plugin string, dirs []string) (string, error) {
	if err := checkType(plugin); err != nil {
		return "", err
	}
	for _, dir := range dirs {
		name := filepath.Join(dir, plugin)
		var stat unix.Stat_t
		if unix.Stat(name, &stat) == nil && stat.Mode&unix.S_IFMT == unix.S_IFREG && stat.Mode&0o111 != 0 {
			return name, nil
		}
	}
	return "", fmt.Errorf("%w: no executable %s in %s; install it there or name its directory in the configuration",
		ErrNotReady, plugin, strings.Join(dirs, ", "))
}

// ExecPlugin runs the plugin and returns what it wrote to its standard output.
func (r *runner) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	verb := environ(env, "CNI_COMMAND")
	stdout, stderr, err := r.run(ctx, path, stdin, append(slices.Clone(env), r.mark))
	if err == nil && verb == "ADD" {
		err = checkResult(stdout)
	}
	if err == nil {
		return stdout, nil
	}
	failed := &PluginError{
		Plugin: filepath.Base(path), Command: verb, After: time.Since(start),
		Msg: err.Error(), Stderr: quote(stderr), Cause: err,
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		failed.Cause = ctx.Err()
		failed.Msg = "killed: the caller has gone away"
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			failed.Msg = fmt.Sprintf("killed: not done within %s", time.Since(start).Round(time.Millisecond))
		}
	case errors.As(err, &exit):
		failed.explain(stdout, exit)
	}
	return nil, failed
}

// explain takes over the error object that a plugin prints when it fails.
func (e *PluginError) explain(stdout []byte, exit *exec.ExitError) {
	e.Cause = nil
	e.Msg = exit.String()
	var said types.Error
	if err := json.Unmarshal(stdout, &said); err == nil && (said.Msg != "" || said.Code != 0) {
		e.Code, e.Msg, e.Details = said.Code, quote([]byte(said.Msg)), quote([]byte(said.Details))
		if said.Msg == "" {
			e.Msg = fmt.Sprintf("error code %d", said.Code)
		}
	} else if len(stdout) > 0 {
		e.Msg += "; stdout: " + quote(stdout)
	}
}

// run starts the plugin again while its binary is open for writing.
func (r *runner) run(ctx context.Context, path string, stdin []byte, env []string) (stdout, stderr []byte, err error) {
	for range busyTries {
		stdout, stderr, err = runOnce(ctx, path, stdin, env)
		if !errors.Is(err, unix.ETXTBSY) {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(busyPause):
		}
	}
	return stdout, stderr, err
}

// runOnce runs the plugin in a process group of its own, so that at the
// deadline its children end with it. If the daemon dies the kernel kills a
// plugin, so that an ADD cannot outlive it and end after the DEL of the next
// daemon. The signal comes when the thread that forked ends, hence the lock.
// A DEL goes on to its end: the next daemon's beside it is harmless, while one
// cut off half way may leave what no later one finds (the bridge plugin looks for
// the rules of an address only while the interface is there).
func runOnce(ctx context.Context, path string, stdin []byte, env []string) (stdout, stderr []byte, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, errout := &capped{limit: maxStdout}, &capped{limit: maxStderr, drop: true}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = env
	if environ(env, "PATH") == "" {
		cmd.Env = append(cmd.Env, "PATH="+defaultPath)
	}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), out, errout
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if environ(env, "CNI_COMMAND") != "DEL" {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	cmd.Cancel = func() error {
		err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		if errors.Is(err, unix.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	cmd.WaitDelay = drainTime
	err = cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState.Success() {
		err = nil
	}
	if out.err != nil {
		err = out.err // and not the broken pipe that the plugin died of
	}
	return out.data, errout.data, err
}

// environ returns the value of a variable in the form of os.Environ.
func environ(env []string, name string) string {
	for _, variable := range env {
		if key, value, _ := strings.Cut(variable, "="); key == name {
			return value
		}
	}
	return ""
}

// capped keeps a plugin's output up to the limit.
type capped struct {
	data  []byte
	limit int
	drop  bool // what is beyond the limit, instead of an error
	err   error
}

func (c *capped) Write(p []byte) (int, error) {
	room := c.limit - len(c.data)
	if len(p) <= room {
		c.data = append(c.data, p...)
		return len(p), nil
	}
	c.data = append(c.data, p[:room]...)
	if c.drop {
		return len(p), nil
	}
	c.err = fmt.Errorf("%w: output of more than %d bytes", ErrInvalid, c.limit)
	return 0, c.err
}

// checkResult refuses what libcni would stumble over: output that is no
// result, and lists with nothing in a place.
func checkResult(stdout []byte) error {
	var result struct {
		Interfaces, IPs, Routes []json.RawMessage
	}
	if err := json.Unmarshal(stdout, &result); err != nil {
		return fmt.Errorf("%w: output is not a result: %q: %w", ErrInvalid, quote(stdout), err)
	}
	for _, list := range [][]json.RawMessage{result.Interfaces, result.IPs, result.Routes} {
		for _, item := range list {
			if bytes.Equal(item, []byte("null")) {
				return fmt.Errorf("%w: result with a null in a list: %q", ErrInvalid, quote(stdout))
			}
		}
	}
	return nil
}
