// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"aldente/test/vhost/frontend"
	"aldente/worker/packet"
)

// TestVhostUserSend sends super-frames and others to guests that can do more or less:
// what a guest cannot do is done for it.
func TestVhostUserSend(t *testing.T) {
	frames := map[string]*super{
		"TCP, IPv4": tcpSuper(false, packet.ACK|packet.PSH|packet.FIN, 0, random(60001), 1448),
		"TCP, IPv6": tcpSuper(true, packet.ACK|packet.CWR, 2, random(50000), 1400),
		"UDP, IPv4": udpSuper(false, random(40001), 1472), "UDP, IPv6": udpSuper(true, random(3000), 1000),
		"one": tcpSuper(false, packet.ACK, 0, random(1001), 1448), "empty": tcpSuper(true, packet.ACK, 1, nil, 1448),
	}
	for name, features := range map[string]uint64{
		"none": old, "version 1": modern, "sums": sumOnly, "merged": modern | frontend.FMrgRxbuf, "all": all,
		"no event index": all &^ frontend.FEventIdx, "no USO": all &^ (frontend.FGuestUSO4 | frontend.FGuestUSO6),
		"unmerged": all &^ frontend.FMrgRxbuf,
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{2048, 4096, 1 << 16} {
				r := newRig(t, frontend.Config{Features: features, Ring: 128}, size)
				for kind, s := range frames {
					if small := 14 * int(s.o.GSOSize); len(s.payload) > small && (size == 1<<16 || r.g.Features&frontend.FMrgRxbuf == 0) {
						less := *s // there are but 16 buffers
						s = &less
						s.payload = s.payload[:small+1]
					}
					r.check(kind, s)
				}
			}
		})
	}
}

// check sends a frame and looks at what becomes of it.
func (r *rig) check(kind string, s *super) {
	r.t.Helper()
	o := s.o
	whole := len(s.payload) <= int(o.GSOSize)
	if whole {
		o.GSOType, o.GSOSize = packet.GSONone, 0
	}
	if !r.v.Send(&o, slices.Clone(s.headers), s.payload) {
		r.t.Errorf("%s: not sent: %+v", kind, r.v.counters)
		return
	}
	frame := slices.Concat(s.headers, s.payload)
	frame = append(frame, make([]byte, max(0, minWire-len(frame)))...)
	f := r.g.Features
	takes := map[uint8]uint64{
		packet.GSOTCPv4: frontend.FGuestTSO4, packet.GSOTCPv6: frontend.FGuestTSO6,
		packet.GSOUDPL4: frontend.FGuestUSO4 | frontend.FGuestUSO6,
	}[o.GSOType]
	want := [][]byte{frame}
	flags := uint8(packet.OffloadNeedsChecksum)
	switch {
	case f&frontend.FGuestCSUM == 0 && whole:
		own := o
		packet.CompleteChecksum(frame[:len(s.headers)+len(s.payload)], &own)
		flags = 0
	case !whole && f&(takes|frontend.FGuestCSUM) != takes|frontend.FGuestCSUM:
		want, flags = cutAll(r.t, s, MaxFrame), 0
	}
	for k, w := range want {
		header, got := r.got(0)
		if header == nil {
			r.t.Errorf("%s: frame %d of %d is not there", kind, k, len(want))
			return
		}
		w = append(w, make([]byte, max(0, minWire-len(w)))...)
		var h packet.Offload
		decodeVirtio(header, &h)
		if h.Flags != flags || flags != 0 && (h.GSOType != o.GSOType || h.CsumStart != o.CsumStart || h.CsumOffset != o.CsumOffset || h.GSOSize != o.GSOSize) {
			r.t.Errorf("%s: header %+v, of %+v", kind, h, o)
		}
		if !bytes.Equal(got, w) {
			r.t.Errorf("%s: frame %d of %d: %d bytes, want %d", kind, k, len(want), len(got), len(w))
		}
		if f&frontend.FMrgRxbuf == 0 && len(header) == vnetLen && binary.LittleEndian.Uint16(header[10:]) != 1 {
			r.t.Errorf("%s: header %x", kind, header)
		}
	}
	if header, _ := r.got(0); header != nil {
		r.t.Errorf("%s: one frame too many", kind)
	}
}

