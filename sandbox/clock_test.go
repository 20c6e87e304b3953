package sandbox

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox/ledger"
)

// What is computed with the wall clock, and what a jump of it does:
//
//	creation of a sandbox, a container     later than that of the last one of the same pod and name: lastOf, lastNamed
//	start and end of a container           never before what comes before them: order; the monitor's are CLOCK_REALTIME
//	end that nobody has seen               the same, and not before the kernel's start where that is later: unseenEnd
//	events, Pod                            grow, whatever the clock does: now(last)
//	lines of logs, records moved aside,    the clock's time; nothing is computed with it
//	times of statistics and metrics
//	network configuration that is new      by the kernel's times of files, both ways: network TestConfSetBack
//	Retry-After with a date                the registry's clock against ours; longer than a bound the request fails: imageservice
//	TLS certificates                       the clock's time, by nature
//	doctor                                 says that the clock was set back, if records are of the future
//
// All else is by the monotonic clock: waits, deadlines, rates (TestRate), ages of tokens and
// credentials, of measurements and of what is in the trash, durations in logs and of pulls.

// TestTimesKeepTheirOrder: no record, of whatever clock, makes a container that
// started before it was created or ended before it was started.
func TestTimesKeepTheirOrder(t *testing.T) {
	const day = int64(24 * time.Hour)
	today := time.Now().UnixNano()
	for _, c := range []struct {
		name                       string
		state                      runtimeapi.ContainerState
		created, started, finished int64
		wantStarted, wantFinished  int64
	}{
		{"in order", stateExited, today, today + 1, today + 2, today + 1, today + 2},
		{"running", stateRunning, today, today + 1, 0, today + 1, 0},
		{"created", stateCreated, today, 0, 0, 0, 0},
		{"set back before the start", stateRunning, today, today - day, 0, today, 0},
		{"set back before the end", stateExited, today, today + 1, today - day, today + 1, today + 1},
		{"set back before both", stateExited, today, today - day, today - day + 1, today, today},
		{"never started", stateExited, today, 0, 0, 0, today},
		{"never started, set back", stateExited, today, 0, today - day, 0, today},
		{"no end", stateExited, today, today, 0, today, today},
		{"before 1970", stateExited, today, -day, math.MinInt64, today, today},
		{"all before 1970", stateExited, -2 * day, -day, -day + 1, -day, -day + 1},
		{"end of time", stateExited, today, math.MaxInt64, 5, math.MaxInt64, math.MaxInt64},
		{"set forward", stateExited, today, today + 100*day, today + 200*day, today + 100*day, today + 200*day},
		{"zero", stateExited, 0, 0, 0, 0, 0},
	} {
		s := ContainerStatus{State: c.state, CreatedAt: c.created, StartedAt: c.started, FinishedAt: c.finished}
		s.order()
		if s.StartedAt != c.wantStarted || s.FinishedAt != c.wantFinished || s.CreatedAt != c.created {
			t.Errorf("%s: %+v", c.name, s)
		}
	}
}

