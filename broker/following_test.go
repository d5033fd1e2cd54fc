// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

// TestNetworkLines: whoever sends router advertisements on the host's network does not
// fill its log.
func TestNetworkLines(t *testing.T) {
	var said bytes.Buffer
	in := &instance{log: slog.New(slog.NewTextHandler(&said, nil))}
	in.net.lines.Rate = networkLines
	for range 10 * networkLines.Burst {
		in.sayOfNetwork(slog.LevelInfo, "changed")
	}
	if n := strings.Count(said.String(), "\n"); n < networkLines.Burst || n > networkLines.Burst+networkLines.PerSecond*5 {
		t.Errorf("%d lines, %d at once and %d a second are due", n, networkLines.Burst, networkLines.PerSecond)
	}
}
