package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Features are the abilities of the kernel that this daemon found by trying
// them at its start, and uses where they are.
type Features struct {
	Overlay        OverlayFeatures       `json:"overlay"`
	UserNamespaces UserNamespaceFeatures `json:"userNamespaces"`
}

// UserNamespaceFeatures tells whether pods can have a user namespace.
type UserNamespaceFeatures struct {
	Problem string `json:"problem,omitempty"` // why not; "" if they can
}

// OverlayFeatures is how root file systems are mounted.
type OverlayFeatures struct {
	// AppendLayers: layers are given one by one (lowerdir+, Linux 6.7). Without it
	// they are given in one string by descriptors (mount(2)).
	AppendLayers bool `json:"appendLayers"`
	// Options are those of volatile, metacopy=off, index=off, xino=auto and
	// uuid=off that this kernel knows. All are used.
	Options []string `json:"options"`
	// UserXattr: overlay keeps its marks in user.* attributes, because this
	// process may not set trusted.* ones.
	UserXattr bool `json:"userXattr"`
	// Problem is why no root file system can be mounted; "" if one can.
	Problem string `json:"problem,omitempty"`
}

// Features returns what the kernel was found to be able to at the start.
func (s *Store) Features() Features { return s.features }

// overlayOption is one option of an overlay that some kernels lack.
type overlayOption struct{ key, value string } // a flag has no value

func (o overlayOption) String() string {
	if o.value == "" {
		return o.key
	}
	return o.key + "=" + o.value
}

func overlayOptions() []overlayOption {
	return []overlayOption{
		// A writable layer does not outlive a crash of the machine, so unmounting
		// it need not write it to the disk.
		{"volatile", ""},
		// Only in the writable layer would these find anything, and there a
		// privileged container could plant it: metacopy shows any file of a lower
		// layer's file system.
		{"metacopy", "off"},
		{"index", "off"},
		{"uuid", "off"}, // saves an extended attribute of each writable layer
		// One st_dev in the container where layers are on several file systems.
		{"xino", "auto"},
	}
}

// userXattr is no option to choose: it goes with the process's privileges.
func userXattrOption() overlayOption { return overlayOption{"userxattr", ""} }

// probe finds out how overlays can be mounted below dir. It costs one small
// mount where all is there.
func probe(dir string, without []string) (_ OverlayFeatures, err error) {
	if err := os.RemoveAll(dir); err != nil { // of a daemon that was killed
		return OverlayFeatures{}, fmt.Errorf("probe overlay: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return OverlayFeatures{}, fmt.Errorf("probe overlay: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	lower := filepath.Join(dir, "lower")
	if err := os.Mkdir(lower, 0o755); err != nil {
		return OverlayFeatures{}, fmt.Errorf("probe overlay: %w", err)
	}
	n := 0
	try := func(f OverlayFeatures, options []overlayOption) error {
		n++
		return f.try(filepath.Join(dir, fmt.Sprint(n)), lower, options)
	}
	var fixed []overlayOption
	f := OverlayFeatures{AppendLayers: !slices.Contains(without, "appendLayers"), Options: []string{}}
	if err := unix.Setxattr(lower, "trusted.overlay.probe", nil, 0); errors.Is(err, unix.EPERM) {
		f.UserXattr = true
		fixed = append(fixed, userXattrOption())
	}
	wanted := slices.DeleteFunc(overlayOptions(), func(o overlayOption) bool { return slices.Contains(without, o.String()) })
	if try(f, append(slices.Clone(fixed), wanted...)) == nil {
		f.take(wanted)
		return f, nil
	}
	if err := try(f, fixed); err != nil && f.AppendLayers {
		f.AppendLayers = false
		if err := try(f, fixed); err != nil {
			f.Problem = err.Error()
			return f, nil
		}
	} else if err != nil {
		f.Problem = err.Error()
		return f, nil
	}
	f.take(slices.DeleteFunc(wanted, func(o overlayOption) bool { return try(f, append(slices.Clone(fixed), o)) != nil }))
	return f, nil
}

// takesNothing tells whether an error is that of a full or a read-only file system.
func takesNothing(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EROFS)
}

// try makes an overlay of one layer, with the writable one in dir.
func (f *OverlayFeatures) try(dir, lower string, options []overlayOption) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if !f.AppendLayers {
		m, err := f.mount(dir, []string{lower}, options)
		if err != nil {
			return err
		}
		return m.Close()
	}
	if err := makeWritable(dir, 1); err != nil {
		return err
	}
	fsfd, err := createByPaths(dir, []string{lower}, options) // a mount would wait for readers of the mount table
	if err != nil {
		return err
	}
	return unix.Close(fsfd)
}

func (f *OverlayFeatures) take(options []overlayOption) {
	for _, o := range options {
		f.Options = append(f.Options, o.String())
	}
}

// chosen returns the options that overlays are mounted with.
func (f *OverlayFeatures) chosen() []overlayOption {
	options := slices.DeleteFunc(overlayOptions(), func(o overlayOption) bool { return !slices.Contains(f.Options, o.String()) })
	if f.UserXattr {
		options = append(options, userXattrOption())
	}
	return options
}
