package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// total counts the specs of a run. Specs that another flag leaves out, such
// as benchmarks in a run of the validation, are skipped ones.
type total struct{ passed, failed, skipped int }

// spec is what the suite's framework reports of one.
type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeText            string
	LeafNodeType            string
	State                   string
	Failure                 struct{ Message string }
}

// readReport prints the specs that failed or were skipped, and counts all.
func readReport(path string, out io.Writer) (t total, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return t, fmt.Errorf("read the suite's report: %w", err)
	}
	var suites []struct{ SpecReports []spec }
	if err := json.Unmarshal(data, &suites); err != nil {
		return t, fmt.Errorf("read the suite's report: %w", err)
	}
	for _, suite := range suites {
		for _, s := range suite.SpecReports {
			t.add(s, out)
		}
	}
	return t, nil
}

func (t *total) add(s spec, out io.Writer) {
	switch {
	case s.State == "passed":
		if s.LeafNodeType == "It" {
			t.passed++
		}
		return
	case s.State == "skipped", s.State == "pending":
		t.skipped++
	default:
		t.failed++
	}
	name := strings.Join(append(s.ContainerHierarchyTexts, s.LeafNodeText), " / ")
	message, _, _ := strings.Cut(s.Failure.Message, "\n\n")
	fmt.Fprintf(out, "%s: %s: %s\n", s.State, name, strings.Join(strings.Fields(message), " "))
}
