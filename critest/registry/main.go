// Package main is the command registry, which serves the test images on the loopback interface until it
// gets SIGTERM or SIGINT.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"syscall"

	"github.com/cri-runtime/cri-runtime/critest/localregistry"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var o localregistry.Options
	flag.StringVar(&o.Listen, "listen", "127.0.0.1:0", "loopback `address` to serve on")
	flag.BoolVar(&o.TLS, "tls", false, "serve HTTPS with a certificate of an own authority")
	flag.StringVar(&o.User, "user", "", "`name` that readers must give")
	flag.StringVar(&o.Password, "password", "", "password that readers must give")
	flag.BoolVar(&o.Token, "token", false, "ask for a bearer token instead of basic credentials")
	ready := flag.String("ready-file", "", "`file` that gets the address once the images are there")
	ca := flag.String("ca-file", "", "`file` that gets the authority's certificate")
	flag.Parse()
	s, err := localregistry.Start(ctx, o)
	if err != nil {
		return err
	}
	defer s.Close()
	catalog, err := s.Fill(ctx)
	if err != nil {
		return err
	}
	if *ca != "" {
		if err := write(*ca, s.CA); err != nil {
			return err
		}
	}
	if *ready != "" {
		if err := write(*ready, []byte(s.Address+"\n")); err != nil {
			return err
		}
	}
	names := make([]string, 0, len(catalog))
	for _, n := range catalog {
		names = append(names, fmt.Sprintf("%s/%s:%s", s.Address, n.Repository, n.Tag))
	}
	sort.Strings(names)
	fmt.Println(s.Address)
	for _, n := range names {
		fmt.Println(n)
	}
	<-ctx.Done()
	return nil
}

// write makes the file appear whole: others wait for it.
func write(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".registry-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
