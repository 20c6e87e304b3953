package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

const (
	// maxConfBytes is the size of the largest configuration file that is read.
	maxConfBytes = 1 << 20
	// maxNameBytes leaves room for id and interface in libcni's cache file name.
	maxNameBytes = 128
	// settled is the age from which a file's times tell a later change from
	// the one that was read: kernel timestamps may be as coarse as a tick.
	settled = 50 * time.Millisecond
)

// refusal says why a file of the configuration directory is not used.
type refusal struct {
	file string
	err  error
}

// confDir is what one reading of the configuration directory found. It is
// never changed once made.
type confDir struct {
	list    *libcni.NetworkConfigList // nil: none is valid
	file    string                    // where list comes from
	refused []refusal                 // files before the one that is used
	err     error                     // the directory could not be read
	marks   string                    // fingerprint of the directory before it was read
	fresh   bool                      // a file is so new that marks may hide a later change
}

// readConfDir reads the files in lexical order up to the first valid one.
func readConfDir(dir, marks string, now time.Time) *confDir {
	c := &confDir{marks: marks, fresh: changedNear(marks, now)}
	entries, err := os.ReadDir(dir)
	if err != nil {
		c.err = err
		return c
	}
	for _, entry := range entries {
		if entry.IsDir() || !isConf(entry.Name()) {
			continue
		}
		file := filepath.Join(dir, entry.Name())
		list, err := readList(dir, file)
		if err != nil {
			c.refused = append(c.refused, refusal{file: file, err: err})
			continue
		}
		c.list, c.file = list, file
		break
	}
	return c
}

func isConf(name string) bool {
	switch filepath.Ext(name) {
	case ".conflist", ".conf", ".json":
		return true
	}
	return false
}

// readList reads one configuration list, or one plugin's configuration that
// makes a list of its own.
func readList(dir, file string) (*libcni.NetworkConfigList, error) {
	data, err := readConf(file)
	if err != nil {
		return nil, err
	}
	if filepath.Ext(file) != ".conflist" {
		if data, err = listOfOne(data); err != nil {
			return nil, err
		}
	}
	list, err := parseList(data)
	if err != nil {
		return nil, err
	}
	if !list.LoadOnlyInlinedPlugins {
		if list, err = withPluginDir(list, filepath.Join(dir, list.Name)); err != nil {
			return nil, err
		}
	}
	if len(list.Plugins) == 0 {
		return nil, fmt.Errorf("%w: no plugins in the list", ErrInvalid)
	}
	return list, nil
}

// readConf reads a file without trusting it to be one: a pipe would block, a
// device or a huge file would take all memory.
func readConf(name string) ([]byte, error) {
	file, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	stat, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !stat.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: not a regular file but %s", ErrInvalid, stat.Mode().Type())
	}
	data, err := io.ReadAll(io.LimitReader(file, maxConfBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxConfBytes {
		return nil, fmt.Errorf("%w: larger than %d bytes", ErrInvalid, maxConfBytes)
	}
	return data, nil
}

// listOfOne makes a configuration list of one plugin's configuration.
func listOfOne(data []byte) ([]byte, error) {
	if err := checkText(data); err != nil {
		return nil, err
	}
	plugin := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &plugin); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, ok := plugin["plugins"]; ok {
		return data, nil
	}
	list := map[string]any{"plugins": []any{plugin}}
	for _, key := range []string{"name", "cniVersion"} {
		if value, ok := plugin[key]; ok {
			list[key] = value
		}
	}
	return json.Marshal(list)
}

func checkText(data []byte) error {
	if !utf8.Valid(data) {
		return fmt.Errorf("%w: not UTF-8", ErrInvalid)
	}
	return nil
}

