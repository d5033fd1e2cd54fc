// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// piece is a fragment to be made of a datagram.
type piece struct {
	off, n int
	more   bool
}

var (
	testEnds4 = Ends{
		SrcMAC: MAC{2, 0, 0, 0, 0, 1}, DstMAC: MAC{2, 0, 0, 0, 0, 2},
		Src: AddrFrom4([4]byte{10, 0, 0, 2}), Dst: AddrFrom4([4]byte{192, 0, 2, 1}),
		TTL: 63, TrafficClass: 0x20,
	}
	testEnds6 = Ends{
		SrcMAC: MAC{2, 0, 0, 0, 0, 1}, DstMAC: MAC{2, 0, 0, 0, 0, 2},
		Src: Addr{0: 0x20, 1: 1, 15: 2}, Dst: Addr{0: 0x20, 1: 1, 15: 3},
		TTL: 63, TrafficClass: 0x20, FlowLabel: 0x12345,
	}
)

// wholeUDP is a frame with a datagram of n bytes.
func wholeUDP(v4 bool, n int, seed byte) []byte {
	e := &testEnds6
	if v4 {
		e = &testEnds4
	}
	payload := make([]byte, n)
	for i := range payload {
		payload[i] = byte(i*7) ^ byte(i>>8) ^ seed
	}
	b := make([]byte, n+MaxHeaders)
	return b[:PutUDPFull(b, e, 1000, 2000, payload)]
}

// cut makes the fragment c of the packet in frame, written here anew so that
// it does not depend on Fragmenter. ext is inserted as a destination
// options header of eight bytes before IPv6's fragment header.
func cut(frame []byte, c piece, id uint32, ext bool) []byte {
	if binary.BigEndian.Uint16(frame[12:]) == EtherTypeIPv4 {
		f := append([]byte(nil), frame[:34]...)
		f = append(f, frame[34+c.off:34+c.off+c.n]...)
		ip := f[14:34]
		binary.BigEndian.PutUint16(ip[2:], uint16(20+c.n))
		binary.BigEndian.PutUint16(ip[4:], uint16(id))
		word := uint16(c.off / 8)
		if c.more {
			word |= 0x2000
		}
		binary.BigEndian.PutUint16(ip[6:], word)
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], Checksum(ip))
		return f
	}
	f := append([]byte(nil), frame[:54]...)
	last := &f[14+6]
	if ext {
		f = append(f, *last, 0, 1, 4, 0, 0, 0, 0)
		f[14+6] = ProtoDestOpts
		last = &f[54]
	}
	head := [8]byte{0: *last}
	*last = ProtoFragment
	word := uint16(c.off)
	if c.more {
		word |= 1
	}
	binary.BigEndian.PutUint16(head[2:], word)
	binary.BigEndian.PutUint32(head[4:], id)
	f = append(f, head[:]...)
	f = append(f, frame[54+c.off:54+c.off+c.n]...)
	binary.BigEndian.PutUint16(f[14+4:], uint16(len(f)-54))
	return f
}

func feed(t interface{ Fatalf(string, ...any) }, r *Reassembler, frame []byte, now int64) ([]byte, bool) {
	var p Packet
	if err := p.Decode(frame); err != nil {
		t.Fatalf("fragment does not decode: %v", err)
	}
	if !p.Fragment {
		t.Fatalf("not a fragment")
	}
	return r.Reassemble(&p, now)
}

// split draws a way to cut n bytes: every part but the last is a multiple of
// eight.
func split(t *rapid.T, n int) []piece {
	var parts []piece
	for off := 0; off < n; {
		size := min(8*rapid.IntRange(1, 1+n/16).Draw(t, "units"), n-off)
		if off == 0 && size == n {
			size = 8 * ((n - 1) / 8)
		}
		parts = append(parts, piece{off, size, off+size < n})
		off += size
	}
	return parts
}

func headerLen(v4 bool) int {
	if v4 {
		return 34
	}
	return 54
}

