package main

import (
	"archive/tar"
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	var out bytes.Buffer
	tab := &table{}
	tab.image(&image{name: "some", goal: "<= 0.50"}, []contestant{&tools{}, &daemon{}}[:1], [][]sample{{
		{wall: 3 * time.Second, memory: 5 << 20}, {wall: 1 * time.Second, memory: 9 << 20}, {wall: 2 * time.Second},
	}})
	if err := tab.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"some:", "skopeo+umoci", "1.00", "2.00"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestGenerateIsReproducible(t *testing.T) {
	var archives [2]bytes.Buffer
	for i := range archives {
		w := &writer{tar: tar.NewWriter(&archives[i]), layer: &layer{}, seen: map[string]bool{}}
		if err := w.generate(7); err != nil {
			t.Fatal(err)
		}
		if err := w.tar.Close(); err != nil {
			t.Fatal(err)
		}
		if w.layer.Entries != 520 {
			t.Errorf("%d entries", w.layer.Entries)
		}
	}
	if !bytes.Equal(archives[0].Bytes(), archives[1].Bytes()) {
		t.Error("two archives of one seed differ")
	}
}

func TestCopyMovesHardLinksToo(t *testing.T) {
	var from, to bytes.Buffer
	w := tar.NewWriter(&from)
	for _, h := range []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "./"},
		{Typeflag: tar.TypeReg, Name: "./a"},
		{Typeflag: tar.TypeLink, Name: "./b", Linkname: "./a"},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	moved := &writer{tar: tar.NewWriter(&to), layer: &layer{}, seen: map[string]bool{}}
	if err := moved.copy(tar.NewReader(&from), "x/"); err != nil {
		t.Fatal(err)
	}
	if err := moved.tar.Close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(&to); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.Name+">"+h.Linkname)
	}
	if want := "x/./> x/a> x/b>x/a"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
