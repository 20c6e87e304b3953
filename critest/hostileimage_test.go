package critest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/images"
)

var catalogOnce = sync.OnceValues(func() ([]images.Named, error) { return images.Catalog(context.Background()) })

// catalog is made once: it takes a while.
func catalog(context.Context) ([]images.Named, error) { return catalogOnce() }

func TestHostileImages(t *testing.T) {
	begin(t)
	all, err := catalog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	image(t, "busybox") // its layer is in most of them
	for _, n := range all {
		name, hostile := strings.CutPrefix(n.Repository, "cri-runtime/hostile-")
		if !hostile {
			continue
		}
		t.Run(name, func(t *testing.T) {
			before := stored(t)
			shadow, err := os.Stat("/etc/shadow")
			if err != nil {
				t.Skip("the host has no /etc/shadow:", err)
			}
			ref := depot.Address + "/" + n.Repository + ":latest"
			_, err = node.Images.PullImage(t.Context(), spec(ref), nil, nil)
			if _, lerr := os.Lstat(images.Canary); !errors.Is(lerr, fs.ErrNotExist) {
				t.Errorf("it wrote to the host: %v", os.Remove(images.Canary))
			}
			if after, serr := os.Stat("/etc/shadow"); serr != nil || !os.SameFile(shadow, after) || after.Sys() == nil {
				t.Errorf("/etc/shadow was changed: %v", serr)
			}
			if err != nil {
				if s := imageStatus(t, ref); s != nil {
					t.Errorf("a status of what was not pulled: %v", s)
				}
				wantStored(t, before)
				return
			}
			defer forget(t, ref)
			switch name {
			case "overwrite-symlink", "null-name", "whiteout-climb", "deep":
				// Odd, but not forbidden: they only must stay inside.
				p := run(t)
				p.finish("", func(c *runtimeapi.ContainerConfig) {
					c.Image, c.Command = spec(ref), []string{"sh", "-c", "ls /; cat /target"}
				})
			default:
				if !peer { // it resolves such paths inside the root
					t.Error("the image was pulled")
				}
			}
		})
	}
}
