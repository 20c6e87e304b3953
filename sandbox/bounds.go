package sandbox

import (
	"fmt"
	"sync/atomic"
)

const (
	// maxExecs bounds the commands of ExecSync and Exec that run beside the
	// containers' own, in all and in one container: its monitor takes as many.
	maxExecs      = 2048
	maxExecsOfOne = 256
	// maxWaiting bounds the verbs that wait for one pod.
	maxWaiting = 64
	// sharedOutput is for what commands have written beyond ownOutput each, and
	// sharedLag for what attached clients have not taken beyond ownLag each. Output
	// costs four times its size: buffers grow, and answers are encoded.
	sharedOutput = 64 << 20
	ownOutput    = 64 << 10
	sharedLag    = 256 << 20
	ownLag       = 256 << 10
)

// pool is memory that many share.
type pool struct{ left atomic.Int64 }

func newPool(size int64) *pool {
	p := &pool{}
	p.left.Store(size)
	return p
}

// take takes as much of n as is left.
func (p *pool) take(n int) int {
	for {
		left := p.left.Load()
		got := max(0, min(int64(n), left))
		if p.left.CompareAndSwap(left, left-got) {
			return int(got)
		}
	}
}

func (p *pool) give(n int) { p.left.Add(int64(n)) }

// enterExec takes a place for a command; leave gives it back.
func (c *Container) enterExec() (leave func(), err error) {
	leave = func() {
		c.execs.Add(-1)
		c.store.execs.Add(-1)
	}
	own, all := c.execs.Add(1), c.store.execs.Add(1)
	switch {
	case own > maxExecsOfOne:
		err = fmt.Errorf("exec in container %s: %d commands run in it: %w", c.id, own-1, ErrTooMany)
	case all > maxExecs:
		err = fmt.Errorf("exec in container %s: %d commands run in all containers: %w", c.id, all-1, ErrTooMany)
	}
	if err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}
