// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"testing"
	"unicode"

	"aldente/fuzz"
)

// FuzzWorkerLog has a worker write anything to its standard error, which a
// captured one may. What reaches the log and the account of its end is bounded in lines
// and bytes, holds no control characters, and no line that it did not write.
func FuzzWorkerLog(f *testing.F) {
	for _, s := range []string{
		"<6>started\n<4>slow\n<3>no memory\n<7>frame\n", "panic: x\n\ngoroutine 1 [running]:\nmain.main()\n\t/x.go:1\n\ngoroutine 2:\n",
		"<6>\x1b[31mred\x07\n", "<8>x\n<6\n<\n\n", strings.Repeat("<6>x\n", 200), strings.Repeat("y", 3000) + "\n<6>z", strings.Repeat("\n", 200), "<5>\xff\xfe\u202e\n", "<3>\u202ex\n", "\u202ex\n",
	} {
		fuzz.Add(f, []byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		var out bytes.Buffer
		level := slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}
		r := newLogReader(slog.New(slog.NewTextHandler(&out, &level)), up())
		r.read(io.NopCloser(bytes.NewReader(b)))
		lines := bytes.Count(out.Bytes(), []byte("\n"))
		if most := bytes.Count(b, []byte("\n")) + 2; lines > most || lines > logRate.Burst+logRate.PerSecond+2 {
			t.Fatalf("%d lines of log for %d", lines, most)
		}
		text := r.panicText()
		if len(text) > maxPanicLines {
			t.Fatalf("%d lines of a panic", len(text))
		}
		for _, line := range append(text, r.lastError()) {
			if len(line) > 3*maxLine || strings.ContainsFunc(line, func(c rune) bool { return !unicode.IsPrint(c) && c != unicode.ReplacementChar }) {
				t.Fatalf("%q", line)
			}
		}
		if len(text) > 0 && !bytes.Contains(b, []byte("\n")) && len(b) == 0 {
			t.Fatal("a panic out of nothing")
		}
	})
}
