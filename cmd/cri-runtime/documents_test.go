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

	"google.golang.org/protobuf/reflect/protoreflect"
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

// criFields returns the messages that the two services can be sent or answer
// with, and their fields.
func criFields() map[string][]string {
	out := map[string][]string{}
	var walk func(m protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		name := string(m.Name())
		if _, seen := out[name]; seen || m.IsMapEntry() {
			return
		}
		out[name] = nil
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			out[name] = append(out[name], string(f.Name()))
			if f.Message() != nil {
				walk(f.Message())
			}
		}
	}
	services := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			walk(methods.Get(j).Input())
			walk(methods.Get(j).Output())
		}
	}
	return out
}

// Every field of cri-api is in SPECIFICATION-CRI.md, once, with what is done
// with it and a test, or the word unverified.
func TestFieldsOfCRI(t *testing.T) {
	t.Parallel()
	const cells = 6 // with what is before the first bar and after the last
	fields, named := criFields(), map[string]bool{}
	for _, line := range strings.Split(readDocument(t, "SPECIFICATION-CRI.md"), "\n") {
		row := strings.Split(line, "|")
		if len(row) != cells || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| message ") {
			continue
		}
		if strings.TrimSpace(row[3]) == "" || !strings.Contains(row[4], "`") && !strings.Contains(row[4], "unverified") {
			t.Errorf("without a test: %s", line)
		}
		for _, name := range rowFields(fields, row[1], row[2]) {
			if named[name] {
				t.Errorf("%s is in two rows", name)
			}
			named[name] = true
		}
	}
	for message, list := range fields {
		for _, field := range list {
			if !named[message+"."+field] {
				t.Errorf("%s.%s is not in SPECIFICATION-CRI.md", message, field)
			}
			delete(named, message+"."+field)
		}
	}
	for name := range named {
		t.Errorf("SPECIFICATION-CRI.md names %s, which cri-api does not have", name)
	}
}

// rowFields returns the fields that the first two cells of a row name. A message
// with a star at its end stands for all that begin so.
func rowFields(fields map[string][]string, messages, names string) (out []string) {
	split := func(s string) []string { return strings.Split(strings.ReplaceAll(s, " ", ""), ",") }
	for _, message := range split(messages) {
		prefix, many := strings.CutSuffix(message, "*")
		for m, list := range fields {
			if m != message && (!many || !strings.HasPrefix(m, prefix)) {
				continue
			}
			if names := split(names); names[0] != "all" {
				list = names
			}
			for _, field := range list {
				out = append(out, m+"."+field)
			}
		}
		if _, ok := fields[message]; !ok && !many {
			out = append(out, message+".") // there is no such message
		}
	}
	return out
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
	for _, document := range []string{"README.md", "ARCHITECTURE.md", "SPECIFICATION.md", "SPECIFICATION-CRI.md", "SECURITY.md", "conmon/PROTOCOL.md"} {
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
