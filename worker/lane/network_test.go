// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/packet"
)

// TestReconfigure: a configuration that comes while the lane runs changes addresses, and
// nothing that the lane was made for.
func TestReconfigure(t *testing.T) {
	ours, theirs, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(theirs)
	defer unix.Close(ours)
	send(t, ours, config(0), -1)
	send(t, ours, ipc.Empty(ipc.KindStart), -1)
	l, err := New(theirs)
	if err != nil {
		t.Fatal(err)
	}
	l.guest.MTU = 1400 // as the link has said
	before := l.guest.Config
	next := before
	next.Addr4, next.Our4, next.DNS4[0], next.NDNS4 = packet.AddrFrom4([4]byte{10, 0, 0, 2}), packet.AddrFrom4([4]byte{10, 0, 0, 1}), packet.AddrFrom4([4]byte{10, 0, 0, 3}), 1
	next.Former4[0], next.Lease, next.Renew = before.Addr4, 3600, 60
	told := next
	told.NGroups, told.Groups[0] = 1, ipc.Group{Addr: mdns4, Port: 5353} // of which nothing was made at start
	told.MTU, told.LinkKind, told.GuestMAC, told.MaxFlows, told.MaxUDP, told.Bytes, told.Stats = 9000, ipc.LinkStream, [6]byte{2}, 1<<20, 7, 1, 9
	if l.record(told.Encode(), -1); l.err != nil || l.guest.Config != next {
		t.Errorf("%v: %+v, want %+v", l.err, l.guest.Config, next)
	}
	if l.guest.Seen4 != packet.Addr(next.Addr4) {
		t.Errorf("connections to the guest go to %v", l.guest.Seen4)
	}
	bad := told
	bad.NDNS6 = 200
	if l.record(bad.Encode(), -1); !errors.Is(l.err, ipc.ErrMalformed) || l.guest.Config != next {
		t.Errorf("a configuration that is none: %v", l.err)
	}
}
