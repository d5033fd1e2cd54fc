// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"fmt"

	"aldente/worker/kernel"
)

// Levels as syslog(3) numbers them.
const (
	levelWarning = 4
	levelInfo    = 6
	levelDebug   = 7
)

// logFD is standard error; tests look away.
var logFD = 2

// logf writes one line to standard error, which the broker reads. It is for
// what happens rarely; guest data never go into it.
func logf(level int, format string, args ...any) {
	b := fmt.Appendf(nil, "<%d>"+format+"\n", append([]any{level}, args...)...)
	kernel.Print(logFD, b)
}
