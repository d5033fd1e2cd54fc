// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"os"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(nest())
	}
	os.Exit(m.Run())
}

// TestWire moves data between two kernels through the damage, without a
// translator: what the wire does must be survivable and must happen.
func TestWire(t *testing.T) {
	Have(t, "ip", "ethtool")
	l := New(t, Options{Wire: &Bad})
	before := l.Host.Counters()
	t.Run("transfers", func(t *testing.T) {
		for i, addr := range []string{"192.0.2.9:9000", "[2001:db8:1::9]:9001"} {
			t.Run(addr, func(t *testing.T) {
				t.Parallel()
				if err := Transfer(l.Host.For(t), l.Remote.For(t), addr, addr, 4<<20, i == 1, 60*time.Second); err != nil {
					t.Error(err)
				}
			})
		}
	})
	d := l.Host.Since(before, "TcpRetransSegs", "TcpInCsumErrors", "TcpExtTCPOFOQueue")
	if d["TcpRetransSegs"] == 0 || d["TcpExtTCPOFOQueue"] == 0 {
		t.Errorf("no damage: %v", d)
	}
	t.Log(d)
}
