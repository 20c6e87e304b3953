package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
)

var (
	errFailed = errors.New("tests failed")
	errMode   = errors.New("there is no such mode")
)

// mode is a kind of host.
type mode struct {
	name string
	args []string // of vm run
	unit []string // of systemd-run
	env  []string // of the tests
}

// The domain that systemd starts a container engine in, and the label of the
// file that leads there. The tests run in it, too: the daemon is their child.
const (
	engineDomain = "system_u:system_r:container_engine_t:s0"
	engineFile   = "system_u:object_r:container_engine_exec_t:s0"
)

func modes() []mode {
	bySystemd := []string{"CRITEST_CGROUP_DRIVER=systemd"}
	return []mode{
		{"selinux", []string{"--selinux=enforcing", "--share-context", engineFile}, []string{"-p", "SELinuxContext=" + engineDomain}, bySystemd},
		{"apparmor", []string{"--apparmor"}, nil, nil},
		{"v2", nil, nil, bySystemd},
		{"v1", []string{"--cgroup=v1"}, nil, nil},
		{"old", []string{"--kernel=6.1"}, nil, nil},
	}
}

// suite is a package's tests.
type suite struct {
	dir   string // of the package, from the project's top
	short string // what runs of it in the short form, "" for nothing
}

func suites() []suite {
	return []suite{
		{serviceSuite, "."},
		{"critest", "^Test(Separation|Host|PodLifecycle|ContainerLifecycle|ExecSync|Resources|Update|OOM|Restart|Stats)"},
		{"oci", "Cgroup"},
		{"sandbox", ""},
		{"conmon", ""},
		{"network", ""},
		{"network/builtin", ""},
	}
}

// serviceSuite wants the Debian package.
const serviceSuite = "critest/service"

type options struct {
	modes   string
	suites  string
	run     string
	skip    string
	short   bool
	timeout int
	out     string
}

func main() {
	var o options
	flag.StringVar(&o.modes, "modes", "selinux,apparmor,v2,v1", "kinds of host, one after the other; old is Linux 6.1")
	flag.StringVar(&o.suites, "suites", "", "packages, all when empty")
	flag.StringVar(&o.run, "run", "", "tests that match this `pattern`")
	flag.StringVar(&o.skip, "skip", "", "but not those that match this `pattern`")
	flag.BoolVar(&o.short, "short", false, "one boot, a few tests: SELinux enforcing with systemd and cgroup v2; without qemu or an image they are skipped")
	flag.IntVar(&o.timeout, "timeout", 5400, "`seconds` for the tests of one mode")
	flag.StringVar(&o.out, "out", "out/vm", "`directory` of what is built and of the logs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, &o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o *options, w io.Writer) error {
	chosen, err := chosenModes(o)
	if err != nil {
		return err
	}
	tests := chosenSuites(o)
	if why := makeImage(ctx); why != nil {
		if !o.short {
			return why
		}
		for _, s := range tests {
			fmt.Fprintf(w, "%s: %s: skipped: %v\n", chosen[0].name, s.dir, why)
		}
		return nil
	}
	share := filepath.Join(o.out, "share")
	if err := build(ctx, share, tests, o); err != nil {
		return err
	}
	var results []result
	for _, m := range chosen {
		fmt.Fprintf(w, "== %s\n", m.name)
		log := filepath.Join(o.out, m.name+".log")
		runErr := boot(ctx, m, share, log, o.timeout)
		rs, err := readLog(log, m.name, tests, w)
		if err != nil {
			return err
		}
		results = append(results, rs...)
		if runErr != nil {
			fmt.Fprintf(w, "%s: %v; see %s\n", m.name, runErr, log)
		}
	}
	return table(w, results)
}

func chosenModes(o *options) ([]mode, error) {
	if o.short {
		return modes()[:1], nil
	}
	var out []mode
	for _, name := range strings.Split(o.modes, ",") {
		i := slices.IndexFunc(modes(), func(m mode) bool { return m.name == name })
		if i < 0 {
			return nil, fmt.Errorf("mode %q: %w", name, errMode)
		}
		out = append(out, modes()[i])
	}
	return out, nil
}

func chosenSuites(o *options) []suite {
	return slices.DeleteFunc(suites(), func(s suite) bool {
		named := o.suites == "" || slices.Contains(strings.Split(o.suites, ","), s.dir)
		return !named || o.short && s.short == ""
	})
}

// table prints what ran where; it is an error when a test failed or a suite
// did not come to its end.
func table(w io.Writer, results []result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "mode\ttests\tpassed\tfailed\tskipped\t")
	bad := 0
	for _, r := range results {
		state := ""
		if !r.ended {
			state = "did not end"
		}
		if r.failed > 0 || !r.ended {
			bad++
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%s\n", r.mode, r.suite, r.passed, r.failed, r.skipped, state)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print the table: %w", err)
	}
	if bad > 0 {
		return errFailed
	}
	return nil
}
