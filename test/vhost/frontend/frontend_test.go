// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// TestMirror sends frames of all sizes in descriptors of all sizes through rings of
// all kinds, and looks at what a plain back-end gives back.
func TestMirror(t *testing.T) {
	for _, tt := range []struct {
		name     string
		without  uint64
		with     uint64
		ring     uint16
		hole     uint64
		piece    int
		indirect bool
		rx       int
		holds    int
		slots    bool
	}{
		{name: "plain", without: FEventIdx | FIndirectDesc | FMrgRxbuf},
		{name: "mergeable", without: FEventIdx | FIndirectDesc, rx: 1000},
		{name: "event index", ring: 64, rx: 4096, slots: true},
		{name: "indirect", indirect: true, piece: 1100, rx: 4096, hole: 1 << 20},
		{name: "chains", piece: 700, ring: 128, rx: 2000, slots: true},
		{name: "in order", with: FInOrder, piece: 5000, ring: 64, rx: 3000},
		{name: "in order, many at once", with: FInOrder, holds: 3, rx: 1500, indirect: true, piece: 1100},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, c, err := newMirror(AllFeatures | FInOrder)
			if err != nil {
				t.Fatal(err)
			}
			m.holds = tt.holds
			served := make(chan error, 1)
			go func() { served <- m.serve() }()
			protocol := uint64(AllProtocol)
			if !tt.slots {
				protocol &^= PConfigureMemSlots
			}
			f, err := New(c, Config{Features: AllFeatures&^tt.without | tt.with, Protocol: protocol, Ring: tt.ring, Hole: tt.hole})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			g, err := NewGuest(f, max(tt.rx, 1))
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Start(); err != nil {
				t.Fatal(err)
			}
			g.Piece, g.Indirect = tt.piece, tt.indirect
			rnd := rand.New(rand.NewPCG(1, 2))
			for i := range 3000 {
				frame := make([]byte, 14+rnd.IntN(1500))
				if i%10 == 0 {
					frame = make([]byte, 14+rnd.IntN(65535))
				}
				for k := range frame {
					frame[k] = byte(rnd.Uint32())
				}
				if err := g.Send(0, nil, frame); err != nil {
					t.Fatalf("frame %d of %d bytes: %v", i, len(frame), err)
				}
				_, got, err := g.Receive(0, 10*time.Second)
				if err != nil {
					t.Fatalf("frame %d of %d bytes: %v", i, len(frame), err)
				}
				if !bytes.Equal(frame, got) {
					t.Fatalf("frame %d: %d bytes came back as %d others", i, len(frame), len(got))
				}
			}
			base, err := f.StopRing(1)
			if err != nil || base != f.Rings[1].Index() {
				t.Errorf("the ring stands at %d, want %d: %v", base, f.Rings[1].Index(), err)
			}
			_, _ = unix.Write(m.stop, one)
			if err := <-m.done; err != nil {
				t.Error(err)
			}
			f.Close()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSegments cuts super-frames and compares the pieces with the whole.
func TestSegments(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, v4 := range []bool{true, false} {
		for _, n := range []int{1, 1447, 1448, 1449, 2896, 20_001, 60_000} {
			t.Run(fmt.Sprint(v4, n), func(t *testing.T) {
				frame, l4 := superFrame(v4, n, rnd)
				payload := bytes.Clone(frame[l4+32:])
				o := packet.Offload{Flags: packet.OffloadNeedsChecksum, GSOType: packet.GSOTCPv6, GSOSize: 1448, CsumStart: uint16(l4), CsumOffset: 16}
				if v4 {
					o.GSOType = packet.GSOTCPv4
				}
				var all []byte
				s := newSegments(&o, frame)
				for part := s.next(); part != nil; part = s.next() {
					var p packet.Packet
					var seg packet.TCP
					if err := p.Decode(append(bytes.Clone(s.headers), part...)); err != nil {
						t.Fatal(err)
					}
					if err := seg.Decode(p.Payload()); err != nil || !p.ChecksumOK(nil) {
						t.Fatalf("a segment with a wrong checksum, or wrong: %v", err)
					}
					last := len(all)+len(seg.Payload) == n
					if seg.Seq != 1000+uint32(len(all)) || last != (seg.Flags&packet.PSH != 0) || len(seg.Payload) > 1448 {
						t.Fatalf("%d bytes at %d with flags %#x after %d bytes", len(seg.Payload), seg.Seq, seg.Flags, len(all))
					}
					all = append(all, seg.Payload...)
				}
				if !bytes.Equal(all, payload) {
					t.Errorf("%d bytes became %d others", len(payload), len(all))
				}
			})
		}
	}
}

// superFrame is one of n bytes of payload, and where its TCP header begins.
func superFrame(v4 bool, n int, rnd *rand.Rand) (frame []byte, l4 int) {
	l4 = 54
	frame = make([]byte, l4+32+n)
	for i := range frame {
		frame[i] = byte(rnd.Uint32())
	}
	if v4 {
		frame = frame[20:]
		l4 = 34
		copy(frame[12:], []byte{8, 0, 0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, packet.ProtoTCP, 0, 0})
	} else {
		copy(frame[12:], []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, packet.ProtoTCP, 64})
	}
	copy(frame[l4+4:], []byte{0, 0, 3, 232})
	copy(frame[l4+12:], []byte{0x80, packet.ACK | packet.PSH, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10})
	return frame, l4
}
