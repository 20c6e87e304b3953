package sandbox

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// bootID returns what the kernel calls its present run, "" if it does not tell.
func bootID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// rebooted tells whether the machine was started anew since a record was made.
// One of an older version does not say.
func rebooted(then, now string) bool { return then != "" && now != "" && then != now }

// bootedAt returns when the kernel started, in ns since the epoch; 0 if it does
// not tell.
func bootedAt() int64 {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "btime "); ok {
			seconds, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			if err != nil {
				return 0
			}
			return time.Unix(seconds, 0).UnixNano()
		}
	}
	return 0
}
