package faults

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/critest/harness"
)

// impossible has the points at which the daemon cannot be killed here, and why.
func impossible() map[string]string {
	return map[string]string{}
}

// TestKilledAtEveryPoint kills the daemon at each fault point of its source,
// while bystanders write logs and one container ends without it. After the
// next start the verb is repeated, or the kubelet's clean-up done: nothing is
// left, nothing was lost, and no bystander has noticed. LONG=1 kills at each
// point in each verb that passes it, up to three times on its way, and does both.
func TestKilledAtEveryPoint(t *testing.T) {
	if depot == nil {
		t.Skip("needs root")
	}
	source := pointsOfSource(t)
	covered := map[string]bool{}
	for _, part := range []struct {
		name       string
		options    func(o *harness.Options)
		bystanders int
		verbs      []*verb
	}{
		{"built-in network", func(*harness.Options) {}, 2, verbs()},
		{"CNI plugins", func(o *harness.Options) { o.CNI, o.Builtin = true, false }, 1, pluginVerbs()},
		{"without a pod", func(*harness.Options) {}, 0, emptyVerbs()},
	} {
		t.Run(part.name, func(t *testing.T) {
			s := newSweep(t, begin(t, part.options), part.bystanders)
			s.covered = covered
			for _, v := range part.verbs {
				t.Run(v.name, func(t *testing.T) { s.sweepVerb(t, v) })
			}
		})
	}
	why := impossible()
	for _, p := range slices.Sorted(maps.Keys(covered)) {
		if !source[p] {
			t.Errorf("the daemon was killed at %s, which is not in the source", p)
		}
		if why[p] != "" {
			t.Errorf("the daemon was killed at %s, which is listed as impossible", p)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(source)) {
		if !covered[p] && why[p] == "" {
			t.Errorf("no verb was killed at fault point %s", p)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(why)) {
		if !source[p] {
			t.Errorf("the impossible fault point %s is not in the source", p)
		}
		note("not reached: %s: %s", p, why[p])
	}
	count(pointsCovered, len(covered))
	count(pointsImpossible, len(why))
}

// pointsOfSource finds the fault points in the product's source.
func pointsOfSource(t *testing.T) map[string]bool {
	t.Helper()
	points := map[string]bool{}
	top := filepath.Join("..", "..")
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && (path == filepath.Join(top, "critest") || name == "out" || name == "bin" || strings.HasPrefix(name, ".") && path != top) {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(text), "fault.Point") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if name, ok := pointOf(n); ok {
				if points[name] {
					t.Errorf("%s: fault point %q is in the source twice", path, name)
				}
				points[name] = true
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return points
}

// pointOf returns the name that a call of fault.Point has.
func pointOf(n ast.Node) (string, bool) {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) != 1 {
		return "", false
	}
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || f.Sel.Name != "Point" {
		return "", false
	}
	if of, ok := f.X.(*ast.Ident); !ok || of.Name != "fault" {
		return "", false
	}
	lit, ok := call.Args[0].(*ast.BasicLit)
	if !ok {
		return "a name that is no constant", true
	}
	name, err := strconv.Unquote(lit.Value)
	return name, err == nil
}
