package doctor

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

func (e *exam) otherRuntimes() string {
	seen := map[string][]string{}
	for _, r := range [][2]string{
		{"containerd", "/run/containerd/containerd.sock"},
		{"CRI-O", "/run/crio/crio.sock"},
		{"Docker", "/run/docker.sock"},
		{"cri-dockerd", "/run/cri-dockerd.sock"},
		{"k3s", "/run/k3s/containerd/containerd.sock"},
	} {
		if e.exists(r[1]) {
			seen[r[0]] = append(seen[r[0]], r[1])
		}
	}
	programs := map[string]string{"containerd": "containerd", "crio": "CRI-O", "dockerd": "Docker", "cri-dockerd": "cri-dockerd"}
	for _, pid := range e.list("/proc") {
		if pid == "" || pid[0] < '0' || pid[0] > '9' {
			continue
		}
		comm, _ := e.text("/proc/" + pid + "/comm")
		if name := programs[comm]; name != "" {
			seen[name] = append(seen[name], "process "+pid)
		}
	}
	for _, name := range []string{"containerd", "CRI-O", "Docker", "cri-dockerd", "k3s"} {
		if len(seen[name]) > 0 {
			e.warn(name+" is on this machine: "+strings.Join(seen[name], ", "),
				"images are kept twice, pods of a kubelet that spoke to it go on beside the new ones, and both claim its networks and ports",
				"if no one needs it: drain the node, remove its pods with crictl -r unix://SOCKET rmp -af, stop and disable it")
		}
	}
	return "none"
}

// emptyPods looks for cgroups of pods in which nothing runs and that no pod of
// this runtime has.
func (e *exam) emptyPods() string {
	c := e.cgroups()
	base := c.unified
	if c.v1() {
		base = c.controllers["memory"]
	}
	if base == "" {
		return "there are no cgroups"
	}
	var nobody []string
	pods := 0
	for _, name := range e.list(base) {
		if !strings.HasPrefix(name, "kubepods") {
			continue
		}
		err := filepath.WalkDir(e.path(path.Join(base, name)), func(at string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() || !isPod(d.Name()) {
				return nil //nolint:nilerr // a cgroup that went meanwhile
			}
			pods++
			if stat, err := d.Info(); err == nil && e.Now.Sub(stat.ModTime()) > time.Minute && !populated(at) {
				nobody = append(nobody, strings.TrimPrefix(at, strings.TrimSuffix(e.Host, "/")))
			}
			return fs.SkipDir
		})
		e.cannot(err)
	}
	if len(nobody) > 0 {
		e.warn(fmt.Sprintf("%d cgroups of pods have no process, such as %s", len(nobody), nobody[0]), "each keeps memory of the kernel, and is walked by everyone who counts",
			"the kubelet removes those of pods it knows; others, of a former runtime: find "+base+"/kubepods* -depth -type d -empty, and rmdir")
	}
	return fmt.Sprintf("%d cgroups of pods, all in use", pods)
}

// isPod tells a pod's cgroup from one of a class: podUID, and kubepods-pod….slice
// with systemd.
func isPod(name string) bool {
	if strings.HasSuffix(name, ".slice") {
		return strings.Contains(name, "-pod")
	}
	return strings.HasPrefix(name, "pod")
}

// populated tells whether a process is in a cgroup or one below it.
func populated(dir string) bool {
	found := false
	err := filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // a cgroup that went meanwhile
		}
		if procs, err := os.ReadFile(filepath.Join(at, "cgroup.procs")); err == nil && len(procs) > 0 {
			found = true
			return fs.SkipAll
		}
		return nil
	})
	return found || err != nil
}

// records asks what the command check asks.
func (e *exam) records() string {
	if e.Audit == nil {
		return "not asked"
	}
	findings, err := e.Audit()
	if err != nil {
		e.fail(err.Error(), "records cannot be compared with the host", "see cri-runtime check")
	}
	for _, f := range findings {
		e.warn(f.Path+": "+f.Problem, "a record and the host do not fit together", f.Remedy)
	}
	return "records and host fit together"
}
