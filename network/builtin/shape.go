package builtin

import (
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
)

const (
	bitsPerByte  = 8
	shapeLatency = 0.025 // s, that a packet may wait
	minBurst     = 64 << 10
)

// Rates bound a pod's traffic in bit/s; 0: not.
type Rates struct {
	Ingress, Egress uint64 // as the pod sees it
}

// apply shapes each direction where it leaves: what the pod receives at the
// host's end, what it sends at its own, which no container may change without
// CAP_NET_ADMIN.
func (r Rates) apply(pod *netlink.Handle, name, host string) error {
	on, err := netlink.NewHandle()
	if err != nil {
		return fmt.Errorf("shape traffic: %w", err)
	}
	defer on.Close()
	if err := shape(on, host, r.Ingress); err != nil {
		return err
	}
	return shape(pod, name, r.Egress)
}

func shape(h *netlink.Handle, name string, rate uint64) error {
	if rate == 0 {
		return nil
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("shape traffic of %s: %w", name, err)
	}
	bytes := rate / bitsPerByte
	burst := uint64(max(float64(bytes)*shapeLatency, minBurst))
	tbf := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       bytes,
		Buffer:     uint32(min(float64(netlink.TickInUsec())*float64(burst)*1e6/float64(bytes), math.MaxUint32)), // in ticks
		Limit:      uint32(min(2*burst, math.MaxUint32)),
	}
	if err := h.QdiscAdd(tbf); err != nil {
		return fmt.Errorf("shape traffic of %s to %d bit/s (does the kernel have sch_tbf?): %w", name, rate, err)
	}
	return nil
}
