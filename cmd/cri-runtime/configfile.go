package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// loadConfig returns the configuration of a main file and its drop-ins. The
// main file may be missing when it isn't required.
func loadConfig(file string, required bool) (config, error) {
	var c config
	if err := c.decode("default.toml", []byte(defaultTOML)); err != nil {
		return config{}, err
	}
	data, err := readConfigFile(file)
	switch {
	case err == nil:
		err = c.decode(file, data)
	case errors.Is(err, os.ErrNotExist) && !required:
		err = nil
	}
	if err != nil {
		return config{}, err
	}
	dropIns, err := filepath.Glob(filepath.Join(escapeGlob(file)+".d", "*.toml"))
	if err != nil {
		return config{}, fmt.Errorf("list drop-ins of %s: %w", file, err)
	}
	slices.Sort(dropIns)
	for _, name := range dropIns {
		if data, err = readConfigFile(name); err != nil {
			return config{}, err
		}
		if err = c.decode(name, data); err != nil {
			return config{}, err
		}
	}
	return c, nil
}

// escapeGlob makes a pattern that matches path only.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

func readConfigFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if len(data) > maxConfigBytes {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", errConfig, name, maxConfigBytes)
	}
	return data, nil
}

// decode changes what data, the contents of the file name, sets.
func (c *config) decode(name string, data []byte) error {
	if !utf8.Valid(data) {
		return fmt.Errorf("%w: %s:%d: not UTF-8", errConfig, name, lineOfBadUTF8(data))
	}
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(c)
	var missing *toml.StrictMissingError
	var decode *toml.DecodeError
	switch {
	case err == nil:
	case errors.As(err, &missing):
		unknown := make([]error, len(missing.Errors))
		for i := range missing.Errors {
			row, _ := missing.Errors[i].Position()
			unknown[i] = fmt.Errorf("%w: %s:%d: unknown key %s", errConfig, name, row, strings.Join(missing.Errors[i].Key(), "."))
		}
		return errors.Join(unknown...)
	case errors.As(err, &decode):
		row, column := decode.Position()
		where := strings.Join(decode.Key(), ".")
		if where != "" {
			where += ": "
		}
		return fmt.Errorf("%w: %s:%d:%d: %s%s", errConfig, name, row, column, where, strings.TrimPrefix(decode.Error(), "toml: "))
	default:
		return fmt.Errorf("%w: %s: %w", errConfig, name, err)
	}
	err = c.check()
	var bad *keyError
	if errors.As(err, &bad) {
		return fmt.Errorf("%w: %s:%d: %w", errConfig, name, lineOfKey(data, bad.key), err)
	}
	return err
}

func lineOfBadUTF8(data []byte) int {
	good := 0
	for good < len(data) {
		r, size := utf8.DecodeRune(data[good:])
		if r == utf8.RuneError && size == 1 {
			break
		}
		good += size
	}
	return 1 + bytes.Count(data[:good], []byte{'\n'})
}

// lineOfKey returns the line that sets the dotted key in a document that has
// been decoded without error, or the first line.
func lineOfKey(data []byte, key string) int {
	p := unstable.Parser{}
	p.Reset(data)
	table := ""
	for p.NextExpression() {
		e := p.Expression()
		name, at := "", unstable.Range{}
		for it := e.Key(); it.Next(); {
			name += "." + string(it.Node().Data)
			at = it.Node().Raw
		}
		switch e.Kind { //nolint:exhaustive // the other kinds have no key
		case unstable.Table:
			table = name
		case unstable.KeyValue:
			full := strings.TrimPrefix(table+name, ".")
			if full == key || strings.HasPrefix(key, full+".") {
				return p.Shape(at).Start.Line
			}
		}
	}
	return 1
}
