package ledger

import "fmt"

// Finding is one thing that is not as it has to be.
type Finding struct {
	Path    string `json:"path"`    // of the file, directory, cgroup, interface or process
	Problem string `json:"problem"` // what is wrong with it
	Remedy  string `json:"remedy"`  // what mends it
}

// String is one line for people.
func (f Finding) String() string { return fmt.Sprintf("%s: %s; %s", f.Path, f.Problem, f.Remedy) }

// Findings are in the order in which they were found.
type Findings []Finding

// Add notes one.
func (f *Findings) Add(path, problem, remedy string) {
	*f = append(*f, Finding{Path: path, Problem: problem, Remedy: remedy})
}
