package imageservice

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// importProgram makes an archive of images from bytes: a whole one, but for
// what the bytes make wrong with it. What it reads beyond its end is zero,
// which makes nothing wrong.
type importProgram struct {
	t     testing.TB
	bytes []byte
	files []item
}

func (p *importProgram) next() int {
	if len(p.bytes) == 0 {
		return 0
	}
	b := p.bytes[0]
	p.bytes = p.bytes[1:]
	return int(b)
}

// archive is the whole of it: an OCI layout, what docker save writes, or both
// with one of them perhaps malformed.
func (p *importProgram) archive() []byte {
	form := p.next()
	if form%3 != 1 {
		p.dockerImages()
	}
	if form%3 != 0 {
		p.layout()
	}
	content := fuzzArchive(p.files)
	for len(p.bytes) >= 3 { // flip a byte anywhere
		at := p.next()<<8 + p.next()
		content[at%len(content)] ^= byte(p.next())
	}
	if form >= 192 {
		return pack(p.t, content)
	}
	return content
}

// add puts a file into the archive. One byte decides whether it is there, and
// as what.
func (p *importProgram) add(name, content string) {
	switch p.next() {
	default:
		p.files = append(p.files, file(name, content))
	case 1: // missing
	case 2:
		p.files = append(p.files, file("elsewhere", content), symlink(name, "/elsewhere"))
	case 3:
		p.files = append(p.files, symlink(name, name))
	case 4:
		p.files = append(p.files, file(name, content), file(name, "another"))
	case 5:
		p.files = append(p.files, file(name, content[:len(content)/2]))
	case 6:
		p.files = append(p.files, dir(name, 0o755))
	case 7:
		p.files = append(p.files, file("../"+name, content))
	}
}

// digest is that of a content, or another one.
func (p *importProgram) digest(content string) digest.Digest {
	switch p.next() {
	default:
		return digest.FromString(content)
	case 1:
		return digest.FromString(content + "x")
	case 2:
		return digest.SHA512.FromString(content)
	case 3:
		return ""
	case 4:
		return "sha256:../../../outside"
	case 5:
		return digest.Digest("md5:" + strings.Repeat("0", 32))
	}
}

// descriptor describes a content and adds it as a blob.
func (p *importProgram) descriptor(mediaType string, content []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: p.digest(string(content)), Size: int64(len(content))}
	switch p.next() {
	case 1:
		d.Size = -1
	case 2:
		d.Size++
	case 3:
		d.Size = 1 << 40
	case 4:
		d.MediaType = ocispec.MediaTypeImageIndex
	case 5:
		d.MediaType = "text/plain"
	}
	algorithm, hex, _ := strings.Cut(digest.FromBytes(content).String(), ":")
	p.add("blobs/"+algorithm+"/"+hex, string(content))
	return d
}

// layer returns a layer and its diffID.
func (p *importProgram) layer() ([]byte, digest.Digest) {
	kind, n := p.next(), 3*(p.next()%8)
	n = min(n, len(p.bytes))
	plain := fuzzArchive(fuzzItems(p.bytes[:n]))
	p.bytes = p.bytes[n:]
	l := testLayer{archive: plain, compress: []string{"", "gzip", "zstd"}[kind%3]}
	return l.content(p.t), p.digest(string(plain))
}

// config returns a config for layers.
func (p *importProgram) config(diffIDs []digest.Digest) []byte {
	config := testConfig()
	config.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: diffIDs}
	switch p.next() {
	case 1:
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, "sha256:x")
	case 2:
		config.RootFS.DiffIDs = nil
	case 3:
		config.Architecture = "none"
	case 4:
		config.Config.User = "\x00:../x"
	case 5:
		return []byte("[]")
	}
	return mustJSON(p.t, config)
}

func (p *importProgram) name() string {
	names := []string{"a.example/x:1", "a.example/x:2", "b.example/y", "", "UPPER", "a.example/x@sha256:0", "../x:1", strings.Repeat("n", 300), "\xff"}
	return names[p.next()%len(names)]
}

// dockerImages adds up to two images as docker save writes them.
func (p *importProgram) dockerImages() {
	var entries []dockerEntry
	for i := range 1 + p.next()%2 {
		prefix := string(rune('a' + i))
		entry := dockerEntry{Config: prefix + ".json"}
		for range 1 + p.next()%2 {
			entry.RepoTags = append(entry.RepoTags, p.name())
		}
		var diffIDs []digest.Digest
		for k := range p.next() % 3 {
			content, diffID := p.layer()
			name := prefix + string(rune('0'+k)) + "/layer.tar"
			entry.Layers, diffIDs = append(entry.Layers, name), append(diffIDs, diffID)
			p.add(name, string(content))
		}
		p.add(entry.Config, string(p.config(diffIDs)))
		entries = append(entries, entry)
	}
	p.add(dockerManifest, string(mustJSON(p.t, entries)))
}

