package network

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/containernetworking/cni/pkg/types"
)

// What an operation can answer besides success and a plugin's own error.
var (
	// ErrNotReady: no usable configuration list or a plugin is missing; the
	// text says what was looked at and what would mend it.
	ErrNotReady = errors.New("network is not ready")
	// ErrInvalid: the pod, or the configuration given, breaks a rule; the text
	// names the field.
	ErrInvalid = errors.New("invalid")
	// ErrBusy: pods are being attached or detached; try again later.
	ErrBusy = errors.New("attachments are under way")
	// ErrNotChecked: the configuration knows no CHECK, or switches it off.
	ErrNotChecked = errors.New("not checked")
)

// PluginError says how one run of a plugin failed.
type PluginError struct {
	Plugin  string        // type of the plugin, the name of its binary
	Command string        // CNI verb: ADD, DEL, CHECK, GC or STATUS
	After   time.Duration // how long the plugin ran
	Code    uint          // the plugin's CNI error code, 0 without one
	Msg     string        // what the plugin, or the kernel, said
	Details string        // the details of the plugin's error
	Stderr  string        // beginning of what the plugin wrote there
	Cause   error         // context.DeadlineExceeded or what the kernel answered, or nil
}

// Error names the plugin, the verb, the time and all that the plugin said.
func (e *PluginError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s by plugin %s after %s: %s", e.Command, e.Plugin, e.After.Round(100*time.Microsecond), e.Msg)
	if e.Details != "" {
		fmt.Fprintf(&b, "; details: %s", e.Details)
	}
	if e.Stderr != "" {
		fmt.Fprintf(&b, "; stderr: %s", e.Stderr)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *PluginError) Unwrap() error { return e.Cause }

// longest piece of a plugin's output that goes into an error.
const maxQuoted = 512

// quote makes a plugin's output fit for one line of an error or a log: a
// plugin's output is whatever it read from elsewhere.
func quote(text []byte) string {
	cut := len(text) > maxQuoted
	if cut {
		text = text[:maxQuoted]
	}
	clean := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(string(text), "?"))
	clean = strings.Join(strings.Fields(clean), " ")
	if cut {
		clean += "..."
	}
	return clean
}

// pluginError returns the PluginError that libcni wrapped, without libcni's
// words around it, or err itself.
func pluginError(err error) error {
	var plugin *PluginError
	if errors.As(err, &plugin) {
		return plugin
	}
	var cni *types.Error
	if errors.As(err, &cni) && cni.Details != "" {
		return fmt.Errorf("%w: %s", err, quote([]byte(cni.Details)))
	}
	return err
}
