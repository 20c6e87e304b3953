package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cri-runtime/cri-runtime/imageservice"
	"github.com/cri-runtime/cri-runtime/server/control"
)

const (
	maxPassword = 64 << 10
	drawPeriod  = 250 * time.Millisecond
)

func pullCommand(client func() *controlClient) *cobra.Command {
	var req control.PullRequest
	var quiet, asJSON, passwordStdin bool
	pull := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Pull an image, with its progress",
		Long: `Pull an image and show each of its layers: those that are here already, and what
was downloaded and unpacked of the others. A pull of the same image that is
under way, perhaps for the kubelet, is joined. Interrupted, this command leaves
the pull, which ends with its last client and leaves nothing behind.

The image's id goes to standard output, everything else to standard error.`,
		Args: cobra.ExactArgs(1),
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			req.Reference = args[0]
			if passwordStdin {
				text, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxPassword))
				if err != nil {
					return fmt.Errorf("read the password: %w", err)
				}
				req.Password = strings.TrimRight(string(text), "\r\n")
			}
			resp, err := client().post(ctx, "/v1/images/pull", req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			show := newPullView(cmd.ErrOrStderr(), quiet)
			if asJSON {
				show = func(*imageservice.PullProgress) {}
			}
			image, err := followPull(ctx, resp.Body, show, jsonLines(cmd.OutOrStdout(), asJSON))
			if err != nil || asJSON {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), image.ID)
			return err
		}),
	}
	flags := pull.Flags()
	flags.StringVar(&req.Username, "username", "", "`NAME` to log in with, for this pull alone")
	flags.BoolVar(&passwordStdin, "password-stdin", false, "read the password from standard input")
	flags.BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	flags.BoolVar(&asJSON, "json", false, "print what happens as JSON, one value a line")
	return pull
}

// jsonLines returns what prints an event, if anything is to.
func jsonLines(w io.Writer, wanted bool) func(*control.PullEvent) error {
	if !wanted {
		return func(*control.PullEvent) error { return nil }
	}
	e := json.NewEncoder(w)
	return func(event *control.PullEvent) error { return e.Encode(event) }
}

// followPull reads what becomes of a pull to its end.
func followPull(ctx context.Context, body io.Reader, show func(*imageservice.PullProgress), each func(*control.PullEvent) error) (*control.Image, error) {
	decoder := json.NewDecoder(body)
	for {
		var event control.PullEvent
		if err := decoder.Decode(&event); err != nil {
			if ctx.Err() != nil {
				return nil, errInterrupted
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil, fmt.Errorf("%w: the daemon ended before the pull did", errDaemon)
			}
			return nil, fmt.Errorf("read the daemon's answer: %w", err)
		}
		if err := each(&event); err != nil {
			return nil, err
		}
		switch {
		case event.Progress != nil:
			show(event.Progress)
		case event.Error != nil:
			return nil, daemonError(*event.Error)
		case event.Image != nil:
			return event.Image, nil
		}
	}
}

// newPullView returns what shows a pull on w: bars on a terminal, lines
// elsewhere.
func newPullView(w io.Writer, quiet bool) func(*imageservice.PullProgress) {
	if quiet {
		return func(*imageservice.PullProgress) {}
	}
	_, _, terminal := terminalSize(w)
	draw, plain, speed := &screen{w: w}, &plainProgress{w: w, states: map[string]imageservice.LayerState{}}, &speedometer{}
	return func(p *imageservice.PullProgress) {
		speed.update(time.Now(), p.Downloaded)
		if terminal {
			draw.draw(pullLines(p, speed.speed))
		} else {
			plain.show(p)
		}
		if p.State == imageservice.PullDone {
			fmt.Fprintln(w, summary(p))
		}
	}
}

func pullsCommand(client func() *controlClient) *cobra.Command {
	var once, asJSON bool
	pulls := &cobra.Command{
		Use:   "pulls",
		Short: "Show the pulls under way, whoever asked for them",
		Long: `Show the pulls under way, those of the kubelet too, and the last 16 that ended:
each layer with what was downloaded and unpacked of it, and the layers that
were here already. On a terminal the view is live until it is interrupted.`,
		Args: cobra.NoArgs,
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			w := cmd.OutOrStdout()
			c := client()
			view := &pullsView{speeds: map[uint64]*speedometer{}}
			if _, _, terminal := terminalSize(w); terminal && !once && !asJSON {
				return view.live(ctx, c, w)
			}
			list, err := c.pulls(ctx)
			switch {
			case err != nil:
				return err
			case asJSON:
				return printJSON(w, list)
			}
			for _, line := range view.lines(list, time.Now()) {
				fmt.Fprintln(w, line)
			}
			return nil
		}),
	}
	pulls.Flags().BoolVar(&once, "once", false, "print the pulls once, also on a terminal")
	pulls.Flags().BoolVar(&asJSON, "json", false, "print JSON, once")
	return pulls
}

func (c *controlClient) pulls(ctx context.Context) ([]imageservice.PullProgress, error) {
	var list []imageservice.PullProgress
	err := c.get(ctx, http.MethodGet, "/v1/pulls", nil, &list)
	return list, err
}

// pullsView shows several pulls.
type pullsView struct {
	speeds map[uint64]*speedometer // by pull
}

// lines shows those that ended in one line each.
func (v *pullsView) lines(list []imageservice.PullProgress, now time.Time) []string {
	var lines []string
	for i := range list {
		p := &list[i]
		if !p.Ended.IsZero() {
			line := fmt.Sprintf("%s: %s %s: ", printable(p.Reference), p.State, age(p.Ended, now))
			if p.Error != "" {
				line += printable(p.Error)
			} else {
				line += summary(p)
			}
			lines = append(lines, line)
			delete(v.speeds, p.ID)
			continue
		}
		if v.speeds[p.ID] == nil {
			v.speeds[p.ID] = &speedometer{}
		}
		v.speeds[p.ID].update(now, p.Downloaded)
		lines = append(lines, pullLines(p, v.speeds[p.ID].speed)...)
	}
	if len(lines) == 0 {
		lines = []string{"no pulls"}
	}
	return lines
}

// live shows the pulls until ctx ends.
func (v *pullsView) live(ctx context.Context, c *controlClient, w io.Writer) error {
	s := &screen{w: w}
	tick := time.NewTicker(drawPeriod)
	defer tick.Stop()
	for {
		list, err := c.pulls(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		s.draw(v.lines(list, time.Now()))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
