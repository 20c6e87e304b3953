package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/network"
	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

const frozenRecord = `the record is not what testdata has. Daemons of other versions read it, and this one reads theirs.
A member that others may leave out is added with omitempty, here and in testdata; for
anything else raise recordFormat, keep reading the old one, and keep its file`

// The records of a running node, with every member.
func TestFrozenRecords(t *testing.T) {
	for name, record := range map[string]any{
		"sandbox.json": &sandboxRecord{
			ID: "s1", Handler: "h", CreatedAt: 1, Config: json.RawMessage(`{"hostname":"a"}`), Cgroup: "/c", OwnCgroup: true, Ready: true, Stopped: true,
			Pause:      &pauseRecord{PID: 2, StartTime: 3},
			Attachment: &network.Attachment{Network: "n", IPs: []string{"192.0.2.1"}, Config: []byte("{}"), Result: []byte("{}")},
			Boot:       "b",
		},
		"container.json": &containerRecord{
			ID: "c1", SandboxID: "s1", CreatedAt: 1, Config: json.RawMessage(`{"logPath":"a"}`), ImageID: "sha256:1", VolumeImages: []string{"sha256:2"},
			StopSignal: 15, Cgroup: "/c/c1", LogPath: "/l", Boot: "b",
		},
		"lost.json": &lostRecord{Reason: "r", Message: "m", ExitCode: 137, StartedAt: 1, FinishedAt: 2},
	} {
		t.Run(name, func(t *testing.T) {
			want, err := os.ReadFile(filepath.Join("testdata", name))
			if err != nil {
				t.Fatal(err)
			}
			got, err := ledger.Marshal(record)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(append(got, '\n'), want) {
				t.Errorf("%s\nwant %sgot  %s", frozenRecord, want, got)
			}
			// Those of before there were seals, and of later versions with a member more.
			unsealed := want[:bytes.LastIndex(want, []byte(`,"crc32c"`))]
			more, err := ledger.Seal(append(bytes.Clone(unsealed), `,"Later":{"a":[1]}}`...))
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range [][]byte{want, append(bytes.Clone(unsealed), '}'), more} {
				read := reflect.New(reflect.TypeOf(record).Elem()).Interface()
				if err := ledger.Unmarshal(text, read); err != nil || !reflect.DeepEqual(read, record) {
					t.Errorf("%s\nread as %+v, %v", text, read, err)
				}
			}
		})
	}
}

// A pod of a later version is neither changed nor harmed, and said to be there.
func TestNewerRecords(t *testing.T) {
	f, ctx := setUp(t), context.Background()
	theirs, ours := f.podNamed("theirs"), f.podNamed("ours")
	inTheirs, inOurs := f.run(theirs, "a", "sh", "-c", forever), f.run(ours, "b", "sh", "-c", forever)
	if err := f.store.Close(); err != nil {
		t.Fatal(err)
	}
	path := theirs.root("sandbox.json")
	original, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	later, err := ledger.Seal(append([]byte(`{"Format":2,"ID":{"changed":true}`), '}'))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range [][]byte{
		append(bytes.Replace(original[:bytes.LastIndex(original, []byte(`,"crc32c"`))], []byte("{"), []byte(`{"Format":2,`), 1), '}'),
		later,
	} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		f.open()
		if _, err := f.store.Sandbox(theirs.id); !errors.Is(err, ErrNotFound) {
			t.Error("a pod of a later version is listed:", err)
		}
		if _, err := f.store.Container(inTheirs.id); !errors.Is(err, ErrNotFound) {
			t.Error("its container is listed:", err)
		}
		if notes := strings.Join(f.store.Notes(), "\n"); !strings.Contains(notes, "1 pods were written by a later version") {
			t.Errorf("notes: %s", notes)
		}
		if got := f.exec(mustContainer(t, f, inOurs.id), "echo", "on"); got != "on" {
			t.Errorf("the other pod: %q", got)
		}
		f.store.background.Wait()
		if err := f.store.Close(); err != nil {
			t.Fatal(err)
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, text) {
			t.Errorf("the record has changed: %q, %v", now, err)
		}
	}
	if err := os.WriteFile(path, original, 0o600); err != nil {
		t.Fatal(err)
	}
	f.open()
	if st := mustContainer(t, f, inTheirs.id).Status(); st.State != stateRunning || st.PID != inTheirs.Status().PID {
		t.Errorf("with the later version again: %+v", st)
	}
	box, err := f.store.Sandbox(theirs.id)
	if err != nil {
		t.Fatal(err)
	}
	if err := box.Remove(ctx); err != nil {
		t.Error(err)
	}
}

func mustContainer(t *testing.T, f *fixture, id string) *Container {
	t.Helper()
	c, err := f.store.Container(id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
