package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker; without it the module's version is told.
var version string

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// rootCommand is the whole command line.
func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "cri-runtime",
		Short:         "A container runtime for Kubernetes nodes",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(serveCommand(), versionCommand(), configCommand(), imageCommand(), auditCommand(), doctorCommand(), debugCommand())
	root.AddCommand(documentCommands()...)
	return root
}

// run executes one command and returns the exit code of the process.
func run(args []string, stdout, stderr io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.Execute(); err != nil {
		fmt.Fprintf(stderr, "cri-runtime: %v\n", err)
		return 1
	}
	return 0
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "cri-runtime %s (CRI v1, %s, %s/%s)\n",
				buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// buildVersion never returns "": the kubelet refuses a runtime without a version.
func buildVersion() string {
	if version != "" {
		return version
	}
	if build, ok := debug.ReadBuildInfo(); ok && build.Main.Version != "" && build.Main.Version != "(devel)" {
		return build.Main.Version
	}
	return "v0.0.0-devel"
}

func configCommand() *cobra.Command {
	config := &cobra.Command{Use: "config", Short: "Look at the configuration", Args: cobra.NoArgs}
	config.AddCommand(&cobra.Command{
		Use:   "default",
		Short: "Print a complete configuration file with the defaults",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), defaultTOML)
			return err
		},
	}, &cobra.Command{
		Use:   "validate [FILE]",
		Short: "Check a configuration file and its drop-ins",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			file := defaultConfigFile
			if len(args) > 0 {
				file = args[0]
			}
			if _, err := loadConfig(file, len(args) > 0); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: valid\n", file)
			return err
		},
	})
	return config
}
