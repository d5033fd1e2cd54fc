// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
)

// WithCubic wraps the main function of a benchmark, which compares with cubic
// alone: while run is at work, all namespaces of the machine may use it. The
// wrapped function returns run's status, or 1 if cubic is not to be had.
func WithCubic(run func() int) func() int {
	const allowed = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"
	return func() int {
		old, err := os.ReadFile(allowed)
		if err == nil && !slices.Contains(strings.Fields(string(old)), "cubic") {
			err = os.WriteFile(allowed, append(bytes.TrimSpace(old), " cubic"...), 0)
			defer func() { _ = os.WriteFile(allowed, old, 0) }()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "cubic cannot be allowed in namespaces:", err)
			return 1
		}
		return run()
	}
}
