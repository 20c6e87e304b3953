package main

import "github.com/spf13/cobra"

func debugCommand() *cobra.Command {
	return &cobra.Command{Use: "debug", Short: "Look inside", Args: cobra.NoArgs}
}
