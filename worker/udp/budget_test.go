// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"testing"

	"aldente/worker/flow"
	"aldente/worker/store"
)

// TestPortsGranted: of as many ports of the host's as the broker grants, the one
// that was not used for longest makes room, before the broker has to refuse.
func TestPortsGranted(t *testing.T) {
	r := newRig(t)
	r.maxOut = 5
	for port := range uint16(10) {
		r.input(r.frame(remote4, 1000+port, 2000, []byte("question")), 0)
		r.answer(r.oneOpen())
		// The first one goes on being used.
		r.input(r.frame(remote4, 1000, 2000, []byte("more")), 0)
		r.Flush()
	}
	if r.Len() != 5 || r.Stats.Evicted != 5 || r.numOut != 5 {
		t.Fatalf("%d flows, %d evicted", r.Len(), r.Stats.Evicted)
	}
	for i, port := range []uint16{1000, 1006, 1007, 1008, 1009} {
		k := store.MakeKey(&remote4, &guest4, 2000, port)
		if r.flows.Find(&k) == store.None {
			t.Errorf("flow %d of port %d is gone", i, port)
		}
	}
	r.Close()
	if r.numOut != 0 || r.outbound.Oldest() != store.None || r.ages.Oldest() != store.None {
		t.Error("lists not empty")
	}
}

// TestUDPShare: UDP keeps to what the lane has for it, by itself.
func TestUDPShare(t *testing.T) {
	r := newRig(t)
	r.guest.Shares = flow.NewShares(24)
	for r.guest.Shares.May(flow.ShareIn, 1) {
		r.guest.Shares.Take(flow.ShareIn, 1)
	}
	for port := range uint16(20) {
		r.input(r.frame(remote4, 1000+port, 2000, []byte("question")), 0)
		r.answer(r.oneOpen())
	}
	if n := r.guest.Shares.Used(flow.ShareUDP); n != 24/8 || r.Len() != n {
		t.Errorf("%d flows, share of %d", r.Len(), n)
	}
	r.Close()
	if n := r.guest.Shares.Used(flow.ShareUDP); n != 0 {
		t.Errorf("%d left behind", n)
	}
}
