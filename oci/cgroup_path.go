package oci

import (
	"fmt"
	"strings"
)

const sliceSuffix = ".slice"

// cgroupPath returns the path below a hierarchy's root that p names: p itself,
// cleaned, or with systemd the place where systemd has the unit of slice:prefix:name
// or of a slice.
func cgroupPath(p string, systemd bool) (string, error) {
	const field = "cgroup path"
	if !systemd || strings.HasPrefix(p, "/") {
		clean, err := absolutePath(field, p)
		if err == nil && clean == "/" {
			err = invalid(field, "is the root of all cgroups")
		}
		return clean, err
	}
	if strings.HasSuffix(p, sliceSuffix) && !strings.Contains(p, ":") {
		slice, err := SlicePath(p)
		if err == nil && slice == "/" {
			err = invalid(field, "%q is the root of all cgroups", p)
		}
		return slice, err
	}
	parts := strings.Split(p, ":")
	if len(parts) != 3 {
		return "", invalid(field, "%.300q is not slice:prefix:name", p)
	}
	slice, prefix, name := parts[0], parts[1], parts[2]
	if slice == "" {
		slice = "system.slice"
	}
	parent, err := SlicePath(slice)
	if err != nil {
		return "", err
	}
	unit := name
	if !strings.HasSuffix(name, sliceSuffix) {
		if prefix != "" {
			unit = prefix + "-" + name
		}
		unit += ".scope"
	}
	if name == "" {
		return "", invalid(field, "%.300q has no name", p)
	}
	if err := checkName(field, unit); err != nil {
		return "", err
	}
	return strings.TrimSuffix(parent, "/") + "/" + unit, nil
}

// SlicePath returns where systemd has a slice: it expands the name, a-b.slice is below a.slice.
func SlicePath(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, sliceSuffix)
	if !ok || name == "" || len(slice) > maxNameBytes || strings.ContainsFunc(name, isControl) || strings.Contains(name, "/") {
		return "", fmt.Errorf("%.300q is not the name of a slice: %w", slice, ErrInvalid)
	}
	if name == "-" {
		return "/", nil
	}
	var b strings.Builder
	prefix := ""
	for part := range strings.SplitSeq(name, "-") {
		if part == "" {
			return "", fmt.Errorf("%.300q is not the name of a slice: %w", slice, ErrInvalid)
		}
		prefix += part
		b.WriteString("/" + prefix + sliceSuffix)
		prefix += "-"
	}
	return b.String(), nil
}
