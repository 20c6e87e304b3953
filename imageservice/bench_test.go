package imageservice

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchItems are files as a distribution's package has them: many small ones,
// some large, compressible by half.
func benchItems(prefix string, files int) []item {
	random := rand.New(rand.NewPCG(1, 2))
	var items []item
	for i := range files {
		if i%20 == 0 {
			items = append(items, dir(fmt.Sprintf("%s/d%d", prefix, i/20), 0o755))
		}
		size := 200 + random.IntN(12<<10)
		if i%50 == 0 {
			size = 1 << 20
		}
		content := make([]byte, size)
		for j := range content {
			content[j] = byte('a' + random.IntN(12))
		}
		items = append(items, file(fmt.Sprintf("%s/d%d/f%d", prefix, i/20, i), string(content)))
	}
	return items
}

func BenchmarkUnpack(b *testing.B) {
	for _, c := range []struct {
		name  string
		items []item
	}{
		{"mixed", benchItems("usr", 2000)},
		{"small", func() []item {
			items := []item{dir("d", 0o755)}
			for i := range 5000 {
				items = append(items, file(fmt.Sprintf("d/%d", i), "some hundred bytes"))
			}
			return items
		}()},
	} {
		content := archive(b, c.items...)
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			base := b.TempDir()
			for i := 0; b.Loop(); i++ {
				if _, err := unpackTo(b, content, filepath.Join(base, fmt.Sprint(i)), nil); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(c.items)*b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

func BenchmarkDecompress(b *testing.B) {
	content := archive(b, benchItems("usr", 1000)...)
	for _, compress := range []string{"gzip", "zstd"} {
		blob := testLayer{archive: content, compress: compress}.content(b)
		b.Run(compress, func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			buf := make([]byte, chunkSize)
			for b.Loop() {
				d := &decompressor{source: bytes.NewReader(blob)}
				for {
					if _, err := d.Read(buf); err != nil {
						break
					}
				}
				d.Close()
			}
		})
	}
}

// BenchmarkPull pulls an image of six layers from a registry in this process.
func BenchmarkPull(b *testing.B) {
	for _, compress := range []string{"gzip", "zstd", ""} {
		b.Run("6 layers "+compress, func(b *testing.B) {
			r := newRegistry(b)
			var layers []testLayer
			total := int64(0)
			for i := range 6 {
				l := testLayer{archive: archive(b, benchItems(fmt.Sprintf("layer%d", i), 1500)...), compress: compress}
				total += int64(len(l.archive))
				layers = append(layers, l)
			}
			r.putImage("x", "1", testConfig(), layers...)
			s := openStore(b, func(c *Config) { c.NoProgressTimeout = time.Minute })
			b.SetBytes(total)
			for b.Loop() {
				image := mustPull(b, s, r.ref("x:1"))
				b.StopTimer()
				if err := s.Remove(context.Background(), image.ID); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkListing lists a layer as a pull does, with the sums of its contents
// known; BenchmarkUnpack of the same files is what it is to be compared with.
func BenchmarkListing(b *testing.B) {
	s, base := openStore(b, nil), b.TempDir()
	items := benchItems("usr", 2000)
	if _, err := unpackTo(b, archive(b, items...), filepath.Join(base, "diff"), nil); err != nil {
		b.Fatal(err)
	}
	known := &contents{sums: map[uint64]uint64{}}
	err := filepath.WalkDir(filepath.Join(base, "diff"), func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		known.sums[st.Ino] = 1
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	size := int64(0)
	for i := 0; b.Loop(); i++ {
		if _, size, _, err = s.writeListing(b.Context(), filepath.Join(base, fmt.Sprint(i)), filepath.Join(base, "diff"), known); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(size)/float64(len(items)), "bytes/entry")
}
