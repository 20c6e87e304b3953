package sandbox

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/cri-runtime/cri-runtime/oci"
)

// maxJoins is how many tasks files a daemon keeps open: 9 of each of 400 containers.
const maxJoins = 3600

// joins are the open tasks files of a container's cgroup (v1). To open one takes the
// kernel 20 us, and a process that joins needs one of each hierarchy.
type joins struct {
	mu     sync.Mutex
	files  []*os.File // as oci.Cgroup.JoinPaths; nil: none are kept
	users  int
	closed bool
	budget *atomic.Int32
}

// keep takes the files over, or closes them where there is no room or no use for them any more.
func (j *joins) keep(files []*os.File, budget *atomic.Int32) {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := int32(len(files))
	if j.closed || j.files != nil || n == 0 {
		closeAll(files)
		return
	}
	if budget.Add(n) > maxJoins {
		budget.Add(-n)
		closeAll(files)
		return
	}
	j.files, j.budget = files, budget
}

// use returns the files until done is called; there may be none.
func (j *joins) use() (files []*os.File, done func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.users++
	return j.files, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.users--
		j.release()
	}
}

// close closes the files once nobody uses them.
func (j *joins) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	j.release()
}

func (j *joins) release() {
	if !j.closed || j.users > 0 || j.files == nil {
		return
	}
	closeAll(j.files)
	j.budget.Add(-int32(len(j.files)))
	j.files = nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // what was written is in the kernel
	}
}

// openJoins opens the tasks files of a cgroup, in the order of its JoinPaths.
func openJoins(paths []string) ([]*os.File, error) {
	files := make([]*os.File, 0, len(paths))
	for _, p := range paths {
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("open cgroup: %w", err)
		}
		files = append(files, f)
	}
	return files, nil
}

// joinFiles returns the tasks files of the cgroup of an exec until done is called: its own,
// and in the other hierarchies the container's, which are kept. What is not kept is open's.
func (c *Container) joinFiles(sub *oci.Cgroup, open *fileList) (files []*os.File, done func()) {
	paths := sub.JoinPaths()
	kept, done := c.joins.use()
	if kept == nil && len(paths) > 0 { // after a restart
		done()
		if whole, err := c.cgroup(); err == nil {
			files, err := openJoins(whole.JoinPaths())
			open.keep(nil, err)
			c.joins.keep(files, &c.store.joins)
		}
		kept, done = c.joins.use()
	}
	for i, path := range paths {
		if i < len(kept) && kept[i].Name() == path {
			files = append(files, kept[i])
			continue
		}
		files = append(files, open.keep(os.OpenFile(path, os.O_WRONLY, 0)))
	}
	return files, done
}
