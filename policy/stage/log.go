// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"fmt"

	"golang.org/x/sys/unix"

	"aldente/policy"
)

// Levels of a log line, as in syslog(3). The broker reads lines of the form
// "<level>text"; a line without a level is what the runtime says as it dies.
const (
	LevelError   = 3
	LevelWarning = 4
	LevelDebug   = 7
)

// Logf sends one line to the broker. It allocates and is for start-up and
// failure only.
func Logf(level int, format string, args ...any) {
	line := fmt.Appendf(nil, "<%d>%s\n", level, fmt.Sprintf(format, args...))
	_, _ = unix.Write(policy.LogFD, line)
}

// Fail ends the process with the reason in the broker's log.
func Fail(err error) {
	Logf(LevelError, "%v", err)
	unix.Exit(1)
}

// Tell reports the layers: those that are missing always, the others when
// debugging. With --strict a missing one ends the process.
func Tell(args policy.Arguments, report policy.Report) {
	for _, l := range report {
		switch {
		case l.State != policy.InForce:
			Logf(LevelWarning, "%s", l)
		case args.Debug:
			Logf(LevelDebug, "%s", l)
		}
	}
	if err := report.Err(); err != nil && args.Strict {
		Fail(err)
	}
}
