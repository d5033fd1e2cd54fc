// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/fuzz"
	"aldente/worker/packet"
)

// The guest's end may flood: batches stay within bounds and nothing allocates.
func TestTapBatches(t *testing.T) {
	inNamespace(t)
	link := guestTap(t, allTSO|allUSO)
	defer link.Close()
	fd := guestUDP(t, false)
	b := NewBatch()
	ip(t, "link set tap0 mtu 65000")
	for _, size := range []int{1, 1400, 60000} {
		for i := range 300 {
			unix.Write(fd, bytes.Repeat([]byte{byte(i)}, size))
		}
		full, next := false, byte(0)
		for more := true; more; {
			var err error
			if more, err = link.Receive(b); err != nil {
				t.Fatal(err)
			}
			if more && len(b.Frames) == 0 {
				t.Fatal("more, but nothing now")
			}
			full = full || more
			for i := range b.Frames {
				var p packet.Packet
				if p.Decode(b.Frames[i].Data) != nil || p.Proto != packet.ProtoUDP || p.Src != testDst4 || p.Fragment {
					continue // the guest's kernel has things of its own to say
				}
				data := p.Payload()[8:]
				if len(data) != size || bytes.Count(data, []byte{next}) != size {
					t.Fatalf("datagram %d of %d bytes differs", next, size)
				}
				next++
			}
		}
		if !full {
			t.Errorf("%d bytes: everything in one batch", size)
		}
		if next == 0 {
			t.Errorf("%d bytes: nothing arrived", size)
		}
	}
	s, data := udpSuper(false, random(30000), 1200), random(30000)
	unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1200)
	noUSO := NewTap(link.fd, 0)
	buf := make([]byte, 65536)
	if n := testing.AllocsPerRun(100, func() {
		link.Send(&s.o, s.headers, s.payload)
		noUSO.Send(&s.o, s.headers, s.payload)
		noUSO.Send(nil, s.headers, nil)
		unix.Write(fd, data)
		link.Receive(b)
		for {
			if n, _ := unix.Read(fd, buf); n <= 0 {
				break
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNormalise(t *testing.T) {
	const needs, valid = packet.OffloadNeedsChecksum, packet.OffloadDataValid
	frame := make([]byte, 2000)
	frame[34+12] = 5 << 4
	long := bytes.Clone(frame)
	long[34+12] = 15 << 4
	for name, tt := range map[string]struct {
		in   packet.Offload
		data []byte
		out  packet.Offload
		ok   bool
	}{
		"none":      {packet.Offload{Flags: 4, HdrLen: 9, GSOSize: 9, CsumStart: 60000}, frame, packet.Offload{}, true},
		"valid":     {packet.Offload{Flags: valid}, frame, packet.Offload{Flags: valid}, true},
		"checksum":  {packet.Offload{Flags: needs, CsumStart: 34, CsumOffset: 16}, frame, packet.Offload{Flags: needs, CsumStart: 34, CsumOffset: 16}, true},
		"last word": {packet.Offload{Flags: needs, CsumStart: 34, CsumOffset: 6}, frame[:42], packet.Offload{Flags: needs, CsumStart: 34, CsumOffset: 6}, true},
		"outside":   {packet.Offload{Flags: needs, CsumStart: 34, CsumOffset: 6}, frame[:41], packet.Offload{}, false},
		"overflow":  {packet.Offload{Flags: needs, CsumStart: 65535, CsumOffset: 65535}, frame, packet.Offload{}, false},
		"ethernet":  {packet.Offload{Flags: needs, CsumStart: 12, CsumOffset: 6}, frame, packet.Offload{}, false},
		"tso": {packet.Offload{Flags: needs, GSOType: packet.GSOTCPv4 | packet.GSOECN, GSOSize: 1448, HdrLen: 1, CsumStart: 34, CsumOffset: 16}, frame,
			packet.Offload{Flags: needs, GSOType: packet.GSOTCPv4 | packet.GSOECN, GSOSize: 1448, HdrLen: 54, CsumStart: 34, CsumOffset: 16}, true},
		"uso": {packet.Offload{Flags: needs, GSOType: packet.GSOUDPL4, GSOSize: 1448, HdrLen: 1, CsumStart: 34, CsumOffset: 6}, frame,
			packet.Offload{Flags: needs, GSOType: packet.GSOUDPL4, GSOSize: 1448, HdrLen: 42, CsumStart: 34, CsumOffset: 6}, true},
		"tso size 0":      {packet.Offload{Flags: needs, GSOType: packet.GSOTCPv6, CsumStart: 34, CsumOffset: 16}, frame, packet.Offload{}, false},
		"tso truncated":   {packet.Offload{Flags: needs, GSOType: packet.GSOTCPv6, GSOSize: 1, CsumStart: 34, CsumOffset: 6}, frame[:53], packet.Offload{}, false},
		"tso short":       {packet.Offload{Flags: needs, GSOType: packet.GSOTCPv6, GSOSize: 1, CsumStart: 34, CsumOffset: 6}, frame[:42], packet.Offload{}, false},
		"tso options":     {packet.Offload{Flags: needs, GSOType: packet.GSOTCPv6, GSOSize: 1, CsumStart: 34, CsumOffset: 16}, long[:80], packet.Offload{}, false},
		"tso no checksum": {packet.Offload{GSOType: packet.GSOTCPv4, GSOSize: 1448, HdrLen: 70}, frame, packet.Offload{GSOType: packet.GSOTCPv4, GSOSize: 1448}, true},
		"ufo":             {packet.Offload{GSOType: 3, GSOSize: 1448}, frame, packet.Offload{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			o := tt.in
			if ok := normalise(&o, tt.data); ok != tt.ok || ok && o != tt.out {
				t.Errorf("%v, %+v", ok, o)
			}
		})
	}
}

func TestOffloadRoundTrip(t *testing.T) {
	in := packet.Offload{Flags: 1, GSOType: 4, HdrLen: 54, GSOSize: 1448, CsumStart: 34, CsumOffset: 16}
	var b [packet.OffloadSize]byte
	var out packet.Offload
	encodeOffload(b[:], &in)
	decodeOffload(b[:], &out)
	if out != in || binary.NativeEndian.Uint16(b[4:]) != 1448 {
		t.Errorf("%+v, %x", out, b)
	}
}

// TestPlainTap: without a header, frames are complete both ways, and as long as the
// interface takes them.
func TestPlainTap(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	l := NewPlainTap(int32(fds[0]), 1500)
	defer l.Close()
	r := newReceiver(l)
	want := [][]byte{random(14), random(60), random(1514), random(65549)}
	for _, f := range append(want, random(13)) {
		if _, err := unix.Write(fds[1], f); err != nil {
			t.Fatal(err)
		}
	}
	r.receive()
	r.expect(t, want)
	if r.b.Frames = r.b.frames[:1]; r.b.Frames[0].Offload != (packet.Offload{}) || l.Counters().Malformed != 1 {
		t.Errorf("%+v, %+v", r.b.Frames[0].Offload, *l.Counters())
	}
	for _, v6 := range []bool{false, true} {
		s := tcpSuper(v6, packet.ACK|packet.PSH, 0, random(10000), 9000)
		if !l.Send(&s.o, s.headers, s.payload) {
			t.Fatalf("%+v", *l.Counters())
		}
		all := peerMessages(t, fds[1])
		for k, f := range cutAll(t, s, 1500) {
			if k >= len(all) || !bytes.Equal(all[k], f) {
				t.Fatalf("segment %d of %d is another", k, len(all))
			}
		}
		one := tcpSuper(v6, packet.ACK, 0, random(900), 900)
		one.o.GSOType, one.o.GSOSize = packet.GSONone, 0
		headers := bytes.Clone(one.headers)
		if !l.Send(&one.o, one.headers, one.payload) || !bytes.Equal(headers, one.headers) {
			t.Fatal("not sent, or changed")
		}
		if got := peerMessages(t, fds[1]); len(got) != 1 || fuzz.CheckFrame(got[0]) != nil {
			t.Errorf("%d frames", len(got))
		}
	}
	if !l.Send(nil, random(14), nil) || len(peerMessages(t, fds[1])) != 1 {
		t.Error("a short frame is lost")
	}
	if l.Send(&packet.Offload{Flags: packet.OffloadNeedsChecksum, CsumStart: 34, CsumOffset: 16}, random(40), random(40)) {
		t.Error("a checksum that lies in the payload")
	}
}
