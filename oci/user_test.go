package oci

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	testPasswd = "root:x:0:0:root:/root:/bin/sh\n" +
		"# comment\n+nis::::::\n:x:1:1::/:\n" +
		"app:x:1000:2000:App:/home/app:/bin/sh\n" +
		"twin:x:1000:2001::/home/twin:\n" +
		"short:x:7:8\n" +
		"1234:x:0:0:a name of digits:/root:\n" +
		"big:x:4294967296:0::/:\n" +
		"neg:x:-1:0::/:\n" +
		"rel:x:50:50::home/rel:\n" +
		"evil:x:66:66::/home/e\x01vil:\n" +
		"latin:x:67:67::/home/\xe9:\n" +
		"crlf:x:68:68::/home/crlf\r\n"
	testGroup = "root:x:0:\nwheel:x:10:app,root\nstaff:x:50:app\n777:x:0:\nusers:x:100:other,app,\nbig:x:99999999999:app\nbad\n"
)

func int64Value(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }

func TestResolveUser(t *testing.T) {
	type sec = runtimeapi.LinuxContainerSecurityContext
	for _, tt := range []struct {
		name  string
		image string
		sec   *sec
		want  User
		err   error
		text  string // in the error
	}{
		{name: "nothing", want: User{Username: "root", Home: "/root", AdditionalGids: []uint32{0, 10}}},
		{name: "image name", image: "app", want: User{UID: 1000, GID: 2000, Username: "app", Home: "/home/app", AdditionalGids: []uint32{10, 50, 100, 2000}}},
		{name: "image uid", image: "1000", want: User{UID: 1000, GID: 2000, Username: "app", Home: "/home/app", AdditionalGids: []uint32{10, 50, 100, 2000}}},
		{name: "image uid:gid", image: "1000:5", want: User{UID: 1000, GID: 5, Username: "app", Home: "/home/app", AdditionalGids: []uint32{5, 10, 50, 100}}},
		{name: "image uid:group", image: "1000:staff", want: User{UID: 1000, GID: 50, Username: "app", Home: "/home/app", AdditionalGids: []uint32{10, 50, 100}}},
		{name: "image name:gid", image: "app:7", want: User{UID: 1000, GID: 7, Username: "app", Home: "/home/app", AdditionalGids: []uint32{7, 10, 50, 100}}},
		{name: "image :group", image: ":staff", want: User{GID: 50, Username: "root", Home: "/root", AdditionalGids: []uint32{10, 50}}},
		{name: "image user:", image: "app:", want: User{UID: 1000, GID: 2000, Username: "app", Home: "/home/app", AdditionalGids: []uint32{10, 50, 100, 2000}}},
		{name: "image unknown uid", image: "4242", want: User{UID: 4242, Home: "/", AdditionalGids: []uint32{0}}},
		{name: "image last uid", image: "4294967294", want: User{UID: 4294967294, Home: "/", AdditionalGids: []uint32{0}}},
		{name: "image unknown name", image: "nobody", err: ErrNotFound, text: `image's USER: the image's passwd file has no user "nobody"`},
		{name: "image unknown group", image: "app:nogroup", err: ErrNotFound, text: `no group "nogroup"`},
		{name: "digits are never a name", image: "1234", want: User{UID: 1234, Home: "/", AdditionalGids: []uint32{0}}},
		{name: "digits are never a group's name", image: "1000:777", want: User{UID: 1000, GID: 777, Username: "app", Home: "/home/app", AdditionalGids: []uint32{10, 50, 100, 777}}},
		{name: "uid -1", image: "4294967295", err: ErrInvalid, text: "4294967295 is no id"},
		{name: "uid 2^32", image: "4294967296", err: ErrInvalid},
		{name: "uid 2^64", image: "18446744073709551616", err: ErrInvalid},
		{name: "uid of 200 digits", image: strings.Repeat("9", 200), err: ErrInvalid},
		{name: "gid 2^32", image: "0:4294967296", err: ErrInvalid},
		{name: "minus", image: "-1", err: ErrInvalid},
		{name: "plus", image: "+0", err: ErrInvalid},
		{name: "minus group", image: "app:-1", err: ErrInvalid},
		{name: "three parts", image: "a:b:c", err: ErrInvalid},
		{name: "newline", image: "app\nroot", err: ErrInvalid},
		{name: "NUL", image: "app\x00", err: ErrInvalid},
		{name: "not UTF-8", image: "\xff\xfe", err: ErrInvalid},
		{name: "huge", image: strings.Repeat("a", 1<<20), err: ErrInvalid},
		{name: "uid out of range in passwd", image: "big", err: ErrNotFound},
		{name: "uid negative in passwd", image: "neg", err: ErrNotFound},
		{name: "no home field", image: "short", want: User{UID: 7, GID: 8, Username: "short", Home: "/", AdditionalGids: []uint32{8}}},
		{name: "relative home", image: "rel", want: User{UID: 50, GID: 50, Username: "rel", Home: "/", AdditionalGids: []uint32{50}}},
		{name: "CRLF", image: "crlf", want: User{UID: 68, GID: 68, Username: "crlf", Home: "/home/crlf", AdditionalGids: []uint32{68}}},
		{name: "control byte in home", image: "evil", err: ErrInvalid, text: "control byte"},
		{name: "home not UTF-8", image: "latin", err: ErrInvalid},
		{
			name: "run_as_user over image", image: "app:staff", sec: &sec{RunAsUser: int64Value(0)},
			want: User{Username: "root", Home: "/root", AdditionalGids: []uint32{0, 10}},
		},
		{
			name: "run_as_user and run_as_group", sec: &sec{RunAsUser: int64Value(1000), RunAsGroup: int64Value(3000), SupplementalGroups: []int64{4000, 10}},
			want: User{UID: 1000, GID: 3000, Username: "app", Home: "/home/app", AdditionalGids: []uint32{10, 50, 100, 3000, 4000}},
		},
		{
			name: "strict", sec: &sec{
				RunAsUser: int64Value(1000), RunAsGroup: int64Value(3000), SupplementalGroups: []int64{4000},
				SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict,
			},
			want: User{UID: 1000, GID: 3000, Username: "app", Home: "/home/app", AdditionalGids: []uint32{3000, 4000}},
		},
		{
			name: "strict still reads the group of USER", image: "app:staff", sec: &sec{SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict},
			want: User{UID: 1000, GID: 50, Username: "app", Home: "/home/app", AdditionalGids: []uint32{50}},
		},
		{
			name: "run_as_username", sec: &sec{RunAsUsername: "app", RunAsGroup: int64Value(1)},
			want: User{UID: 1000, GID: 1, Username: "app", Home: "/home/app", AdditionalGids: []uint32{1, 10, 50, 100}},
		},
		{name: "run_as_username unknown", sec: &sec{RunAsUsername: "zoe"}, err: ErrNotFound, text: "run_as_username"},
		{
			name: "run_as_username is a name even of digits", sec: &sec{RunAsUsername: "1234"},
			want: User{Username: "1234", Home: "/root", AdditionalGids: []uint32{0}},
		},
		{name: "run_as_username with run_as_user", sec: &sec{RunAsUsername: "app", RunAsUser: int64Value(1)}, err: ErrInvalid},
		{name: "run_as_group alone", sec: &sec{RunAsGroup: int64Value(1)}, err: ErrInvalid, text: "config.linux.security_context.run_as_group"},
		{name: "run_as_user negative", sec: &sec{RunAsUser: int64Value(-1)}, err: ErrInvalid, text: "config.linux.security_context.run_as_user: -1"},
		{name: "run_as_user 2^32-1", sec: &sec{RunAsUser: int64Value(1<<32 - 1)}, err: ErrInvalid},
		{name: "group out of range", sec: &sec{SupplementalGroups: []int64{0, 1 << 32}}, err: ErrInvalid, text: "supplemental_groups[1]"},
		{name: "too many groups", sec: &sec{SupplementalGroups: make([]int64, maxGroups+1)}, err: ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := imageRoot(t, map[string]string{passwdPath: testPasswd, groupPath: testGroup})
			config := &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: tt.sec}}
			got, err := ResolveUser(root, config, &imagespec.Image{Config: imagespec.ImageConfig{User: tt.image}})
			if !errors.Is(err, tt.err) || (err != nil && !strings.Contains(err.Error(), tt.text)) {
				t.Fatalf("error %v, want %v with %q", err, tt.err, tt.text)
			}
			if err == nil && !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// imageRoot makes a root directory with these files and opens it as the
// sandbox does.
func imageRoot(t *testing.T, files map[string]string) *os.File {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func TestResolveUserHostileFiles(t *testing.T) {
	app := &imagespec.Image{Config: imagespec.ImageConfig{User: "app"}}
	for _, tt := range []struct {
		name string
		make func(t *testing.T, etc string) error
		err  error
	}{
		{"FIFO", func(_ *testing.T, etc string) error { return unix.Mkfifo(etc+"/passwd", 0o644) }, ErrInvalid},
		{"directory", func(_ *testing.T, etc string) error { return os.Mkdir(etc+"/passwd", 0o755) }, ErrInvalid},
		{"device", func(t *testing.T, etc string) error {
			if os.Geteuid() != 0 {
				t.Skip("needs root to make a device node")
			}
			return unix.Mknod(etc+"/passwd", unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) // zero: endless
		}, ErrInvalid},
		{"larger than the bound", func(_ *testing.T, etc string) error {
			return os.WriteFile(etc+"/passwd", bytes.Repeat([]byte("a"), maxAccountBytes+1), 0o644)
		}, ErrInvalid},
		{"sparse and huge", func(_ *testing.T, etc string) error {
			f, err := os.OpenFile(etc+"/passwd", os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			defer f.Close()
			return f.Truncate(1 << 40)
		}, ErrInvalid},
		{"one line as long as the bound", func(_ *testing.T, etc string) error {
			return os.WriteFile(etc+"/passwd", bytes.Repeat([]byte("a:"), maxAccountBytes/2), 0o644)
		}, ErrNotFound},
		{"NUL bytes", func(_ *testing.T, etc string) error {
			return os.WriteFile(etc+"/passwd", make([]byte, maxAccountBytes), 0o644)
		}, ErrNotFound},
		{"link to itself", func(_ *testing.T, etc string) error { return os.Symlink("passwd", etc+"/passwd") }, unix.ELOOP},
		{"link out of the root", func(t *testing.T, etc string) error {
			outside := filepath.Join(t.TempDir(), "passwd")
			if err := os.WriteFile(outside, []byte(testPasswd), 0o644); err != nil {
				return err
			}
			return os.Symlink("../../../../../../../../.."+outside, etc+"/passwd")
		}, ErrNotFound},
		{"absolute link out of the root", func(t *testing.T, etc string) error {
			outside := filepath.Join(t.TempDir(), "passwd")
			if err := os.WriteFile(outside, []byte(testPasswd), 0o644); err != nil {
				return err
			}
			return os.Symlink(outside, etc+"/passwd")
		}, ErrNotFound},
		{"link inside the root", func(_ *testing.T, etc string) error {
			if err := os.WriteFile(etc+"/real", []byte(testPasswd), 0o644); err != nil {
				return err
			}
			return os.Symlink("/etc/real", etc+"/passwd")
		}, nil},
		{"missing", func(*testing.T, string) error { return nil }, ErrNotFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := imageRoot(t, nil)
			if err := tt.make(t, filepath.Join(root.Name(), "etc")); err != nil {
				t.Fatal(err)
			}
			if _, err := ResolveUser(root, &runtimeapi.ContainerConfig{}, app); !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
		})
	}
}

// An image without any file has a root user and ids, as scratch images use them.
func TestResolveUserScratch(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	u, err := ResolveUser(root, &runtimeapi.ContainerConfig{}, nil)
	if err != nil || u.UID != 0 || u.Home != "/" {
		t.Errorf("%+v, %v", u, err)
	}
	u, err = ResolveUser(root, &runtimeapi.ContainerConfig{}, &imagespec.Image{Config: imagespec.ImageConfig{User: "65532:65532"}})
	if err != nil || u.UID != 65532 || u.GID != 65532 {
		t.Errorf("%+v, %v", u, err)
	}
	if got := u.CRI().GetLinux(); got.GetUid() != 65532 || got.GetGid() != 65532 || !reflect.DeepEqual(got.GetSupplementalGroups(), []int64{65532}) {
		t.Errorf("CRI form %v", got)
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add("app:staff", []byte(testPasswd), []byte(testGroup), false)
	f.Add("4294967296", []byte("a:b:0:0\n"), []byte("::::"), true)
	f.Fuzz(func(t *testing.T, user string, passwd, group []byte, strict bool) {
		sec := &runtimeapi.LinuxContainerSecurityContext{}
		if strict {
			sec.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
		}
		w, err := wantedUser(sec, &imagespec.Image{Config: imagespec.ImageConfig{User: user}})
		if err != nil {
			return
		}
		u, err := w.resolve(passwd, group)
		if err != nil {
			return
		}
		if !strings.HasPrefix(u.Home, "/") || strings.ContainsFunc(u.Home, isControl) {
			t.Errorf("home %q", u.Home)
		}
		if u.UID > maxID || u.GID > maxID {
			t.Errorf("ids %d:%d", u.UID, u.GID)
		}
		found := false
		for i, gid := range u.AdditionalGids {
			found = found || gid == u.GID
			if i > 0 && u.AdditionalGids[i-1] >= gid {
				t.Errorf("groups %v are not sorted", u.AdditionalGids)
			}
		}
		if !found {
			t.Errorf("groups %v lack the primary one %d", u.AdditionalGids, u.GID)
		}
		digits := user != "" && strings.Trim(user, "0123456789") == ""
		if digits && u.UID != w.user.id {
			t.Errorf("USER %q became uid %d", user, u.UID)
		}
	})
}
