package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

type sample struct {
	Name  string          `json:"name,omitempty"`
	List  []int           `json:"list,omitempty"`
	Inner json.RawMessage `json:"inner,omitempty"`
}

func TestSeal(t *testing.T) {
	t.Parallel()
	for _, v := range []sample{
		{},
		{Name: "a"},
		{Name: `quotes " and , } {`, List: []int{1, 2}, Inner: json.RawMessage(`{"crc32c":"00000000"}`)},
	} {
		sealed, err := Marshal(&v)
		if err != nil {
			t.Fatal(err)
		}
		var got, unsealed sample
		if err := errors.Join(Unmarshal(append(sealed, '\n'), &got), json.Unmarshal(sealed, &unsealed)); err != nil {
			t.Fatalf("%s: %v", sealed, err)
		}
		if got.Name != v.Name || len(got.List) != len(v.List) || unsealed.Name != v.Name {
			t.Errorf("%+v became %+v", v, got)
		}
	}
	for _, bad := range []string{"", "[]", "{", "1", "null"} {
		if _, err := Seal([]byte(bad)); !errors.Is(err, ErrInvalid) {
			t.Errorf("Seal(%q): %v", bad, err)
		}
	}
}

func TestReadOlderRecord(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "r.json")
	if err := os.WriteFile(path, []byte(`{"name":"old"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got sample
	if err := Read(path, &got); err != nil || got.Name != "old" {
		t.Error(got, err)
	}
	if err := Read(path+".absent", &got); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// Every cut and every flip of a bit is noticed, or what is read is the same.
func TestMutilatedRecord(t *testing.T) {
	t.Parallel()
	v := sample{Name: "mutilated", List: []int{3, 1, 4}, Inner: json.RawMessage(`{"a":{"b":[true,null,"x"]}}`)}
	sealed, err := Marshal(&v)
	if err != nil {
		t.Fatal(err)
	}
	try := func(b []byte, what string, at int) {
		var got sample
		if err := Unmarshal(b, &got); err == nil {
			a, _ := json.Marshal(got)
			w, _ := json.Marshal(v)
			if !bytes.Equal(a, w) {
				t.Errorf("%s %d: read as %s", what, at, a)
			}
		} else if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s %d: %v", what, at, err)
		}
	}
	for n := range sealed {
		try(sealed[:n], "cut at", n)
		for bit := range 8 {
			b := bytes.Clone(sealed)
			b[n] ^= 1 << bit
			try(b, "flip in byte", n)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte(`{"name":"a","crc32c":"00000000"}`))
	f.Add([]byte(`"crc32c":"`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var v sample
		if err := Unmarshal(b, &v); err != nil && !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
	})
}
