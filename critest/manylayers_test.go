package critest

import (
	"fmt"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/images"
)

// TestImageOf127Layers has as many layers as builders allow. Each one replaces
// a file, adds one and hides one of the layer below.
func TestImageOf127Layers(t *testing.T) {
	begin(t)
	const layers = 127
	base, err := images.BusyboxLayer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := images.Spec{Layers: []images.Layer{base}, Config: images.Config{Env: []string{images.DefaultPath}, Cmd: []string{"sh"}}}
	for i := 1; i < layers; i++ {
		s.Layers = append(s.Layers, images.Layer{Entries: []images.Entry{
			images.Dir("many", 0o755),
			images.File("many/top", fmt.Sprintln(i), 0o644),
			images.File(fmt.Sprintf("many/own-%03d", i), fmt.Sprintln(i), 0o644),
			images.File(fmt.Sprintf("many/passing-%03d", i), "", 0o644),
			images.Whiteout("many/", fmt.Sprintf("passing-%03d", i-1)),
		}})
	}
	a, err := s.Build()
	if err != nil {
		t.Fatal(err)
	}
	if err := depot.Push(t.Context(), images.Named{Repository: "many/layers", Tag: "127", Artifact: a}); err != nil {
		t.Fatal(err)
	}
	ref := depot.Address + "/many/layers:127"
	if _, err := pull(t, ref, nil); err != nil {
		t.Fatal(err)
	}
	defer forget(t, ref)
	p := run(t)
	got := p.output("", func(c *runtimeapi.ContainerConfig) {
		c.Image = spec(ref)
		c.Command = []string{"sh", "-c", "cd /many; cat top own-001 own-126; ls | grep -c own; ls | grep passing; echo x >> own-001 && tail -n 1 own-001"}
	})
	if want := "126\n1\n126\n126\npassing-126\nx"; strings.TrimSpace(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