// parseList parses and checks a configuration list. Names go into file names
// and plugin types are names of binaries: neither may name a path.
func parseList(data []byte) (*libcni.NetworkConfigList, error) {
	if err := checkText(data); err != nil {
		return nil, err
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, fmt.Errorf("%w: name %q: %s", ErrInvalid, quote([]byte(list.Name)), err.Msg)
	}
	if len(list.Name) > maxNameBytes {
		return nil, fmt.Errorf("%w: name has more than %d bytes", ErrInvalid, maxNameBytes)
	}
	if err := checkVersion(list.CNIVersion); err != nil {
		return nil, err
	}
	for _, plugin := range list.Plugins {
		if err := checkType(plugin.Network.Type); err != nil {
			return nil, err
		}
		if ipam := plugin.Network.IPAM.Type; ipam != "" {
			if err := checkType(ipam); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

func checkVersion(v string) error {
	if v == "" {
		return nil
	}
	newer, err := version.GreaterThan(v, version.Current())
	if err != nil {
		return fmt.Errorf("%w: cniVersion %q: %w", ErrInvalid, quote([]byte(v)), err)
	}
	if newer {
		return fmt.Errorf("%w: cniVersion %s is newer than %s, the newest supported", ErrInvalid, v, version.Current())
	}
	return nil
}

func checkType(name string) error {
	if name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || len(name) > maxNameBytes {
		return fmt.Errorf("%w: plugin type %q is not the name of a binary", ErrInvalid, quote([]byte(name)))
	}
	return nil
}

// withPluginDir appends the plugins that live in files of their own, and
// makes the list's bytes complete, since DEL has nothing but them.
func withPluginDir(list *libcni.NetworkConfigList, dir string) (*libcni.NetworkConfigList, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return list, nil
		}
		return nil, err
	}
	whole := map[string]any{}
	if err := json.Unmarshal(list.Bytes, &whole); err != nil {
		return nil, err
	}
	plugins, _ := whole["plugins"].([]any)
	inlined := len(plugins)
	for _, entry := range entries {
		if entry.IsDir() || filepath.Ext(entry.Name()) != ".conf" {
			continue
		}
		data, err := readConf(filepath.Join(dir, entry.Name()))
		if err != nil {
			return nil, err
		}
		if err := checkText(data); err != nil {
			return nil, fmt.Errorf("%s: %w", entry.Name(), err)
		}
		plugins = append(plugins, json.RawMessage(data))
	}
	if len(plugins) == inlined {
		return list, nil
	}
	whole["plugins"], whole["loadOnlyInlinedPlugins"] = plugins, true
	data, err := json.Marshal(whole)
	if err != nil {
		return nil, fmt.Errorf("%w: plugins in %s: %w", ErrInvalid, dir, err)
	}
	return parseList(data)
}

// fingerprint returns one line for each file that readConfDir would look at.
// It costs a stat a file, so that it can be taken at every call.
func fingerprint(dir string) string {
	var b []byte
	var stat unix.Stat_t
	if err := unix.Stat(dir, &stat); err != nil {
		return "!" + err.Error()
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "!" + err.Error()
	}
	for _, entry := range entries {
		name := filepath.Join(dir, entry.Name())
		if entry.IsDir() {
			b = fingerprintPlugins(b, name)
		} else if isConf(entry.Name()) {
			b = fingerprintFile(b, name)
		}
	}
	return string(b)
}

func fingerprintPlugins(b []byte, dir string) []byte {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return append(b, dir+" "+err.Error()+"\n"...)
	}
	for _, entry := range entries {
		if filepath.Ext(entry.Name()) == ".conf" {
			b = fingerprintFile(b, filepath.Join(dir, entry.Name()))
		}
	}
	return b
}

func fingerprintFile(b []byte, name string) []byte {
	var stat unix.Stat_t
	err := unix.Stat(name, &stat)
	b = append(b, name...)
	if err != nil {
		b = append(b, ' ')
		return append(b, err.Error()+"\n"...)
	}
	for _, n := range []int64{int64(stat.Dev), int64(stat.Ino), stat.Size, stat.Mtim.Nano(), stat.Ctim.Nano()} {
		b = append(b, ' ')
		b = strconv.AppendInt(b, n, 10)
	}
	return append(b, '\n')
}

// changedNear tells whether a file of the fingerprint changed so little before or
// after now that a change to come may have the same time. A line ends with the time of
// the last change; one that is far in the future is of before the clock was set back.
func changedNear(marks string, now time.Time) bool {
	for line := range strings.Lines(marks) {
		line = strings.TrimSuffix(line, "\n")
		changed, err := strconv.ParseInt(line[strings.LastIndexByte(line, ' ')+1:], 10, 64)
		if age := now.UnixNano() - changed; err == nil && age < int64(settled) && age > -int64(settled) {
			return true
		}
	}
	return false
}
