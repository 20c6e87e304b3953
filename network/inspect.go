package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Inspection is what is in a configuration directory, for people.
type Inspection struct {
	File     string   // that is used, "" if none is
	Name     string   // of its network
	Plugins  []string // types that it runs, those for addresses too
	Missing  []string // of these, those that no directory of plugins has
	Bridges  []Bridge // that its plugins make
	Refused  []error  // files before it that are not used: path, line if it is known, why
	Unused   []string // files after it, which nothing reads
	Problem  error    // the directory could not be read
	DataDirs []string // where host-local keeps the leases of this network
}

// Bridge is what a plugin of the type bridge is configured with.
type Bridge struct {
	Name    string   // of the interface
	Subnets []string // of its addresses
}

const leaseDir = "/var/lib/cni/networks" // of host-local where nothing else is configured

// Inspect reads a configuration directory as Open does, and looks for its plugins.
func Inspect(confDirectory string, binDirs []string) *Inspection {
	c := readConfDir(confDirectory, "", time.Time{})
	out := &Inspection{File: c.file}
	if !errors.Is(c.err, fs.ErrNotExist) {
		out.Problem = c.err
	}
	for _, r := range c.refused {
		out.Refused = append(out.Refused, fmt.Errorf("%s%w", lineOf(r.file, r.err), r.err))
	}
	if c.list == nil {
		return out
	}
	out.Name = c.list.Name
	out.unused(confDirectory)
	for _, p := range c.list.Plugins {
		for _, name := range []string{p.Network.Type, p.Network.IPAM.Type} {
			if name != "" && !slices.Contains(out.Plugins, name) {
				out.Plugins = append(out.Plugins, name)
			}
		}
		out.addresses(p.Bytes)
	}
	for _, name := range out.Plugins {
		if !slices.ContainsFunc(binDirs, func(dir string) bool { return isProgram(filepath.Join(dir, name)) }) {
			out.Missing = append(out.Missing, name)
		}
	}
	return out
}

// addresses notes bridge and leases of one plugin's configuration.
func (i *Inspection) addresses(data []byte) {
	var conf struct {
		Type   string `json:"type"`
		Bridge string `json:"bridge"`
		IPAM   struct {
			Type   string `json:"type"`
			Subnet string `json:"subnet"`
			Ranges [][]struct {
				Subnet string `json:"subnet"`
			} `json:"ranges"`
			DataDir string `json:"dataDir"`
		} `json:"ipam"`
	}
	if json.Unmarshal(data, &conf) != nil || conf.IPAM.Type != "host-local" {
		return // of another form, which its plugin knows
	}
	dir := conf.IPAM.DataDir
	if dir == "" {
		dir = leaseDir
	}
	i.DataDirs = append(i.DataDirs, filepath.Join(dir, i.Name))
	if conf.Type != "bridge" {
		return
	}
	b := Bridge{Name: conf.Bridge}
	if b.Name == "" {
		b.Name = "cni0" // the plugin's default
	}
	if conf.IPAM.Subnet != "" {
		b.Subnets = append(b.Subnets, conf.IPAM.Subnet)
	}
	for _, set := range conf.IPAM.Ranges {
		for _, r := range set {
			b.Subnets = append(b.Subnets, r.Subnet)
		}
	}
	i.Bridges = append(i.Bridges, b)
}

// unused lists the files that would be used if those before them were not there.
func (i *Inspection) unused(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		i.Problem = err
	}
	for _, e := range entries {
		if file := filepath.Join(dir, e.Name()); !e.IsDir() && isConf(e.Name()) && file > i.File {
			i.Unused = append(i.Unused, file)
		}
	}
}

func isProgram(path string) bool {
	stat, err := os.Stat(path)
	return err == nil && stat.Mode().IsRegular() && stat.Mode()&0o111 != 0
}

// lineOf is "FILE:LINE: " where the error has a place in the file.
func lineOf(file string, err error) string {
	at := int64(-1)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	data, readErr := readConf(file)
	switch {
	case readErr != nil:
		return file + ": "
	case errors.As(err, &syntax):
		at = syntax.Offset
	case errors.As(err, &kind):
		at = kind.Offset
	default: // libcni keeps the words alone
		var whole json.RawMessage
		if errors.As(json.Unmarshal(data, &whole), &syntax) {
			at = syntax.Offset
		}
	}
	if at < 0 || at > int64(len(data)) {
		return file + ": "
	}
	return fmt.Sprintf("%s:%d: ", file, 1+bytes.Count(data[:at], []byte{'\n'}))
}
