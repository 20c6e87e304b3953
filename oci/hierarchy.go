package oci

import (
	"bufio"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
)

// ReadHierarchies lists the cgroup v1 hierarchies mounted on the host; it is
// empty on a host with cgroup v2 only.
func ReadHierarchies() ([]Hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	defer f.Close()
	var list []Hierarchy
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		h, ok := parseHierarchy(lines.Text())
		if ok && !slices.ContainsFunc(list, func(o Hierarchy) bool { return o.Name == h.Name || slices.Equal(o.Options, h.Options) }) {
			list = append(list, h)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	return list, nil
}

// parseHierarchy reads one line of mountinfo (proc(5)).
func parseHierarchy(line string) (Hierarchy, bool) {
	mount, fs, ok := strings.Cut(line, " - ")
	fields, fsFields := strings.Fields(mount), strings.Fields(fs)
	if !ok || len(fields) < 5 || len(fsFields) < 3 || fsFields[0] != "cgroup" {
		return Hierarchy{}, false
	}
	h := Hierarchy{Name: path.Base(fields[4])}
	for _, o := range strings.Split(fsFields[2], ",") {
		switch o {
		// What describes the superblock and selects no hierarchy.
		case "rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods", "seclabel":
		default:
			if !strings.HasPrefix(o, "release_agent=") {
				h.Options = append(h.Options, o)
			}
		}
	}
	return h, len(h.Options) > 0
}
