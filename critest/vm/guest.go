package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// script starts the tests of every suite in the guest, one after the other, each in a
// service of its own with the properties that the script is given; those that want the node
// itself are run by its administrator. Each sits where it would sit in the source tree, so that
// ../bin is the build.
const script = `#!/bin/sh
cd "$(dirname "$0")"
export CRITEST_SLOWNESS=10 CRITEST_DEB="$(ls "$PWD"/*.deb 2>/dev/null)"
while read -r dir where args; do
	echo "== suite $dir"
	set -- "$@" --working-directory="$PWD/$dir" --setenv=CRITEST_SLOWNESS
	test="$PWD/$dir/package.test -test.v -test.timeout=%ds $args"
	case $where in
	node) (cd "$dir" && eval "$test" </dev/null 2>&1) ;;
	*) eval systemd-run --quiet --pipe --wait --collect --unit=cri-runtime-test '"$@"' "$test" </dev/null 2>&1 ;;
	esac
	echo "== end $dir $?"
done <suites
# What SELinux or AppArmor refused, tests' own attempts among it: the log has it to look at.
journalctl -b -o cat --no-pager _TRANSPORT=audit -g 'apparmor="DENIED"|avc: +denied' |
	sed -E 's/.*(apparmor=|avc: )/\1/; s/ (pid|ino)=[0-9]+//g' | sort | uniq -c | sort -rn | head -n 100
`

// makeImage looks whether there is an image of the guest, and what runs it, and makes them if not.
func makeImage(ctx context.Context) error {
	if text, err := exec.CommandContext(ctx, "critest/vm/mkimage").CombinedOutput(); err != nil {
		said := strings.Split(strings.TrimSpace(string(text)), "\n")
		return fmt.Errorf("there is no test machine: mkimage: %w: %s", err, said[len(said)-1])
	}
	return nil
}

// build compiles the tests, without cgo, and lays them and the daemon out.
func build(ctx context.Context, share string, tests []suite, o *options) error {
	if err := os.RemoveAll(share); err != nil {
		return fmt.Errorf("clear %s: %w", share, err)
	}
	var list strings.Builder
	for _, s := range tests {
		dir := filepath.Join(share, s.dir)
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // read in the guest
			return fmt.Errorf("make the share: %w", err)
		}
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", filepath.Join(dir, "package.test"), "./"+s.dir)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("compile the tests of %s: %w\n%s", s.dir, err, text)
		}
		if data := filepath.Join(s.dir, "testdata"); isDir(data) {
			if err := os.CopyFS(filepath.Join(dir, "testdata"), os.DirFS(data)); err != nil {
				return fmt.Errorf("copy the test data: %w", err)
			}
		}
		if s.dir == serviceSuite {
			if err := makePackage(ctx, share); err != nil {
				return err
			}
		}
		pattern := o.run
		if o.short && pattern == "" {
			pattern = s.short
		}
		where := "service"
		if s.dir == serviceSuite {
			where = "node"
		}
		fmt.Fprintf(&list, "%s %s -test.run='%s' -test.skip='%s'\n", s.dir, where, pattern, o.skip)
	}
	if err := copyBuild(filepath.Join(share, "bin")); err != nil {
		return fmt.Errorf("copy the build: %w", err)
	}
	if err := os.WriteFile(filepath.Join(share, "suites"), []byte(list.String()), 0o644); err != nil { //nolint:gosec // read in the guest
		return fmt.Errorf("write the list of suites: %w", err)
	}
	text := fmt.Sprintf(script, o.timeout)
	if err := os.WriteFile(filepath.Join(share, "run"), []byte(text), 0o755); err != nil { //nolint:gosec // it is a program
		return fmt.Errorf("write the script: %w", err)
	}
	return nil
}

