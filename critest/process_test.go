package critest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// security changes the security context.
func security(f func(*runtimeapi.LinuxContainerSecurityContext)) containerOption {
	return func(c *runtimeapi.ContainerConfig) { f(c.Linux.SecurityContext) }
}

func TestCommandAndArguments(t *testing.T) {
	begin(t)
	p := run(t)
	entry := withImage(t, "entrypoint")
	for _, test := range []struct {
		name          string
		command, args []string
		want          string
	}{
		{"image's", nil, nil, "entry cmd"},
		{"own arguments", nil, []string{"a", "b"}, "entry a b"},
		{"own command drops the image's", []string{"echo", "own"}, nil, "own"},
		{"own command and arguments", []string{"echo", "own"}, []string{"x  y", "$HOME"}, "own x  y $HOME"},
	} {
		t.Run(test.name, func(t *testing.T) {
			q := *p
			q.t = t
			got := q.output("", entry, func(c *runtimeapi.ContainerConfig) { c.Command, c.Args = test.command, test.args })
			if got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	begin(t)
	p := run(t)
	got := p.output("", withImage(t, "full"), func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"env"}
		c.Envs = []*runtimeapi.KeyValue{
			{Key: "OWN", Value: []byte("own")},
			{Key: "BOTH", Value: []byte("request")},
			{Key: "EQUALS", Value: []byte("a=b=c")},
			{Key: "SPACE", Value: []byte(" x ")},
			{Key: "UTF", Value: []byte("ünï")},
			{Key: "NOTHING"},
		}
	})
	seen := map[string]string{}
	for _, line := range strings.Split(got, "\n") {
		k, v, _ := strings.Cut(line, "=")
		if _, twice := seen[k]; twice {
			t.Errorf("%s is there twice", k)
		}
		seen[k] = v
	}
	for k, want := range map[string]string{
		"FROM_IMAGE": "image", "OWN": "own", "BOTH": "request", "EQUALS": "a=b=c", "SPACE": " x ", "UTF": "ünï", "EMPTY": "", "NOTHING": "",
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	} {
		if v, ok := seen[k]; !ok || v != want {
			t.Errorf("%s=%q (%v), want %q", k, v, ok, want)
		}
	}
}

func TestHalfAMegabyteOfEnvironment(t *testing.T) {
	begin(t)
	p := run(t)
	envs := make([]*runtimeapi.KeyValue, 0, 600)
	for i := range 400 {
		envs = append(envs, &runtimeapi.KeyValue{Key: fmt.Sprintf("BIG_%d", i), Value: []byte(strings.Repeat("x", 1000))})
	}
	option := environment(envs)
	if got := p.output("env | grep -c ^BIG_; env | wc -c | awk '{print ($1 > 400000)}'", option); got != "400\n1" {
		t.Errorf("%q, want 400 variables", got)
	}
	c := p.start("sleep 1000", option)
	if got := strings.TrimSpace(c.exec(0, "sh", "-c", "env | grep -c ^BIG_")); got != "400" {
		t.Errorf("exec sees %s variables", got)
	}
	if peer {
		return // its shell starts and then finds the list too long
	}
	for i := range 2000 {
		envs = append(envs, &runtimeapi.KeyValue{Key: fmt.Sprintf("MORE_%d", i), Value: []byte(strings.Repeat("x", 1000))})
	}
	if err := p.refused("true", environment(envs)); err == nil {
		t.Error("two and a half megabytes are more than a kernel takes, but there was no error")
	}
}

func environment(envs []*runtimeapi.KeyValue) containerOption {
	return func(c *runtimeapi.ContainerConfig) { c.Envs = envs }
}

func TestWorkingDirectory(t *testing.T) {
	begin(t)
	p := run(t)
	for _, test := range []struct{ image, dir, want string }{
		{"busybox", "", "/"},
		{"busybox", "/tmp", "/tmp"},
		{"full", "", "/home/web"},
		{"full", "/etc", "/etc"},
		{"workdir", "", "/made/by/runtime"},
		{"busybox", "/not/there/yet", "/not/there/yet"},
	} {
		got := p.output("", withImage(t, test.image), func(c *runtimeapi.ContainerConfig) {
			c.Command, c.WorkingDir = []string{"pwd"}, test.dir
		})
		if got != test.want {
			t.Errorf("image %s, working directory %q: %q, want %q", test.image, test.dir, got, test.want)
		}
	}
	if err := p.refused("pwd", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/etc/passwd" }); err == nil {
		t.Error("a file was taken for a working directory")
	}
}

func TestUsers(t *testing.T) {
	begin(t)
	p := run(t)
	uid := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	type context = runtimeapi.LinuxContainerSecurityContext
	for _, test := range []struct {
		name, image string
		context     *context
		want        string // uid gid groups; "" is an error
	}{
		{"root", "busybox", &context{}, "0 0 0"},
		{"image's name", "user-name", &context{}, "1001 1002 44 63 1002"},
		{"image's number", "user-numeric", &context{}, "1000 1000 44 1000"},
		{"image's uid and gid", "user-uid-gid", &context{}, "1001 63 44 63"},
		{"image's name and group", "user-name-group", &context{}, "1000 1002 44 1002"},
		{"image's unlisted number", "user-unlisted", &context{}, "4242 0 0"},
		{"image's unknown name", "user-unknown", &context{}, ""},
		{"image's unknown group", "user-unknown-group", &context{}, ""},
		{"image's huge number", "user-huge", &context{}, ""},
		{"image's negative number", "user-negative", &context{}, ""},
		{"image's path", "user-path", &context{}, ""},
		{"image's new line", "user-newline", &context{}, ""},
		{"request's number", "busybox", &context{RunAsUser: uid(1001)}, "1001 1002 44 63 1002"},
		{"request's number over the image's", "user-name", &context{RunAsUser: uid(1000)}, "1000 1000 44 1000"},
		{"request's unlisted number", "busybox", &context{RunAsUser: uid(777)}, "777 0 0"},
		{"request's name", "busybox", &context{RunAsUsername: "alice"}, "1001 1002 44 63 1002"},
		{"request's unknown name", "busybox", &context{RunAsUsername: "mallory"}, ""},
		{"user and group", "busybox", &context{RunAsUser: uid(1000), RunAsGroup: uid(5)}, "1000 5 5 44"},
		{"group without user", "busybox", &context{RunAsGroup: uid(5)}, ""},
		{"supplemental groups", "busybox", &context{SupplementalGroups: []int64{9, 8, 123456}}, "0 0 0 8 9 123456"},
		{
			"strict supplemental groups", "busybox",
			&context{
				RunAsUser: uid(1001), SupplementalGroups: []int64{9},
				SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict,
			},
			"1001 1002 9 1002",
		},
		{"image without passwd", "no-passwd", &context{RunAsUser: uid(1000)}, "1000 0 0"},
		{"passwd is a link out", "passwd-link", &context{}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if peer && strings.Contains("user and group, group without user, strict supplemental groups, image's number, image's uid and gid, image's name and group", test.name) {
				t.Skip("containerd 1.6: other rules for groups")
			}
			q := *p
			q.t = t
			option := func(c *runtimeapi.ContainerConfig) {
				c.Command = []string{"sh", "-c", "echo $(id -u) $(id -g) $(id -G | tr ' ' '\n' | sort -nu)"}
				c.Linux.SecurityContext = test.context
			}
			if test.want == "" {
				if err := q.refused("", withImage(t, test.image), option); err == nil {
					t.Error("no error")
				}
				return
			}
			if got := q.output("", withImage(t, test.image), option); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

func TestUserInStatus(t *testing.T) {
	differs(t, "has no user in its status")
	begin(t)
	p := run(t)
	c := p.start("sleep 1000", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.RunAsUser = &runtimeapi.Int64Value{Value: 1001}
		s.SupplementalGroups = []int64{7}
	}))
	u := c.status().GetUser().GetLinux()
	if u.GetUid() != 1001 || u.GetGid() != 1002 || len(u.GetSupplementalGroups()) == 0 {
		t.Errorf("user in the status: %v", u)
	}
}

func TestHomeDirectory(t *testing.T) {
	begin(t)
	p := run(t)
	if got := p.output("", withImage(t, "user-name"), func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"sh", "-c", "echo $HOME"}
	}); got != "/home/alice" {
		t.Errorf("HOME is %q", got)
	}
}

