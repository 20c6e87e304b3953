package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

var errAnswer = errors.New("crictl did not answer as expected")

// session is a sequence of crictl's commands.
type session struct {
	program string
	node    *harness.Runtime
	image   string
	out     io.Writer
	passed  int
}

// operate runs pods by crictl as an operator does, and looks at its answers.
func operate(ctx context.Context, program, image string, node *harness.Runtime, out io.Writer) error {
	s := &session{program: program, node: node, image: image, out: out}
	err := s.run(ctx)
	failed := 0
	if err != nil {
		failed = 1
	}
	fmt.Fprintf(out, "crictl: %d commands passed, %d failed\n", s.passed, failed)
	return err
}

func (s *session) run(ctx context.Context) error {
	pod, container, err := s.manifests()
	if err != nil {
		return err
	}
	if err := s.all(ctx, [][]string{
		{"cri-runtime", "version"},
		{"NetworkReady", "info"},
		{"", "pull", s.image},
		{"busybox", "images"},
		{"sha256:", "inspecti", s.image},
		{"", "imagefsinfo"},
	}); err != nil {
		return err
	}
	podID, err := s.answer(ctx, "", "runp", pod)
	if err != nil {
		return err
	}
	id, err := s.answer(ctx, "", "create", podID, container, pod)
	if err != nil {
		return err
	}
	if err := s.all(ctx, [][]string{
		{"Created", "ps", "-a"},
		{id, "start", id},
		{"operated", "pods"},
		{"Running", "ps"},
		{"hello", "exec", "-s", id, "echo", "hello"},
		{"hello", "exec", id, "echo", "hello"},
		{`"pid"`, "inspect", id},
		{podID, "inspectp", podID},
	}); err != nil {
		return err
	}
	if err := harness.Until(ctx, time.Minute, "the container's output", func() bool {
		text, err := s.call(ctx, "logs", id)
		return err == nil && strings.Contains(text, "line of the log")
	}); err != nil {
		return err
	}
	return s.all(ctx, [][]string{
		{"line of the log", "logs", id},
		{"", "update", "--cpu-share", "512", id},
		{"512", "inspect", id},
		{"CPU", "stats", "-a"},
		{"operated", "statsp"},
		{"", "metricsp"},
		{id, "stop", "--timeout", "5", id},
		{"Exited", "ps", "-a"},
		{id, "rm", id},
		{podID, "stopp", podID},
		{"NotReady", "pods"},
		{podID, "rmp", podID},
		{"", "rmi", s.image},
	})
}

// manifests writes the files that crictl reads.
func (s *session) manifests() (pod, container string, err error) {
	write := func(name string, v any) string {
		data, encodeErr := json.Marshal(v)
		path := filepath.Join(s.node.Dir, name)
		err = errors.Join(err, encodeErr, os.WriteFile(path, data, 0o600))
		return path
	}
	endpoint := "unix://" + s.node.Socket
	write("crictl.yaml", map[string]any{"runtime-endpoint": endpoint, "image-endpoint": endpoint, "timeout": 60})
	logs := filepath.Join(s.node.Dir, "logs")
	pod = write("pod.json", map[string]any{
		"metadata":      map[string]any{"name": "operated", "namespace": "default", "uid": "operated-uid", "attempt": 1},
		"log_directory": logs, "linux": map[string]any{},
	})
	container = write("container.json", map[string]any{
		"metadata": map[string]any{"name": "main"}, "image": map[string]any{"image": s.image}, "log_path": "main.log",
		"command": []string{"sh", "-c", "trap 'exit 0' TERM; echo line of the log; sleep 2147483647 & wait"}, "linux": map[string]any{},
	})
	return pod, container, err
}

// all runs commands; the first word of each is what its answer must contain.
func (s *session) all(ctx context.Context, commands [][]string) error {
	for _, c := range commands {
		if _, err := s.answer(ctx, c[0], c[1:]...); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) answer(ctx context.Context, want string, args ...string) (string, error) {
	text, err := s.call(ctx, args...)
	if err != nil {
		return "", err
	}
	if !strings.Contains(text, want) {
		return "", fmt.Errorf("crictl %s: %q lacks %q: %w", strings.Join(args, " "), text, want, errAnswer)
	}
	s.passed++
	return strings.TrimSpace(text), nil
}

func (s *session) call(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.program, append([]string{"--config", filepath.Join(s.node.Dir, "crictl.yaml")}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("crictl %s: %w: %s%s", strings.Join(args, " "), err, text, stderr.Bytes())
	}
	return string(text), nil
}
