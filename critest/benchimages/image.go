package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/cri-runtime/cri-runtime/critest/images"
)

// image is what is pulled.
type image struct {
	name, what, goal string
	base             *image // an image that is present before, which shares layers
	zstd             bool
	artifact         images.Artifact

	layers, entries      int
	compressed, unpacked int64
}

// imageNames are all that there are.
const imageNames = "debian6,small40,single1g,zstd6,shared5"

// packages of the six layers: Debian's names, the same on each architecture.
func packages() [][]string {
	return [][]string{
		{
			"libc6", "libc-bin", "bash", "coreutils", "dpkg", "apt", "libapt-pkg6.0", "util-linux", "perl-base", "tar", "sed",
			"grep", "findutils", "gzip", "passwd", "mount", "e2fsprogs", "systemd", "libssl3", "openssl", "tzdata",
		},
		{
			"libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal", "python3.11", "python3-pip",
			"python3-setuptools", "python3-numpy",
		},
		{"cpp-12", "gcc-12", "libgcc-12-dev", "libc6-dev", "linux-libc-dev", "binutils-common"},
		{"git", "git-man", "perl", "perl-modules-5.36", "libperl5.36"},
		{"golang-1.19-src"},
		{"libllvm14"},
	}
}

// image makes one of the images, from the cache where it can.
func (d *depot) image(ctx context.Context, name string) (*image, error) {
	switch name {
	case "debian6":
		return d.assemble(ctx, image{name: name, what: "Debian packages", goal: "<= 0.50"}, recipes(".gz"))
	case "zstd6":
		return d.assemble(ctx, image{name: name, what: "the same, zstd", goal: "<= 0.50", zstd: true}, recipes(".zst"))
	case "small40":
		all := make([]recipe, 40)
		for i := range all {
			all[i] = recipe{compress: ".gz", synthetic: i + 1}
		}
		return d.assemble(ctx, image{name: name, what: "files of 100 to 4000 bytes", goal: "<= 0.50"}, all)
	case "single1g":
		one := recipe{compress: ".gz"}
		for _, group := range packages() {
			one.packages = append(one.packages, group...)
		}
		one.prefixes = []string{"first/", "second/"}
		return d.assemble(ctx, image{name: name, what: "the same packages twice in one layer", goal: "<= 0.67"}, []recipe{one})
	case "shared5":
		base, err := d.image(ctx, "debian6")
		if err != nil {
			return nil, err
		}
		all := recipes(".gz")
		all[len(all)-1].prefixes = []string{"moved/"}
		return d.assemble(ctx, image{name: name, what: "the last of debian6's layers is another", goal: "<= 0.50", base: base}, all)
	}
	return nil, fmt.Errorf("%q: %w", name, errNoImage)
}

func recipes(compress string) []recipe {
	var all []recipe
	for _, group := range packages() {
		all = append(all, recipe{compress: compress, packages: group})
	}
	return all
}

// assemble makes the layers and what a registry holds besides them.
func (d *depot) assemble(ctx context.Context, i image, all []recipe) (*image, error) {
	if err := d.download(ctx, all); err != nil {
		return nil, err
	}
	layers := make([]*layer, len(all))
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for k, r := range all {
		group.Go(func() (err error) {
			layers[k], err = d.layer(inner, r)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	config := ocispec.Image{Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"}}
	config.RootFS.Type = "layers"
	i.layers = len(layers)
	for k, l := range layers {
		blob, err := os.ReadFile(l.path)
		if err != nil {
			return nil, fmt.Errorf("read a layer: %w", err)
		}
		mediaType := ocispec.MediaTypeImageLayerGzip
		if all[k].compress == ".zst" {
			mediaType = ocispec.MediaTypeImageLayerZstd
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.DiffID)
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{MediaType: mediaType, Digest: l.Digest, Size: int64(len(blob))})
		i.artifact.Blobs = append(i.artifact.Blobs, blob)
		i.entries += l.Entries
		i.unpacked += l.Unpacked
		i.compressed += int64(len(blob))
	}
	content, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encode the configuration: %w", err)
	}
	manifest.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(content), Size: int64(len(content))}
	i.artifact.Blobs = append(i.artifact.Blobs, content)
	i.artifact.MediaType = ocispec.MediaTypeImageManifest
	if i.artifact.Manifest, err = json.Marshal(manifest); err != nil {
		return nil, fmt.Errorf("encode the manifest: %w", err)
	}
	return &i, nil
}
