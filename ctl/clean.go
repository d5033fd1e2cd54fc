// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"

	"aldente/broker/foreign"
)

// clean shows text of others: what a terminal might take for a command, and what turns
// or hides text, becomes a question mark. Each Write has whole characters.
type clean struct{ w io.Writer }

func (c clean) Write(p []byte) (int, error) {
	if _, err := io.WriteString(c.w, foreign.Text(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// json prints a value. What may not be shown is escaped as JSON does: the value stays
// what it is.
func (c *call) json(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = io.WriteString(c.raw, escapeJSON(string(b))+"\n")
	return err
}

// escapeJSON escapes in a JSON document what is not for a terminal. Only strings can
// have it.
func escapeJSON(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
