package server

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Numbers of the fields of PodSandboxMetrics, ContainerMetrics, Metric and
// UInt64Value; TestMetricsAreEncoded compares them with the messages.
const (
	podMetricsField       protowire.Number = 2
	containerMetricsField protowire.Number = 3

	containerIDField        protowire.Number = 1
	metricsOfContainerField protowire.Number = 2

	nameField   protowire.Number = 1
	typeField   protowire.Number = 3
	labelsField protowire.Number = 4
	valueField  protowire.Number = 5

	numberField protowire.Number = 1
)

// podMetrics is a message that is encoded while it is made: a list of metrics
// of 100 pods has some 5,000 of them, with the same six labels again and again, and
// as messages they would take longer to make and to encode than the figures take
// to read. The bytes are fields that the message's type does not know until it
// is decoded; the encoder of protobuf passes them on as they are.
type podMetrics struct {
	raw    []byte
	one    []byte // the metrics of a container, until their length is known
	metric []byte // one of them
	labels []byte // of all of them
}

// message ends a pod; p can be used for another one.
func (p *podMetrics) message(id string) *runtimeapi.PodSandboxMetrics {
	m := &runtimeapi.PodSandboxMetrics{PodSandboxId: id}
	m.ProtoReflect().SetUnknown(slices.Clone(p.raw))
	p.raw = p.raw[:0]
	return m
}

// ofPod adds the metrics of the pod itself.
func (p *podMetrics) ofPod(table []metric, o *observation, labels []string) {
	p.raw = p.appendMetrics(p.raw, podMetricsField, table, o, labels)
}

// ofContainer adds a container's.
func (p *podMetrics) ofContainer(id string, table []metric, o *observation, labels []string) {
	p.one = appendString(p.one[:0], containerIDField, id)
	p.one = p.appendMetrics(p.one, metricsOfContainerField, table, o, labels)
	p.raw = appendBytes(p.raw, containerMetricsField, p.one)
}

// appendMetrics computes the metrics of a table for o and appends each as the
// field of a message.
func (p *podMetrics) appendMetrics(to []byte, field protowire.Number, table []metric, o *observation, labels []string) []byte {
	p.labels = p.labels[:0]
	for _, l := range labels {
		p.labels = appendString(p.labels, labelsField, l)
	}
	var m *metric
	add := func(v uint64, extra ...string) {
		b := appendString(p.metric[:0], nameField, m.name)
		b = protowire.AppendVarint(protowire.AppendTag(b, typeField, protowire.VarintType), uint64(m.kind))
		b = append(b, p.labels...)
		for _, l := range extra {
			b = appendString(b, labelsField, l)
		}
		b = protowire.AppendTag(b, valueField, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(protowire.SizeTag(numberField)+protowire.SizeVarint(v)))
		b = protowire.AppendVarint(protowire.AppendTag(b, numberField, protowire.VarintType), v)
		to, p.metric = appendBytes(to, field, b), b
	}
	for i := range table {
		m = &table[i]
		m.values(o, add)
	}
	return to
}

// appendString keeps a name that is no UTF-8, which no client would decode,
// from costing the whole list.
func appendString(to []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(to, field, protowire.BytesType), strings.ToValidUTF8(s, "\uFFFD"))
}

func appendBytes(to []byte, field protowire.Number, b []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(to, field, protowire.BytesType), b)
}
