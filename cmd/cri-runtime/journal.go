package main

import (
	"fmt"
	"maps"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

// journalSink is where klog's lines go when standard error is the journal: the keys of
// a line are fields, so that `journalctl POD=ID` shows one pod's life.
type journalSink struct {
	send   func(text string, p journal.Priority, fields map[string]string) error
	fields map[string]string
}

// logToJournal leads the log there, if it is where standard error leads.
func logToJournal() {
	if own, err := journal.StderrIsJournalStream(); err == nil && own {
		klog.SetLogger(logr.New(&journalSink{send: journal.Send}))
	}
}

// Init implements logr.LogSink.
func (*journalSink) Init(logr.RuntimeInfo) {}

// Enabled implements logr.LogSink; klog has looked at the verbosity.
func (*journalSink) Enabled(int) bool { return true }

// Info implements logr.LogSink.
func (s *journalSink) Info(level int, text string, pairs ...any) {
	priority := journal.PriInfo
	if level > 0 {
		priority = journal.PriDebug
	}
	s.write(text, priority, pairs)
}

// Error implements logr.LogSink.
func (s *journalSink) Error(err error, text string, pairs ...any) {
	if err != nil {
		pairs = append([]any{"err", err}, pairs...)
	}
	s.write(text, journal.PriErr, pairs)
}

// WithValues implements logr.LogSink.
func (s *journalSink) WithValues(pairs ...any) logr.LogSink {
	fields := maps.Clone(s.fields)
	if fields == nil {
		fields = map[string]string{}
	}
	addFields(fields, pairs)
	return &journalSink{send: s.send, fields: fields}
}

// WithName implements logr.LogSink; nothing here has a name.
func (s *journalSink) WithName(string) logr.LogSink { return s }

func (s *journalSink) write(text string, p journal.Priority, pairs []any) {
	fields := maps.Clone(s.fields)
	if fields == nil {
		fields = map[string]string{}
	}
	text = strings.TrimSpace(text) + addFields(fields, pairs)
	// There is nowhere to tell that the journal does not answer.
	_ = s.send(text, p, fields)
}

// addFields adds pairs of keys and values to fields and returns them as text, for whoever
// reads the message alone.
func addFields(fields map[string]string, pairs []any) string {
	var shown strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		key, value := fmt.Sprint(pairs[i]), fmt.Sprint(pairs[i+1])
		fmt.Fprintf(&shown, " %s=%q", key, value)
		if name := fieldName(key); name != "" {
			fields[name] = value
		}
	}
	return shown.String()
}

// fieldName makes a key a field of the journal: capitals, digits and underscores, none of
// those that the journal trusts or gives a meaning to.
func fieldName(key string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
	name = strings.TrimLeft(name, "_0123456789")
	switch name {
	case "MESSAGE", "PRIORITY":
		return ""
	}
	return name[:min(len(name), 64)]
}
