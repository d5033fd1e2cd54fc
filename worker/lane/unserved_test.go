// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

const (
	protoSCTP    = 132
	protoUDPLite = 136
)

// unknown is a packet of a protocol that nobody translates.
func unknown(e *packet.Ends, proto uint8) []byte {
	b := make([]byte, 128)
	n := packet.PutIP(b, e, proto, 20)
	return b[:n+copy(b[n:], "as much as is quoted")]
}

// withOptions is unknown by IPv6, behind a header of destination options.
func withOptions(e *packet.Ends, proto uint8) []byte {
	b := make([]byte, 128)
	n := packet.PutIP(b, e, packet.ProtoDestOpts, 8+20)
	n += copy(b[n:], []byte{proto, 0, 1, 4, 0, 0, 0, 0})
	return b[:n+copy(b[n:], "as much as is quoted")]
}

// heard returns the frames that have reached the guest.
func (k *looked) heard() (all [][]byte) {
	k.t.Helper()
	for b := make([]byte, 1<<16); ; {
		n, err := unix.Read(k.guest, b)
		if err != nil {
			return all
		}
		all = append(all, bytes.Clone(b[packet.OffloadSize:n]))
	}
}

// TestUnknownProtocol: whoever sends what nobody translates is told, with what it has sent,
// and where the number stands that nobody knows.
func TestUnknownProtocol(t *testing.T) {
	for _, tt := range []struct {
		name      string
		frame     []byte
		typ, code uint8
		info      uint32
		src       packet.Addr
	}{
		{"SCTP", unknown(guestEnds(false), protoSCTP), 3, 2, 0, our4},
		{"UDP-Lite", unknown(guestEnds(false), protoUDPLite), 3, 2, 0, our4},
		{"ICMPv6 by IPv4", unknown(guestEnds(false), packet.ProtoICMPv6), 3, 2, 0, our4},
		{"SCTP by IPv6", unknown(guestEnds(true), protoSCTP), 4, 1, 6, our6},
		{"ICMP by IPv6", unknown(guestEnds(true), packet.ProtoICMP), 4, 1, 6, our6},
		{"behind options", withOptions(guestEnds(true), protoSCTP), 4, 1, 40, our6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := newLooked(t)
			k.heard()
			k.from(tt.frame, &packet.Offload{})
			got := k.heard()
			if len(got) != 1 {
				t.Fatalf("%d frames to the guest", len(got))
			}
			var about, p packet.Packet
			if about.Decode(tt.frame) != nil || p.Decode(got[0]) != nil || !p.ChecksumOK(&packet.Offload{}) {
				t.Fatalf("%x", got[0])
			}
			b := p.Payload()
			if p.Src != tt.src || p.Dst != about.Src || p.DstMAC != guestMAC || b[0] != tt.typ || b[1] != tt.code ||
				binary.BigEndian.Uint32(b[4:]) != tt.info || !bytes.Equal(b[8:], tt.frame[packet.EthernetLen:]) {
				t.Errorf("from %v to %v: %x", p.Src, p.Dst, b)
			}
		})
	}
}

// TestUnknownProtocolSilent: to groups and to everybody, from nobody, in pieces, and of
// what is no message at all.
func TestUnknownProtocolSilent(t *testing.T) {
	to := func(v6 bool, src, dst packet.Addr, mac packet.MAC) *packet.Ends {
		e := guestEnds(v6)
		if !src.IsZero() {
			e.Src = src
		}
		if !dst.IsZero() {
			e.Dst = dst
		}
		if mac != (packet.MAC{}) {
			e.DstMAC = mac
		}
		return e
	}
	none := packet.Addr{}
	piece := unknown(guestEnds(false), protoSCTP)
	binary.BigEndian.PutUint16(piece[20:], 3) // its offset
	lastPiece := correct4(piece)
	net4 := guest4
	net4[15] = 255
	for name, frame := range map[string][]byte{
		"to a group":                unknown(to(false, none, packet.AddrFrom4([4]byte{224, 0, 0, 9}), packet.MAC{}), protoSCTP),
		"to a group of IPv6":        unknown(to(true, none, packet.Addr{0: 0xff, 1: 2, 15: 1}, packet.MAC{}), protoSCTP),
		"to everybody":              unknown(to(false, none, packet.AddrFrom4([4]byte{255, 255, 255, 255}), packet.MAC{}), protoSCTP),
		"to everybody on the net":   unknown(to(false, none, net4, packet.MAC{}), protoSCTP),
		"to everybody's hardware":   unknown(to(false, none, none, packet.Broadcast), protoSCTP),
		"to a group's hardware":     unknown(to(true, none, none, packet.MAC{0x33, 0x33}), protoSCTP),
		"from nobody":               unknown(to(false, packet.AddrFrom4([4]byte{}), none, packet.MAC{}), protoSCTP),
		"from a class of addresses": unknown(to(false, packet.AddrFrom4([4]byte{240, 0, 0, 1}), none, packet.MAC{}), protoSCTP),
		"a piece":                   lastPiece,
		"IGMP":                      unknown(guestEnds(false), packet.ProtoIGMP),
		"nothing":                   unknown(guestEnds(true), packet.ProtoNone),
	} {
		k := newLooked(t)
		k.heard()
		if k.from(frame, &packet.Offload{}); len(k.heard()) != 0 {
			t.Errorf("%s: answered", name)
		}
	}
}

// TestUnknownProtocolPace: a flood is answered as far as it is of use.
func TestUnknownProtocolPace(t *testing.T) {
	k := newLooked(t)
	k.heard()
	n := 0
	began := time.Now()
	for range 3 * unservedNotices {
		k.from(unknown(guestEnds(false), protoSCTP), &packet.Offload{})
		n += len(k.heard())
	}
	if most := int(time.Since(began).Seconds()+1)*unservedNotices + unservedNotices; n < unservedNotices || n > most {
		t.Errorf("%d answers to %d packets", n, 3*unservedNotices)
	}
	if n == 3*unservedNotices && time.Since(began) < time.Second {
		t.Error("all were answered")
	}
}

// TestUnknownProtocolAllocs: it costs no memory.
func TestUnknownProtocolAllocs(t *testing.T) {
	k := newLooked(t)
	frame := unknown(guestEnds(true), protoSCTP)
	var p packet.Packet
	if err := p.Decode(frame); err != nil {
		t.Fatal(err)
	}
	k.l.guest.Learn(&p)
	if n := testing.AllocsPerRun(50, func() { k.l.unserved(&p) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
