package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// timerSlack is how late a timer of the daemon may be. The watching thread of Go's runtime sleeps 20 us at
// a time while anything runs: a tenth of the processor time of a pod's life. With this it is half as much.
// No timer of ours is shorter.
const timerSlack = 500_000 // ns

// relaxTimers gives the slack to all threads there are; others inherit it. Monitors and with them
// containers take the kernel's default again.
func relaxTimers() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("relax timers: %w", err)
	}
	for _, t := range threads {
		err := os.WriteFile("/proc/"+t.Name()+"/timerslack_ns", strconv.AppendInt(nil, timerSlack, 10), 0)
		// A thread may have ended. Without CAP_SYS_NICE things work as well.
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) && !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("relax timers: %w", err)
		}
	}
	return nil
}
