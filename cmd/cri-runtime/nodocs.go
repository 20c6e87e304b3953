//go:build !docs

package main

import "github.com/spf13/cobra"

// documentCommands has none: what writes manual pages is not shipped.
func documentCommands() []*cobra.Command { return nil }
