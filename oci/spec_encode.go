package oci

import (
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// encodedSpec is config.json. JSON strings are Unicode, environment values are
// bytes: encoding/json puts U+FFFD where a value is not UTF-8. Such variables
// are kept once more, whole, in a member that the runtime specification does not
// define and that its readers therefore have to ignore.
type encodedSpec struct {
	*specs.Spec
	BinaryEnv map[int][]byte `json:"criRuntimeBinaryEnv,omitempty"` // by index in process.env
}

// EncodeSpec returns config.json. Environment values that are not UTF-8,
// which JSON cannot hold, survive in a member of their own.
func EncodeSpec(spec *specs.Spec) ([]byte, error) {
	e := encodedSpec{Spec: spec}
	if spec.Process != nil {
		for i, entry := range spec.Process.Env {
			if utf8.ValidString(entry) {
				continue
			}
			if e.BinaryEnv == nil {
				e.BinaryEnv = map[int][]byte{}
			}
			e.BinaryEnv[i] = []byte(entry)
		}
	}
	data, err := json.Marshal(&e)
	if err != nil {
		return nil, fmt.Errorf("encode config.json: %w", err)
	}
	return data, nil
}

// DecodeSpec reads what EncodeSpec wrote.
func DecodeSpec(data []byte) (*specs.Spec, error) {
	e := encodedSpec{Spec: &specs.Spec{}}
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, fmt.Errorf("decode config.json: %w", err)
	}
	if e.Spec == nil || e.Version == "" {
		return nil, fmt.Errorf("decode config.json: ociVersion is missing: %w", ErrInvalid)
	}
	for i, entry := range e.BinaryEnv {
		if e.Process == nil || i < 0 || i >= len(e.Process.Env) {
			return nil, fmt.Errorf("decode config.json: criRuntimeBinaryEnv names process.env[%d]: %w", i, ErrInvalid)
		}
		e.Process.Env[i] = string(entry)
	}
	return e.Spec, nil
}
