// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"os"
	"slices"
	"testing"
	"time"

	"aldente/fuzz"
	"aldente/ipc"
	"aldente/test/vhost/frontend"
	"aldente/worker/packet"
)

// FuzzVhostUser has a guest with any features send and take frames, in pieces of any
// size, behind headers of any kind, while rings stop and memory moves. What says nothing
// of offloads arrives as it was sent, both ways; of the rest, each frame has what its
// offload promises.
//
// The script is steps of four bytes: what is done, two that say how much, and one more.
func FuzzVhostUser(f *testing.F) {
	every := []byte{
		0, 0, 10, 0, 0, 0, 70, 3, 0, 20, 0, 97, 0, 60, 200, 255, 1, 0, 100, 0, 1, 30, 7, 1, 2, 200, 0, 1, 2, 250, 1, 2, 2, 140, 0, 3, 2, 90, 9, 0,
		3, 200, 0, 0, 3, 250, 1, 1, 3, 3, 0, 2, 4, 0, 0, 0, 4, 0, 0, 1, 0, 0, 90, 1, 1, 9, 0, 1, 5, 0, 0, 0, 0, 9, 0, 2, 1, 0, 90, 0,
		6, 0, 80, 1, 6, 9, 80, 2, 6, 40, 1, 3, 7, 0, 50, 0, 8, 0, 0, 1, 8, 0, 0, 0, 9, 0, 0, 0, 2, 200, 3, 0, 3, 90, 0, 1, 10, 0, 0, 0, 1, 0, 90, 0,
	}
	rare := []byte{
		11, 1, 10, 0, 11, 1, 10, 1, 11, 7, 7, 1, 15, 1, 3, 0, 15, 1, 7, 1, 13, 2, 80, 0, 12, 0, 0, 0, 12, 0, 0, 0, 13, 0, 9, 1, 1, 0, 90, 0, 10, 0, 0, 0, 12, 0, 0, 0,
		14, 5, 0, 0, 14, 5, 0, 1, 14, 0, 2, 5, 14, 0, 4, 5, 2, 90, 9, 0, 14, 0, 0, 2, 11, 0, 9, 0, 15, 0, 3, 0, 14, 1, 0, 3, 11, 0, 1, 0,
	}
	none := []byte{
		0, 5, 10, 0, 1, 0, 100, 0, 1, 0, 101, 1, 2, 8, 0, 1, 2, 9, 1, 2, 2, 7, 0, 3, 3, 10, 0, 0, 3, 9, 1, 1, 3, 0, 9, 2,
		7, 0, 255, 0, 1, 0, 90, 0, 10, 0, 0, 0, 1, 0, 90, 0, 6, 1, 1, 1, 6, 2, 2, 2, 6, 3, 3, 5,
	}
	for _, features := range []uint64{all, old, modern, sumOnly, modern | frontend.FMrgRxbuf, all &^ frontend.FEventIdx, all &^ frontend.FMrgRxbuf,
		all &^ (frontend.FGuestTSO4 | frontend.FGuestUSO6), all &^ frontend.FIndirectDesc} {
		fuzz.Add(f, every, features, uint16(4096), uint8(1))
		fuzz.Add(f, none, features, uint16(1600), uint8(0))
		fuzz.Add(f, slices.Concat(every, none), features, uint16(300), uint8(3))
		fuzz.Add(f, rare, features, uint16(2000), uint8(1))
		fuzz.Add(f, slices.Concat(rare[:80], []byte{14, 0, 0, 4}), features, uint16(100), uint8(2))
	}
	f.Fuzz(func(t *testing.T, script []byte, features uint64, size uint16, pairs uint8) {
		w := &shared{rig: newRig(t, frontend.Config{
			Features: features&all | old, Pairs: 1 + int(pairs%3), Ring: 128,
		}, 64+int(size))}
		w.g.Conn.Timeout, w.g.Conn.Turn = time.Second, func() {
			if w.turn(); w.v.Flush() != nil {
				_ = w.g.Conn.Close() // or it waits for an answer
			}
		}
		for n := 0; len(script) >= 4 && n < 60 && !w.over; n++ {
			w.step(script[0], int(script[1])<<8|int(script[2]), script[3])
			script = script[4:]
		}
		w.refused()
		var sum Counters
		sum.Add(w.v.Counters())
		if sum != w.v.counters || w.v.FD() != w.v.fd || w.v.WantWrite() || !TraitsOf(ipc.LinkVhostUser).SharedMemory {
			t.Fatal("the link is not as it was")
		}
	})
}

// shared is a rig whose guest may have broken its link.
type shared struct {
	*rig
	over bool
}

