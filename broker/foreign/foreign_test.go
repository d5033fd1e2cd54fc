// SPDX-License-Identifier: Apache-2.0

package foreign

import "testing"

func TestShown(t *testing.T) {
	for _, c := range []struct{ in, line, text string }{
		{"plain, ünïcode", "plain, ünïcode", "plain, ünïcode"},
		{"a\tb\nc\r", "a b?c?", "a\tb\nc?"},
		{"\x1b[2J\x07\x7f\x00", "?[2J???", "?[2J???"},
		{"\u009b31m\u0085\u0090", "?31m??", "?31m??"}, // C1: CSI, NEL, DCS
		{"\x9b31m", "\ufffd31m", "\ufffd31m"},         // the same as a byte
		{"a\u202eb\u2066c\u200b", "a?b?c?", "a?b?c?"}, // text from right to left, nothing that is seen
		{"\u2028\ufeff\U000e0041", "???", "???"},
	} {
		if got := Line(c.in); got != c.line {
			t.Errorf("Line(%q) = %q, want %q", c.in, got, c.line)
		}
		if got := Text(c.in); got != c.text {
			t.Errorf("Text(%q) = %q, want %q", c.in, got, c.text)
		}
	}
}
