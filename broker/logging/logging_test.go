// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"errors"
	"log/slog"
	"testing"
)

// TestLogIsPlain logs what a captured process might have the log say.
func TestLogIsPlain(t *testing.T) {
	var got string
	out := &Output{write: func(_ slog.Level, line []byte) { got = string(line) }}
	log := slog.New(&handler{out: out, level: slog.LevelInfo})
	for _, tt := range []struct {
		message string
		attr    any
		want    string
	}{
		{"plain", "word", "plain a=word\n"},
		{"grüße, 世界", "größe", "grüße, 世界 a=größe\n"},
		{"\x1b[2Jcleared", "\x1b]0;x\a", `?[2Jcleared a="\x1b]0;x\a"` + "\n"},
		{"C1 \u009b2J and \u0085", "\u009b2J", `C1 ?2J and ? a="\u009b2J"` + "\n"},
		{"bytes \x9b2J", "\x9b2J", "bytes \ufffd2J" + ` a="\x9b2J"` + "\n"},
		{"right to left \u202e", "\u202e", `right to left ? a="\u202e"` + "\n"},
		{"two", errors.New("lines\nof text"), `two a="lines\nof text"` + "\n"},
		{"forged", `x component="worker"`, `forged a="x component=\"worker\""` + "\n"},
		{"nothing", "", "nothing a=\n"},
	} {
		log.Info(tt.message, "a", tt.attr)
		if got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
		log.With("a", tt.attr).Info(tt.message)
		if got != tt.want {
			t.Errorf("by With: %q, want %q", got, tt.want)
		}
	}
}