// layout adds an OCI layout of up to two images.
func (p *importProgram) layout() {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
	for range 1 + p.next()%2 {
		manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
		var diffIDs []digest.Digest
		for range p.next() % 3 {
			content, diffID := p.layer()
			diffIDs = append(diffIDs, diffID)
			manifest.Layers = append(manifest.Layers, p.descriptor(ocispec.MediaTypeImageLayer, content))
		}
		manifest.Config = p.descriptor(ocispec.MediaTypeImageConfig, p.config(diffIDs))
		desc := p.descriptor(ocispec.MediaTypeImageManifest, mustJSON(p.t, manifest))
		switch key := p.next(); key % 3 {
		case 0:
			desc.Annotations = map[string]string{nameAnnotation: p.name()}
		case 1:
			desc.Annotations = map[string]string{ocispec.AnnotationRefName: p.name()}
		}
		if p.next()%4 == 1 { // one index more around it
			inner := ocispec.Index{Versioned: index.Versioned, Manifests: []ocispec.Descriptor{desc}}
			inner.Manifests[0].Platform = &ocispec.Platform{OS: "linux", Architecture: hostArch}
			outer := p.descriptor(ocispec.MediaTypeImageIndex, mustJSON(p.t, inner))
			outer.Annotations, desc = desc.Annotations, outer
		}
		index.Manifests = append(index.Manifests, desc)
	}
	p.add("oci-layout", `{"imageLayoutVersion":"1.0.0"}`)
	p.add(ocispec.ImageIndexFile, string(mustJSON(p.t, index)))
}

// importSeeds are programs of whole archives, and of some that lack something.
func importSeeds() [][]byte {
	docker, layout := byte(0), byte(1)
	layer := []byte{1, 2, 0, 0, 0, 1, 1, 0}
	saved, blob := append(layer[:8:8], 0, 0), append(layer[:8:8], 0, 0, 0, 0)
	return [][]byte{
		{docker},
		{layout},
		append([]byte{docker, 0, 0, 0, 1}, saved...),
		append([]byte{docker, 1, 1, 0, 1, 2}, append(saved, saved...)...),
		append([]byte{layout, 0, 1}, blob...),
		append([]byte{layout, 1, 2}, append(blob, blob...)...),
		append([]byte{layout + 192, 0, 1}, blob...),
		append([]byte{docker, 0, 0, 0, 1}, append(layer[:8:8], 1)...),
		append([]byte{layout, 0, 1}, append(layer[:8:8], 0, 1)...),
	}
}

// FuzzImport imports archives that bytes describe: whatever comes in is listed
// and whole, what does not leaves nothing, and the error says which kind it is.
func FuzzImport(f *testing.F) {
	for _, seed := range importSeeds() {
		f.Add(seed)
	}
	s := openFuzzStore(f)
	f.Fuzz(func(t *testing.T, program []byte) {
		checkImport(t, s, (&importProgram{t: t, bytes: program}).archive())
	})
}

// FuzzImportRaw imports any bytes.
func FuzzImportRaw(f *testing.F) {
	f.Add(dockerArchive(f, []string{"a.example/x:1"}, testLayer{archive: archive(f, file("f", "content"))}))
	for _, seed := range importSeeds() {
		f.Add((&importProgram{t: f, bytes: seed}).archive())
	}
	s := openFuzzStore(f)
	f.Fuzz(func(t *testing.T, content []byte) { checkImport(t, s, content) })
}

// openFuzzStore opens a store in memory where it can: an import ends with a
// sync of the whole file system.
func openFuzzStore(f *testing.F) *Store {
	f.Helper()
	s := openStore(f, func(c *Config) {
		if dir, err := os.MkdirTemp("/dev/shm", "fuzz-import-"); err == nil {
			c.Root = dir
			f.Cleanup(func() { _ = os.RemoveAll(dir) })
		}
	})
	s.limits.bytes = 1 << 24
	return s
}

func checkImport(t *testing.T, s *Store, content []byte) {
	images, err := s.Import(t.Context(), bytes.NewReader(content), "")
	if err == nil && len(images) == 0 {
		t.Error("neither an image nor an error")
	}
	var path *fs.PathError
	if err != nil && (errors.As(err, &path) || !importFault(err)) {
		t.Errorf("an error of no kind: %v", err)
	}
	for _, image := range images {
		if _, err := s.Image(image.ID); err != nil {
			t.Errorf("it is not listed: %v", err)
		}
	}
	report, err := s.Check(t.Context(), CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range report.Images {
		if len(i.Damage) > 0 {
			t.Errorf("%+v", i)
		}
	}
	for _, image := range s.Images() {
		if err := s.Remove(t.Context(), image.ID); err != nil {
			t.Error(err)
		}
	}
	wantEmpty(t, s)
}

// importFault tells whether an error is the archive's.
func importFault(err error) bool {
	for _, kind := range []error{ErrMalformedArchive, ErrMalformedManifest, ErrMalformedLayer, ErrTooLarge, ErrInvalidReference, ErrDigestMismatch, ErrUnsupported} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}
