package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Every command has a manual page with all its flags, every key of the
// configuration is in cri-runtime.toml(5), and there are completions.
func TestDocuments(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CGO_ENABLED", "0") // with the flags of make build, most is compiled already
	goTool(t, "run", "-trimpath", "-tags", "docs,grpcnotrace", "./cmd/cri-runtime", "docs", dir)
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		}
		return strings.ReplaceAll(string(text), `\-`, "-")
	}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
		page := read("man/man1/" + name + ".1")
		if !strings.Contains(page, cmd.Short) {
			t.Errorf("the page of %s does not have %q", name, cmd.Short)
		}
		flags := func(f *pflag.Flag) {
			if !f.Hidden && !strings.Contains(page, "--"+f.Name) {
				t.Errorf("the page of %s does not have --%s", name, f.Name)
			}
		}
		cmd.LocalFlags().VisitAll(flags)
		cmd.InheritedFlags().VisitAll(flags)
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() {
				walk(c)
			}
		}
	}
	walk(rootCommand())
	keys := map[string]any{}
	if err := toml.Unmarshal([]byte(defaultTOML), &keys); err != nil {
		t.Fatal(err)
	}
	page := read("man/man5/cri-runtime.toml.5")
	wantKeys(t, page, keys)
	for _, name := range []string{
		"bash-completion/completions/cri-runtime", "zsh/site-functions/_cri-runtime", "fish/vendor_completions.d/cri-runtime.fish",
	} {
		if !strings.Contains(read(name), "cri-runtime") {
			t.Errorf("%s completes nothing", name)
		}
	}
}

func wantKeys(t *testing.T, page string, keys map[string]any) {
	t.Helper()
	for key, value := range keys {
		if !strings.Contains(page, `\fB`+key+`\fP = `) && !strings.Contains(page, key+"]\n") {
			t.Errorf("cri-runtime.toml(5) does not have %s", key)
		}
		if table, ok := value.(map[string]any); ok {
			wantKeys(t, page, table)
		}
	}
}

// The daemon that is shipped has no generator.
func TestDaemonWritesNoDocuments(t *testing.T) {
	t.Parallel()
	for dep := range strings.Lines(goTool(t, "list", "-deps", "./cmd/cri-runtime")) {
		if strings.Contains(dep, "cobra/doc") || strings.Contains(dep, "md2man") {
			t.Errorf("cri-runtime links %s", strings.TrimSpace(dep))
		}
	}
	if len(documentCommands()) > 0 {
		t.Error("cri-runtime has a command that writes documents")
	}
}
