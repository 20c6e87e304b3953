package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/critest/harness"
	"github.com/cri-runtime/cri-runtime/critest/images"
)

// hasImage checks that an image is whole: a container runs from it.
func (s *sweep) hasImage(ctx context.Context, ref string) error {
	st, err := s.Images.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: ref}, false)
	if err != nil {
		return err
	}
	if st.Image == nil {
		return fmt.Errorf("image %s is not there: %w", ref, errFault)
	}
	config := containerConfig(s.near.config, "exit 0")
	config.Image.Image = ref
	c, err := s.createConfig(ctx, s.near, config)
	if err != nil {
		return err
	}
	if err := s.CRI.StartContainer(ctx, c.id); err != nil {
		return err
	}
	if err := s.ended(ctx, c, 0); err != nil {
		return err
	}
	return s.CRI.RemoveContainer(ctx, c.id)
}

func (s *sweep) pull(ctx context.Context, ref string) error {
	_, err := s.Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: ref}, nil, nil)
	return err
}

func pullVerb(name string) *verb {
	return &verb{
		name: "PullImage",
		prepare: func(_ context.Context, _ *sweep, sub *subject) error {
			sub.image = imageRef(name)
			return nil
		},
		do:   func(ctx context.Context, s *sweep, sub *subject) error { return s.pull(ctx, sub.image) },
		done: func(ctx context.Context, s *sweep, sub *subject) error { return s.hasImage(ctx, sub.image) },
	}
}

// moveTagVerb pulls a tag that is another image now.
func moveTagVerb() *verb {
	const repository = "cri-runtime/moved"
	return &verb{
		name: "PullImage of a tag that moved",
		prepare: func(ctx context.Context, s *sweep, sub *subject) error {
			catalog, err := images.Catalog(ctx)
			if err != nil {
				return err
			}
			sub.image = imageRef("moved")
			for _, from := range []string{"cri-runtime/web", "cri-runtime/layers"} {
				for _, i := range catalog {
					if i.Repository != from {
						continue
					}
					i.Repository = repository
					if err := depot.Push(ctx, i); err != nil {
						return err
					}
				}
				if from == "cri-runtime/web" {
					if err := s.pull(ctx, sub.image); err != nil {
						return err
					}
				}
			}
			return nil
		},
		do: func(ctx context.Context, s *sweep, sub *subject) error { return s.pull(ctx, sub.image) },
		done: func(ctx context.Context, s *sweep, sub *subject) error {
			if err := s.hasImage(ctx, sub.image); err != nil {
				return err
			}
			list, err := s.Images.ListImages(ctx, nil)
			if err != nil {
				return err
			}
			named := 0
			for _, i := range list {
				for _, tag := range i.RepoTags {
					if tag == sub.image {
						named++
					}
				}
			}
			if named != 1 {
				return fmt.Errorf("%d images have the tag %s: %w", named, sub.image, errFault)
			}
			return nil
		},
	}
}

func removeImageVerb() *verb {
	return &verb{
		name: "RemoveImage",
		prepare: func(ctx context.Context, s *sweep, sub *subject) error {
			sub.image = imageRef("layers")
			return s.pull(ctx, sub.image)
		},
		do: func(ctx context.Context, s *sweep, sub *subject) error {
			return s.Images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: sub.image})
		},
		done: func(ctx context.Context, s *sweep, sub *subject) error { return s.hasNoImage(ctx, sub.image) },
	}
}

func (s *sweep) hasNoImage(ctx context.Context, ref string) error {
	st, err := s.Images.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: ref}, false)
	if err == nil && st.Image != nil {
		err = fmt.Errorf("a removed image is %v: %w", st.Image, errFault)
	}
	return err
}

