package conmon

import (
	"bufio"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkLaunch is LAUNCH to CREATED, with everything around it.
func BenchmarkLaunch(b *testing.B) {
	bin := testBinary(b)
	ctx := testContext(b)
	program := initProgram("/bin/busybox", "true")
	for b.Loop() {
		b.StopTimer()
		box := newBox(b)
		b.StartTimer()
		m, err := bin.Launch(ctx, box.launch(program))
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := m.Start(ctx); err != nil {
			b.Fatal(err)
		}
		<-m.Done()
		m.Close()
		b.StartTimer()
	}
}

// BenchmarkStart is START to STARTED.
func BenchmarkStart(b *testing.B) {
	bin := testBinary(b)
	ctx := testContext(b)
	program := initProgram("/bin/busybox", "true")
	for b.Loop() {
		b.StopTimer()
		m, err := bin.Launch(ctx, newBox(b).launch(program))
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := m.Start(ctx); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		<-m.Done()
		m.Close()
		b.StartTimer()
	}
}

// BenchmarkExec is EXEC to EXEC_EXITED of a command that ends at once.
func BenchmarkExec(b *testing.B) {
	m := runningMonitor(b, "exec /bin/busybox sleep 1000")
	ctx := testContext(b)
	program := execProgram("/bin/busybox", "true")
	for b.Loop() {
		e, err := m.Exec(ctx, ExecRequest{Program: program})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := e.Wait(ctx); err != nil {
			b.Fatal(err)
		}
	}
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
