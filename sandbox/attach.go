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

// Exec runs a command in the container with the client's streams and returns
// its exit code once it and its streams have ended. When ctx ends, the command's
// whole cgroup is killed.
func (c *Container) Exec(_ context.Context, _ []string, _ Streams) (int32, error) {
	return 0, fmt.Errorf("exec in container %s: %w", c.id, ErrUnsupported)
}
