package imageservice

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	klauspost "github.com/klauspost/compress/gzip"
)

// gunzipSamples are contents with matches near and far, and without.
func gunzipSamples() map[string][]byte {
	random := rand.New(rand.NewPCG(3, 4))
	noise := make([]byte, 700<<10)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	text := make([]byte, 900<<10)
	for i := 0; i < len(text); i++ {
		text[i] = "etaoin shrdlucmfwyp\n"[random.IntN(20)]
		if random.IntN(9) == 0 && i > 40000 {
			i += copy(text[i:], text[i-1-random.IntN(1<<15) : i][:1])
			i += copy(text[i:], text[i-100-random.IntN(1<<15) : i][:random.IntN(100)])
		}
	}
	skewed := make([]byte, 300<<10)
	for i := range skewed {
		skewed[i] = byte(min(255, int(random.ExpFloat64()*6)))
	}
	return map[string][]byte{
		"empty": nil, "one": {7}, "zeroes": make([]byte, 1<<20), "noise": noise, "text": text, "skewed": skewed,
		"period 3": bytes.Repeat([]byte("abc"), 1<<17), "mixed": append(append(bytes.Clone(text), noise...), skewed...),
	}
}

func TestGunzip(t *testing.T) {
	for name, content := range gunzipSamples() {
		for level := gzip.HuffmanOnly; level <= gzip.BestCompression; level++ {
			var b bytes.Buffer
			w, err := gzip.NewWriterLevel(&b, level)
			if err != nil {
				t.Fatal(err)
			}
			w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
			if _, err := w.Write(content); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			blob := append(bytes.Clone(b.Bytes()), b.Bytes()...) // members follow one another
			for how, source := range map[string]io.Reader{
				"whole": bytes.NewReader(blob), "halves": iotest.HalfReader(bytes.NewReader(blob)),
				"end with data": iotest.DataErrReader(bytes.NewReader(blob)),
			} {
				got, err := io.ReadAll(newGunzip(source))
				if err != nil || !bytes.Equal(got, append(bytes.Clone(content), content...)) {
					t.Fatalf("%s, level %d, %s: %d bytes, %v; want twice %d", name, level, how, len(got), err, len(content))
				}
			}
		}
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte("byte by byte"))
	_ = w.Close()
	if got, err := io.ReadAll(iotest.OneByteReader(newGunzip(iotest.OneByteReader(&b)))); err != nil || string(got) != "byte by byte" {
		t.Errorf("byte by byte: %q, %v", got, err)
	}
}

// emptyBlocks is a member of blocks that say nothing in ten bits each, which cost no
// more than their reading: a layer of them is decompressed as long as it is downloaded.
func emptyBlocks(count int) []byte {
	blob := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}
	var pending, n uint32
	for i := range count {
		header := uint32(fixedBlock) << 1
		if i == count-1 {
			header |= 1
		}
		for pending, n = pending|header<<n, n+10; n >= 8; pending, n = pending>>8, n-8 {
			blob = append(blob, byte(pending))
		}
	}
	if n > 0 {
		blob = append(blob, byte(pending))
	}
	return append(blob, make([]byte, 8)...)
}

func TestGunzipKindsOfBlocks(t *testing.T) {
	text := gunzipSamples()["text"][:50000]
	packed := func(content []byte) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write(content)
		_ = w.Close()
		return b.Bytes()
	}
	short := []byte("fixed codes fixed codes")
	blob, want := []byte(nil), []byte(nil)
	for range 3 {
		blob = append(append(append(blob, packed(short)...), packed(text)...), emptyBlocks(10001)...)
		want = append(append(want, short...), text...)
	}
	got, err := io.ReadAll(newGunzip(bytes.NewReader(blob)))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d, %v", len(got), len(want), err)
	}
}

func TestGunzipRefuses(t *testing.T) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(strings.Repeat("some text that repeats, ", 9999)))
	_ = w.Close()
	whole := b.Bytes()
	for n := range len(whole) {
		if _, err := io.ReadAll(newGunzip(bytes.NewReader(whole[:n]))); n > 0 && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d of %d bytes: %v", n, len(whole), err)
		}
	}
	for _, at := range []int{0, 2, len(whole) - 8, len(whole) - 1} {
		broken := bytes.Clone(whole)
		broken[at] ^= 0x55
		if _, err := io.ReadAll(newGunzip(bytes.NewReader(broken))); err == nil {
			t.Errorf("byte %d changed: accepted", at)
		}
	}
	if _, err := io.ReadAll(newGunzip(bytes.NewReader(append(bytes.Clone(whole), "garbage"...)))); err == nil {
		t.Error("what follows the members is accepted")
	}
	failing := io.MultiReader(bytes.NewReader(whole[:50]), iotest.ErrReader(iotest.ErrTimeout))
	if _, err := io.ReadAll(newGunzip(failing)); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("error of the source: %v", err)
	}
}

// FuzzGunzip compares with Go's own decompressor.
func FuzzGunzip(f *testing.F) {
	for name, content := range gunzipSamples() {
		for _, level := range []int{gzip.HuffmanOnly, gzip.NoCompression, gzip.BestSpeed, gzip.BestCompression} {
			var b bytes.Buffer
			w, _ := gzip.NewWriterLevel(&b, level)
			w.Name = name
			_, _ = w.Write(content[:min(len(content), 3000)])
			_ = w.Close()
			f.Add(b.Bytes())
		}
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		if len(blob) < 2 || len(blob) > 1<<14 {
			return
		}
		const most = 1 << 20
		var want []byte
		r, wantErr := gzip.NewReader(bytes.NewReader(blob))
		if wantErr == nil {
			want, wantErr = io.ReadAll(io.LimitReader(r, most))
		}
		got, err := io.ReadAll(io.LimitReader(newGunzip(bytes.NewReader(blob)), most))
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("error %v, want %v", err, wantErr)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%d bytes that differ from %d", len(got), len(want))
		}
	})
}

func BenchmarkGunzipEmptyBlocks(b *testing.B) {
	blob := emptyBlocks(1 << 17)
	b.SetBytes(int64(len(blob)))
	for b.Loop() {
		if _, err := io.Copy(io.Discard, newGunzip(bytes.NewReader(blob))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGunzip(b *testing.B) {
	var blob bytes.Buffer
	w, _ := gzip.NewWriterLevel(&blob, gzip.DefaultCompression)
	content := archive(b, benchItems("usr", 1000)...)
	_, _ = w.Write(content)
	_ = w.Close()
	for _, c := range []struct {
		name string
		open func(io.Reader) (io.Reader, error)
	}{
		{"own", func(r io.Reader) (io.Reader, error) { return newGunzip(r), nil }},
		{"klauspost", func(r io.Reader) (io.Reader, error) { return klauspost.NewReader(r) }},
		{"go", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			buf := make([]byte, chunkSize)
			for b.Loop() {
				z, err := c.open(bytes.NewReader(blob.Bytes()))
				if err != nil {
					b.Fatal(err)
				}
				for err == nil {
					_, err = z.Read(buf)
				}
			}
		})
	}
}
