// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// TestKinds makes a link of each kind, after one of each kind that is over: its memory
// serves the next only where that is of the same kind.
func TestKinds(t *testing.T) {
	open := func(k int, last Link) Link {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(p[1])
		l := New(&ipc.Link{Kind: uint8(k)}, int32(p[0]), 1500, last)
		if l.FD() != int32(p[0]) || l.CanSend() != (k != ipc.LinkVhostUser) || l.WantWrite() {
			t.Errorf("kind %d: descriptor %d, want %d, room %v, wants to write %v", k, l.FD(), p[0], l.CanSend(), l.WantWrite())
		}
		l.Close()
		return l
	}
	for before := range kinds {
		for after := range kinds {
			if kinds[before].open != nil && kinds[after].open != nil {
				open(after, open(before, nil))
			}
		}
	}
	for _, k := range []uint8{ipc.LinkTap, ipc.LinkStream, ipc.LinkDatagram, ipc.LinkSeqpacket, ipc.LinkPlainTap, ipc.LinkVhostUser} {
		if tr := TraitsOf(k); tr.ReceiveBatches < 1 || tr.Window < 64<<10 || tr.SoftwareGSO == (k == ipc.LinkTap || k == ipc.LinkVhostUser) {
			t.Errorf("kind %d: %+v", k, tr)
		}
	}
}

// TestCountersAdd adds each counter to itself and to no other.
func TestCountersAdd(t *testing.T) {
	var sum, one Counters
	v := reflect.ValueOf(&one).Elem()
	for i := range v.NumField() {
		v.Field(i).SetUint(uint64(i + 1))
	}
	sum.Add(&one)
	sum.Add(&one)
	s := reflect.ValueOf(sum)
	for i := range s.NumField() {
		if got := s.Field(i).Uint(); got != uint64(2*(i+1)) {
			t.Errorf("%s: %d", s.Type().Field(i).Name, got)
		}
	}
}

// TestClosedErrors: what ends a link says why, and is of one kind.
func TestClosedErrors(t *testing.T) {
	for _, err := range []error{ErrLength, ErrBroken, ErrHungUp, ended(0), ended(unix.ECONNRESET)} {
		if !errors.Is(err, ErrClosed) || err.Error() == ErrClosed.Error() {
			t.Errorf("%v", err)
		}
	}
}
