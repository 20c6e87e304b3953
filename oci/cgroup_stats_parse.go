package oci

import (
	"bytes"
	"math"
	"strconv"
)

// The parsers below take any bytes and allocate nothing. What is malformed is
// left out: a new kernel's line must not cost the figures beside it.

func cutLine(data []byte) (line, rest []byte) { return cutAt(data, '\n') }

func cutAt(data []byte, sep byte) (before, after []byte) {
	i := bytes.IndexByte(data, sep)
	if i < 0 {
		return data, nil
	}
	return data[:i], data[i+1:]
}

// cutField cuts at the next space and drops spaces around.
func cutField(data []byte) (field, rest []byte) {
	field, rest = cutAt(bytes.TrimLeft(data, " "), ' ')
	return field, bytes.TrimLeft(rest, " ")
}

// eachValue calls f for each line of "key number".
func eachValue(data []byte, f func(key []byte, v uint64)) {
	for len(data) > 0 {
		var line []byte
		line, data = cutLine(data)
		key, text := cutField(line)
		if v, ok := parseUint(text); ok {
			f(key, v)
		}
	}
}

// parseUint reads a number alone, perhaps with space after it; "max" is
// NoLimit. A negative one is 0: counters that are added up per CPU may dip below.
func parseUint(text []byte) (uint64, bool) {
	text = bytes.TrimRight(text, " \n\x00")
	if string(text) == "max" {
		return NoLimit, true
	}
	negative := len(text) > 1 && text[0] == '-'
	if negative {
		text = text[1:]
	}
	if len(text) == 0 {
		return 0, false
	}
	var v uint64
	for _, c := range text {
		if c < '0' || c > '9' || v > (math.MaxUint64-uint64(c-'0'))/10 {
			return 0, false
		}
		v = v*10 + uint64(c-'0')
	}
	if negative {
		v = 0
	}
	return v, true
}

// parseDevice reads MAJOR:MINOR.
func parseDevice(text []byte) (major, minor uint32, ok bool) {
	a, b := cutAt(text, ':')
	x, ok1 := parseUint(a)
	y, ok2 := parseUint(b)
	if !ok1 || !ok2 || x > math.MaxUint32 || y > math.MaxUint32 {
		return 0, 0, false
	}
	return uint32(x), uint32(y), true
}

// parsePercent reads "12.34"; 0 when it is none.
func parsePercent(text []byte) float64 {
	v, err := strconv.ParseFloat(string(text), 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
		return 0
	}
	return v
}
