// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"fmt"
	"os"
	"testing"

	"aldente/test/machine"
	"aldente/test/netlab"
	fe "aldente/test/vhost/frontend"
)

// TestChaos moves data both ways, while every process is stopped at random, through
// a front-end that stalls, kicks late, has tiny rings with buffers of odd sizes and
// many small pieces, and rewrites headers while they are read. Both families move at
// the same time.
func TestChaos(t *testing.T) {
	machine.NeedOurs(t)
	for _, tt := range []struct {
		mtu     int
		without uint64
		ring    uint16
		pairs   int
		rx      int
		piece   int
	}{
		{1500, 0, 64, 1, 700, 500},
		{65520, 0, 256, 4, 2000, 3000},
		{1500, fe.Offloads | fe.FEventIdx, 64, 1, 1000, 300},
	} {
		t.Run(fmt.Sprintf("%d/%#x", tt.mtu, tt.without), func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			size := netlab.ChaosSize()
			if os.Getenv("ALDENTE_CHAOS") == "" {
				size /= 4 // a frame is many pieces, each stall one of many
			}
			p := startFor(t, lab, 4*netlab.ChaosTimeout(size), "-m", fmt.Sprint(tt.mtu))
			g := p.join(t, fe.Options{Indirect: true, Chaos: 1, RxBuffer: tt.rx, Piece: tt.piece,
				Config: fe.Config{Features: fe.AllFeatures &^ tt.without, Protocol: fe.AllProtocol, Ring: tt.ring, Pairs: tt.pairs}}, tt.mtu)
			var ways []netlab.ChaosWay
			for _, f := range families {
				ways = append(ways, netlab.ChaosWay{Client: g.NS, Server: lab.Remote, Listen: f.remote + ":9000", Addr: f.remote + ":9000"})
			}
			netlab.Chaos(t, size/2, append(netlab.Children(p.PID), g.in.PID()), ways...)
			if p.Exited() {
				t.Errorf("passt has ended: %s", p.Output())
			}
		})
	}
}
