package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Compression says how a layer travels.
type Compression int

// The compressions that registries serve.
const (
	Gzip Compression = iota
	Zstd
	Plain
)

// Entry is one tar entry of a layer.
type Entry struct {
	Name  string
	Type  byte  // tar.Type...; 0: a regular file
	Mode  int64 // 0: 0755 for directories, 0644 for files
	UID   int
	GID   int
	Link  string // target of a symbolic or hard link
	Body  []byte
	Major int64
	Minor int64
	// Xattrs are extended attributes by their full name ("user.x").
	Xattrs map[string]string
}

// Layer is a list of entries in the order of the archive.
type Layer struct {
	Entries     []Entry
	Compression Compression
	// Damage, when set, changes the compressed bytes before their digest is
	// taken: the blob is then broken but its digest is right.
	Damage func(blob []byte) []byte
	// DiffID, when set, is what the configuration claims instead of the truth.
	DiffID string

	// gzipped is the archive compressed before, for layers that many images share.
	gzipped []byte
	plain   []byte
}

// Dir is an entry for a directory.
func Dir(name string, mode int64) Entry {
	return Entry{Name: name, Type: tar.TypeDir, Mode: mode}
}

// File is an entry for a regular file.
func File(name, body string, mode int64) Entry {
	return Entry{Name: name, Mode: mode, Body: []byte(body)}
}

// Symlink is an entry for a symbolic link.
func Symlink(name, target string) Entry {
	return Entry{Name: name, Type: tar.TypeSymlink, Link: target, Mode: 0o777}
}

// Hardlink is an entry for another name of an earlier entry.
func Hardlink(name, target string) Entry {
	return Entry{Name: name, Type: tar.TypeLink, Link: target}
}

// Whiteout is an entry that hides what lower layers have at name.
func Whiteout(dir, base string) Entry {
	return File(dir+".wh."+base, "", 0o600)
}

// Opaque is an entry that hides everything that lower layers have in dir.
func Opaque(dir string) Entry {
	return File(dir+"/.wh..wh..opq", "", 0o600)
}

func (e Entry) header() *tar.Header {
	h := &tar.Header{
		Name: e.Name, Typeflag: e.Type, Mode: e.Mode, Uid: e.UID, Gid: e.GID,
		Linkname: e.Link, Size: int64(len(e.Body)), Devmajor: e.Major, Devminor: e.Minor,
		Format: tar.FormatPAX,
	}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	switch {
	case h.Mode != 0:
	case h.Typeflag == tar.TypeDir:
		h.Mode = 0o755
	default:
		h.Mode = 0o644
	}
	if len(e.Xattrs) > 0 {
		h.PAXRecords = map[string]string{}
		for k, v := range e.Xattrs {
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
	}
	return h
}

// Tar returns the uncompressed archive.
func (l Layer) Tar() ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range l.Entries {
		if err := w.WriteHeader(e.header()); err != nil {
			return nil, fmt.Errorf("tar entry %q: %w", e.Name, err)
		}
		if _, err := w.Write(e.Body); err != nil {
			return nil, fmt.Errorf("tar entry %q: %w", e.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("end of the archive: %w", err)
	}
	return out.Bytes(), nil
}

func (c Compression) compress(data []byte) ([]byte, error) {
	var out bytes.Buffer
	var w io.WriteCloser
	switch c {
	case Plain:
		return data, nil
	case Gzip:
		w = gzip.NewWriter(&out)
	case Zstd:
		z, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("zstd encoder: %w", err)
		}
		w = z
	default:
		return nil, fmt.Errorf("compression %d: %w", c, ErrCompression)
	}
	if _, err := w.Write(data); err != nil {
		return nil, fmt.Errorf("compress a layer: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("compress a layer: %w", err)
	}
	return out.Bytes(), nil
}

func (c Compression) mediaType(docker bool) string {
	if docker {
		return map[Compression]string{
			Gzip:  "application/vnd.docker.image.rootfs.diff.tar.gzip",
			Zstd:  "application/vnd.docker.image.rootfs.diff.tar.zstd",
			Plain: "application/vnd.docker.image.rootfs.diff.tar",
		}[c]
	}
	return map[Compression]string{
		Gzip:  "application/vnd.oci.image.layer.v1.tar+gzip",
		Zstd:  "application/vnd.oci.image.layer.v1.tar+zstd",
		Plain: "application/vnd.oci.image.layer.v1.tar",
	}[c]
}

// Digest is the sha256 digest of data in the form that manifests use.
func Digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}
