package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"github.com/cri-runtime/cri-runtime/oci"
)

// maxSpecBytes leaves room for half a megabyte of environment many times over.
const maxSpecBytes = 16 << 20

func debugCommand() *cobra.Command {
	var bundle string
	program := &cobra.Command{
		Use:   "program --bundle DIR",
		Short: "Print the launch program of a container, one system call a line",
		Long: `Print the launch program that a bundle's config.json is compiled to: what the
container's first process does, one named step a line, before it becomes the
workload. Nothing is run. How cgroups are joined, the symlinks of the image
and the seccomp filter are known only to the daemon and left out.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return printProgram(cmd.OutOrStdout(), bundle)
		},
	}
	program.Flags().StringVar(&bundle, "bundle", "", "`DIR` with config.json: containers/ID below the root")
	if err := program.MarkFlagRequired("bundle"); err != nil {
		program.RunE = func(*cobra.Command, []string) error { return err }
	}
	debug := &cobra.Command{Use: "debug", Short: "Look at what the daemon does", Args: cobra.NoArgs}
	debug.AddCommand(program)
	return debug
}

func printProgram(w io.Writer, bundle string) error {
	name := filepath.Join(bundle, "config.json")
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("read bundle: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSpecBytes+1))
	if err != nil {
		return fmt.Errorf("read bundle: %w", err)
	}
	if len(data) > maxSpecBytes {
		return fmt.Errorf("read bundle: %s is larger than %d bytes", name, maxSpecBytes)
	}
	spec, err := oci.DecodeSpec(data)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	program, err := oci.Compile(spec, &oci.CompileOptions{FileSources: fileSources(spec), Sources: oci.GivenSources(spec)})
	if err != nil {
		return fmt.Errorf("compile %s: %w", name, err)
	}
	return program.Print(w)
}

// fileSources tells which mounts have a source that is no directory.
func fileSources(spec *specs.Spec) []bool {
	files := make([]bool, len(spec.Mounts))
	for i, m := range spec.Mounts {
		at, err := os.Stat(m.Source)
		files[i] = err == nil && !at.IsDir()
	}
	return files
}
