package harness

import (
	"errors"
	"flag"
	"io"

	"k8s.io/klog/v2"
)

// Quiet ends the log of the kubelet's client, which writes every error that
// it returns.
func Quiet() error {
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	klog.SetOutput(io.Discard)
	return errors.Join(flags.Set("logtostderr", "false"), flags.Set("stderrthreshold", "FATAL"))
}
