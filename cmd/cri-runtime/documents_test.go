package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func readDocument(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Every RPC of cri-api is in SPECIFICATION.md, with what the server does.
func TestSpecificationListsRPCs(t *testing.T) {
	t.Parallel()
	var rpcs []string
	for _, m := range runtimeapi.RuntimeService_ServiceDesc.Methods {
		rpcs = append(rpcs, m.MethodName)
	}
	for _, s := range runtimeapi.RuntimeService_ServiceDesc.Streams {
		rpcs = append(rpcs, s.StreamName)
	}
	for _, m := range runtimeapi.ImageService_ServiceDesc.Methods {
		rpcs = append(rpcs, m.MethodName)
	}
	for _, s := range runtimeapi.ImageService_ServiceDesc.Streams {
		rpcs = append(rpcs, s.StreamName)
	}
	text, server := readDocument(t, "SPECIFICATION.md"), readDocument(t, "server/unimplemented.go")
	listed := map[string]bool{}
	for _, row := range regexp.MustCompile(`\| (\w+) \| (yes|Unimplemented)`).FindAllStringSubmatch(text, -1) {
		listed[row[1]] = row[2] == "yes"
	}
	for _, rpc := range rpcs {
		there, ok := listed[rpc]
		delete(listed, rpc)
		refused := regexp.MustCompile(`[/"]` + rpc + `"`).MatchString(server)
		if !ok || there == refused {
			t.Errorf("%s: SPECIFICATION.md lists it: %t, as implemented: %t; the server refuses it: %t", rpc, ok, there, refused)
		}
	}
	for rpc := range listed {
		t.Errorf("SPECIFICATION.md lists %s, which cri-api does not have", rpc)
	}
}

// Documents name tests as `package TestName`; each one exists.
func TestDocumentsNameTests(t *testing.T) {
	t.Parallel()
	exists := map[string]bool{}
	for _, p := range ourPackages(t) {
		for _, path := range p.files() {
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, decl := range file.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasSuffix(path, "_test.go") {
					exists[p.name()+" "+f.Name.Name] = true
				}
			}
		}
	}
	named := regexp.MustCompile("`([a-z/-]+ (?:Test|Fuzz|Benchmark)[A-Z]\\w*)`")
	for _, document := range []string{"README.md", "ARCHITECTURE.md", "SPECIFICATION.md", "SECURITY.md", "conmon/PROTOCOL.md"} {
		text := readDocument(t, document)
		for _, name := range named.FindAllStringSubmatch(text, -1) {
			if !exists[name[1]] {
				t.Errorf("%s names the test %s, which does not exist", document, name[1])
			}
		}
		for _, line := range strings.Split(text, "\n") {
			// Spelled in two pieces, so that this file is no finding itself.
			if strings.Contains(line, "TO"+"DO") || strings.Contains(line, "FIX"+"ME") {
				t.Errorf("%s: unfinished: %s", document, line)
			}
		}
	}
}