// checkWhole compares a result with the frame it was cut from: the data must be
// the same, the headers decode, and the checksum hold.
func checkWhole(t interface{ Fatalf(string, ...any) }, got, want []byte) {
	var p, q Packet
	if err := p.Decode(got); err != nil {
		t.Fatalf("result does not decode: %v", err)
	}
	if err := q.Decode(want); err != nil {
		t.Fatalf("original does not decode: %v", err)
	}
	var none Offload
	switch {
	case p.Fragment:
		t.Fatalf("result is still a fragment")
	case p.Src != q.Src || p.Dst != q.Dst || p.Proto != q.Proto || p.TTL != q.TTL || p.TrafficClass != q.TrafficClass:
		t.Fatalf("headers changed: %+v, want %+v", p, q)
	case !bytes.Equal(p.Payload(), q.Payload()):
		t.Fatalf("data changed: %d bytes, want %d", len(p.Payload()), len(q.Payload()))
	case p.End != len(got):
		t.Fatalf("%d bytes behind the packet", len(got)-p.End)
	case !p.ChecksumOK(&none):
		t.Fatalf("checksum broken")
	}
}

// Any split, in any order, with any exact duplicates, several datagrams mixed,
// gives each datagram once and as it was.
func TestReassembleAnyOrder(t *testing.T) {
	r := NewReassembler()
	id, now := uint32(0), int64(0)
	rapid.Check(t, func(t *rapid.T) {
		now++
		v4 := rapid.Bool().Draw(t, "v4")
		ext := !v4 && rapid.Bool().Draw(t, "extension")
		type job struct {
			whole []byte
			id    uint32
		}
		jobs := make([]job, rapid.IntRange(1, 4).Draw(t, "datagrams"))
		type item struct {
			job int
			c   piece
		}
		var items []item
		for j := range jobs {
			id++
			n := rapid.IntRange(9, 3000).Draw(t, "size")
			jobs[j] = job{whole: wholeUDP(v4, n, byte(j)), id: id}
			for _, c := range split(t, len(jobs[j].whole)-headerLen(v4)) {
				items = append(items, item{j, c})
			}
		}
		items = rapid.Permutation(items).Draw(t, "order")
		left := make([]map[piece]bool, len(jobs))
		for j := range left {
			left[j] = make(map[piece]bool)
		}
		for _, it := range items {
			left[it.job][it.c] = true
		}
		for n := 0; n < len(items); n++ {
			it := items[n]
			j := &jobs[it.job]
			got, ok := feed(t, r, cut(j.whole, it.c, j.id, ext), now)
			delete(left[it.job], it.c)
			if ok != (len(left[it.job]) == 0) {
				t.Fatalf("complete: %v with %d pieces missing", ok, len(left[it.job]))
			}
			if ok {
				checkWhole(t, got, j.whole)
				continue
			}
			// Repeat an earlier piece of a datagram that is not complete.
			again := items[rapid.IntRange(0, n).Draw(t, "again")]
			if len(left[again.job]) > 0 {
				if _, ok := feed(t, r, cut(jobs[again.job].whole, again.c, jobs[again.job].id, ext), now); ok {
					t.Fatalf("a duplicate completed a datagram")
				}
			}
		}
	})
	if r.Stats.Overlapped != 0 || r.Stats.Evicted != 0 || r.Stats.TimedOut != 0 {
		t.Errorf("stats %+v", r.Stats)
	}
}

// model says in the plainest way what is to become of a datagram's fragments.
type model struct {
	seen    []piece
	spoiled bool
}

// add returns whether the datagram is complete with c.
func (m *model) add(c piece) bool {
	for _, o := range m.seen {
		if o == c {
			return false
		}
		if c.off < o.off+o.n && o.off < c.off+c.n || !c.more && o.off > c.off || !o.more && c.off > o.off {
			m.spoiled = true
		}
	}
	m.seen = append(m.seen, c)
	size, have := -1, 0
	for _, o := range m.seen {
		have += o.n
		if !o.more {
			size = o.off + o.n
		}
	}
	return !m.spoiled && have == size
}

// Fragments that overlap, in whatever order and whatever comes after, never
// yield a datagram; as long as they do not, they do.
func TestReassembleOverlap(t *testing.T) {
	r := NewReassembler()
	id, spoiled := uint32(0), uint64(0)
	rapid.Check(t, func(t *rapid.T) {
		v4 := rapid.Bool().Draw(t, "v4")
		id++
		now := int64(id) * 100e9
		whole := wholeUDP(v4, rapid.IntRange(16, 300).Draw(t, "size"), 0)
		n := len(whole) - headerLen(v4)
		all := append(split(t, n), split(t, n)...)
		for range rapid.IntRange(0, 3).Draw(t, "more") {
			off := 8 * rapid.IntRange(0, (n-1)/8).Draw(t, "offset")
			size := min(8*rapid.IntRange(1, 8).Draw(t, "units"), n-off)
			// At the end of the data, with or without saying that it is.
			more := off+size < n || size%8 == 0 && rapid.Bool().Draw(t, "more fragments")
			if off > 0 || more {
				all = append(all, piece{off, size, more})
			}
		}
		all = rapid.Permutation(all).Draw(t, "order")
		var m model
		for _, c := range all {
			was := m.spoiled
			want := m.add(c)
			got, ok := feed(t, r, cut(whole, c, id, false), now)
			if ok != want {
				t.Fatalf("complete %v, want %v, with %v in %v", ok, want, c, all)
			}
			if ok {
				checkWhole(t, got, whole)
				m = model{}
			}
			if m.spoiled && !was {
				spoiled++
			}
		}
		if r.Stats.Overlapped != spoiled {
			t.Fatalf("%d overlaps counted, want %d", r.Stats.Overlapped, spoiled)
		}
	})
}

