package oci

import (
	"context"
	"fmt"
	"os"
	"testing"
)

func benchCgroups(b *testing.B) (*Cgroups, string) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	g, err := NewCgroups("cgroupfs")
	if err != nil {
		b.Fatal(err)
	}
	top := fmt.Sprintf("/cri-test-%d", os.Getpid())
	parent, err := g.Create(top, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := parent.Remove(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return g, top
}

// BenchmarkCgroup makes a container's cgroup with its limits and removes it.
func BenchmarkCgroup(b *testing.B) {
	g, top := benchCgroups(b)
	r := containerLimits()
	b.Run("create", func(b *testing.B) {
		for i := range b.N {
			c, err := g.Create(fmt.Sprintf("%s/%d", top, i), r)
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := c.Remove(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("create without limits", func(b *testing.B) {
		for i := range b.N {
			c, err := g.Create(fmt.Sprintf("%s/%d", top, i), nil)
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := c.Remove(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("remove", func(b *testing.B) {
		for i := range b.N {
			b.StopTimer()
			c, err := g.Create(fmt.Sprintf("%s/%d", top, i), nil)
			if err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if err := c.Remove(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("sub", func(b *testing.B) {
		c, err := g.Create(top+"/c", nil)
		if err != nil {
			b.Fatal(err)
		}
		for i := range b.N {
			sub, err := c.Sub(fmt.Sprint("exec", i))
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := sub.Remove(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
}
