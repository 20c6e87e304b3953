package ledger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"os"
)

const (
	member    = `"crc32c":"`
	sumDigits = 8
	tailBytes = len(member) + sumDigits + len(`"}`)
)

// Seal adds the checksum of a JSON object as its last member, which readers of
// an older version leave out. The object has no other member of that name.
func Seal(object []byte) ([]byte, error) {
	object = bytes.TrimSpace(object)
	if len(object) < 2 || object[0] != '{' || object[len(object)-1] != '}' {
		return nil, fmt.Errorf("seal: %w", ErrInvalid)
	}
	head := object[:len(object)-1]
	if len(bytes.TrimSpace(head)) > 1 {
		head = append(bytes.Clone(head), ',')
	}
	return fmt.Appendf(bytes.Clone(head), "%s%08x\"}", member, sum(head)), nil
}

func sum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// Verify says whether a JSON object is as it was sealed. One without a seal is
// of an older version, and passes.
func Verify(object []byte) error {
	object = bytes.TrimSpace(object)
	if len(object) == 0 {
		return fmt.Errorf("%w: it is empty", ErrDamaged)
	}
	head, tail := object[:max(0, len(object)-tailBytes)], object[max(0, len(object)-tailBytes):]
	digits, ok := bytes.CutPrefix(tail, []byte(member))
	if !ok {
		return nil
	}
	if want := fmt.Appendf(nil, "%08x\"}", sum(head)); !bytes.Equal(digits, want) {
		return fmt.Errorf("%w: its checksum is %.8s, that of its content %.8s", ErrDamaged, digits, want)
	}
	return nil
}

// Marshal encodes and seals a struct or a map.
func Marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return Seal(b)
}

// Unmarshal decodes what Marshal encoded.
func Unmarshal(b []byte, v any) error {
	if err := Verify(b); err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// Read decodes the file at path.
func Read(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if err := Unmarshal(b, v); err != nil {
		return fmt.Errorf("record %s: %w", path, err)
	}
	return nil
}
