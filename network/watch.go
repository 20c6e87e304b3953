package network

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"
)

// rereadInterval is how often the directory and the plugins' health are looked
// at without being asked.
const rereadInterval = 10 * time.Second

// watch looks at the configuration when the kernel reports a change and on a
// timer. The report is only a hint: it may be missing, because the directory
// is replaced, remounted or does not exist yet, or because the machine has no
// inotify instance left.
func (n *Network) watch(ctx context.Context) {
	defer close(n.stopped)
	ticker := time.NewTicker(rereadInterval)
	defer ticker.Stop()
	var events chan fsnotify.Event
	var errs chan error
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		klog.InfoS("No notice of changed CNI configuration, it is read on a timer", "err", err)
	} else {
		defer watcher.Close()
		events, errs = watcher.Events, watcher.Errors
	}
	for {
		follow(watcher, n.config.ConfDir)
		n.checkHealth(ctx)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				waiting = false
			case err := <-errs: // events may have been lost
				klog.V(2).InfoS("Notices of changed CNI configuration", "err", err)
				waiting = false
			case <-events:
				follow(watcher, n.config.ConfDir)
				old := n.conf.Load()
				waiting = n.refresh().list == old.list
			}
		}
	}
}

// follow watches the directory, or the nearest one above it that exists.
func follow(watcher *fsnotify.Watcher, dir string) {
	if watcher == nil {
		return
	}
	for dir != "/" {
		if stat, err := os.Stat(dir); err == nil && stat.IsDir() {
			break
		}
		dir = filepath.Dir(dir)
	}
	for _, watched := range watcher.WatchList() {
		if watched != dir {
			_ = watcher.Remove(watched) // it may have gone with its directory
		}
	}
	if err := watcher.Add(dir); err != nil {
		klog.V(2).InfoS("No notice of changed CNI configuration, it is read on a timer", "directory", dir, "err", err)
	}
}
