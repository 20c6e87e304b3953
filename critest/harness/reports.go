package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// reports is what the race detector of a daemon that was built with it has logged, and
// what monitors that were built with sanitizers have put into files that begin with
// $CRITEST_REPORTS. Ordinary builds say nothing.
func (r *Runtime) reports() []error {
	log, err := os.ReadFile(filepath.Join(r.Dir, "daemon.log"))
	errs := []error{err}
	const border = "==================\n"
	for _, part := range strings.Split(string(log), border) {
		if strings.HasPrefix(part, "WARNING: DATA RACE") {
			errs = append(errs, fmt.Errorf("%w by the race detector:\n%s", ErrReport, part))
		}
	}
	prefix := os.Getenv("CRITEST_REPORTS")
	if prefix == "" {
		return errs
	}
	files, err := filepath.Glob(prefix + ".*")
	errs = append(errs, err)
	for _, f := range files {
		text, err := os.ReadFile(f)
		errs = append(errs, err, fmt.Errorf("%w by a sanitizer, %s:\n%s", ErrReport, f, text))
	}
	return errs
}
