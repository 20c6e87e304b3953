package oci

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const maxGroups = 65536 // NGROUPS_MAX

// User is who a container's first process runs as.
type User struct {
	UID, GID       uint32
	AdditionalGids []uint32 // sorted, GID among them, nothing twice
	Username       string   // "" when the image's passwd file does not name UID
	Home           string   // absolute; "/" when the image says nothing usable
}

// CRI returns u as ContainerStatus reports it.
func (u User) CRI() *runtimeapi.ContainerUser {
	groups := make([]int64, len(u.AdditionalGids))
	for i, gid := range u.AdditionalGids {
		groups[i] = int64(gid)
	}
	return &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{
		Uid: int64(u.UID), Gid: int64(u.GID), SupplementalGroups: groups,
	}}
}

// ResolveUser finds the user of a container: run_as_user or run_as_username,
// run_as_group and the supplemental groups of config, or else the image's
// USER, by etc/passwd and etc/group below root. root is an O_PATH descriptor
// of the container's root directory and remains the caller's.
func ResolveUser(root *os.File, config *runtimeapi.ContainerConfig, image *imagespec.Image) (User, error) {
	w, err := wantedUser(config.GetLinux().GetSecurityContext(), image)
	if err != nil {
		return User{}, err
	}
	passwd, err := readAccounts(root, passwdPath)
	if err != nil {
		return User{}, err
	}
	var group []byte
	if w.needsGroups() {
		if group, err = readAccounts(root, groupPath); err != nil {
			return User{}, err
		}
	}
	return w.resolve(passwd, group)
}

// account is a user or a group as somebody named it: by number or by name.
// One never becomes the other: digits that are out of range are an
// error, not a name (CVE-2024-40635, CVE-2026-46680).
type account struct {
	field string // where it was named
	id    uint32
	name  string // "" when id counts
}

// wanted is what the request and the image say about the user.
type wanted struct {
	user         account
	group        *account // nil: the user's group in the passwd file, or 0
	supplemental []uint32
	strict       bool
}

func (w *wanted) needsGroups() bool {
	return !w.strict || (w.group != nil && w.group.name != "")
}

func wantedUser(sec *runtimeapi.LinuxContainerSecurityContext, image *imagespec.Image) (*wanted, error) {
	if err := firstError(
		checkRunAs(sec), checkGroups(sec.GetSupplementalGroups(), sec.GetSupplementalGroupsPolicy()),
	); err != nil {
		return nil, err
	}
	w := &wanted{strict: sec.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Strict}
	for _, gid := range sec.GetSupplementalGroups() {
		w.supplemental = append(w.supplemental, uint32(gid))
	}
	switch {
	case sec.GetRunAsUser() != nil:
		w.user = account{field: securityField + ".run_as_user", id: uint32(sec.GetRunAsUser().GetValue())}
	case sec.GetRunAsUsername() != "":
		w.user = account{field: securityField + ".run_as_username", name: sec.GetRunAsUsername()}
	default:
		if err := w.fromImage(image); err != nil {
			return nil, err
		}
	}
	if gid := sec.GetRunAsGroup(); gid != nil {
		w.group = &account{field: securityField + ".run_as_group", id: uint32(gid.GetValue())}
	}
	return w, nil
}

// fromImage reads the image's USER: user, uid, user:group and so on.
func (w *wanted) fromImage(image *imagespec.Image) error {
	const field = "image's USER"
	if image == nil || image.Config.User == "" {
		w.user = account{field: field}
		return nil
	}
	user, group, hasGroup := strings.Cut(image.Config.User, ":")
	if strings.Contains(group, ":") {
		return invalid(field, "%.300q is not user or user:group", image.Config.User)
	}
	var err error
	if user == "" {
		user = "0"
	}
	if w.user, err = parseAccount(field, user); err != nil {
		return err
	}
	if hasGroup && group != "" {
		g, err := parseAccount(field, group)
		if err != nil {
			return err
		}
		w.group = &g
	}
	return nil
}

func parseAccount(field, s string) (account, error) {
	if err := checkText(field, s, maxNameBytes); err != nil {
		return account{}, err
	}
	if strings.Trim(s, "0123456789") == "" {
		id, ok := parseID([]byte(s))
		if !ok {
			return account{}, invalid(field, "%s is no id; ids are 0 to %d", s, int64(maxID))
		}
		return account{field: field, id: id}, nil
	}
	if s[0] == '-' || s[0] == '+' || s[0] == ' ' {
		return account{}, invalid(field, "%q is neither a name nor an id", s)
	}
	return account{field: field, name: s}, nil
}

