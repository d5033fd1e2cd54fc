// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"aldente/policy"
)

// Levels of a log line, as in syslog(3). The broker reads lines of the form
// "<level>text"; a line without a level is what the runtime says as it dies.
const (
	levelError   = 3
	levelWarning = 4
	levelDebug   = 7
)

// logf sends one line to the broker. It allocates and is for start-up and
// failure only.
func logf(level int, format string, args ...any) {
	line := fmt.Appendf(nil, "<%d>%s\n", level, fmt.Sprintf(format, args...))
	_, _ = unix.Write(policy.LogFD, line)
}

// fail ends the process with the reason in the broker's log.
func fail(err error) {
	logf(levelError, "%v", err)
	unix.Exit(1)
}

// tell reports the layers: those that are missing always, the others when
// debugging. With --strict a missing one ends the worker.
func tell(args policy.Arguments, report policy.Report) {
	for _, l := range report {
		switch {
		case l.State != policy.InForce:
			logf(levelWarning, "%s", l)
		case args.Debug:
			logf(levelDebug, "%s", l)
		}
	}
	if err := report.Err(); err != nil && args.Strict {
		fail(err)
	}
}
