package conmon

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// BenchmarkContainer is the life of a container: LAUNCH to CREATED, START to
// STARTED, and until its exit is told, of a command that ends at once.
func BenchmarkContainer(b *testing.B) {
	bin, ctx := testBinary(b), testContext(b)
	program := initProgram("/bin/busybox", "true")
	var launch, start, exit []time.Duration
	for b.Loop() {
		box := newBox(b)
		t0 := time.Now()
		m, err := bin.Launch(ctx, box.launch(program))
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if _, err := m.Start(ctx); err != nil {
			b.Fatal(err)
		}
		t2 := time.Now()
		<-m.Done()
		t3 := time.Now()
		m.Close()
		launch, start, exit = append(launch, t1.Sub(t0)), append(start, t2.Sub(t1)), append(exit, t3.Sub(t2))
	}
	report(b, "launch", launch)
	report(b, "start", start)
	report(b, "exit", exit)
}

// BenchmarkExec is EXEC to EXEC_STARTED and to EXEC_EXITED of a command that
// ends at once.
func BenchmarkExec(b *testing.B) {
	m, ctx := runningMonitor(b, "exec /bin/busybox sleep 1000"), testContext(b)
	program := execProgram("/bin/busybox", "true")
	var started, exited []time.Duration
	for b.Loop() {
		t0 := time.Now()
		e, err := m.Exec(ctx, ExecRequest{Program: program})
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if _, err := e.Wait(ctx); err != nil {
			b.Fatal(err)
		}
		started, exited = append(started, t1.Sub(t0)), append(exited, time.Since(t0))
	}
	report(b, "started", started)
	report(b, "exited", exited)
}

// report gives the median in microseconds.
func report(b *testing.B, name string, all []time.Duration) {
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Nanoseconds())/1000, name+"-p50-us")
}

// BenchmarkLog writes 64 MiB of lines and waits until they are in the log.
func BenchmarkLog(b *testing.B) {
	for name, line := range map[string]int{"line=80": 80, "line=1000": 1000} {
		b.Run(name, func(b *testing.B) {
			const total = 64 << 20
			bin := testBinary(b)
			ctx := testContext(b)
			input := filepath.Join(b.TempDir(), "input")
			writeLines(b, input, total/line, line)
			b.SetBytes(int64(total / line * line))
			for b.Loop() {
				box := newBox(b)
				m, err := bin.Launch(ctx, box.launch(initProgram(shell("exec /bin/busybox cat "+input)...)))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := m.Start(ctx); err != nil {
					b.Fatal(err)
				}
				<-m.Done()
				m.Close()
				os.Remove(box.log.Name())
			}
		})
	}
}

func writeLines(t testing.TB, path string, lines, length int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	line := make([]byte, length)
	for i := range line {
		line[i] = 'a' + byte(i%26)
	}
	line[length-1] = '\n'
	for range lines {
		_, _ = w.Write(line)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
