package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cri-runtime/cri-runtime/server/control"
)

func importCommand(client func() *controlClient) *cobra.Command {
	var name string
	load := &cobra.Command{
		Use:   "import FILE|DIR|-",
		Short: "Import images from an OCI layout or from what docker save wrote",
		Long: `Import the images of an archive: an OCI layout, as a tar or as a directory, or
what "docker save" writes. A tar may be compressed with gzip or zstd; "-" reads
one from standard input. The images get the names that the archive has, or with
--name, for an archive of one image, that one.

Every byte is checked against its digest, and layers are unpacked within the
same limits as those of a pull. The image policy is not asked: who can run this
command can do anything.`,
		Args: cobra.ExactArgs(1),
		RunE: interruptible(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			archive, err := openArchive(cmd.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			defer archive.Close()
			query := url.Values{}
			if name != "" {
				query.Set("name", name)
			}
			resp, err := client().do(ctx, http.MethodPost, "/v1/images/import", query, archive)
			if err != nil {
				return err
			}
			var imported control.Imported
			if err := decodeAnswer(resp, &imported); err != nil {
				return err
			}
			for i := range imported.Images {
				image := &imported.Images[i]
				fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", image.ID, strings.Join(image.RepoTags, " "))
			}
			return nil
		}),
	}
	load.Flags().StringVar(&name, "name", "", "`NAME[:TAG]` of the image, whatever the archive calls it")
	return load
}

// openArchive opens a tar, or makes one of a directory.
func openArchive(stdin io.Reader, file string) (io.ReadCloser, error) {
	if file == "-" {
		return io.NopCloser(stdin), nil
	}
	at, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	if !at.IsDir() {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("import: %w", err)
		}
		return f, nil
	}
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(tarLayout(w, file)) }()
	return r, nil
}

// tarLayout writes the files of an OCI layout. Links in it are not followed.
func tarLayout(w io.Writer, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	archive := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		at, err := f.Stat()
		if err != nil {
			return err
		}
		err = archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: at.Size(), Mode: 0o644})
		if err != nil {
			return err
		}
		_, err = io.CopyN(archive, f, at.Size())
		return err
	})
	if err != nil {
		return fmt.Errorf("read the layout %s: %w", dir, err)
	}
	return archive.Close()
}

func exportCommand(client func() *controlClient) *cobra.Command {
	var output string
	save := &cobra.Command{
		Use:   "export IMAGE -o FILE|DIR/|-",
		Short: "Export an image as an OCI layout that docker load reads too",
		Long: `Export an image as a tar that is an OCI layout and can be read by "docker load"
too, or with an output that ends in "/" as a directory.

Compressed layers are not kept, so layers are archived anew from their files.
These are the same, with owners, times, links and attributes, but the archive is
in general not the one that was pulled, byte for byte: the image has other
digests then, and another id, which is told. The same image always gives the
same archive.`,
		Args: cobra.ExactArgs(1),
	}
	save.Flags().StringVarP(&output, "output", "o", "", "`FILE` to write, directory with a final \"/\", or \"-\"")
	save.RunE = interruptible(func(ctx context.Context, cmd *cobra.Command, args []string) error {
		if output == "" {
			return errors.New("export: --output is missing; \"-\" is standard output")
		}
		resp, err := client().do(ctx, http.MethodGet, "/v1/images/export", url.Values{"ref": args}, nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if err := writeExport(ctx, cmd.OutOrStdout(), resp, output); err != nil {
			return fmt.Errorf("export to %s: %w", output, err)
		}
		printExport(cmd.ErrOrStderr(), resp.Header)
		return nil
	})
	return save
}

func printExport(w io.Writer, h http.Header) {
	bytes, err := strconv.ParseInt(h.Get(control.HeaderSize), 10, 64)
	if err != nil {
		bytes = 0
	}
	fmt.Fprintf(w, "%s, manifest %s\n", size(bytes), h.Get(control.HeaderManifest))
	if id, archived := h.Get(control.HeaderID), h.Get(control.HeaderNewID); id != archived {
		fmt.Fprintf(w, "the image %s has the id %s in the archive: its layers were archived anew\n", id, archived)
	}
}

// writeExport writes the archive where it is to go. A file gets its name when
// it is whole.
func writeExport(ctx context.Context, stdout io.Writer, resp *http.Response, output string) (err error) {
	switch {
	case output == "-":
		_, err = io.Copy(stdout, resp.Body)
		return whole(ctx, resp, err)
	case strings.HasSuffix(output, "/"):
		if err := os.Mkdir(output, 0o755); err != nil {
			return err // one that is there may hold something else
		}
		err = whole(ctx, resp, untarLayout(resp.Body, output))
		if err != nil {
			err = errors.Join(err, os.RemoveAll(output))
		}
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(output), "."+filepath.Base(output)+".*")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	err = errors.Join(whole(ctx, resp, err), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), output)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}

// whole tells whether all of an archive came, after its body was read.
func whole(ctx context.Context, resp *http.Response, err error) error {
	if ctx.Err() != nil {
		return errInterrupted
	}
	if said := resp.Trailer.Get(control.TrailerError); said != "" {
		return fmt.Errorf("%w: %s", errDaemon, said)
	}
	return err
}

// untarLayout writes the files of an archive below dir, and nothing elsewhere.
func untarLayout(r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	reader := tar.NewReader(r)
	for {
		h, err := reader.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return err
		}
		if err := root.MkdirAll(path.Dir(h.Name), 0o755); err != nil {
			return err
		}
		f, err := root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, reader)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}
