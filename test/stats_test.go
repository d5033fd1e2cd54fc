// SPDX-License-Identifier: Apache-2.0

package test

import (
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

// TestStats: --stats names what was counted, also where notes are not shown, and
// nothing while nothing happens; it is for the foreground.
func TestStats(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	g := lab.Guest("--stats", "1")
	if _, err := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", "hello"); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); !strings.Contains(g.Proc.Output(), "tcp.Opened=1"); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no statistics:\n%s", g.Proc.Output())
		}
	}
	p := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: []string{netlab.Pasta(), "--stats", "1", "1"}})
	if st := p.Wait(); st != 1 || !strings.Contains(p.Output(), "needs -f") {
		t.Errorf("in the background: status %d, %s", st, p.Output())
	}
}
