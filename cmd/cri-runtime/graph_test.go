package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	module       = "github.com/cri-runtime/cri-runtime"
	maxFileLines = 500
	maxDepth     = 5 // edges of the longest chain of imports
)

// graph names, for each package of ours, which others of ours it may import.
// A package below critest may import what is below critest.
func graph() map[string][]string {
	return map[string][]string{
		"cmd/cri-runtime":        {"cmd/cri-runtime/doctor", "server", "server/control", "sandbox", "network", "network/builtin", "imageservice", "conmon", "oci", "sandbox/fault", "sandbox/ledger"},
		"cmd/cri-runtime/doctor": {"network", "imageservice", "sandbox/ledger"},
		"server":                 {"sandbox", "imageservice", "oci", "server/connlimit", "sandbox/fault"},
		"server/control":         {"imageservice", "server/connlimit"},
		"server/connlimit":       {},
		"sandbox":                {"conmon", "network", "oci", "oci/seccomp", "sandbox/fault", "sandbox/ledger"},
		"conmon":                 {"oci", "sandbox/fault"},
		"oci":                    {"oci/seccomp", "sandbox/fault"},
		"oci/seccomp":            {},
		"network":                {"network/builtin", "sandbox/fault", "sandbox/ledger"},
		"network/builtin":        {"sandbox/fault", "sandbox/ledger"},
		"imageservice":           {"imageservice/lanes", "sandbox/fault", "sandbox/ledger"},
		"imageservice/lanes":     {},
		"sandbox/fault":          {},
		"sandbox/ledger":         {},
	}
}

// goPackage is what go list tells of a package.
type goPackage struct {
	ImportPath, Dir                    string
	GoFiles, TestGoFiles, XTestGoFiles []string
	CgoFiles                           []string
	Imports, TestImports, XTestImports []string
}

func (p *goPackage) name() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

// files returns the paths of the package's Go files, tests too.
func (p *goPackage) files() []string {
	var paths []string
	for _, name := range slices.Concat(p.GoFiles, p.CgoFiles, p.TestGoFiles, p.XTestGoFiles) {
		paths = append(paths, filepath.Join(p.Dir, name))
	}
	return paths
}

// goTool runs the go command at the top of the module.
func goTool(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs the go command")
	}
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go %q: %v: %s", args, err, exit.Stderr)
		}
		t.Fatalf("go %q: %v", args, err)
	}
	return string(out)
}

func ourPackages(t *testing.T) []goPackage {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(goTool(t, "list", "-e", "-json", "./...")))
	var packages []goPackage
	for {
		var p goPackage
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	if len(packages) < 4 {
		t.Fatalf("go list found %d packages", len(packages))
	}
	return packages
}

// allowed tells whether the package from may import the package to.
func allowed(from, to string) bool {
	if strings.HasPrefix(from, "critest") {
		return strings.HasPrefix(to, "critest")
	}
	return slices.Contains(graph()[from], to)
}

// below tells whether to is from or can be reached from it: its tests may import it.
func below(from, to string) bool {
	return from == to || allowed(from, to) || slices.ContainsFunc(graph()[from], func(next string) bool { return below(next, to) })
}

func TestImportGraph(t *testing.T) {
	t.Parallel()
	imports := map[string][]string{}
	for _, p := range ourPackages(t) {
		from := p.name()
		if _, known := graph()[from]; !known && !strings.HasPrefix(from, "critest") {
			t.Errorf("package %s is not in the graph", from)
		}
		for _, path := range p.Imports {
			if to, ours := strings.CutPrefix(path, module+"/"); ours {
				imports[from] = append(imports[from], to)
				if !allowed(from, to) {
					t.Errorf("%s imports %s", from, to)
				}
			}
		}
		for _, path := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			to, ours := strings.CutPrefix(path, module+"/")
			if ours && !below(from, to) {
				t.Errorf("a test of %s imports %s", from, to)
			}
			grpc := strings.HasPrefix(path, "google.golang.org/grpc")
			if grpc && from != "server" && !strings.HasPrefix(from, "critest") {
				t.Errorf("%s imports %s: gRPC stops at server", from, path)
			}
			criAPI := strings.HasPrefix(path, "k8s.io/cri-api")
			if criAPI && (from == "conmon" || from == "imageservice") {
				t.Errorf("%s imports %s: it knows no CRI", from, path)
			}
		}
		if len(p.CgoFiles) > 0 {
			t.Errorf("%s uses cgo: %v", from, p.CgoFiles)
		}
	}
	if depth := importDepth(imports, "cmd/cri-runtime"); depth > maxDepth {
		t.Errorf("the longest chain of imports has %d edges, at most %d are wanted", depth, maxDepth)
	}
}

func importDepth(imports map[string][]string, from string) int {
	depth := 0
	for _, to := range imports[from] {
		depth = max(depth, 1+importDepth(imports, to))
	}
	return depth
}

// The monitor and its client are linked into a test by nobody but themselves;
// the daemon must not depend on anything of the tests.
func TestDaemonLinksNoTests(t *testing.T) {
	t.Parallel()
	for dep := range strings.Lines(goTool(t, "list", "-deps", "./cmd/cri-runtime")) {
		dep = strings.TrimSpace(dep)
		for _, never := range []string{"testing", module + "/critest", "k8s.io/client-go", "k8s.io/apiserver"} {
			if dep == never || strings.HasPrefix(dep, never+"/") {
				t.Errorf("cri-runtime links %s", dep)
			}
		}
	}
}

// With a template's engine in the program the linker keeps every exported method
// of every type: a sixth of the file, all of it mapped.
func TestMethodsAreDropped(t *testing.T) {
	t.Parallel()
	program, err := os.ReadFile(filepath.Join("..", "..", "bin", "cri-runtime"))
	if err != nil {
		t.Skip("needs make build:", err)
	}
	if bytes.Contains(program, []byte("text/template.(*state).evalField")) {
		t.Error("cri-runtime links text/template's calls of methods by name")
	}
}

func TestPackageComments(t *testing.T) {
	t.Parallel()
	for _, p := range ourPackages(t) {
		var with []string
		for _, path := range p.files() {
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if file.Doc != nil {
				with = append(with, filepath.Base(path))
			}
		}
		main := slices.Equal(with, []string{"main.go"}) && strings.HasPrefix(p.name(), "critest/")
		if !slices.Equal(with, []string{"doc.go"}) && !main {
			t.Errorf("%s: the package comment is in %v, want it in doc.go alone", p.name(), with)
		}
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	for _, p := range ourPackages(t) {
		for _, path := range p.files() {
			positions := token.NewFileSet()
			file, err := parser.ParseFile(positions, path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			name := filepath.Join(p.name(), filepath.Base(path))
			if lines := positions.File(file.FileStart).LineCount(); lines > maxFileLines {
				t.Errorf("%s has %d lines, at most %d are wanted", name, lines, maxFileLines)
			}
			for _, decl := range file.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
					t.Errorf("%s has an init function", name)
				}
			}
		}
	}
}

func TestModule(t *testing.T) {
	t.Parallel()
	var mod struct {
		Module           struct{ Path string }
		Replace, Exclude []json.RawMessage
	}
	if err := json.Unmarshal([]byte(goTool(t, "mod", "edit", "-json")), &mod); err != nil {
		t.Fatal(err)
	}
	if mod.Module.Path != module {
		t.Errorf("the module is %s, want %s", mod.Module.Path, module)
	}
	if len(mod.Replace)+len(mod.Exclude) > 0 {
		t.Errorf("go.mod replaces or excludes modules: %s %s", mod.Replace, mod.Exclude)
	}
}
