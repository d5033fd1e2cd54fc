// SPDX-License-Identifier: Apache-2.0

package igmp

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"aldente/fuzz"
	"aldente/worker/packet"
)

// change is what a report says of a group.
type change struct {
	group  packet.Addr
	wanted bool
}

// plain reads a message as the RFCs' figures show it, field by field. It returns what it
// says up to what is wrong with it.
func plain(v4 bool, b []byte) (all []change, ok bool) {
	r := bytes.NewReader(b)
	octet := func() uint8 { v, e := r.ReadByte(); ok = ok && e == nil; return v }
	two := func() int { return int(octet())<<8 | int(octet()) }
	group := func() (a packet.Addr) {
		if v4 {
			return packet.AddrFrom4([4]byte{octet(), octet(), octet(), octet()})
		}
		for k := range a {
			a[k] = octet()
		}
		return a
	}
	ok = true
	typ, _, _ := octet(), octet(), two()
	single := map[uint8]bool{131: true, 132: false}
	if v4 {
		single = map[uint8]bool{0x12: true, 0x16: true, 0x17: false}
	}
	if wanted, is := single[typ]; is {
		if !v4 {
			two()
			two()
		}
		a := group()
		if ok = ok && a.IsMulticast(); ok {
			all = append(all, change{a, wanted})
		}
		return all, ok
	}
	if v4 && typ != 0x22 || !v4 && typ != 143 {
		return nil, false
	}
	two()
	for n := two(); n > 0; n-- {
		kind, words, sources, a := octet(), int(octet()), two(), group()
		for range sources {
			group()
		}
		for range words {
			two()
			two()
		}
		if ok = ok && a.IsMulticast(); !ok {
			return all, false
		}
		switch {
		case kind == 2, kind == 4, kind == 5 && sources > 0, (kind == 1 || kind == 3) && sources > 0:
			all = append(all, change{a, true})
		case kind == 1, kind == 3:
			all = append(all, change{a, false})
		}
	}
	return all, ok
}

// FuzzIGMP feeds a message in a packet of either family. What is told of it is what plain
// finds, and nothing is allocated.
func FuzzIGMP(f *testing.F) {
	mdns, mdns6 := four("224.0.0.251"), six("ff02::fb")
	for _, msg := range [][]byte{
		append([]byte{0x12, 0, 0, 0}, mdns...), append([]byte{0x16, 0, 0, 0}, mdns...), append([]byte{0x17, 0, 0, 0}, mdns...),
		report(0x22, record(4, mdns, 0)), report(0x22, record(3, mdns, 2), record(6, mdns, 1), record(2, mdns, 0, 1, 2, 3, 4)),
		append([]byte{0x22, 0, 0, 0, 0, 0, 0, 2}, record(5, mdns, 1)...), {0x22, 0, 0, 0, 0, 0, 0xff, 0xff},
	} {
		fuzz.Add(f, append([]byte{0}, msg...))
		fuzz.Add(f, append([]byte{fuzz.CountAllocations}, msg...))
	}
	for _, msg := range [][]byte{
		append([]byte{131, 0, 0, 0, 0, 0, 0, 0}, mdns6...), append([]byte{132, 0, 0, 0, 0, 0, 0, 0}, mdns6...),
		report(143, record(4, mdns6, 0)), report(143, record(1, mdns6, 2), record(6, mdns6, 0), record(2, mdns6, 0, 1, 2, 3, 4)),
	} {
		fuzz.Add(f, append([]byte{2}, msg...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 1 || len(b) > 1500 {
			return
		}
		mode, msg, v4 := b[0], b[1:], b[0]&2 == 0
		frame := report6(msg)
		if v4 {
			frame = report4(msg)
		}
		var p packet.Packet
		if err := p.Decode(frame); err != nil {
			t.Fatal(err)
		}
		var got [400]change
		n := 0
		tell := func(group packet.Addr, wanted bool) {
			got[n] = change{group, wanted}
			n++
		}
		var ok bool
		read := func() { n = 0; ok = Read(&p, tell) }
		if read(); fuzz.CountsAllocations(mode) && fuzz.Allocates(read) {
			t.Error("allocates")
		}
		want, wantOK := plain(v4, p.Payload())
		if len(msg) < recordsAt {
			want, wantOK = nil, false
		}
		if ok != wantOK || !slices.Equal(got[:n], want) {
			t.Errorf("%t %v\nwant %t %v\n%x", ok, got[:n], wantOK, want, msg)
		}
		if most := int(binary.BigEndian.Uint16(append(bytes.Clone(msg), make([]byte, 8)...)[6:])); n > max(most, 1) {
			t.Errorf("%d groups, %d at most", n, most)
		}
	})
}
