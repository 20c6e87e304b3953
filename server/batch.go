package server

import "google.golang.org/protobuf/proto"

// maxBatchBytes bounds a message of a streamed list, but for a single object
// that is larger.
const maxBatchBytes = 1 << 20

// sendBatches sends items in messages of at most maxBatchBytes, each item once
// and no message without one.
func sendBatches[T proto.Message](items []T, send func([]T) error) error {
	const overhead = 8 // of a field's key and length
	size, first := 0, 0
	for i, item := range items {
		n := proto.Size(item) + overhead
		if i > first && size+n > maxBatchBytes {
			if err := send(items[first:i]); err != nil {
				return err
			}
			size, first = 0, i
		}
		size += n
	}
	if first == len(items) {
		return nil
	}
	return send(items[first:])
}
