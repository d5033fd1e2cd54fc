// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"syscall"
	"testing"

	"aldente/worker/flow"
	"aldente/worker/packet"
)

// direct is what env has of a guest's memory: pieces of odd sizes, sometimes fewer
// than asked for, sometimes none.
type direct struct {
	memory   [80 << 10]byte
	reserved [][]byte
	headers  int
	asked    int
	used     int  // frames sent so
	short    bool // there is less than a segment, and the link takes no more
}

func (e *env) Reserve(_ *packet.Ends, _, _ uint16, headers, n int) [][]byte {
	d := &e.direct
	d.reserved, d.headers = nil, headers
	if d.short {
		e.room = 0
		return append(d.reserved, d.memory[:100])
	}
	if d.asked++; e.room == 0 || d.asked%5 == 4 {
		return nil
	}
	if d.asked%5 == 3 {
		n = n*2/3 + 1
	}
	b := d.memory[:n]
	for k := d.asked; len(b) > 0; k += 3 {
		m := min(len(b), k*k*37%4099)
		d.reserved = append(d.reserved, b[:m:m])
		b = b[m:]
	}
	return d.reserved
}

func (e *env) SendReserved(o *packet.Offload, headers []byte, n int) bool {
	d := &e.direct
	if d.reserved == nil || n == 0 || len(headers) != d.headers {
		e.t.Fatalf("%d bytes behind %d of headers, %d reserved", n, len(headers), d.headers)
	}
	var payload []byte
	for _, b := range d.reserved {
		payload = append(payload, b...)
	}
	d.used++
	ok := e.Send(o, headers, payload[:n])
	clear(d.memory[:])
	return ok
}

func (e *env) RecvPieces(fd int32, bufs [][]byte, flags int) (int, syscall.Errno) {
	total := 0
	for _, b := range bufs {
		if len(b) == 0 {
			e.t.Fatal("an empty piece")
		}
		n, errno := e.Recv(fd, b, flags)
		if total += n; errno != 0 && total == 0 {
			return 0, errno
		}
		if n < len(b) {
			break
		}
	}
	return total, 0
}

// TestDirect: what fills a frame is read to where the guest will find it, and what
// is little is not.
func TestDirect(t *testing.T) {
	for _, mtu := range []uint16{1500, 65520} {
		e := newEnv(t, withMTU(mtu))
		p := newPeer(e, guestPort)
		syn := p.syn()
		syn.WScale = 7
		p.dial(syn)
		p.win = 0xffff
		for k := range 40 {
			p.s.say(100_000)
			e.settle()
			p.ack += uint32(p.heard(e.take()))
			p.send(packet.ACK, 0)
			if k == 20 && e.direct.used == 0 {
				t.Errorf("MTU %d: nothing is read to the guest's memory", mtu)
			}
		}
		for range 20 { // the rest
			p.ack += uint32(p.heard(e.take()))
			p.send(packet.ACK, 0)
		}
		if int(p.ack-p.conn().iss-1) != p.s.rxEnd {
			t.Errorf("MTU %d: %d of %d bytes", mtu, p.ack-p.conn().iss-1, p.s.rxEnd)
		}
		asked := e.direct.asked
		for range 20 {
			p.s.say(100)
			e.settle()
			p.ack += uint32(p.heard(e.take()))
			p.send(packet.ACK, 0)
		}
		if n := e.direct.asked - asked; n > 1 {
			t.Errorf("MTU %d: asked for room %d times for little", mtu, n)
		}
	}
}

// TestNothingReadWithoutRoom: what the guest has no buffers for is not read, which would be
// in vain; it is once there are some.
func TestNothingReadWithoutRoom(t *testing.T) {
	e := newEnv(t, withMTU(65520))
	p := newPeer(e, guestPort)
	syn := p.syn()
	syn.WScale = 7
	p.dial(syn)
	p.win = 0xffff
	talk := func(n int) {
		p.s.say(n)
		e.settle()
		p.ack += uint32(p.heard(e.take()))
		p.send(packet.ACK, 0)
		e.settle()
	}
	for range 20 {
		talk(100_000)
	}
	e.take()
	if e.direct.used == 0 {
		t.Fatal("nothing is read to the guest's memory")
	}
	peeks := p.s.peeks
	e.direct.short = true
	talk(200_000)
	if n := p.s.peeks - peeks; n != 0 || e.lost != 0 {
		t.Errorf("%d reads, %d frames lost", n, e.lost)
	}
	e.direct.short, e.room = false, -1
	e.tr.Resume()
	for range 20 {
		talk(0)
	}
	if got := int(p.ack - p.conn().iss - 1); got != p.s.rxEnd {
		t.Errorf("%d of %d bytes", got, p.s.rxEnd)
	}
}

// heard is how many bytes in order are in frames, all of which are what the host has sent.
func (p *peer) heard(frames []frame) (n int) {
	for k := range frames {
		p.describe(&frames[k])
		if s := &frames[k].tcp; s.Seq == p.ack+uint32(n) {
			n += len(s.Payload)
		}
	}
	return n
}

// TestDirectWithoutPeekOffset: what is skipped is not written to the guest's memory.
func TestDirectWithoutPeekOffset(t *testing.T) {
	e := newEnv(t, withoutPeekOff)
	p := newPeer(e, guestPort)
	p.dial(p.syn())
	for range 20 {
		p.s.say(60_000)
		e.settle()
		p.ack += uint32(p.heard(e.take()))
		p.send(packet.ACK, 0)
	}
	if e.direct.asked != 0 {
		t.Error("room was asked for")
	}
}

func TestPieces(t *testing.T) {
	tr := &Translator{into: [][]byte{[]byte("ab"), {}, []byte("cdef"), []byte("g")}}
	all := "abcdefg"
	for from := range len(all) + 1 {
		for to := from; to <= len(all); to++ {
			got := ""
			for _, b := range tr.pieces(from, to) {
				got += string(b)
			}
			if got != all[from:to] {
				t.Errorf("[%d,%d): %q", from, to, got)
			}
		}
	}
}

var _ flow.Direct = (*env)(nil)
