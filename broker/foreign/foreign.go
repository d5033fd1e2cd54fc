// SPDX-License-Identifier: Apache-2.0

// Package foreign makes text of others fit to be shown: of processes that a guest
// may have taken over, and of what they read.
package foreign

import (
	"strings"
	"unicode"
)

// Line replaces what a terminal might take for a command, line breaks included:
// control characters of both sets, and those that turn or hide text.
func Line(s string) string {
	return strings.Map(func(c rune) rune {
		if c == '\t' {
			return ' '
		}
		return visible(c)
	}, s)
}

// Text is Line for text of several lines, whose breaks and tabs stay.
func Text(s string) string {
	return strings.Map(func(c rune) rune {
		if c == '\n' || c == '\t' {
			return c
		}
		return visible(c)
	}, s)
}

func visible(c rune) rune {
	if unicode.IsPrint(c) {
		return c
	}
	return '?'
}
