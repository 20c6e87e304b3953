package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/cmd/cri-runtime/doctor"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

func doctorCommand() *cobra.Command {
	var file, format string
	var given config
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at this host: what is missing, what that costs, what to change",
		Long: `Look at the kernel, cgroups, limits, disks, networks, the configuration and what
other runtimes and crashes have left. Nothing is changed; a daemon may run or
not. Without root some checks are skipped, and say so.

One line a check: ok, warn (something costs more or is not there), fail (pods do
not run) or skip; below warn and fail stand the cost and the change to make. The
exit code is 1 when a check failed.`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	placeFlags(flags, &file, &given)
	flags.StringVarP(&format, "output", "o", "text", "`FORMAT`: text or json")
	cmd.RunE = interruptible(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		if format != "text" && format != "json" {
			return fmt.Errorf("%w: --output %q is neither text nor json", errConfig, format)
		}
		c, err := checkedConfig(file, &given, flags)
		if err != nil {
			return err
		}
		results, err := c.examine(ctx)
		if err != nil {
			return err
		}
		if format == "json" {
			err = printJSON(cmd.OutOrStdout(), map[string]any{"results": results})
		} else {
			err = printResults(cmd.OutOrStdout(), results)
		}
		failed := 0
		for _, r := range results {
			if r.Level == doctor.Fail {
				failed++
			}
		}
		if failed > 0 {
			err = errors.Join(err, fmt.Errorf("%w: %d", errUnfit, failed))
		}
		return err
	})
	return cmd
}

// examine looks at this host with this configuration.
func (c *config) examine(ctx context.Context) ([]doctor.Result, error) {
	net, err := c.network()
	if err != nil {
		return nil, err
	}
	return doctor.Examine(doctor.Config{
		Host: "/", Kernel: doctor.Running{}, Now: time.Now(), Root: os.Geteuid() == 0,
		RootDir: c.Root, StateDir: c.State, CgroupDriver: c.cgroupDriver("/run/systemd/system"),
		Network: net, RegistryConfigDir: c.Image.RegistryConfigDir,
		Audit: func() (ledger.Findings, error) {
			if _, err := os.Stat(c.Root); errors.Is(err, os.ErrNotExist) {
				return nil, nil // no daemon has ever run
			}
			klog.LogToStderr(false)
			klog.SetOutput(io.Discard) // what it says is among the findings
			r, err := c.checkStore(ctx)
			if err != nil {
				return nil, err
			}
			return r.Findings, nil
		},
	}), nil
}

func printResults(w io.Writer, results []doctor.Result) error {
	counts := map[doctor.Level]int{}
	for _, r := range results {
		counts[r.Level]++
		fmt.Fprintf(w, "%-4s  %-22s  %s\n", r.Level, r.Check, printable(r.Seen))
		if r.Cost != "" {
			fmt.Fprintf(w, "%6scosts: %s\n%6schange: %s\n", "", printable(r.Cost), "", printable(r.Change))
		}
	}
	_, err := fmt.Fprintf(w, "%d ok, %d warn, %d fail, %d skip\n", counts[doctor.OK], counts[doctor.Warn], counts[doctor.Fail], counts[doctor.Skipped])
	return err
}
