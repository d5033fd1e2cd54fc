// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
)

// UsageError is a command line that can't be carried out. The program prints
// Msg and Hint on standard error and ends with status 1.
type UsageError struct {
	Msg  string // one line, the original's wording where scripts may look for it
	Hint string // where to read on, "" when Msg says it all
}

func (e *UsageError) Error() string { return e.Msg }

// usagef returns a UsageError without a hint.
func usagef(format string, args ...any) error {
	return &UsageError{Msg: fmt.Sprintf(format, args...)}
}

// Report writes err and its hint to w, one line each, and returns the exit
// status that it deserves.
func Report(w io.Writer, err error) int {
	fmt.Fprintln(w, err)
	if u := (*UsageError)(nil); errors.As(err, &u) && u.Hint != "" {
		fmt.Fprintln(w, u.Hint)
	}
	return 1
}