// copyBuild leaves out the tools that are in the same directory.
func copyBuild(dir string) error {
	if err := os.CopyFS(filepath.Join(dir, "cni"), os.DirFS("bin/cni")); err != nil {
		return err //nolint:wrapcheck // the caller names it
	}
	daemon, err := os.ReadFile("bin/cri-runtime")
	if err != nil {
		return err //nolint:wrapcheck // the caller names it
	}
	return os.WriteFile(filepath.Join(dir, "cri-runtime"), daemon, 0o755) //nolint:gosec,wrapcheck // a program; the caller names it
}

// makePackage builds the Debian package.
func makePackage(ctx context.Context, dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("build the package: %w", err)
	}
	//nolint:gosec // the project's own Makefile
	if text, err := exec.CommandContext(ctx, "make", "deb", "OUT="+abs, "DEB_COMPRESSION=none").CombinedOutput(); err != nil {
		return fmt.Errorf("build the package: %w\n%s", err, text)
	}
	return nil
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// boot runs the script in a guest and keeps what it prints.
func boot(ctx context.Context, m mode, share, log string, timeout int) error {
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644) //nolint:gosec // nothing secret
	if err != nil {
		return fmt.Errorf("make the log: %w", err)
	}
	defer f.Close()
	args := []string{"run", "-v", "--timeout", strconv.Itoa(timeout), "--share", share + ":/t"}
	args = append(append(args, m.args...), "--", "/t/run", "-p", "Delegate=yes", "-p", "TasksMax=infinity", "-p", "LimitNOFILE=1048576", "-p", "OOMPolicy=continue")
	args = append(args, m.unit...)
	for _, e := range m.env {
		args = append(args, "--setenv="+e)
	}
	cmd := exec.CommandContext(ctx, "critest/vm/vm", args...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it ends the machine
	return cmd.Run()                                                      //nolint:wrapcheck // the caller names the mode
}

// result counts the tests of a suite, not their parts.
type result struct {
	mode, suite             string
	passed, failed, skipped int
	ended                   bool
}

// readLog counts what the tests said, and prints of each that failed its
// whole output.
func readLog(log, mode string, tests []suite, w io.Writer) ([]result, error) {
	f, err := os.Open(log)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	defer f.Close()
	out := make([]result, 0, len(tests))
	for _, s := range tests {
		out = append(out, result{mode: mode, suite: s.dir})
	}
	r := &result{}
	var said []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		word, rest, _ := strings.Cut(strings.TrimPrefix(line, "--- "), " ")
		switch {
		case strings.HasPrefix(line, "== suite "):
			r = find(out, strings.TrimPrefix(line, "== suite "))
		case strings.HasPrefix(line, "== end "):
			fields := strings.Fields(line)
			r = find(out, fields[2])
			r.ended = true
			if fields[3] != "0" && r.failed == 0 {
				r.failed++
				fmt.Fprintf(w, "%s: %s: status %s\n%s\n", mode, r.suite, fields[3], strings.Join(said, "\n"))
			}
		case strings.HasPrefix(line, "=== RUN ") && !strings.Contains(line, "/"):
			said = said[:0]
		case strings.HasPrefix(line, "--- ") && word == "PASS:":
			r.passed++
		case strings.HasPrefix(line, "--- ") && word == "SKIP:":
			r.skipped++
			fmt.Fprintf(w, "%s: %s: skipped %s %s\n", mode, r.suite, rest, reason(said))
		case strings.HasPrefix(line, "--- ") && word == "FAIL:":
			r.failed++
			fmt.Fprintf(w, "%s: %s: FAILED %s\n%s\n", mode, r.suite, rest, strings.Join(said, "\n"))
		}
		if len(said) < 200 {
			said = append(said, line)
		}
	}
	return out, lines.Err() //nolint:wrapcheck // reading the log
}

// find returns the result of a suite, or one that nobody reads.
func find(results []result, name string) *result {
	for i := range results {
		if results[i].suite == name {
			return &results[i]
		}
	}
	return &result{}
}

// reason is the last thing that a test said.
func reason(said []string) string {
	if len(said) == 0 {
		return ""
	}
	return strings.TrimSpace(said[len(said)-1])
}
