package sandbox

import (
	"context"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkPodCycle makes and removes a pod with the host's network and one container.
func BenchmarkPodCycle(b *testing.B) {
	f, ctx := setUp(b), context.Background()
	n := 0
	for b.Loop() {
		n++
		box, err := f.store.Run(ctx, f.podConfig(fmt.Sprint("pod", n), runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER), "")
		if err != nil {
			b.Fatal(err)
		}
		c := f.run(box, "c", "sleep", "1000")
		if err := c.Remove(ctx); err != nil {
			b.Fatal(err)
		}
		if err := box.Remove(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExecSync(b *testing.B) {
	f, ctx := setUp(b), context.Background()
	c := f.run(f.pod(), "c", "sleep", "1000")
	for b.Loop() {
		if _, err := c.ExecSync(ctx, []string{"/bin/true"}, 0); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkExec is an exec with streams, until its first output and until its end.
func BenchmarkExec(b *testing.B) {
	for _, terminal := range []bool{false, true} {
		b.Run(fmt.Sprintf("terminal=%v", terminal), func(b *testing.B) {
			f := setUp(b)
			c := f.run(f.pod(), "c", "sleep", "1000")
			var first, end []time.Duration
			for b.Loop() {
				k := newClient(b, terminal)
				begin := time.Now()
				seen := make(chan time.Duration, 1)
				go func() {
					k.stdout.await(b, "x")
					seen <- time.Since(begin)
				}()
				if _, err := c.Exec(context.Background(), []string{"echo", "x"}, k.streams); err != nil {
					b.Fatal(err)
				}
				first, end = append(first, <-seen), append(end, time.Since(begin))
			}
			for name, all := range map[string][]time.Duration{"first-output": first, "end": end} {
				slices.Sort(all)
				b.ReportMetric(float64(all[len(all)/2].Microseconds()), name+"-p50-us")
			}
		})
	}
}

// discard tells how much it has been given.
type discard struct{ given chan int }

func (d *discard) Write(p []byte) (int, error) {
	d.given <- len(p)
	return len(p), nil
}

func (*discard) Close() error { return nil }

// await waits until the discard has got that many bytes more.
func (d *discard) await(b *testing.B, n int, ended <-chan error) {
	b.Helper()
	for n > 0 {
		select {
		case got := <-d.given:
			n -= got
		case err := <-ended:
			b.Fatal("ended too early: ", err)
		}
	}
}

// BenchmarkStream is 256 MiB from a command to its client; and 64 MiB, in pieces of 256
// KiB, from an attached client to a container and back.
func BenchmarkStream(b *testing.B) {
	b.Run("exec", func(b *testing.B) {
		f := setUp(b)
		c := f.run(f.pod(), "c", "sleep", "1000")
		b.SetBytes(256 << 20)
		for b.Loop() {
			d, ended := &discard{given: make(chan int, 64)}, make(chan error, 1)
			go func() {
				_, err := c.Exec(context.Background(), []string{"busybox", "dd", "if=/dev/zero", "bs=256k", "count=1024"}, Streams{Stdout: d})
				ended <- err
			}()
			d.await(b, 256<<20, nil)
			if err := <-ended; err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("attach", func(b *testing.B) {
		f := setUp(b)
		c := f.interactive("c", func(c *runtimeapi.ContainerConfig) { c.LogPath = "" }, "cat")
		b.SetBytes(64 << 20)
		ctx, leave := context.WithCancel(context.Background())
		r, w := io.Pipe()
		d, ended := &discard{given: make(chan int, 64)}, make(chan error, 1)
		go func() { ended <- c.Attach(ctx, Streams{Stdin: r, Stdout: d}) }()
		chunk := make([]byte, 256<<10)
		for b.Loop() {
			for range 64 << 20 / len(chunk) {
				if _, err := w.Write(chunk); err != nil {
					b.Fatal(err)
				}
				d.await(b, len(chunk), ended)
			}
		}
		leave()
		w.Close()
		<-ended
	})
}