func (w *shared) step(what byte, n int, more byte) {
	pair := int(more) % w.pairs()
	switch v6 := more&1 != 0; what % 16 {
	case 0:
		w.fromGuest(pair, make([]byte, vnetLen), noise[n%1024:][:MinFrame+n%9000], int(more))
	case 1:
		w.toGuest(nil, noise[n%1024:][:MinFrame+n%9000], nil)
	case 2:
		s := tcpSuper(v6, packet.ACK|packet.PSH, n%3, noise[n%1024:][:n%60000], 500+n%1000)
		if more&2 != 0 {
			s = udpSuper(v6, noise[n%1024:][:n%60000], 500+n%1000)
		}
		if len(s.payload) <= int(s.o.GSOSize) {
			s.o.GSOType, s.o.GSOSize = packet.GSONone, 0
		}
		w.toGuest(&s.o, s.headers, s.payload)
	case 3:
		w.reserved(v6, n, more)
	case 4: // a ring begins again
		i := 2*pair + int(more>>1&1)
		w.ask(func() error {
			if _, err := w.g.StopRing(i); err != nil {
				return err
			}
			return restart(w.g.Frontend, i)
		})
	case 5: // all memory is mapped anew
		w.ask(w.g.ShareMemory)
	case 6: // offloads of any kind
		header := make([]byte, vnetLen)
		s := tcpSuper(v6, packet.ACK, 0, noise[n%1024:][:n%9000], 1448)
		encodeVirtio(header, &s.o, 0)
		binary.LittleEndian.PutUint16(header[int(more)%10:], uint16(n))
		w.fromGuest(pair, header, slices.Concat(s.headers, s.payload), 0)
	case 7: // until the guest has no room
		for k := 0; k < n%300 && w.v.Send(nil, noise[:100], nil); k++ {
		}
		w.drain()
	case 8:
		w.ask(func() error { return w.g.Enable(more&1 == 0) })
	case 9:
		w.b.Whole = !w.b.Whole
	case 10:
		w.drain()
	case 11: // a flow, which is answered where it asks
		w.fromGuest(pair, make([]byte, vnetLen), flowFrame(v6, true, uint16(n)), 0)
		w.toGuest(nil, flowFrame(v6, false, uint16(n)), nil)
	case 12: // time passes
		before := w.v.CanSend()
		again, room := w.v.Expire()
		if room && (before || !w.v.Writable()) || again && before && len(w.v.active) == 1 {
			w.t.Fatalf("room %t, before %t", room, before)
		}
	case 13: // until all queues are full, and beyond
		for port := range uint16(n % 600) {
			w.v.Send(nil, flowFrame(v6, false, port), nil)
		}
	case 14:
		w.say(n, more)
	case 15: // frames that nobody takes until all are there
		for range 1 + n%8 {
			if w.g.Rings[2*pair+1].Outstanding() > 100 || w.g.Put(pair, nil, flowFrame(v6, true, uint16(n))) != nil {
				break
			}
		}
		if w.v.Waiting() && !w.v.awake {
			w.t.Fatal("awake and asleep")
		}
		w.turn()
		if err := w.g.Sent(pair, 0); err != nil && w.v.err == nil {
			w.t.Fatal(err)
		}
	}
	w.turn()
	w.over = w.over || w.v.Flush() != nil
}

// say has the front end, or its guest, say what is rarer.
func (w *shared) say(n int, more byte) {
	switch more % 6 {
	case 0:
		w.ask(func() error { return w.g.Do(frontend.NetSetMTU, frontend.U64(uint64(68+n%9000))) })
	case 1:
		if err := w.g.Do(uint32(100+n), frontend.U64(1)); err == nil && w.g.Protocol&frontend.PReplyAck != 0 {
			w.t.Fatal("what nobody knows is done")
		}
	case 2: // kicks by another descriptor, or none
		w.ask(func() error { return w.g.Do(frontend.SetVringKick, frontend.U64(uint64(1)<<8|uint64(n%w.pairs()*2+1))) })
	case 3:
		r := w.g.Rings[n%len(w.g.Rings)]
		r.PublishIndex(r.Index() + uint16(n))
		r.ForceKick()
		w.turn()
		w.over = true // it may have made available what it has not
	case 4:
		w.ask(func() error { return w.g.Do(frontend.ResetDevice, nil) })
		w.over = true // the guest's driver would begin anew
	case 5: // payload of less than a frame's least
		if e := testEnds(false); w.v.Reserve(e, 40000, 50000, 54, 1+n%5) != nil {
			s := tcpSuper(false, packet.ACK, 0, noise[:1], 1448)
			s.o.GSOType, s.o.GSOSize = packet.GSONone, 0
			w.v.SendReserved(&s.o, s.headers, 1)
		}
	}
}

