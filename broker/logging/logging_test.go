// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// stderr has standard error be a file, and returns what reads it.
func stderr(t *testing.T) func() string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "stderr")
	if err != nil {
		t.Fatal(err)
	}
	was := os.Stderr
	os.Stderr = f
	t.Cleanup(func() { os.Stderr = was; f.Close() })
	return func() string {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

// TestWhere: lines go to the file or to standard error, errors to both, and to the
// system log once standard error is gone.
func TestWhere(t *testing.T) {
	for _, file := range []string{"", filepath.Join(t.TempDir(), "log")} {
		said := stderr(t)
		log, out, err := New(Options{Level: slog.LevelInfo, File: file, Size: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		out.Detach() // nothing was prepared: nothing changes
		log.Debug("not asked for")
		log.WithGroup("g").Info("told", "a", 1)
		log.Error("wrong")
		if got := said(); strings.Contains(got, "not asked for") || strings.Contains(got, "told a=1\n") != (file == "") || strings.Count(got, "wrong\n") != 1 {
			t.Errorf("file %q: standard error has %q", file, got)
		}
		var later []string
		out.later = func(e *event) { later = append(later, string(e.line)) }
		out.Detach()
		before := said()
		log.Info("later")
		if file == "" {
			if said() != before || len(later) != 1 || later[0] != "later\n" {
				t.Errorf("detached: standard error %q, the system log %q", said(), later)
			}
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{" info: told a=1\n", " error: wrong\n", " info: later\n"} {
			if !strings.Contains(string(b), want) {
				t.Errorf("%q is missing in the file: %q", want, b)
			}
		}
	}
	if _, _, err := New(Options{File: t.TempDir()}); err == nil {
		t.Error("a folder is taken for a log file")
	}
	said := stderr(t)
	Complain(errors.New("no log yet"))
	if got := said(); got != "no log yet\n" {
		t.Errorf("%q", got)
	}
}

// TestSeverity: levels as syslog(3) numbers them.
func TestSeverity(t *testing.T) {
	for level, want := range map[slog.Level]int{slog.LevelError: 3, slog.LevelError + 1: 3, slog.LevelWarn: 4, slog.LevelInfo: 6, slog.LevelInfo + 1: 6, slog.LevelDebug: 7} {
		if got := severity(level); got != want {
			t.Errorf("%v: %d, want %d", level, got, want)
		}
	}
}

// TestLogIsPlain logs what a captured process might have the log say.
func TestLogIsPlain(t *testing.T) {
	var got string
	out := &Output{write: func(e *event) { got = string(e.line) }}
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
