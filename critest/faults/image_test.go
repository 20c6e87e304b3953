package faults

import (
	"crypto/rand"
	"testing"

	"github.com/cri-runtime/cri-runtime/critest/images"
)

// noise stores an image that shares no layer with any other and has one file
// of that size, and returns its name.
func noise(t *testing.T, name string, size int) string {
	t.Helper()
	body := make([]byte, size)
	_, _ = rand.Read(body)
	artifact, err := images.Spec{Layers: []images.Layer{
		{Entries: []images.Entry{{Name: "noise", Body: body}}},
		{Entries: []images.Entry{{Name: "more/" + name, Body: body[:size/2]}}},
	}}.Build()
	if err == nil {
		err = depot.Push(t.Context(), images.Named{Repository: "cri-runtime/" + name, Tag: "latest", Artifact: artifact})
	}
	if err != nil {
		t.Fatal(err)
	}
	return imageRef(name)
}
