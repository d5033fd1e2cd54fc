// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

// FuzzStreamReceive compares what comes out of the link, however the stream is
// split, with what a reader of the whole stream finds.
func FuzzStreamReceive(f *testing.F) {
	f.Add(framed(random(14), random(60)), uint16(3))
	f.Add(framed(random(13)), uint16(1))
	f.Add([]byte{0, 1, 0, 0, 1}, uint16(2))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, uint16(4))
	f.Add(append(framed(random(65535), random(1514)), 0, 0), uint16(40000))
	f.Fuzz(func(t *testing.T, wire []byte, piece uint16) {
		if len(wire) > 1<<20 {
			return
		}
		var want [][]byte
		bad := false
		for rest := wire; len(rest) >= prefixLen; {
			n := binary.BigEndian.Uint32(rest)
			if bad = n < MinFrame || n > MaxFrame; bad {
				break
			}
			if uint32(len(rest)-prefixLen) < n {
				break
			}
			want = append(want, rest[prefixLen:prefixLen+n])
			rest = rest[prefixLen+n:]
		}
		s, peer, done := pair(t, 1500, 0)
		defer done()
		r := newReceiver(s)
		step := max(int(piece), len(wire)/1000+1)
		for b := wire; len(b) > 0 && r.err == nil; b = b[min(step, len(b)):] {
			for rest := b[:min(step, len(b))]; len(rest) > 0 && r.err == nil; {
				n, err := unix.Write(peer, rest)
				if err != nil && err != unix.EAGAIN {
					t.Fatal(err)
				}
				rest = rest[max(n, 0):]
				r.receive()
			}
		}
		if bad != (r.err == ErrLength) {
			t.Fatalf("error %v, malformed: %v", r.err, bad)
		}
		r.expect(t, want)
	})
}

// FuzzSegment cuts whatever it is given: each segment is a frame, all of them
// together hold the payload, and both links survive the same input.
func FuzzSegment(f *testing.F) {
	for _, s := range []*super{
		tcpSuper(false, packet.ACK|packet.PSH|packet.CWR, 2, random(5000), 1448),
		tcpSuper(true, packet.ACK, 0, random(3000), 1),
		udpSuper(false, random(3000), 1200),
		udpSuper(true, random(100), 65535),
	} {
		var o [packet.OffloadSize]byte
		encodeOffload(o[:], &s.o)
		f.Add(o[:], s.headers, s.payload, uint16(1500))
		f.Add(o[:], append(s.headers, s.payload...), []byte{}, uint16(65520))
	}
	f.Fuzz(func(t *testing.T, hdr, headers, payload []byte, mtu uint16) {
		if len(hdr) < packet.OffloadSize {
			return
		}
		var o packet.Offload
		decodeOffload(hdr, &o)
		fuzzSend(t, &o, headers, payload, mtu)
		var c cutter
		if o.GSOType == packet.GSONone || !c.start(&o, headers, payload, int(mtu)) {
			return
		}
		all := append(bytes.Clone(headers), payload...)[c.hlen:]
		var got []byte
		bound := c.segments()
		for c.more() {
			head := make([]byte, packet.MaxHeaders)
			p := c.next(head)
			if len(p) == 0 || len(p) > int(o.GSOSize) || c.hlen+len(p) > MaxFrame ||
				c.tcp && c.hlen+len(p) > int(mtu)+packet.EthernetLen {
				t.Fatalf("segment of %d+%d bytes", c.hlen, len(p))
			}
			got = append(got, p...)
			bound--
			if i := bytes.IndexFunc(head[c.hlen:], func(r rune) bool { return r != 0 }); i >= 0 {
				t.Fatal("wrote behind the headers")
			}
		}
		if bound != 0 || !bytes.Equal(got, all) {
			t.Fatal("payloads together are not the input")
		}
	})
}

// fuzzSend sends the input by a stream and checks that only whole frames come
// out, as many as were counted.
func fuzzSend(t *testing.T, o *packet.Offload, headers, payload []byte, mtu uint16) {
	s, peer, done := pair(t, int(mtu), 0)
	defer done()
	s.Send(o, headers, payload)
	var wire []byte
	for err := s.Flush(); err == nil; s.Writable() {
		b := peerRead(t, peer, 1<<20)
		wire = append(wire, b...)
		if len(b) == 0 && !s.WantWrite() {
			break
		}
	}
	frames, rest := unframe(t, wire)
	c := s.Counters()
	if len(rest) != 0 || uint64(len(frames)) != c.Sent || c.Sent+c.Refused+c.Dropped == 0 {
		t.Fatalf("%d frames and %d bytes, %+v", len(frames), len(rest), *c)
	}
}

// FuzzTapHeader checks what Frame promises of a header from the kernel.
func FuzzTapHeader(f *testing.F) {
	s := tcpSuper(true, packet.ACK, 0, random(3000), 1448)
	var o [packet.OffloadSize]byte
	encodeOffload(o[:], &s.o)
	f.Add(append(append(o[:], s.headers...), s.payload...))
	f.Add(make([]byte, 24))
	f.Fuzz(func(t *testing.T, raw []byte) {
		link, b := new(tap), NewBatch()
		b.reset()
		if !link.accept(b, raw) {
			return
		}
		o, data := b.Frames[0].Offload, b.Frames[0].Data
		if o.Flags&packet.OffloadNeedsChecksum != 0 && int(o.CsumStart)+int(o.CsumOffset)+2 > len(data) ||
			o.GSOType != packet.GSONone && o.GSOSize == 0 || int(o.HdrLen) > len(data) {
			t.Fatalf("%+v with %d bytes", o, len(data))
		}
	})
}
