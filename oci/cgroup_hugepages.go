package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	hugePagesDir = "/sys/kernel/mm/hugepages"
	// hugePagesAge is for how long what was found counts: a list of metrics
	// must not look for each container, nor a new pool be unseen for long.
	hugePagesAge = time.Second
)

// hugePages knows the sizes of huge pages that the node has.
type hugePages struct {
	mu    sync.Mutex
	until time.Time
	sizes []string
}

// now names the sizes. Of one without a page no cgroup can use any.
func (h *hugePages) now() []string {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); now.After(h.until) {
		h.sizes, h.until = hugePageSizes(hugePagesDir), now.Add(hugePagesAge)
	}
	return h.sizes
}

// hugePageSizes names the sizes of which there are pages, or can be on
// demand, as the hugetlb controller does.
func hugePageSizes(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var sizes []string
	for _, e := range entries {
		kb, ok := parseUint([]byte(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB")))
		if !ok || !somePages(filepath.Join(dir, e.Name())) {
			continue
		}
		switch {
		case kb >= 1<<20:
			sizes = append(sizes, fmt.Sprintf("%dGB", kb>>20))
		case kb >= 1<<10:
			sizes = append(sizes, fmt.Sprintf("%dMB", kb>>10))
		default:
			sizes = append(sizes, fmt.Sprintf("%dKB", kb))
		}
	}
	return sizes
}

func somePages(dir string) bool {
	for _, name := range []string{"nr_hugepages", "nr_overcommit_hugepages"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if n, ok := parseUint(data); err == nil && ok && n > 0 {
			return true
		}
	}
	return false
}
