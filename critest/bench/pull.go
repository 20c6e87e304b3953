package main

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/images"
)

func (r *runtime) pull(ctx context.Context, ref string) error {
	if _, err := r.Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: ref}, nil, nil); err != nil {
		return fmt.Errorf("%s: pull %s: %w", r.Name, ref, err)
	}
	return nil
}

func (r *runtime) forgetImage(ctx context.Context, ref string) error {
	if err := r.Images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: ref}); err != nil {
		return fmt.Errorf("%s: remove %s: %w", r.Name, ref, err)
	}
	return nil
}

// pull measures a small image and one of 96 MB in 4 layers of 600 files.
func (b *bench) pull(ctx context.Context) error {
	big, err := bigImage(images.Gzip)
	if err != nil {
		return err
	}
	bigZstd, err := bigImage(images.Zstd)
	if err != nil {
		return err
	}
	for name, a := range map[string]images.Artifact{"big": big, "big-zstd": bigZstd} {
		if err := b.registry.Push(ctx, images.Named{Repository: "bench/" + name, Tag: "latest", Artifact: a}); err != nil {
			return err
		}
	}
	for _, test := range []struct{ what, ref string }{
		{"pull 1 MB, 1 layer, gzip", "/cri-runtime/pause:latest"},
		{"pull 96 MB, 4 layers, gzip", "/bench/big:latest"},
		{"pull 96 MB, 4 layers, zstd", "/bench/big-zstd:latest"},
	} {
		taken := make([]samples, len(b.runtimes))
		for range max(3, b.options.n/6) {
			for k, r := range b.runtimes {
				ref := b.registry.Address + test.ref
				// The small one shares its layer with the image of the pods.
				if test.ref == "/cri-runtime/pause:latest" {
					if err := r.forgetImage(ctx, r.image); err != nil {
						return err
					}
				}
				if err := r.forgetImage(ctx, ref); err != nil {
					return err
				}
				if err := idle(ctx, 4*b.options.gap); err != nil {
					return err
				}
				begin := time.Now()
				if err := r.pull(ctx, ref); err != nil {
					return err
				}
				taken[k] = append(taken[k], time.Since(begin))
			}
		}
		b.table.durations(test.what, "", taken)
	}
	for _, r := range b.runtimes {
		if err := r.pull(ctx, r.image); err != nil {
			return err
		}
	}
	return nil
}

// bigImage has text-like files that compress to about a third.
func bigImage(c images.Compression) (images.Artifact, error) {
	spec := images.Spec{Config: images.Config{Cmd: []string{"/none"}}}
	state := uint64(88172645463325252)
	for l := range 4 {
		layer := images.Layer{Compression: c}
		for f := range 600 {
			body := make([]byte, 40_000)
			for i := range body {
				state ^= state << 13
				state ^= state >> 7
				state ^= state << 17
				if body[i] = "etaoin shrdlu\ncmfwyp"[state%20]; state%3 == 0 && i > 64 {
					copy(body[i:], body[i-64:i-48])
				}
			}
			layer.Entries = append(layer.Entries, images.File(fmt.Sprintf("l%d/d%d/f%d", l, f%20, f), string(body), 0o644))
		}
		spec.Layers = append(spec.Layers, layer)
	}
	return spec.Build()
}