// setClock rewrites times in a record, as if it had been written by another clock.
func setClock(t *testing.T, path string, change func(record map[string]any)) {
	t.Helper()
	var record map[string]any
	data, err := os.ReadFile(path)
	if err == nil {
		decoder := json.NewDecoder(strings.NewReader(string(data)))
		decoder.UseNumber()
		err = decoder.Decode(&record)
	}
	delete(record, "crc32c")
	change(record)
	if err == nil {
		data, err = ledger.Marshal(record)
	}
	if err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestClockWasSet starts with records of another clock: of the future, of 1970, of
// before that, with an end before the start. All objects are there, their times in
// order, and what is made now is newer than what there was.
func TestClockWasSet(t *testing.T) {
	const year = int64(365 * 24 * time.Hour)
	for name, offset := range map[string]int64{"set back by years": 20 * year, "set back by a second": int64(time.Second), "set forward": -20 * year, "of before 1970": -80 * year} {
		t.Run(name, func(t *testing.T) {
			f := setUp(t)
			ctx := context.Background()
			b := f.podNamed("pod")
			running, ended := f.run(b, "running", "sh", "-c", forever), f.run(b, "ended", "false")
			f.await(ended)
			awaitFile(t, ended.root(exitFile))
			if err := f.store.Close(); err != nil {
				t.Fatal(err)
			}
			then := time.Now().UnixNano() + offset
			created := func(r map[string]any) { r["CreatedAt"] = then }
			setClock(t, b.root(sandboxFile), created)
			for _, c := range []*Container{running, ended} {
				setClock(t, c.root(containerFile), created)
			}
			f.open()
			f.store.background.Wait()
			b, err := f.store.Sandbox(b.id)
			if err != nil || b.Status().State != sandboxReady || b.Status().CreatedAt != then {
				t.Fatalf("the pod: %v, %v", b, err)
			}
			for _, c := range b.Containers() {
				st := c.Status()
				if st.CreatedAt != then || st.StartedAt < st.CreatedAt || st.State == stateExited && (st.FinishedAt < st.StartedAt || st.ExitCode != 1) {
					t.Errorf("%+v", st)
				}
			}
			// A kubelet takes the newest one of a name for the present one.
			next := containerConfig("ended", runtimeapi.NamespaceMode_CONTAINER, "true")
			next.Metadata.Attempt = 1
			again, err := b.CreateContainer(ctx, next, f.image)
			if err != nil {
				t.Fatal(err)
			}
			if at := again.Status().CreatedAt; at <= then || offset < 0 && at < time.Now().Add(-time.Hour).UnixNano() {
				t.Errorf("the next container was created at %d, the last at %d", at, then)
			}
			config := f.podConfig("pod", runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER)
			config.Metadata.Attempt = 1
			second, err := f.store.Run(ctx, config, "")
			if err != nil || second.Status().CreatedAt <= then {
				t.Errorf("the next sandbox was created at %d, the last at %d: %v", second.Status().CreatedAt, then, err)
			}
			other := f.podNamed("other")
			if off := time.Since(time.Unix(0, other.Status().CreatedAt)); off.Abs() > time.Hour {
				t.Errorf("a pod that has nothing to do with it was created %s ago", off)
			}
			if u, err := running.Usage(false); err != nil || u.NanoCoresKnown && u.NanoCores > 1e12 {
				t.Errorf("usage %+v %v", u, err)
			}
			if found, err := Check(f.config, f.store.Memory()); err != nil || len(found.Findings) > 0 {
				t.Error(found, err)
			}
		})
	}
}

// TestClockSetBeforeLoss: a container of the future is lost; its end is not before its start.
func TestClockSetBeforeLoss(t *testing.T) {
	f := setUp(t)
	b := f.podNamed("pod")
	c := f.run(b, "running", "sh", "-c", forever)
	if err := f.store.Close(); err != nil {
		t.Fatal(err)
	}
	then := time.Now().Add(1000 * time.Hour).UnixNano()
	setClock(t, c.root(containerFile), func(r map[string]any) { r["CreatedAt"], r["Boot"] = then, "another run of the machine" })
	f.open()
	f.store.background.Wait()
	lost, err := f.store.Container(c.id)
	if err != nil {
		t.Fatal(err)
	}
	st := lost.Status()
	if st.State != stateExited || st.CreatedAt != then || st.StartedAt < then || st.FinishedAt < st.StartedAt {
		t.Errorf("%+v", st)
	}
	// The process goes on, as nothing was rebooted; the pod's removal ends it.
}

func TestBootOffset(t *testing.T) {
	for text, want := range map[string]int64{
		"": 0, "monotonic           0         0\nboottime            0         0\n": 0,
		"monotonic      864000         0\nboottime       864001         0\n": 86400100,
		"boottime -60 0\n": -6000, "boottime\n": 0, "boottime x y\n": 0, "\xff boottime 1": 0,
	} {
		if got := bootOffset(text); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	if _, err := startTime(os.Getpid()); err != nil {
		t.Error(err)
	}
}