func TestReassembleContradictions(t *testing.T) {
	whole := wholeUDP(true, 100-8, 0) // 100 bytes of data with the UDP header
	tests := []struct {
		name  string
		parts []piece
	}{
		{"two ends, the second longer", []piece{{48, 8, false}, {56, 16, false}, {0, 48, true}}},
		{"two ends, the second shorter", []piece{{56, 16, false}, {40, 8, false}, {0, 40, true}}},
		{"more behind the end", []piece{{48, 8, false}, {56, 8, true}, {0, 48, true}}},
		{"end before more", []piece{{56, 8, true}, {48, 8, false}, {0, 48, true}}},
		{"end within a unit, then longer", []piece{{96, 4, false}, {88, 12, false}, {0, 88, true}}},
		{"same range with and without more", []piece{{48, 8, true}, {48, 8, false}, {0, 48, true}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := NewReassembler()
			for _, c := range tt.parts {
				if _, ok := feed(t, r, cut(whole, c, 1, false), 0); ok {
					t.Fatalf("complete")
				}
			}
			if r.Stats.Overlapped != 1 {
				t.Errorf("stats %+v", r.Stats)
			}
		})
	}
}

// A fragment with the borders of an earlier one but other bytes is an overlap.
func TestReassembleChangedDuplicate(t *testing.T) {
	r := NewReassembler()
	a, b := wholeUDP(true, 40, 0), wholeUDP(true, 40, 1)
	feed(t, r, cut(a, piece{16, 16, true}, 1, false), 0)
	feed(t, r, cut(b, piece{16, 16, true}, 1, false), 0)
	feed(t, r, cut(a, piece{0, 16, true}, 1, false), 0)
	if _, ok := feed(t, r, cut(a, piece{32, 16, false}, 1, false), 0); ok {
		t.Error("complete in spite of two versions of a fragment")
	}
}

func TestReassembleTimeout(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		timeout := int64(reassemblyTimeout6)
		if v4 {
			timeout = reassemblyTimeout4
		}
		for _, late := range []bool{false, true} {
			r := NewReassembler()
			whole := wholeUDP(v4, 40, 0)
			feed(t, r, cut(whole, piece{0, 24, true}, 1, false), 5)
			at := 5 + timeout - 1
			if late {
				at++
			}
			_, ok := feed(t, r, cut(whole, piece{24, 24, false}, 1, false), at)
			if ok == late {
				t.Errorf("IPv4 %v, late %v: complete %v", v4, late, ok)
			}
			if late != (r.Stats.TimedOut == 1) {
				t.Errorf("stats %+v", r.Stats)
			}
		}
	}
}

// With all sets in use the one that would expire first goes.
func TestReassembleEviction(t *testing.T) {
	r := NewReassembler()
	whole := wholeUDP(true, 40, 0)
	for id := range uint32(MaxReassembly + 1) {
		feed(t, r, cut(whole, piece{0, 24, true}, id+1, false), int64(id))
	}
	if r.Stats.Evicted != 1 {
		t.Fatalf("stats %+v", r.Stats)
	}
	if _, ok := feed(t, r, cut(whole, piece{24, 24, false}, 2, false), 100); !ok {
		t.Error("the second oldest is gone")
	}
	if _, ok := feed(t, r, cut(whole, piece{24, 24, false}, 1, false), 100); ok {
		t.Error("the oldest is not gone")
	}
}