func TestStandardInputIsEmpty(t *testing.T) {
	begin(t)
	p := run(t)
	if got := p.output("cat; readlink /proc/self/fd/0"); got != "/dev/null" {
		t.Errorf("%q, want /dev/null", got)
	}
}

func TestNoForeignDescriptors(t *testing.T) {
	begin(t)
	p := run(t)
	script := `for i in $(seq 0 99); do test -L /proc/$$/fd/$i && echo $i; done; true`
	if got := p.output(script); got != "0\n1\n2" {
		t.Errorf("descriptors %q, want 0 1 2", got)
	}
	c := p.start("sleep 1000")
	if got := strings.TrimSpace(c.exec(0, "sh", "-c", script)); got != "0\n1\n2" {
		t.Errorf("exec: descriptors %q, want 0 1 2", got)
	}
}

func TestDevices(t *testing.T) {
	begin(t)
	p := run(t)
	got := p.output(`for d in null zero full random urandom tty ptmx; do test -c /dev/$d || echo no $d; done
for l in fd stdin stdout stderr; do test -L /dev/$l || echo no $l; done
test -d /dev/pts && test -d /dev/mqueue || echo no pts or mqueue
echo x > /dev/null && head -c 4 /dev/zero | wc -c
mknod /tmp/sda b 8 0 && cat /tmp/sda 2>&1 | head -c 100`)
	lines := strings.SplitN(got, "\n", 2)
	if lines[0] != "4" || len(lines) > 1 && !strings.Contains(lines[1], "not permitted") {
		t.Errorf("%q", got)
	}
}

