package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

const (
	formatVersion = 1 // of the cache: what is made otherwise gets another name
	fileBlock     = 4096
)

// depot keeps packages and layers in a directory.
type depot struct {
	dir string
}

// recipe says what is in a layer.
type recipe struct {
	packages  []string
	prefixes  []string // each package once below each of these; none: once at the root
	synthetic int      // not 0: generated small files, this is their seed
	compress  string   // ".gz" or ".zst"
}

// layer is one that was made.
type layer struct {
	path string

	Digest, DiffID digest.Digest
	Entries        int
	Unpacked       int64 // with whole blocks
}

// download gets the packages that are missing, as a user's apt would.
func (d *depot) download(ctx context.Context, all []recipe) error {
	debs := filepath.Join(d.dir, "debs")
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return fmt.Errorf("make the cache: %w", err)
	}
	missing := map[string]bool{}
	for _, r := range all {
		for _, p := range r.packages {
			if _, err := d.deb(p); err != nil {
				missing[p] = true
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	args := []string{"download", "-qq"}
	for p := range missing {
		args = append(args, p)
	}
	for attempt := 0; ; attempt++ {
		c := exec.CommandContext(ctx, "apt-get", args...)
		c.Dir = debs
		out, err := c.CombinedOutput()
		if err == nil {
			return nil
		}
		if attempt > 0 {
			return fmt.Errorf("download packages: %w: %.2000s", err, out)
		}
		// The package lists may be missing or old.
		if out, err := exec.CommandContext(ctx, "apt-get", "update", "-qq").CombinedOutput(); err != nil {
			return fmt.Errorf("update the package lists: %w: %.2000s", err, out)
		}
	}
}

func (d *depot) deb(name string) (string, error) {
	found, err := filepath.Glob(filepath.Join(d.dir, "debs", name+"_*.deb"))
	if err != nil || len(found) == 0 {
		return "", errors.Join(fmt.Errorf("package %s: %w", name, fs.ErrNotExist), err)
	}
	return found[len(found)-1], nil
}

// layer makes a layer or finds it in the cache.
func (d *depot) layer(ctx context.Context, r recipe) (*layer, error) {
	key := fmt.Sprintln(formatVersion, r.synthetic, r.prefixes, r.compress)
	for _, p := range r.packages {
		deb, err := d.deb(p)
		if err != nil {
			return nil, err
		}
		key += filepath.Base(deb) + "\n"
	}
	base := filepath.Join(d.dir, digest.FromString(key).Encoded()[:16])
	l := &layer{path: base + r.compress}
	if content, err := os.ReadFile(base + ".json"); err == nil && json.Unmarshal(content, l) == nil {
		if _, err := os.Stat(l.path); err == nil {
			return l, nil
		}
	}
	fmt.Fprintf(os.Stderr, "benchimages: making %s\n", l.path)
	if err := d.make(ctx, r, l); err != nil {
		return nil, err
	}
	content, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if err := os.WriteFile(base+".json", content, 0o644); err != nil {
		return nil, fmt.Errorf("write to the cache: %w", err)
	}
	return l, nil
}

func (d *depot) make(ctx context.Context, r recipe, l *layer) (err error) {
	f, err := os.CreateTemp(d.dir, "new-")
	if err != nil {
		return fmt.Errorf("make a layer: %w", err)
	}
	defer func() { err = errors.Join(err, ignore(os.Remove(f.Name()), fs.ErrNotExist)) }()
	defer f.Close()
	blob := digest.Canonical.Hash()
	var z io.WriteCloser = gzip.NewWriter(io.MultiWriter(f, blob))
	if r.compress == ".zst" {
		if z, err = zstd.NewWriter(io.MultiWriter(f, blob), zstd.WithEncoderConcurrency(1)); err != nil {
			return fmt.Errorf("zstd encoder: %w", err)
		}
	}
	plain := digest.Canonical.Hash()
	w := &writer{tar: tar.NewWriter(io.MultiWriter(z, plain)), layer: l, seen: map[string]bool{}}
	if r.synthetic != 0 {
		err = w.generate(r.synthetic)
	} else {
		err = d.collect(ctx, r, w)
	}
	if err = errors.Join(err, w.tar.Close(), z.Close(), f.Close()); err != nil {
		return fmt.Errorf("make a layer: %w", err)
	}
	l.Digest, l.DiffID = sum(blob), sum(plain)
	return os.Rename(f.Name(), l.path)
}

func sum(h hash.Hash) digest.Digest { return digest.NewDigest(digest.Canonical, h) }

func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}

// collect writes the files of packages.
func (d *depot) collect(ctx context.Context, r recipe, w *writer) error {
	prefixes := r.prefixes
	if len(prefixes) == 0 {
		prefixes = []string{""}
	}
	for _, prefix := range prefixes {
		for _, p := range r.packages {
			deb, err := d.deb(p)
			if err != nil {
				return err
			}
			c := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
			out, err := c.StdoutPipe()
			if err != nil {
				return err
			}
			if err := c.Start(); err != nil {
				return fmt.Errorf("read package %s: %w", p, err)
			}
			err = w.copy(tar.NewReader(out), prefix)
			_, rest := io.Copy(io.Discard, out) // what follows the end
			if err := errors.Join(err, rest, c.Wait()); err != nil {
				return fmt.Errorf("read package %s: %w", p, err)
			}
		}
	}
	return nil
}

// writer writes a layer's archive.
type writer struct {
	tar   *tar.Writer
	layer *layer
	seen  map[string]bool
}

func (w *writer) copy(from *tar.Reader, prefix string) error {
	for {
		h, err := from.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Name = prefix + path.Clean(h.Name); h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		if h.Typeflag == tar.TypeLink {
			h.Linkname = prefix + path.Clean(h.Linkname)
		}
		if w.seen[h.Name] || h.Name == "./" {
			continue
		}
		h.Format = tar.FormatUnknown
		if err := w.entry(h, from); err != nil {
			return err
		}
	}
}

func (w *writer) entry(h *tar.Header, content io.Reader) error {
	w.seen[h.Name] = true
	w.layer.Entries++
	switch h.Typeflag {
	case tar.TypeDir:
		w.layer.Unpacked += fileBlock
	case tar.TypeReg:
		w.layer.Unpacked += (h.Size + fileBlock - 1) / fileBlock * fileBlock
	}
	if err := w.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(w.tar, content)
	return err
}

// generate writes small files of words.
func (w *writer) generate(seed int) error {
	const files, perDirectory, least, most = 500, 25, 100, 4000
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	words := strings.Fields("the of and image layer file name with from kernel package system module include return static value error")
	for i := range files {
		dir := fmt.Sprintf("opt/layer%d/d%d/", seed, i/perDirectory)
		if i%perDirectory == 0 {
			if err := w.entry(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, strings.NewReader("")); err != nil {
				return err
			}
		}
		var body strings.Builder
		for size := least + random.IntN(most-least); body.Len() < size; {
			fmt.Fprintf(&body, "%s %x ", words[random.IntN(len(words))], random.IntN(1<<12))
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%sf%d", dir, i), Mode: 0o644, Size: int64(body.Len())}
		if err := w.entry(h, strings.NewReader(body.String())); err != nil {
			return err
		}
	}
	return nil
}