// ask has the front end do something that it is answered for, if the link has not ended.
func (w *shared) ask(f func() error) { w.over = f() != nil || w.over }

// noise is where bytes of frames come from: there is no time to make them.
var noise = random(80 << 10)

// refused sends what is no frame, and what only looks like a super-frame.
func (w *shared) refused() {
	w.drain()
	w.v.Up()
	s := tcpSuper(false, packet.ACK, 0, noise[:3000], 1448)
	before := w.v.counters.Sent
	sum := s.o
	sum.GSOType, sum.CsumStart = packet.GSONone, 60000
	if w.v.Send(nil, noise[:MinFrame-1], nil) || w.v.Send(&sum, s.headers, s.payload[:9]) && w.g.Features&frontend.FGuestCSUM == 0 || w.v.SendReserved(&s.o, s.headers, 1) {
		w.t.Fatal("what is no frame is sent")
	}
	w.drain()
	whole := s.o
	whole.GSOType = packet.GSONone
	w.toGuest(&whole, slices.Concat(s.headers, s.payload[:1000]), nil)
	s.o.HdrLen, s.o.GSOSize = 10, 0
	w.v.Send(&s.o, s.headers, s.payload)
	s.o.GSOType |= packet.GSOECN
	w.v.Send(&s.o, s.headers, s.payload)
	if w.v.counters.Sent < before {
		w.t.Fatal("the count goes back")
	}
}

// fromGuest has the guest send a frame.
func (w *shared) fromGuest(pair int, header, frame []byte, piece int) {
	w.g.Piece = piece
	if piece > 0 && len(frame) > 60*piece {
		frame = frame[:max(60*piece, MinFrame)]
	}
	w.g.Indirect = w.g.Features&frontend.FIndirectDesc != 0
	plain := !slices.ContainsFunc(header, func(b byte) bool { return b != 0 })
	before := w.v.counters
	if err := w.g.Put(pair, header[:w.g.HeaderLen()], frame); err != nil {
		w.over = true
		return
	}
	got := w.turn()
	if err := w.g.Sent(pair, 0); w.v.err != nil {
		w.over = true
		return
	} else if err != nil {
		w.t.Fatalf("a frame of %d bytes in pieces of %d: %v", len(frame), piece, err)
	}
	if plain && w.v.counters.Malformed == before.Malformed && (len(got) > 1 || len(got) == 1 && !bytes.Equal(got[0], frame)) {
		w.t.Fatalf("a frame of %d bytes in pieces of %d is another", len(frame), piece)
	}
}

// toGuest sends a frame and looks at what the guest has of it.
func (w *shared) toGuest(o *packet.Offload, headers, payload []byte) {
	w.drain()
	want := slices.Concat(headers, payload)
	want = append(want, make([]byte, max(0, minWire-len(want)))...)
	if !w.v.Send(o, slices.Clone(headers), payload) {
		w.drain()
		return
	}
	w.v.Flush()
	for pair := range w.pairs() {
		for {
			header, got := w.now(pair)
			if header == nil {
				break
			}
			if len(got) > len(want) || o == nil && !bytes.Equal(got, want) {
				w.t.Fatalf("%d bytes of a frame of %d", len(got), len(want))
			}
		}
	}
}

// reserved has a frame's payload written where the guest will find it.
func (w *shared) reserved(v6 bool, n int, more byte) {
	w.drain()
	s := tcpSuper(v6, packet.ACK, 0, noise[n%1024:][:1+n%60000], 1448)
	left := s.payload
	for _, b := range w.v.Reserve(testEnds(v6), 40000, 50000, len(s.headers), len(s.payload)) {
		left = left[copy(b, left):]
	}
	done := len(s.payload) - len(left)
	if done < len(s.payload) {
		done -= done % 1448
	}
	if done > 0 && more&2 == 0 {
		if done <= 1448 {
			s.o.GSOType, s.o.GSOSize = packet.GSONone, 0
		}
		w.v.SendReserved(&s.o, s.headers, done)
	}
	w.drain()
}

// drain has the guest take all that it was sent.
func (w *shared) drain() {
	for pair := range w.pairs() {
		for header, _ := w.now(pair); header != nil; header, _ = w.now(pair) {
		}
	}
}

// now is the next frame that the guest has, without waiting.
func (w *shared) now(pair int) (header, frame []byte) {
	w.v.Flush()
	header, frame, err := w.g.Receive(pair, 0)
	if err != nil && !os.IsTimeout(err) {
		w.t.Fatal(err)
	}
	return header, frame
}

func (w *shared) pairs() int { return w.g.Pairs }
