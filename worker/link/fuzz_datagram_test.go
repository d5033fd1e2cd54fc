// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/fuzz"
	"aldente/worker/packet"
)

// FuzzDatagramReceive has messages of every length arrive, one by one or together: each
// that can be a frame is one, the others are counted, and nothing is made of the hello.
func FuzzDatagramReceive(f *testing.F) {
	for _, m := range fuzz.Captured("ping", "curl", "neighbours") {
		fuzz.Add(f, m, uint16(0), uint8(3))
	}
	fuzz.Add(f, []byte(hello), uint16(4), uint8(1))
	fuzz.Add(f, []byte(hello), uint16(0), uint8(200))
	fuzz.Add(f, []byte{1, 2, 3}, uint16(65535), uint8(70))
	f.Fuzz(func(t *testing.T, b []byte, grow uint16, n uint8) {
		l, peer, done := messages(t, []int{unix.SOCK_DGRAM, unix.SOCK_SEQPACKET}[n&1], 1500, 1<<20)
		defer done()
		r := newReceiver(l)
		var want [][]byte
		bad := uint64(0)
		for k := range int(n) {
			m := append(bytes.Clone(b), make([]byte, int(grow)*k/4)...)
			if k%5 == 4 {
				m = m[:len(m)*k/256]
			}
			if len(m) > 100<<10 {
				m = m[:100<<10]
			}
			if _, err := unix.Write(peer, m); err == unix.EAGAIN {
				r.receive()
				continue
			} else if err != nil {
				t.Fatal(err)
			}
			switch {
			case string(m) == hello:
			case len(m) < MinFrame || len(m) > maxReceived:
				bad++
			default:
				want = append(want, m)
			}
			if k%7 == 0 {
				r.receive()
			}
		}
		for range int(n) + 2 { // after an empty one it waits to be told of more
			r.receive()
		}
		r.expect(t, want)
		if c := l.Counters(); r.err != nil || c.Malformed != bad || c.Received != uint64(len(want)) {
			t.Fatalf("%v, %+v, want %d malformed", r.err, *c, bad)
		}
	})
}

// FuzzDatagramSend is FuzzStreamSend for messages: what arrives is what was taken, in
// order, whole, and as much as was counted.
func FuzzDatagramSend(f *testing.F) {
	for k, b := range superSeeds() {
		fuzz.Add(f, append([]byte{5, 0xdc, uint8(k), uint8(k * 37)}, b...))
		fuzz.Add(f, append([]byte{0xff, 0xf0, uint8(k), 0xff}, b...))
	}
	small := []byte{4, packet.ACK, 0, 0, 0, 0x10, 0, 1, 2, 3, 4}
	segments := []byte{0, packet.ACK, 0, 0x0b, 0xb8, 0xea, 0x61, 1, 2, 3, 4}
	for _, mode := range []byte{0x0d, 0x01, 0x6d, 0x0f, 0x4c} {
		all := []byte{5, 0xdc, mode, 0x24}
		for range 6 {
			all = append(append(all, segments...), small...)
		}
		fuzz.Add(f, all)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &fuzz.Source{B: b}
		mtu, mode, reads := int(s.Uint16()), s.Byte(), s.Byte()
		buffer := 0
		if mode&1 != 0 {
			buffer = 4608
		}
		l, peer, done := messages(t, []int{unix.SOCK_DGRAM, unix.SOCK_SEQPACKET}[mode>>1&1], mtu, buffer)
		defer done()
		var got [][]byte
		var may []recorded
		for i := 0; i < 12 && len(s.B) > 0; i++ {
			frame, built := takeSuper(s)
			all := expectSent(frame, mtu, built)
			for range 1 + mode>>2&3 {
				before := *l.Counters()
				ok := l.Send(&frame.o, frame.headers, frame.payload)
				after := *l.Counters()
				if ok != (after.Refused == before.Refused && after.Dropped == before.Dropped) || l.CanSend() == l.WantWrite() {
					t.Fatalf("taken %v, %+v, then %+v", ok, before, after)
				}
				may = append(may, all...)
			}
			if reads>>(i%8)&1 != 0 {
				got = append(got, peerMessages(t, peer)...)
				l.Writable()
			}
		}
		if mode&0x40 != 0 {
			checkNoPeer(t, l, peer)
			return
		}
		for l.WantWrite() {
			got = append(got, peerMessages(t, peer)...)
			l.Writable()
		}
		got = append(got, peerMessages(t, peer)...)
		if c := l.Counters(); l.Flush() != nil || c.Sent != uint64(len(got)) || c.Malformed > 0 {
			t.Fatalf("%d messages, %+v", len(got), *c)
		}
		for _, m := range got {
			at := 0
			for ; at < len(may); at++ { // what is not there was counted as lost
				w := may[at]
				if len(m) == max(w.size, minWire) && bytes.HasSuffix(m[:w.size], w.tail) {
					break
				}
			}
			if at == len(may) {
				t.Fatalf("a message of %d bytes that was not sent", len(m))
			}
			if may[at].valid {
				if err := fuzz.CheckFrame(m); err != nil {
					t.Fatalf("%v\n%x", err, m)
				}
			}
			may = may[at+1:]
		}
	})
}

// checkNoPeer closes the peer: the link tells, and its memory serves the next.
func checkNoPeer(t *testing.T, l *datagram, peer int) {
	t.Helper()
	unix.Shutdown(peer, unix.SHUT_RDWR)
	frame := random(60)
	for l.Flush() == nil { // where there is no room, it cannot be known
		l.Send(nil, frame, nil)
		peerMessages(t, peer)
		l.Writable()
	}
	if l.Send(nil, frame, nil) || l.Flush() == nil || l.CanSend() || l.WantWrite() || l.Writable() {
		t.Fatal("sends to a peer that is gone")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	next := NewDatagram(l, int32(fds[0]), 1500) // in l's place, which the caller closes
	defer unix.Close(fds[1])
	if !next.CanSend() || !next.Send(nil, frame, nil) || next.FD() != int32(fds[0]) || next.Counters().Sent != 1 {
		t.Fatal("the next client's link does not send")
	}
	if got := peerMessages(t, fds[1]); len(got) != 1 || !bytes.Equal(got[0], frame) {
		t.Fatalf("%x", got)
	}
}
