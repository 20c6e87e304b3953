package server

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/oci"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// What the kernel does not tell is unset, not zero.
func TestUsageMessages(t *testing.T) {
	none := &sandbox.Usage{At: 1}
	if cpuUsage(none) != nil || memoryUsage(none) != nil || swapUsage(none) != nil || ioUsage(none).Psi != nil {
		t.Error("something of nothing")
	}
	u := &sandbox.Usage{At: 5, NanoCores: 7, NanoCoresKnown: true, CgroupStats: oci.CgroupStats{
		CPU: oci.CPUStats{Known: true, Usage: 9, Pressure: oci.Pressure{Known: true, Full: oci.Stall{Avg10: 1.5, Total: 8}}},
		Memory: oci.MemoryStats{
			Known: true, Usage: 100, WorkingSet: 60, RSS: 50, Limit: 80, PageFaults: 3, MajorPageFaults: 2,
			SwapKnown: true, Swap: 5, SwapLimit: oci.NoLimit,
		},
	}}
	want := &runtimeapi.CpuUsage{
		Timestamp: 5, UsageCoreNanoSeconds: value(9), UsageNanoCores: value(7),
		Psi: &runtimeapi.PsiStats{Full: &runtimeapi.PsiData{Total: 8, Avg10: 1.5}, Some: &runtimeapi.PsiData{}},
	}
	if got := cpuUsage(u); !proto.Equal(got, want) {
		t.Errorf("%v", got)
	}
	memory := &runtimeapi.MemoryUsage{
		Timestamp: 5, WorkingSetBytes: value(60), AvailableBytes: value(20), UsageBytes: value(100), RssBytes: value(50),
		PageFaults: value(3), MajorPageFaults: value(2),
	}
	if got := memoryUsage(u); !proto.Equal(got, memory) {
		t.Errorf("%v", got)
	}
	if got := swapUsage(u); got.SwapAvailableBytes != nil || got.SwapUsageBytes.Value != 5 {
		t.Errorf("%v", got)
	}
	u.Memory.WorkingSet = 90 // above the limit: the two are not read at one moment
	if got := memoryUsage(u).AvailableBytes.GetValue(); got != 0 {
		t.Errorf("available %d", got)
	}
}

func TestInBatches(t *testing.T) {
	items := make([]int, 3*maxBatchItems+5)
	for i := range items {
		items[i] = i
	}
	var looks atomic.Int32
	look := func(i int) *int {
		looks.Add(1)
		if i%10 == 3 {
			return nil // gone meanwhile
		}
		return &i
	}
	var got []int
	if err := inBatches(t.Context(), items, look, func(i *int) error { got = append(got, *i); return nil }); err != nil {
		t.Fatal(err)
	}
	want := slices.DeleteFunc(slices.Clone(items), func(i int) bool { return i%10 == 3 })
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	// An error of the stream ends it before the next batch is looked at.
	looks.Store(0)
	broken := errors.New("broken")
	if err := inBatches(t.Context(), items, look, func(*int) error { return broken }); !errors.Is(err, broken) || looks.Load() != maxBatchItems {
		t.Errorf("%v after %d", err, looks.Load())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := inBatches(ctx, items, look, func(*int) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestBatcher(t *testing.T) {
	var sizes []int
	b := batcher[*runtimeapi.PodSandbox]{send: func(items []*runtimeapi.PodSandbox) error {
		sizes = append(sizes, len(items))
		return nil
	}}
	item := func(bytes int) *runtimeapi.PodSandbox { return &runtimeapi.PodSandbox{Id: string(make([]byte, bytes))} }
	if err := b.flush(); err != nil || sizes != nil {
		t.Error("an empty message", err)
	}
	for _, bytes := range []int{2 * maxBatchBytes, 10, maxBatchBytes / 2, maxBatchBytes / 2, 10} {
		if err := b.add(item(bytes)); err != nil {
			t.Fatal(err)
		}
	}
	for range maxBatchItems + 1 {
		if err := b.add(item(1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.flush(); err != nil {
		t.Fatal(err)
	}
	if want := []int{1, 2, maxBatchItems, 3}; !slices.Equal(sizes, want) {
		t.Errorf("messages of %v, want %v", sizes, want)
	}
}

// Event streams end with the daemon, at once and with a reason.
func TestEventsEndWithTheDaemon(t *testing.T) {
	s := serve(t, testConfig(t, newMemoryImages()))
	client := runtimeapi.NewRuntimeServiceClient(s.conn)
	stream, err := client.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	s.stop()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("ended with %v", err)
	}
	if err := within(t, "the end", s.done); err != nil {
		t.Error(err)
	}
}
