// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/packet"
)

// TestSilentEnd: the end of a datagram socket's other side is found out although nobody
// sends anything, and what is sent for that is sent only where nothing else is.
func TestSilentEnd(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkDatagram, 1500, true)
	w.calm = true
	asked := 0
	w.watch = func(b []byte) {
		var p packet.Packet
		if p.Decode(b) == nil && p.EtherType == packet.EtherTypeARP {
			asked++
		}
	}
	w.turn() // it has its link then
	w.turn()
	for k := range 4 {
		before, sent := asked, w.l.link.Counters().Sent
		if k == 2 {
			w.put(w.talkative()[0]) // which is answered
			before, sent = asked, w.l.link.Counters().Sent
			w.sleep(probeEvery - 1e9)
			w.turn()
			w.turn()
			if asked != before || w.l.link.Counters().Sent != sent {
				t.Errorf("asked although it was heard of: %d times", asked-before)
			}
			continue
		}
		w.sleep(probeEvery + probeEvery/8)
		w.turn()
		if k != 3 && (asked != before+1 || w.l.link.Counters().Sent != sent+1) {
			t.Errorf("time %d: asked %d times", k, asked-before)
		}
	}
	unix.Close(w.peer)
	w.peer = -1
	if w.turn(); w.l.link == nil {
		t.Error("told by the kernel: there is no need to ask")
	}
	for range 2 {
		w.sleep(probeEvery + probeEvery/8)
		w.turn()
	}
	if w.l.link != nil {
		t.Error("its end is not found out")
	}
	if w.l.wheel.Pending(w.l.timer + timerProbe) {
		t.Error("nobody is asked on and on")
	}
}

// TestLinkShutDown: whoever has our own end of a socket too can end it. The lane neither
// waits for it for ever nor does nothing but wait for it.
func TestLinkShutDown(t *testing.T) {
	for _, kind := range []uint8{ipc.LinkStream, ipc.LinkDatagram, ipc.LinkSeqpacket} {
		for _, how := range []int{unix.SHUT_RD, unix.SHUT_RDWR} {
			t.Run(fmt.Sprint(kind, how), func(t *testing.T) {
				w := newWorld(t, rand.New(rand.NewPCG(1, 1)), kind, 1500, true)
				w.calm = true
				w.turn()
				if err := unix.Shutdown(int(w.l.link.FD()), how); err != nil {
					t.Fatal(err)
				}
				if w.turn(); w.l.link != nil {
					t.Error("the link's end went unnoticed")
				}
				unix.Close(w.peer)
				w.peer = -1
			})
		}
	}
}
