// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"aldente/broker/egress"
	"aldente/ipc"
)

// TestRefusals: each destination once, a bounded number of them, and with debugging a
// bounded number of lines.
func TestRefusals(t *testing.T) {
	for _, level := range []slog.Level{slog.LevelWarn, slog.LevelDebug} {
		var b bytes.Buffer
		log := slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: level}))
		f := New(Config{Logger: log})
		t.Cleanup(f.Close)
		for range 3 {
			for port := range 2000 {
				to := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.9"), uint16(port))
				f.refusals.note(log, ipc.ProtoTCP, to, &egress.Verdict{Rule: "--deny any"})
			}
		}
		warnings := strings.Count(b.String(), "level=WARN")
		lines := strings.Count(b.String(), "\n")
		if warnings != maxNamed+1 || level == slog.LevelWarn && lines != warnings || lines > warnings+2*refusalLines.Burst || strings.Count(b.String(), "to=192.0.2.9:7 ") > 3 {
			t.Errorf("%v: %d lines, %d of them warnings", level, lines, warnings)
		}
		if !strings.Contains(b.String(), `protocol=tcp to=192.0.2.9:7 rule="--deny any"`) {
			t.Error("no line for port 7")
		}
		if total, named := f.Refused(); total != 6000 || named != maxNamed {
			t.Errorf("%d refusals, %d named", total, named)
		}
	}
}
