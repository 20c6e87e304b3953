package imageservice

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// InspectHosts reads the description of every registry in a directory, with its
// certificates, as a pull would, and returns how many there are and what is
// wrong with them.
func InspectHosts(root string) (registries int, problems []error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, []error{fmt.Errorf("%w: %w", errHosts, err)}
	}
	for _, entry := range entries {
		if stat, err := os.Stat(filepath.Join(root, entry.Name())); err != nil || !stat.IsDir() {
			continue // what a pull doesn't look at either
		}
		registries++
		if err := inspectHost(root, entry.Name()); err != nil {
			problems = append(problems, err)
		}
	}
	return registries, problems
}

func inspectHost(root, name string) error {
	domain := name
	if host, ok := strings.CutSuffix(name, "_"); ok { // HOST_PORT_
		if i := strings.LastIndexByte(host, '_'); i > 0 {
			domain = host[:i] + ":" + host[i+1:]
		}
	}
	list, err := endpoints(root, domain)
	var syntax *toml.DecodeError
	if errors.As(err, &syntax) {
		row, _ := syntax.Position()
		return fmt.Errorf("line %d: %w", row, err)
	}
	if err != nil {
		return err
	}
	file := filepath.Join(root, name, hostsFile)
	for i := range list {
		if _, err := list[i].tlsConfig(); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}
