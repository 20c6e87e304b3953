package sandbox

import (
	"context"
	"fmt"
)

// Attach connects s with the streams of the container's main process. It returns
// when the container has ended or the client has left, which disturbs the
// container in no way.
func (c *Container) Attach(_ context.Context, _ Streams) error {
	return fmt.Errorf("attach to container %s: %w", c.id, ErrUnsupported)
}
