package sandbox

import (
	"errors"
	"fmt"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/oci"
)

const labelField = "config.linux.security_context.selinux_options"

// newLabels returns the pod's SELinux labels, on a host without SELinux none. Their names come
// from the policy's own file (lxc_contexts); categories that no other pod has
// are reserved until releaseLabels, unless the request names a level.
func (s *Store) newLabels(config *runtimeapi.PodSandboxConfig) (oci.Labels, error) {
	if !s.host.SELinux {
		return oci.Labels{}, nil
	}
	opts := config.GetLinux().GetSecurityContext().GetSelinuxOptions()
	var given []string
	for _, o := range []struct{ key, value string }{
		{"user", opts.GetUser()}, {"role", opts.GetRole()}, {"type", opts.GetType()}, {"level", opts.GetLevel()},
	} {
		if o.value != "" {
			given = append(given, o.key+":"+o.value)
		}
	}
	process, mount, err := label.InitLabels(given)
	if err != nil {
		return oci.Labels{}, fmt.Errorf("%s: %w: %w", labelField, err, ErrInvalid)
	}
	l := oci.Labels{Process: process, Mount: mount}
	// Whoever sees the host's processes or has its IPC cannot be kept apart from them.
	ns := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if opts.GetType() == "" && (ns.GetPid() == runtimeapi.NamespaceMode_NODE || ns.GetIpc() == runtimeapi.NamespaceMode_NODE) {
		l.Process = oci.UnconfinedLabel
	}
	if err := checkLabels(l); err != nil {
		s.releaseLabels(l)
		return oci.Labels{}, err
	}
	return l, nil
}

// checkLabels refuses what the loaded policy does not know.
func checkLabels(l oci.Labels) error {
	for _, text := range []string{l.Process, l.Mount} {
		if text == "" {
			continue
		}
		if err := selinux.SecurityCheckContext(text); err != nil {
			return fmt.Errorf("%s: the policy has no label %q: %w: %w", labelField, text, err, ErrInvalid)
		}
	}
	return nil
}

// checkOptions does that for the labels of a container that asks for other ones than its pod's.
func (l *launch) checkOptions() error {
	if !l.store.host.SELinux || l.config.GetLinux().GetSecurityContext().GetSelinuxOptions() == nil {
		return nil
	}
	return checkLabels(l.labels)
}

// keepLabels reserves the categories of a pod that an earlier daemon made.
func (s *Store) keepLabels(l oci.Labels) error {
	if !s.host.SELinux || l.Mount == "" {
		return nil
	}
	if err := selinux.ReserveLabelV2(l.Mount); err != nil && !errors.Is(err, selinux.ErrMCSAlreadyExists) {
		return fmt.Errorf("reserve the label %q: %w", l.Mount, err)
	}
	return nil
}

// releaseLabels gives a pod's categories back, unless another pod was given
// the same ones by its request.
func (s *Store) releaseLabels(l oci.Labels) {
	if l.Mount == "" {
		return
	}
	for _, b := range s.Sandboxes() {
		if b.Status().Labels.Mount == l.Mount {
			return
		}
	}
	selinux.ReleaseLabel(l.Mount)
}

// labelled adds the label of all files to mount(2)'s options.
func labelled(options, text string) string {
	if text == "" {
		return options
	}
	return options + `,context="` + text + `"`
}

// labelOption is the same for fsconfig(2), nothing without a label.
func labelOption(text string) []overlayOption {
	if text == "" {
		return nil
	}
	return []overlayOption{{"context", text}}
}
