package imageservice

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// cutEnv is the directory that a power cut test works in, in a mount namespace
// of its own.
const cutEnv = "IMAGESERVICE_TEST_CUT"

// TestPowerCut pulls, moves and removes images on a file system of their own,
// and shuts that down at some moment, without writing its journal: what was not
// synced is gone, as after a power cut. Then it is mounted again.
func TestPowerCut(t *testing.T) {
	needRoot(t)
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			if dir := os.Getenv(cutEnv); dir != "" {
				cutPower(t, dir, fs)
				return
			}
			if _, err := exec.LookPath("mkfs." + fs); err != nil {
				t.Skip("mkfs." + fs + " is not installed")
			}
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestPowerCut$/^"+fs+"$", "-test.v", "-test.timeout=0")
			if testing.Short() {
				cmd.Args = append(cmd.Args, "-test.short")
			}
			cmd.Env = append(os.Environ(), cutEnv+"="+t.TempDir())
			cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
			out, err := cmd.CombinedOutput()
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, "_test.go") {
					t.Log(strings.TrimSpace(line))
				}
			}
			if err != nil {
				t.Errorf("%v: %s", err, cut(string(out), 4000))
			}
		})
	}
}

// cutPower is the test itself.
func cutPower(t *testing.T, dir, fs string) {
	disk, mounted := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	if err := errors.Join(os.Mkdir(mounted, 0o700), os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 400<<20)); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "mkfs."+fs, "-q", disk)
	r := newRegistry(t)
	putChurn(r)
	config := Config{Root: filepath.Join(mounted, "images")}
	p := &promises{ids: map[string]string{}}
	cuts, listed := rounds(t, 6), 0
	for range cuts {
		mustRun(t, "mount", "-o", "loop", disk, mounted)
		cutOnce(t, config, r.host, p)
		mustRun(t, "umount", mounted)
		mustRun(t, "mount", "-o", "loop", disk, mounted)
		listed += p.verify(t, config, r.host)
		mustRun(t, "umount", mounted)
		if t.Failed() {
			break
		}
	}
	t.Logf("%d power cuts on %s, %d images found whole", cuts, fs, listed)
}

func mustRun(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// cutOnce works on the store until its file system is gone.
func cutOnce(t *testing.T, config Config, host string, p *promises) {
	t.Helper()
	s, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	s.Collect()
	root, err := os.Open(config.Root)
	if err != nil {
		t.Fatal(err)
	}
	// Once xfs is shut down, fsync of a directory succeeds and does nothing: after
	// a power cut nobody is left to promise anything.
	var cutting atomic.Bool
	note := func(ref, id string) {
		if cutting.Load() {
			id = unknown
		}
		p.note(ref, id)
	}
	var group errgroup.Group
	for _, repo := range churnRepos() {
		group.Go(func() error { return churn(s, host, repo, note) })
	}
	down := make(chan error)
	timer := time.AfterFunc(rand.N(500*time.Millisecond), func() {
		const shutdown, withoutLog = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN
		cutting.Store(true)
		down <- unix.IoctlSetPointerInt(int(root.Fd()), shutdown, withoutLog)
	})
	defer timer.Stop()
	if err := <-down; err != nil {
		t.Fatalf("shut the file system down: %v", err)
	}
	if err := group.Wait(); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("the pulls ended with %v", err)
	}
	_ = s.Close() // says that nothing can be written
	if err := root.Close(); err != nil {
		t.Error(err)
	}
}
