package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/sandbox"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// memory is what a daemon tells of itself on its control socket.
type memory struct {
	Runtime *sandbox.Memory      `json:"runtime"`
	Network *network.Memory      `json:"network"`
	Images  *imageservice.Memory `json:"images"`
}

// report is the answer of a check.
type report struct {
	Findings ledger.Findings   `json:"findings"`
	Damaged  []sandbox.Damaged `json:"damaged"` // moved aside, and no finding
	Daemon   bool              `json:"daemon"`  // one runs and was asked
}

func auditCommand() *cobra.Command {
	var file string
	var given config
	var asJSON bool
	check := &cobra.Command{
		Use:   "check",
		Short: "Check that records, host and a running daemon fit together",
		Long: `Check that every record of the daemon can be read and that everything which it
names is there, and that every directory, mount, cgroup, process, interface,
address and host port of ours belongs to a record. A running daemon is asked
what it knows, on control.sock in its state directory; without one, what a
crash has left half made is no finding, as the next start undoes it.

Nothing is changed. Each finding is printed with its path and what mends it; the
exit code is then 1. What was moved aside earlier is told, and no finding.`,
		Args: cobra.NoArgs,
	}
	flags := check.Flags()
	placeFlags(flags, &file, &given)
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	check.RunE = interruptible(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		c, err := checkedConfig(file, &given, flags)
		if err != nil {
			return err
		}
		klog.LogToStderr(false)
		klog.SetOutput(io.Discard) // what it says is among the findings
		r, err := c.checkStore(ctx)
		if err != nil {
			return err
		}
		if asJSON {
			err = printJSON(cmd.OutOrStdout(), r)
		} else {
			r.print(cmd.OutOrStdout())
		}
		if err == nil && len(r.Findings) > 0 {
			err = fmt.Errorf("%w: %d", errFindings, len(r.Findings))
		}
		return err
	})
	return check
}

func checkedConfig(file string, given *config, flags *pflag.FlagSet) (config, error) {
	c, err := loadConfig(file, flags.Changed("config"))
	if err != nil {
		return c, err
	}
	return c, c.apply(given, flags.Changed)
}

// checkStore repeats the check while there are findings: those of verbs under
// way do not stay.
func (c *config) checkStore(ctx context.Context) (*report, error) {
	var kept *report
	for _, pause := range []time.Duration{0, 100 * time.Millisecond, 400 * time.Millisecond, time.Second, 2 * time.Second} {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, errInterrupted
		}
		r, err := c.checkOnce(ctx)
		if err != nil {
			return nil, err
		}
		if kept != nil {
			r.Findings = slices.DeleteFunc(r.Findings, func(f ledger.Finding) bool { return !slices.Contains(kept.Findings, f) })
		}
		if kept = r; len(kept.Findings) == 0 {
			break
		}
	}
	return kept, nil
}

func (c *config) checkOnce(ctx context.Context) (*report, error) {
	known, err := c.askMemory(ctx)
	if err != nil {
		return nil, err
	}
	audit, err := sandbox.Check(c.sandbox(), known.Runtime)
	if err != nil {
		return nil, err
	}
	netConfig, err := c.network()
	if err != nil {
		return nil, err
	}
	attachments, err := network.Audit(netConfig, audit.Pods, known.Network)
	if err != nil {
		return nil, err
	}
	images, err := imageservice.Audit(filepath.Join(c.Root, "images"), audit.Images, known.Images)
	if err != nil {
		return nil, err
	}
	r := &report{Findings: slices.Concat(audit.Findings, attachments, images), Damaged: audit.Damaged, Daemon: known.Runtime != nil}
	if known.Images != nil {
		users := map[string]bool{}
		for _, ids := range audit.Images {
			for _, id := range ids {
				users[id] = true
			}
		}
		for _, p := range audit.Pods {
			users[p.ID] = true // of calls whose client has gone
		}
		r.Findings = append(r.Findings, known.Images.Unheld(func(user string) bool { return users[user] || strings.HasPrefix(user, "create-") })...)
	}
	return r, nil
}

// askMemory asks the daemon; all is nil when none runs.
func (c *config) askMemory(ctx context.Context) (memory, error) {
	var m memory
	err := newControlClient(c.State).get(ctx, http.MethodGet, "/v1/memory", nil, &m)
	if errors.Is(err, errNoDaemon) {
		return memory{}, nil
	}
	return m, err
}

func (r *report) print(w io.Writer) {
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s\n", printable(f.String()))
	}
	for _, d := range r.Damaged {
		fmt.Fprintf(w, "note: %s\n", printable(fmt.Sprintf("%s: moved aside from %s: %s; %s", d.Dir, d.From, d.Reason, d.Remedy)))
	}
	if len(r.Findings) == 0 {
		who := "no daemon runs"
		if r.Daemon {
			who = "and the daemon"
		}
		fmt.Fprintf(w, "records and host fit together (%s)\n", who)
	}
}
