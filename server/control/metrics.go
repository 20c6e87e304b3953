package control

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cri-runtime/cri-runtime/imageservice"
)

const metricsPrefix = "cri_runtime_"

// Metrics count what the daemon does. They may be used before the Server and
// the image store exist.
type Metrics struct {
	registry    *prometheus.Registry
	pulls       *prometheus.CounterVec
	pullSeconds *prometheus.HistogramVec
	rpcs        *prometheus.CounterVec
	rpcSeconds  *prometheus.HistogramVec
}

// NewMetrics returns metrics that are all zero.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		pulls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: metricsPrefix + "image_pulls_total",
			Help: "Pulls that ended, by result (done, failed, cancelled) and by the reason of a failure.",
		}, []string{"result", "reason"}),
		pullSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: metricsPrefix + "image_pull_seconds", Help: "How long pulls took, by result.",
			Buckets: prometheus.ExponentialBuckets(0.05, 2, 15), // to 14 minutes
		}, []string{"result"}),
		rpcs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: metricsPrefix + "rpcs_total", Help: "CRI requests answered, by method and gRPC code.",
		}, []string{"method", "code"}),
		rpcSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: metricsPrefix + "rpc_seconds", Help: "How long CRI requests took, by method.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2.5, 14), // to 75 seconds
		}, []string{"method"}),
	}
	m.registry.MustRegister(m.pulls, m.pullSeconds, m.rpcs, m.rpcSeconds,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// RPC counts one CRI request.
func (m *Metrics) RPC(method, code string, took time.Duration) {
	m.rpcs.WithLabelValues(method, code).Inc()
	m.rpcSeconds.WithLabelValues(method).Observe(took.Seconds())
}

// Pull counts a pull that ended.
func (m *Metrics) Pull(p imageservice.PullProgress, err error) {
	reason := ""
	if err != nil {
		reason = faultOf(err).reason
	}
	m.pulls.WithLabelValues(string(p.State), reason).Inc()
	m.pullSeconds.WithLabelValues(string(p.State)).Observe(p.Ended.Sub(p.Started).Seconds())
}

// Handler serves the metrics and nothing else.
func (m *Metrics) Handler() http.Handler {
	const atOnce = 4
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: atOnce, Timeout: answerTimeout})
}

// watch adds what the image store itself counts.
func (m *Metrics) watch(images Images) {
	constant := func(name, help string, labels prometheus.Labels, value func() float64) {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: metricsPrefix + name, Help: help, ConstLabels: labels,
		}, value))
	}
	const bytesHelp = "Bytes of layers that pulls got from a registry, or found here already."
	constant("image_pull_bytes_total", bytesHelp, prometheus.Labels{"source": "registry"},
		func() float64 { return float64(images.Traffic().Downloaded) })
	constant("image_pull_bytes_total", bytesHelp, prometheus.Labels{"source": "reused"},
		func() float64 { return float64(images.Traffic().Reused) })
	const layersHelp = "Layers that pulls downloaded and unpacked, or found here already."
	constant("image_layers_total", layersHelp, prometheus.Labels{"source": "registry"},
		func() float64 { return float64(images.Traffic().Layers) })
	constant("image_layers_total", layersHelp, prometheus.Labels{"source": "reused"},
		func() float64 { return float64(images.Traffic().Present) })
	gauge := func(name, help string, value func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: metricsPrefix + name, Help: help}, value))
	}
	gauge("images", "Images in the store.", func() float64 { return float64(len(images.Images())) })
	gauge("image_bytes", "What the images take on the disk.", func() float64 {
		usage, err := images.Usage()
		if err != nil {
			return 0 // the store is closed, and so is this soon
		}
		return float64(usage.Bytes)
	})
	gauge("image_pulls_active", "Pulls under way.", func() float64 {
		n := 0
		for _, p := range images.Pulls() {
			if p.Ended.IsZero() {
				n++
			}
		}
		return float64(n)
	})
}
