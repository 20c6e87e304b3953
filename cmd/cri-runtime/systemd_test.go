package main

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/go-logr/logr"
)

func TestJournalFields(t *testing.T) {
	type line struct {
		text     string
		priority journal.Priority
		fields   map[string]string
	}
	var got line
	log := logr.New(&journalSink{send: func(text string, p journal.Priority, fields map[string]string) error {
		got = line{text, p, fields}
		return nil
	}})
	for name, test := range map[string]struct {
		write func()
		want  line
	}{
		"info": {func() { log.Info("Sandbox is ready", "pod", "abc", "took", time.Second) }, line{
			`Sandbox is ready pod="abc" took="1s"`, journal.PriInfo, map[string]string{"POD": "abc", "TOOK": "1s"},
		}},
		"debug": {func() { log.V(2).Info("x") }, line{"x", journal.PriDebug, map[string]string{}}},
		"error": {func() { log.Error(errors.New("no\nspace"), "Write", "container", "c1") }, line{
			`Write err="no\nspace" container="c1"`, journal.PriErr, map[string]string{"ERR": "no\nspace", "CONTAINER": "c1"},
		}},
		"with values": {func() { log.WithValues("pod", "p").Info("y", "container", "c") }, line{
			`y container="c"`, journal.PriInfo, map[string]string{"POD": "p", "CONTAINER": "c"},
		}},
		// A key of ours must not look like what the journal vouches for.
		"trusted names": {func() { log.Info("z", "_UID", "0", "message", "m", "priority", "1", "9a-b", "v", "é", "w") }, line{
			`z _UID="0" message="m" priority="1" 9a-b="v" é="w"`, journal.PriInfo, map[string]string{"UID": "0", "A_B": "v"},
		}},
	} {
		test.write()
		if got.text != test.want.text || got.priority != test.want.priority || !maps.Equal(got.fields, test.want.fields) {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}

func TestListenWithoutASupervisor(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s", "cri.sock")
	l, err := listen(t.Context(), "unix://"+socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket: %v, %v", info, err)
	}
}
