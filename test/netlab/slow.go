// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"os"
	"strconv"
	"time"
)

// SlowEnv names the environment variable that says how many times as long as usual things
// may take before they count as failed: for machines that are emulated.
const SlowEnv = "ALDENTE_SLOW"

// Patient is how long to wait here for what takes an ordinary machine at most d.
func Patient(d time.Duration) time.Duration {
	if n, err := strconv.Atoi(os.Getenv(SlowEnv)); err == nil && n > 1 {
		return d * time.Duration(n)
	}
	return d
}