// The longest datagrams fit, and one byte more does not.
func TestReassembleLongest(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		r := NewReassembler()
		n := 65535 - 8
		if v4 {
			n -= 20
		}
		whole := wholeUDP(v4, n, 0)
		size := len(whole) - headerLen(v4)
		for off := 0; off < size; off += 1480 {
			c := piece{off, min(1480, size-off), off+1480 < size}
			got, ok := feed(t, r, cut(whole, c, 1, false), 0)
			if ok != !c.more {
				t.Fatalf("IPv4 %v at %d: complete %v", v4, off, ok)
			}
			if ok {
				checkWhole(t, got, whole)
			}
		}
		// The last fragment alone fits the length field, the sum does not:
		// only with a first fragment whose header is longer.
		if !v4 {
			for off := 0; off < size; off += 1480 {
				c := piece{off, min(1480, size-off), off+1480 < size}
				f := cut(whole, c, 2, off == 0)
				if _, ok := feed(t, r, f, 0); ok {
					t.Fatalf("longer than its length field can say")
				}
			}
		}
	}
}

// Frames of one batch stay as they are while the batch lasts.
func TestReassembleKeepsFrames(t *testing.T) {
	r := NewReassembler()
	id := uint32(0)
	for batch := range int64(3) {
		for range MaxReassembly - 1 { // incomplete ones take their part
			id++
			feed(t, r, cut(wholeUDP(true, 40, 0), piece{0, 24, true}, id, false), batch)
		}
		var frames, wants [][]byte
		for k := range 2 * ReassemblyKept {
			id++
			whole := wholeUDP(true, 40, byte(k))
			feed(t, r, cut(whole, piece{0, 24, true}, id, false), batch)
			got, ok := feed(t, r, cut(whole, piece{24, 24, false}, id, false), batch)
			if !ok {
				t.Fatal("not complete")
			}
			frames, wants = append(frames, got), append(wants, whole)
			for j := max(0, k-ReassemblyKept+1); j <= k; j++ {
				checkWhole(t, frames[j], wants[j])
			}
		}
	}
}

func TestReassembleAllocs(t *testing.T) {
	r := NewReassembler()
	whole := wholeUDP(true, 4000, 0)
	var frames [][]byte
	for off := 0; off < 4008; off += 1480 {
		frames = append(frames, cut(whole, piece{off, min(1480, 4008-off), off+1480 < 4008}, 1, false))
	}
	var p Packet
	now := int64(0)
	if n := testing.AllocsPerRun(500, func() {
		now++
		for _, f := range frames {
			if p.Decode(f) == nil {
				r.Reassemble(&p, now)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if r.Stats.Completed == 0 {
		t.Error("nothing was put together")
	}
}

// TestReassembleUndecoded gives it fragments as no decoder lets them through: they
// are refused, and write nowhere.
func TestReassembleUndecoded(t *testing.T) {
	frame := append(cut(wholeUDP(true, 60, 0), piece{0, 32, true}, 1, false), make([]byte, 2*headroom)...)
	for name, change := range map[string]func(p *Packet){
		"no data":                     func(p *Packet) { p.End = p.L4 },
		"data beyond any datagram":    func(p *Packet) { p.FragOffset = 65528 },
		"headers beyond the headroom": func(p *Packet) { p.L4, p.End = headroom+1, headroom+33 },
		"headers that are too short":  func(p *Packet) { p.L4 = p.L3 + 19 },
	} {
		r := NewReassembler()
		var p Packet
		if err := p.Decode(frame); err != nil || !p.Fragment {
			t.Fatal(err)
		}
		change(&p)
		if _, ok := r.Reassemble(&p, 0); ok {
			t.Errorf("%s: taken", name)
		}
		if _, ok := feed(t, r, cut(wholeUDP(true, 60, 0), piece{32, 36, false}, 1, false), 0); ok {
			t.Errorf("%s: whole", name)
		}
		r.check(t)
	}
}

// A datagram that was given up is counted once.
func TestGivenUpOnce(t *testing.T) {
	r := NewReassembler()
	part := func(id uint32, off int, n int) {
		p := Packet{IPVersion: 4, Proto: 17, FragID: id, FragOffset: off, MoreFragments: true, Fragment: true, Frame: make([]byte, 34+n), L3: 14, L4: 34}
		p.End = 34 + n
		r.Reassemble(&p, 1)
	}
	part(0, 8, 16)
	part(0, 16, 16) // overlaps
	for id := range uint32(MaxReassembly) {
		part(id+1, 8, 16)
	}
	if r.Stats.Overlapped+r.Stats.Evicted != 1 {
		t.Errorf("one datagram was given up: %+v", r.Stats)
	}
}
