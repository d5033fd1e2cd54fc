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
	Msg  string // the original's wording where scripts may look for it
	Next string // what to do about it, in the same line; "" when Msg says it all
	Hint string // where to read on, a line of its own; "": none
}

func (e *UsageError) Error() string { return e.Msg }

// usagef returns a UsageError without a hint.
func usagef(format string, args ...any) error {
	return &UsageError{Msg: fmt.Sprintf(format, args...)}
}

// nextf returns a UsageError that says what to do.
func nextf(next, format string, args ...any) error {
	return &UsageError{Msg: fmt.Sprintf(format, args...), Next: next}
}

// Report writes err and its hint to w, one line each, and returns the exit
// status that it deserves.
func Report(w io.Writer, err error) int {
	text, u := err.Error(), (*UsageError)(nil)
	if errors.As(err, &u) && u.Next != "" {
		text += " (" + u.Next + ")"
	}
	fmt.Fprintln(w, text)
	if u != nil && u.Hint != "" {
		fmt.Fprintln(w, u.Hint)
	}
	return 1
}
