//go:build docs

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// rootFiles is what the page of the root command says besides its commands.
const rootFiles = `.SH FILES
.TP
\fI/etc/cri-runtime/config.toml\fP, \fI/etc/cri-runtime/config.toml.d/*.toml\fP
The configuration, see \fBcri-runtime.toml\fP(5).
.TP
\fI/etc/cri-runtime/certs.d/\fPHOST\fI/hosts.toml\fP
Mirrors and certificates of a registry.
.TP
\fI/var/lib/cri-runtime\fP
Images, and the records of pods and containers.
.TP
\fI/run/cri-runtime/cri-runtime.sock\fP, \fI/run/cri-runtime/control.sock\fP
The socket for the kubelet and crictl, and that for this command's subcommands.
`

// documentCommands has the command that writes manual pages and completions.
func documentCommands() []*cobra.Command {
	return []*cobra.Command{{
		Use:    "docs DIR",
		Short:  "Write manual pages and completions below a directory laid out like /usr/share",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(cmd *cobra.Command, args []string) error { return writeDocuments(cmd.Root(), args[0]) },
	}}
}

func writeDocuments(root *cobra.Command, dir string) error {
	root.DisableAutoGenTag = true
	toml, err := configPage(defaultTOML)
	if err != nil {
		return err
	}
	if err = writeDocument(dir, "man/man5/cri-runtime.toml.5", toml); err != nil {
		return err
	}
	if err = writePages(root, dir); err != nil {
		return err
	}
	for _, c := range []struct {
		name  string
		write func(*bytes.Buffer) error
	}{
		{"bash-completion/completions/cri-runtime", func(b *bytes.Buffer) error { return root.GenBashCompletionV2(b, true) }},
		{"zsh/site-functions/_cri-runtime", func(b *bytes.Buffer) error { return root.GenZshCompletion(b) }},
		{"fish/vendor_completions.d/cri-runtime.fish", func(b *bytes.Buffer) error { return root.GenFishCompletion(b, true) }},
	} {
		var text bytes.Buffer
		if err = c.write(&text); err != nil {
			return fmt.Errorf("make %s: %w", c.name, err)
		}
		if err = writeDocument(dir, c.name, text.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// writePages writes the page of a command and those of all below it.
func writePages(cmd *cobra.Command, dir string) error {
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
	var page bytes.Buffer
	header := &doc.GenManHeader{Section: "1", Source: "cri-runtime", Manual: "cri-runtime"}
	if err := doc.GenMan(cmd, header, &page); err != nil {
		return fmt.Errorf("make the manual page %s: %w", name, err)
	}
	if !cmd.HasParent() {
		page.WriteString(rootFiles)
	}
	if err := writeDocument(dir, "man/man1/"+name+".1", page.Bytes()); err != nil {
		return err
	}
	for _, c := range cmd.Commands() {
		if !c.IsAvailableCommand() {
			continue
		}
		if err := writePages(c, dir); err != nil {
			return err
		}
	}
	return nil
}

func writeDocument(dir, name string, text []byte) error {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write document: %w", err)
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		return fmt.Errorf("write document: %w", err)
	}
	return nil
}

// configPage turns the commented defaults into a manual page. A blank line ends
// a block: comments, and the keys that they are for. The first one has no keys.
func configPage(text string) ([]byte, error) {
	var page bytes.Buffer
	fmt.Fprintf(&page, ".TH CRI-RUNTIME.TOML 5 \"\" cri-runtime cri-runtime\n.SH NAME\n"+
		"cri-runtime.toml \\- configuration of cri-runtime\n.SH SYNOPSIS\n\\fI%s\\fP\n.SH DESCRIPTION\n", roff(defaultConfigFile))
	row := 1
	for i, block := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i == 1 {
			page.WriteString(".SH KEYS\n")
		}
		var comment, keys []string
		for _, line := range strings.Split(block, "\n") {
			key, value, isKey := strings.Cut(line, " = ")
			switch {
			case strings.HasPrefix(line, "#"):
				comment = append(comment, strings.TrimPrefix(line, "#"))
			case strings.HasPrefix(line, "["):
				fmt.Fprintf(&page, ".SS %s\n", roff(line))
			case isKey:
				keys = append(keys, fmt.Sprintf("\n\\fB%s\\fP = %s\n", roff(key), roff(value)))
			default:
				return nil, fmt.Errorf("default.toml:%d: %q is neither a comment nor a key", row, line)
			}
			row++
		}
		row++
		if len(keys) > 0 {
			page.WriteString(".TP" + strings.Join(keys, ".TQ"))
		}
		page.WriteString(paragraph(comment))
	}
	page.WriteString(".SH SEE ALSO\n\\fBcri\\-runtime\\fP(1), \\fBcri\\-runtime\\-config\\-validate\\fP(1)\n")
	return page.Bytes(), nil
}

// paragraph formats a comment; what is indented by more than a space in it is
// an example.
func paragraph(comment []string) string {
	var out strings.Builder
	example := false
	for _, line := range comment {
		indented := strings.HasPrefix(line, "  ")
		switch {
		case indented && !example:
			out.WriteString(".IP\n.nf\n")
		case !indented && example:
			out.WriteString(".fi\n.IP\n")
		}
		example = indented
		if line = strings.TrimSpace(line); line != "" {
			out.WriteString(roff(line) + "\n")
		}
	}
	if example {
		out.WriteString(".fi\n")
	}
	return out.String()
}

// roff writes text so that nothing in it is a request.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, `-`, `\-`).Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return text
}