// TestVhostUserReserve has payload written to where the guest finds it.
func TestVhostUserReserve(t *testing.T) {
	for _, size := range []int{1 << 16, 4096, 1500, 400} {
		r := newRig(t, frontend.Config{Features: all, Ring: 1024}, size)
		for round := range 50 {
			s := tcpSuper(round%2 == 0, packet.ACK, 0, random(1+round*1300%65000), 1448)
			ends := testEnds(round%2 == 0)
			room := r.v.Reserve(ends, 40000, 50000, len(s.headers), len(s.payload))
			left := s.payload
			for _, b := range room {
				left = left[copy(b, left):]
			}
			if len(left) > 0 {
				t.Fatalf("buffers of %d: %d bytes have no room, of %d", size, len(left), len(s.payload))
			}
			switch round % 5 {
			case 3: // nothing comes of it
				continue
			case 4: // another frame is sent in between
				r.check("between", tcpSuper(true, packet.ACK, 0, random(100), 1448))
				if r.v.SendReserved(&s.o, s.headers, 1) {
					t.Error("what was reserved before another frame is sent")
				}
				continue
			}
			n := len(s.payload) - round%3*(len(s.payload)/7)
			if !r.v.SendReserved(&s.o, s.headers, n) {
				t.Fatal("not sent")
			}
			want := slices.Concat(s.headers, s.payload[:n])
			if _, got := r.got(0); !bytes.Equal(got, append(want, make([]byte, max(0, minWire-len(want)))...)) {
				t.Errorf("buffers of %d: %d bytes, want %d", size, len(got), len(s.headers)+n)
			}
		}
	}
}

// TestVhostUserReserveCopies: to a guest that takes segments, as many are sent as it has
// buffers for.
func TestVhostUserReserveCopies(t *testing.T) {
	for _, features := range []uint64{old, modern, sumOnly, modern | frontend.FMrgRxbuf, all &^ frontend.FGuestTSO6} {
		for _, size := range []int{800, 2000, 4096} {
			r := newRig(t, frontend.Config{Features: features}, size)
			for round := range 60 {
				s := tcpSuper(true, packet.ACK, 0, random(9000+3000*(round%20)), 1440)
				room := r.v.Reserve(testEnds(true), 40000, 50000, len(s.headers), len(s.payload))
				if len(room) != 1 || len(room[0]) < 1440 {
					t.Fatalf("features %#x: room for %d pieces", features, len(room))
				}
				n := copy(room[0], s.payload)
				if n < len(s.payload) {
					n -= n % 1440
				}
				s.payload = s.payload[:n]
				if !r.v.SendReserved(&s.o, s.headers, n) {
					t.Fatalf("features %#x, buffers of %d: %d bytes not sent: %+v", features, size, n, r.v.counters)
				}
				whole := cutAll(t, s, MaxFrame)
				for k, w := range whole {
					if _, got := r.got(0); !bytes.Equal(got, w) {
						t.Fatalf("features %#x: segment %d of %d: %d bytes", features, k, len(whole), len(got))
					}
				}
			}
		}
	}
}

// TestVhostUserFull: a guest that takes nothing is not sent more than it has buffers
// for, and says by a kick that it has more.
func TestVhostUserFull(t *testing.T) {
	for _, features := range []uint64{modern, all, all &^ frontend.FEventIdx, all &^ frontend.FMrgRxbuf} {
		r := newRig(t, frontend.Config{Features: features, Ring: 8}, 4096)
		s := tcpSuper(false, packet.ACK, 0, random(1000), 1448)
		s.o.GSOType = packet.GSONone
		n := 0
		for n < 100 && r.v.Send(&s.o, slices.Clone(s.headers), s.payload) {
			n++
		}
		if n != 8 || r.v.CanSend() || r.v.counters.Dropped != 1 || r.v.counters.Sent != 8 {
			t.Fatalf("features %#x: %d frames, can send %t, %+v", features, n, r.v.CanSend(), r.v.counters)
		}
		if room := r.v.Reserve(testEnds(false), 1, 2, 54, 9000); room != nil {
			t.Fatalf("features %#x: room for %d pieces", features, len(room))
		}
		for range 3 {
			r.got(0)
		}
		for range 100 {
			if r.events(); r.v.CanSend() {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if !r.v.CanSend() {
			t.Fatalf("features %#x: the guest's kick is not heard", features)
		}
		for n = 0; n < 100 && r.v.Send(&s.o, slices.Clone(s.headers), s.payload); n++ {
		}
		if n != 3 {
			t.Errorf("features %#x: %d frames into 3 buffers", features, n)
		}
	}
}