// Standard input without a client is a null device, and not the host's: what root of a
// container does to it changes nothing outside.
func TestNullDeviceStaysTheHosts(t *testing.T) {
	differs(t, "hands on its own descriptor of the host's device")
	begin(t)
	p := run(t)
	var before unix.Stat_t
	if err := unix.Stat(os.DevNull, &before); err != nil {
		t.Fatal(err)
	}
	script := `for f in /proc/self/fd/0 /dev/stdin; do
chmod 600 $f 2>/dev/null && echo changed; chown 4711:4711 $f 2>/dev/null && echo given; touch $f 2>/dev/null && echo touched; done
cat; echo x >/proc/self/fd/0; stat -c '%a %u %g %t %T' -L /proc/self/fd/0`
	const want = "666 0 0 1 3"
	for _, uid := range []int64{0, 4711} {
		user := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: uid} })
		if got := p.output(script, user); got != want {
			t.Errorf("user %d: %q, want %q", uid, got, want)
		}
	}
	c := p.start("sleep 1000")
	if got := strings.TrimSpace(c.exec(0, "sh", "-c", script)); got != want {
		t.Errorf("exec: %q, want %q", got, want)
	}
	var after unix.Stat_t
	if err := unix.Stat(os.DevNull, &after); err != nil || after.Mode != before.Mode || after.Uid != before.Uid || after.Gid != before.Gid {
		t.Errorf("%v: the host's null device: %+v, before %+v", err, after, before)
	}
}

// The daemon's own timers may be late; its containers' are not.
func TestTimersAreTheKernels(t *testing.T) {
	begin(t)
	p := run(t)
	c := p.start("cat /proc/self/timerslack_ns; sleep 1000")
	c.prints("50000\n")
	if got := c.exec(0, "cat", "/proc/self/timerslack_ns"); got != "50000\n" {
		t.Errorf("in an exec: %q ns", got)
	}
}