// removeHeldVerb removes the container that still held a removed image.
func removeHeldVerb() *verb {
	v := removeContainerVerb("RemoveContainer, the last of a removed image", false)
	v.prepare = func(ctx context.Context, s *sweep, sub *subject) (err error) {
		sub.image = imageRef("layers")
		if err := s.pull(ctx, sub.image); err != nil {
			return err
		}
		if err := s.prepared(ctx, sub); err != nil {
			return err
		}
		sub.want = containerConfig(sub.config, counting)
		sub.want.Image.Image = sub.image
		if sub.c, err = s.createConfig(ctx, sub.pod, sub.want); err != nil {
			return err
		}
		if err := s.CRI.StartContainer(ctx, sub.c.id); err != nil {
			return err
		}
		if err := s.printed(ctx, sub.c); err != nil {
			return err
		}
		return s.Images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: sub.image})
	}
	return v
}

// recoverVerb is the daemon's start after it was killed in the middle of
// another verb.
func recoverVerb(name string, of *verb, point string) *verb {
	return &verb{
		name: name,
		prepare: func(ctx context.Context, s *sweep, sub *subject) error {
			if err := of.prepare(ctx, s, sub); err != nil {
				return err
			}
			s.arm(point, 1)
			if err := of.do(ctx, s, sub); err == nil {
				return fmt.Errorf("the daemon passed %s: %w", point, errFault)
			}
			return harness.Until(ctx, patience, "the daemon's end", s.Ended)
		},
		do: startAgain,
		done: func(ctx context.Context, s *sweep, sub *subject) error {
			if err := of.do(ctx, s, sub); err != nil {
				return err
			}
			return of.done(ctx, s, sub)
		},
	}
}

// startAgain starts the daemon, unless the test has done so after a kill.
func startAgain(ctx context.Context, s *sweep, _ *subject) error {
	if !s.Ended() {
		return nil
	}
	return s.Start(ctx)
}

// recoverLostVerb is a start after a monitor has died, too.
func recoverLostVerb() *verb {
	v := lostVerb()
	v.name = "start, a monitor's end"
	v.prepare = func(ctx context.Context, s *sweep, sub *subject) error {
		if err := s.running(ctx, sub, counting); err != nil {
			return err
		}
		monitor := s.monitor(sub.c)
		s.kill()
		killProcess(s.t, monitor)
		_, err := s.Residue() // reaps it, as init would
		return err
	}
	v.do = startAgain
	return v
}

// portsVerb is a pod whose host ports no plugin opens, so that the built-in
// network does.
func portsVerb() *verb {
	v := runVerb("RunPodSandbox, host ports without a plugin")
	prepare, configured := v.prepare, false
	v.prepare = func(ctx context.Context, s *sweep, sub *subject) error {
		if configured {
			return prepare(ctx, s, sub)
		}
		configured = true
		// A bridge's name of its own, which is that of the table too.
		text := fmt.Sprintf("[network]\nbridge = %q\n", s.Tag+"hp")
		if err := os.WriteFile(filepath.Join(s.Dir, "config.toml.d", "bridge.toml"), []byte(text), 0o600); err != nil {
			return err
		}
		if err := s.WriteConflist(fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[
{"type":"bridge","bridge":%q,"isGateway":true,
 "ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"%s.0/24"}]]}}]}`,
			s.Tag+"net", s.Bridge, filepath.Join(s.Dir, "ipam"), s.Subnet())); err != nil {
			return err
		}
		if err := s.Restart(ctx, syscall.SIGTERM); err != nil {
			return err
		}
		// The table is made with the first pod and stays.
		first := &subject{}
		if err := s.prepared(ctx, first); err != nil {
			return err
		}
		if err := s.remove(ctx, first.pod); err != nil {
			return err
		}
		before, err := s.Residue()
		s.before.Rules = before.Rules
		return errors.Join(err, prepare(ctx, s, sub))
	}
	return v
}

// shutdownVerb is an orderly end; what comes after it is a start.
func shutdownVerb() *verb {
	return &verb{
		name:    "SIGTERM",
		prepare: func(context.Context, *sweep, *subject) error { return nil },
		do: func(_ context.Context, s *sweep, _ *subject) error {
			return s.Signal(syscall.SIGTERM, true)
		},
		done: func(ctx context.Context, s *sweep, _ *subject) error {
			_, err := s.CRI.Version(ctx, "v1")
			return err
		},
	}
}
