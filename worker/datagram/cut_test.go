// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"syscall"
	"testing"

	"aldente/worker/flow"
	"aldente/worker/flow/flowtest"
	"aldente/worker/packet"
)

// TestSetDF: a socket has the mark of the guest's datagrams where it makes a difference,
// and no call is made where it makes none.
func TestSetDF(t *testing.T) {
	type sent struct {
		df   bool
		size int
		want int // what the socket has then: -1: as it was made
	}
	for _, tt := range []struct {
		name  string
		v4    bool
		sent  []sent
		calls int
	}{
		{"short", true, []sent{{true, 0, -1}, {false, 100, -1}, {true, alwaysWhole4, -1}}, 0},
		{"short 6", false, []sent{{true, 0, -1}, {true, alwaysWhole6, -1}, {false, alwaysWhole6, -1}}, 0},
		{"long", true, []sent{{true, alwaysWhole4 + 1, 2}, {true, 9000, 2}, {false, 20, 2}, {false, 1400, 0}, {true, 1400, 2}}, 3},
		{"long 6", false, []sent{{true, alwaysWhole6 + 1, 2}, {true, 9000, 2}, {false, 2000, 0}, {false, 20, 0}}, 2},
		{"may be cut", true, []sent{{false, 1400, 0}, {false, 60000, 0}}, 1},
	} {
		host := flowtest.New()
		s := host.Socket()
		w, o := NewWriter(host), NewSocket(s.FD, 0)
		option := flow.OptionDiscover6
		if tt.v4 {
			option = flow.OptionDiscover4
		}
		for k, d := range tt.sent {
			w.SetDF(&o, tt.v4, d.df, d.size)
			if v, ok := s.Options[option]; ok != (d.want >= 0) || ok && v != d.want {
				t.Errorf("%s: %d, after datagram %d: %v", tt.name, d.want, k, s.Options)
			}
		}
		if s.SetCalls != tt.calls {
			t.Errorf("%s: %d calls, want %d", tt.name, s.SetCalls, tt.calls)
		}
	}
}

// TestTooLong: a datagram that is longer than its path takes is tried once. One that
// fails for the sake of an earlier one is tried again.
func TestTooLong(t *testing.T) {
	for _, own := range []bool{true, false} {
		host := flowtest.New()
		s := host.Socket()
		w, o := NewWriter(host), NewSocket(s.FD, 0)
		pending, failed := 0, 0
		w.Pending = func(uint32) { pending++ }
		w.TooLong = func() bool { return own }
		w.Failed = func(uint32, syscall.Errno, []byte) { failed++ }
		s.WriteErrs = []syscall.Errno{syscall.EMSGSIZE}
		if sent := w.WriteOne(0, &o, make([]byte, 1400)); sent == own || pending != 1 || (failed == 1) != own {
			t.Errorf("its own error %t: sent %t, %d looks at the queue, %d failures", own, sent, pending, failed)
		}
	}
}

// TestCutLong: what no Ethernet takes whole is cut by the host where the path takes
// less, and the next datagram has its own mark again. What Ethernet takes, and what is
// to be cut by nobody at all, is not.
func TestCutLong(t *testing.T) {
	for _, tt := range []struct {
		v4, cuts bool
		size     int
		sent     bool
	}{
		{true, true, ethernet4, false}, {true, true, ethernet4 + 1, true}, {true, true, 65507, true}, {true, false, 65507, false},
		{false, true, ethernet6, false}, {false, true, ethernet6 + 1, true}, {false, true, 65527, true}, {false, false, 65527, false},
	} {
		host := flowtest.New()
		s := host.Socket()
		w, o := NewWriter(host), NewSocket(s.FD, 0)
		told := 0
		w.Pending, w.TooLong, w.CutsLong = func(uint32) { told++ }, func() bool { return true }, tt.cuts
		option := flow.OptionDiscover6
		if tt.v4 {
			option = flow.OptionDiscover4
		}
		w.SetDF(&o, tt.v4, true, tt.size)
		s.WriteErrs = []syscall.Errno{syscall.EMSGSIZE}
		want := flow.DiscoverDo
		if tt.sent {
			want = flow.DiscoverNot
		}
		if sent := w.WriteOne(0, &o, make([]byte, tt.size)); sent != tt.sent || told != 1 || s.Options[option] != want {
			t.Errorf("%+v: sent %t, told %d times, %v", tt, sent, told, s.Options)
		}
		if w.SetDF(&o, tt.v4, true, tt.size); s.Options[option] != flow.DiscoverDo {
			t.Errorf("%+v: the next may be cut, %v", tt, s.Options)
		}
		// Where it fails for another reason, or once more, that is all.
		s.WriteErrs = []syscall.Errno{syscall.EMSGSIZE, syscall.EMSGSIZE, syscall.EMSGSIZE}
		if w.WriteOne(0, &o, make([]byte, tt.size)) {
			t.Errorf("%+v: sent all the same", tt)
		}
	}
}

// TestAloneAmongSeveral: a datagram that goes by itself does not fail for the size that
// several have had before.
func TestAloneAmongSeveral(t *testing.T) {
	for _, e := range []syscall.Errno{syscall.EINVAL, syscall.EMSGSIZE} {
		host := flowtest.New()
		s := host.Socket()
		w, o, b := NewWriter(host), NewSocket(s.FD, 0), new(Batch)
		b.Add(make([]byte, 2800), 1400)
		if w.Write(0, &o, b) != 2 || s.Options[flow.OptionUDPSegment] != 1400 {
			t.Fatal("not together")
		}
		s.WriteErrs = []syscall.Errno{e, e}
		if e == syscall.EINVAL {
			s.WriteErrs = s.WriteErrs[:1] // which is not tried again as it is
		}
		if !w.WriteOne(0, &o, make([]byte, 1200)) || s.Options[flow.OptionUDPSegment] != 0 {
			t.Errorf("%v: not sent, %v", e, s.Options)
		}
	}
}

// TestMarksGo: datagrams with different marks leave apart, where that makes a difference.
func TestMarksGo(t *testing.T) {
	m := Mark{TTL: 64, Class: 1, DF: true}
	for _, tt := range []struct {
		o    Mark
		size int
		want bool
	}{
		{m, 1400, true}, {Mark{TTL: 64, Class: 1}, 1400, false}, {Mark{TTL: 64, Class: 1}, 100, true},
		{Mark{TTL: 63, Class: 1, DF: true}, 100, false}, {Mark{TTL: 64, DF: true}, 100, false},
	} {
		if m.Goes(&tt.o, tt.size) != tt.want {
			t.Errorf("%+v, %d bytes: %t", tt.o, tt.size, !tt.want)
		}
	}
	p := packet.Packet{TTL: 7, TrafficClass: 8, DF: true}
	if got := MarkOf(&p); got != (Mark{TTL: 7, Class: 8, DF: true}) {
		t.Errorf("%+v", got)
	}
}
