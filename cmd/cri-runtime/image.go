package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/signal"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/server/control"
)

const defaultState = "/run/cri-runtime"

// imageCommand is the command line of package control.
func imageCommand() *cobra.Command {
	var state string
	client := func() *controlClient { return newControlClient(state) }
	image := &cobra.Command{
		Use:   "image",
		Short: "Look at images and change them: pull, list, check, import, export",
		Long: `Look at the images of a running daemon and change them.

The daemon is asked on control.sock in its state directory, which only root can
open. Images are named as for the kubelet: by NAME[:TAG], NAME@DIGEST, by their
id, or by the first digits of it.`,
		Args: cobra.NoArgs,
	}
	image.PersistentFlags().StringVar(&state, "state", defaultState, "state `DIR` of the daemon to ask")
	image.AddCommand(pullCommand(client), pullsCommand(client), listCommand(client), inspectCommand(client),
		removeCommand(client), checkCommand(client), importCommand(client), exportCommand(client))
	return image
}

// interruptible ends a command at the first signal.
func interruptible(run func(ctx context.Context, cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
		defer stop()
		return run(ctx, cmd, args)
	}
}

func listCommand(client func() *controlClient) *cobra.Command {
	var quiet, asJSON bool
	list := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the images",
		Long: `List the images, a line for each of their names. SIZE is what an image takes on
the disk, layers included that it shares with others.`,
		Args: cobra.NoArgs,
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			var images []control.Image
			if err := client().get(ctx, http.MethodGet, "/v1/images", nil, &images); err != nil {
				return err
			}
			switch {
			case asJSON:
				return printJSON(cmd.OutOrStdout(), images)
			case quiet:
				for i := range images {
					fmt.Fprintln(cmd.OutOrStdout(), images[i].ID)
				}
				return nil
			}
			return printImages(cmd.OutOrStdout(), images, time.Now())
		}),
	}
	list.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only the ids, in full")
	list.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return list
}

func printJSON(w io.Writer, value any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(value)
}

func printImages(w io.Writer, images []control.Image, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "IMAGE\tID\tSIZE\tPULLED\tPINNED")
	for i := range images {
		image := &images[i]
		names := image.RepoTags
		if len(names) == 0 && len(image.RepoDigests) > 0 {
			names = image.RepoDigests[:1]
		}
		if len(names) == 0 {
			names = []string{"-"}
		}
		pinned := ""
		if image.Pinned {
			pinned = "pinned"
		}
		for _, name := range names {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", name, shortID(image.ID), size(image.Size), age(image.PulledAt, now), pinned)
		}
	}
	return table.Flush()
}

func inspectCommand(client func() *controlClient) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Print all that is known of an image, as JSON",
		Long: `Print all that is known of an image, as JSON: its names, the host that served
it, the chain of its layers (the lowest one first) with their sizes and how many
images share each, the containers that hold it, and its configuration.`,
		Args: cobra.ExactArgs(1),
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			var details imageservice.Details
			if err := client().get(ctx, http.MethodGet, "/v1/images/inspect", url.Values{"ref": args}, &details); err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), details)
		}),
	}
}

func removeCommand(client func() *controlClient) *cobra.Command {
	return &cobra.Command{
		Use:     "remove IMAGE...",
		Aliases: []string{"rm"},
		Short:   "Remove images, each with all its names",
		Long: `Remove images, each with all its names. Layers that another image needs stay. An
image that a container uses is not listed any more; its layers go with the last
such container.`,
		Args: cobra.MinimumNArgs(1),
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			var errs []error
			for _, ref := range args {
				var removed imageservice.Details
				err := client().get(ctx, http.MethodDelete, "/v1/images", url.Values{"ref": {ref}}, &removed)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintf(cmd.OutOrStdout(), "removed %s: %s\n", shortID(removed.ID), freed(&removed))
			}
			return errors.Join(errs...)
		}),
	}
}

// freed says what the removal of an image gives back.
func freed(d *imageservice.Details) string {
	if len(d.Users) > 0 {
		return fmt.Sprintf("%s stay until %d containers are gone", size(d.Size), len(d.Users))
	}
	return size(d.Unshared) + " freed"
}

func checkCommand(client func() *controlClient) *cobra.Command {
	var repair, asJSON bool
	check := &cobra.Command{
		Use:   "check",
		Short: "Compare the images on the disk with what was pulled",
		Long: `Compare every image with what was pulled: its documents with their digests and
each file of its layers, content included. All of it is read, so this takes as
long as the disk needs. With --repair damaged images are pulled again by their
digests; one that a container uses is left as it is. The command fails if
damage is left.`,
		Args: cobra.NoArgs,
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			resp, err := client().post(ctx, "/v1/images/check", control.CheckRequest{Repair: repair})
			if err != nil {
				return err
			}
			var report imageservice.CheckReport
			if err := decodeAnswer(resp, &report); err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), report)
			} else {
				printReport(cmd.OutOrStdout(), &report)
			}
			if n := report.Damaged(); n > 0 && err == nil {
				err = fmt.Errorf("%w: %d images", errDamaged, n)
			}
			return err
		}),
	}
	check.Flags().BoolVar(&repair, "repair", false, "pull damaged images again")
	check.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return check
}

func printReport(w io.Writer, report *imageservice.CheckReport) {
	for i := range report.Images {
		image := &report.Images[i]
		for _, d := range image.Damage {
			fmt.Fprintf(w, "%s: layer %s: %q: %s\n", shortID(image.ID), shortID(d.Layer.String()), d.Path, printable(d.Problem))
		}
		switch {
		case image.Repaired:
			fmt.Fprintf(w, "%s: repaired\n", shortID(image.ID))
		case image.Problem != "":
			fmt.Fprintf(w, "%s: not repaired: %s\n", shortID(image.ID), printable(image.Problem))
		}
	}
	fmt.Fprintf(w, "%d images, %d layers, %d entries, %s read: %d images are damaged\n",
		len(report.Images), report.Layers, report.Entries, size(report.Bytes), report.Damaged())
}
