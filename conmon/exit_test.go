package conmon

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const goodRecord = "version 1\ncode 137\nsignal 9\noom_killed 2\nflags 1\nstarted_ns 1700000000000000001\nfinished_ns 1700000000000000002\n"

func TestReadExit(t *testing.T) {
	tests := map[string]struct {
		text string
		want Exit
		err  error
	}{
		"good": {goodRecord, Exit{137, 9, true, true, 1700000000000000001, 1700000000000000002}, nil},
		"zero": {
			"version 1\ncode 0\nsignal 0\noom_killed 0\nflags 0\nstarted_ns 0\nfinished_ns 0\n", Exit{}, nil,
		},
		"other order and a key of later":  {"new x y\nfinished_ns 2\nstarted_ns 1\nflags 2\noom_killed 0\nsignal 0\ncode 5\nversion 1\n", Exit{Code: 5, StartedAt: 1, FinishedAt: 2}, nil},
		"with its sum":                    {goodRecord + "crc32c 3290172826\n", Exit{137, 9, true, true, 1700000000000000001, 1700000000000000002}, nil},
		"wrong sum":                       {goodRecord + "crc32c 3\n", Exit{}, ErrExitRecord},
		"sum of nothing":                  {"crc32c 0\n", Exit{}, ErrExitRecord},
		"sum that is no number":           {goodRecord + "crc32c x\n", Exit{}, ErrExitRecord},
		"empty":                           {"", Exit{}, ErrExitRecord},
		"cut short":                       {goodRecord[:60], Exit{}, ErrExitRecord},
		"cut within the last line":        {goodRecord[:len(goodRecord)-1], Exit{}, ErrExitRecord},
		"later version":                   {strings.Replace(goodRecord, "version 1", "version 2", 1), Exit{}, errors.ErrUnsupported},
		"repeated":                        {goodRecord + "code 1\n", Exit{}, ErrExitRecord},
		"no number":                       {strings.Replace(goodRecord, "137", "abc", 1), Exit{}, ErrExitRecord},
		"negative":                        {strings.Replace(goodRecord, "137", "-1", 1), Exit{}, ErrExitRecord},
		"code too large":                  {strings.Replace(goodRecord, "137", "256", 1), Exit{}, ErrExitRecord},
		"signal too large":                {strings.Replace(goodRecord, "signal 9", "signal 65", 1), Exit{}, ErrExitRecord},
		"time too large":                  {strings.Replace(goodRecord, "1700000000000000001", "9223372036854775808", 1), Exit{}, ErrExitRecord},
		"no value":                        {strings.Replace(goodRecord, "code 137", "code", 1), Exit{}, ErrExitRecord},
		"carriage returns":                {strings.ReplaceAll(goodRecord, "\n", "\r\n"), Exit{}, ErrExitRecord},
		"not UTF-8":                       {"\xff\xfe\n" + goodRecord, Exit{}, ErrExitRecord},
		"not UTF-8 in a key that is none": {"\xff\xfe 1\n" + goodRecord, Exit{137, 9, true, true, 1700000000000000001, 1700000000000000002}, nil},
		"huge":                            {goodRecord + strings.Repeat("x 1\n", 10_000), Exit{}, ErrExitRecord},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, exitFile), []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := ReadExit(dir)
			if !errors.Is(err, test.err) || got != test.want {
				t.Errorf("%+v, %v; want %+v, %v", got, err, test.want, test.err)
			}
		})
	}
}

func TestReadExitMissing(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadExit(dir); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := os.Mkdir(filepath.Join(dir, exitFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadExit(dir); err == nil {
		t.Error("a directory is read")
	}
}

func FuzzParseExit(f *testing.F) {
	f.Add([]byte(goodRecord))
	f.Add([]byte("version 1\n"))
	f.Add([]byte(goodRecord + "crc32c 3290172826\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := parseExit(text)
		if err != nil {
			if !errors.Is(err, ErrExitRecord) || e != (Exit{}) {
				t.Error(e, err)
			}
			return
		}
		if _, sum, found := bytes.Cut(text, []byte("\n"+sumKey)); found && !bytes.Contains(sum[:len(sum)-1], []byte("\n")) {
			// Any bit of what the sum covers turned is seen.
			text[len(text)%bytes.LastIndex(text, []byte(sumKey))] ^= 1
			if _, err := parseExit(text); err == nil {
				t.Errorf("%q passes", text)
			}
		}
		if e.Code < 0 || e.Code > 255 || e.Signal > 64 || e.StartedAt < 0 || e.FinishedAt < 0 {
			t.Errorf("%+v", e)
		}
	})
}