func parseID(b []byte) (uint32, bool) {
	if len(b) == 0 || len(b) > 20 || strings.Trim(string(b), "0123456789") != "" {
		return 0, false
	}
	id, err := strconv.ParseUint(string(b), 10, 32)
	return uint32(id), err == nil && id <= maxID
}

// passwdEntry is a line of etc/passwd, groupEntry one of etc/group. Their
// slices are parts of the file.
type passwdEntry struct {
	name, home []byte
	uid, gid   uint32
}

type groupEntry struct {
	name    []byte
	gid     uint32
	members []byte // joined by commas
}

// eachLine calls f with the fields of each line that has at least n of them,
// until f returns false. Others (comments, NIS entries, garbage) are no accounts.
func eachLine(file []byte, n int, f func(fields [][]byte) bool) {
	for line := range bytes.Lines(file) {
		fields := bytes.SplitN(bytes.TrimRight(line, "\r\n"), []byte{':'}, 8)
		if len(fields) >= n && len(fields[0]) > 0 && !f(fields) {
			return
		}
	}
}

func findUser(passwd []byte, match func(*passwdEntry) bool) *passwdEntry {
	var found *passwdEntry
	eachLine(passwd, 4, func(fields [][]byte) bool {
		uid, ok1 := parseID(fields[2])
		gid, ok2 := parseID(fields[3])
		if !ok1 || !ok2 {
			return true
		}
		e := &passwdEntry{name: fields[0], uid: uid, gid: gid}
		if len(fields) > 5 {
			e.home = fields[5]
		}
		if !match(e) {
			return true
		}
		found = e
		return false
	})
	return found
}

func eachGroup(group []byte, f func(groupEntry) bool) {
	eachLine(group, 3, func(fields [][]byte) bool {
		gid, ok := parseID(fields[2])
		if !ok {
			return true
		}
		e := groupEntry{name: fields[0], gid: gid}
		if len(fields) > 3 {
			e.members = fields[3]
		}
		return f(e)
	})
}

// resolve is pure; passwd and group are the contents of the image's files.
func (w *wanted) resolve(passwd, group []byte) (User, error) {
	entry := findUser(passwd, func(e *passwdEntry) bool {
		if w.user.name != "" {
			return string(e.name) == w.user.name
		}
		return e.uid == w.user.id
	})
	u := User{UID: w.user.id, Home: "/"}
	switch {
	case entry != nil:
		u.UID, u.GID, u.Username = entry.uid, entry.gid, string(entry.name)
		// A newline in HOME must not become a line of anybody's file (CVE-2022-4318).
		if err := checkText("home directory of "+strconv.Quote(u.Username)+" in the image's passwd file", string(entry.home), maxPathBytes); err != nil {
			return User{}, err
		}
		if bytes.HasPrefix(entry.home, []byte("/")) {
			u.Home = string(entry.home)
		}
	case w.user.name != "":
		return User{}, notFound(w.user.field, "the image's passwd file has no user %q", w.user.name)
	}
	if w.group != nil {
		gid, err := w.group.lookUp(group)
		if err != nil {
			return User{}, err
		}
		u.GID = gid
	}
	u.AdditionalGids = w.gids(u, group)
	if len(u.AdditionalGids) > maxGroups {
		return User{}, invalid(w.user.field, "%d groups, the kernel takes %d", len(u.AdditionalGids), maxGroups)
	}
	return u, nil
}

func (a *account) lookUp(group []byte) (uint32, error) {
	if a.name == "" {
		return a.id, nil
	}
	gid, found := uint32(0), false
	eachGroup(group, func(e groupEntry) bool {
		if string(e.name) == a.name {
			gid, found = e.gid, true
		}
		return !found
	})
	if !found {
		return 0, notFound(a.field, "the image's group file has no group %q", a.name)
	}
	return gid, nil
}

// gids joins the primary group, without which a file's group permissions could be
// evaded (CVE-2023-25173), the requested groups and, with policy Merge, those of the image.
func (w *wanted) gids(u User, group []byte) []uint32 {
	gids := append([]uint32{u.GID}, w.supplemental...)
	if !w.strict && u.Username != "" {
		eachGroup(group, func(e groupEntry) bool {
			for member := range bytes.SplitSeq(e.members, []byte{','}) {
				if string(member) == u.Username {
					gids = append(gids, e.gid)
					break
				}
			}
			return len(gids) <= 4*maxGroups
		})
	}
	slices.Sort(gids)
	return slices.Compact(gids)
}
