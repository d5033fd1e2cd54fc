// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"aldente/fuzz"
	"aldente/worker/packet"
)

// seen is a frame that a reader has found.
type seen struct {
	data     []byte
	length   int
	at       time.Time
	outbound bool
	lost     uint64
	comment  string
}

// readLive reads a stream that may end behind any block, but not within one. Statistics
// are the last there were.
func readLive(t *testing.T, b []byte) (frames []seen, iface pcapgo.NgInterface, statistics *pcapgo.NgInterfaceStatistics) {
	t.Helper()
	o := pcapgo.DefaultNgReaderOptions
	o.StatisticsCallback = func(_ int, s pcapgo.NgInterfaceStatistics) { statistics = &s }
	r, err := pcapgo.NewNgReader(bytes.NewReader(b), o)
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, info, more, err := r.ReadPacketDataWithOptions()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("after %d frames: %v", len(frames), err)
		}
		s := seen{data: data, length: info.Length, at: info.Timestamp, outbound: more.Flags != nil && more.Flags.Direction == pcapgo.NgEpbFlagDirectionOutbound}
		if more.DropCount != nil {
			s.lost = *more.DropCount
		}
		if more.Flags == nil || len(more.Comments) > 1 {
			t.Fatalf("frame %d: %+v", len(frames), more)
		}
		for _, c := range more.Comments {
			s.comment = c
		}
		frames = append(frames, s)
	}
	if iface, err = r.Interface(0); err != nil || r.NInterfaces() != 1 || iface.LinkType != layers.LinkTypeEthernet || iface.TimestampResolution != 9 {
		t.Fatalf("%d interfaces, %+v, %v", r.NInterfaces(), iface, err)
	}
	return frames, iface, statistics
}

func TestLive(t *testing.T) {
	for _, snap := range []uint32{0, 1, 61, 1 << 20} {
		r, w := widePipe(t)
		var c Live
		if !c.None() {
			t.Fatal("there is one before it begins")
		}
		c.Start(LiveTo{FD: w, Snap: snap, Name: "eth7"})
		now := time.Unix(1700000000, 123456789)
		plain, super := random(1514), tcpSuper(true, packet.ACK, 0, random(30000), 1448)
		one := udpSuper(false, random(99), 1)
		one.o.GSOType = packet.GSONone
		var want []seen
		for range 3 {
			c.Frame(now.UnixNano(), FromGuest, &Note{"dropped: ", "it", " is"}, nil, plain[:54], plain[54:])
			want = append(want, seen{data: plain, outbound: true, comment: "dropped: it is"})
			c.Frame(now.UnixNano(), ToGuest, &Note{}, &super.o, super.headers, super.payload)
			for _, f := range cutAll(t, super, MaxFrame) {
				want = append(want, seen{data: f})
			}
			c.Frame(now.UnixNano(), ToGuest, &Note{}, &one.o, one.headers, one.payload)
			want = append(want, seen{})
		}
		c.End()
		if !c.Over() {
			t.Fatal("not all is written")
		}
		unix.Close(int(c.FD()))
		c.Gone()
		frames, iface, statistics := readLive(t, drain(r))
		if iface.Name != "eth7" || len(frames) != len(want) {
			t.Fatalf("%d frames, want %d; %+v", len(frames), len(want), iface)
		}
		for i, f := range frames {
			whole := len(want[i].data)
			if want[i].data == nil {
				if snap == 0 && !checksumValid(f.data) {
					t.Fatalf("frame %d: checksum", i)
				}
				want[i].data, whole = f.data, f.length
			} else if snap > 0 {
				want[i].data = want[i].data[:min(whole, int(snap))]
			}
			if !bytes.Equal(f.data, want[i].data) || f.length != whole || !f.at.Equal(now) || f.outbound != want[i].outbound ||
				f.comment != want[i].comment || f.lost != 0 {
				t.Fatalf("snap %d, frame %d of %d: %d of %d bytes at %v, %+v", snap, i, len(frames), len(f.data), f.length, f.at, f)
			}
		}
		if statistics == nil || statistics.PacketsReceived != uint64(len(want)) || statistics.PacketsDropped != 0 || statistics.Comment != "" {
			t.Errorf("%+v", statistics)
		}
	}
}

// widePipe is a pipe that takes a whole test's frames.
func widePipe(t *testing.T) (read int, write int32) {
	t.Helper()
	r, w := sink(t)
	if _, err := unix.FcntlInt(uintptr(w), unix.F_SETPIPE_SZ, 1<<20); err != nil {
		t.Fatal(err)
	}
	return r, w
}

// TestLiveDrops: only what there is something to tell of, and only what the filter lets
// through.
func TestLiveDrops(t *testing.T) {
	_, w := sink(t)
	var c Live
	c.Start(LiveTo{FD: w, Drops: true, Filter: Filter{Proto: packet.ProtoTCP}})
	tcp, udp := tcpSuper(false, packet.ACK, 0, nil, 0).headers, udpSuper(false, nil, 0).headers
	if c.Wants(tcp, false) || !c.Wants(tcp, true) || !c.WantsLate(tcp) || c.Wants(udp, true) || c.WantsLate(udp) {
		t.Error("wanted is something else")
	}
	c.End()
	if c.Wants(tcp, true) {
		t.Error("it has ended")
	}
	c.Gone()
	c.Start(LiveTo{FD: w})
	if !c.Wants(udp, false) || c.WantsLate(udp) {
		t.Error("all is wanted, once")
	}
}

// TestLiveStalls: nobody reads for a while. No write waits, memory stays what it is,
// frames are left out whole, and how many is told, at the next one and in the end.
func TestLiveStalls(t *testing.T) {
	r, w := sink(t)
	var c Live
	c.Start(LiveTo{FD: w, Name: "eth0"})
	const frames, size = 2000, 997
	var got []byte
	for i := range frames {
		frame := make([]byte, size)
		frame[0], frame[1] = byte(i), byte(i>>8)
		c.Frame(int64(i), FromGuest, &Note{}, nil, frame[:54], frame[54:])
		c.Flush()
		if i > 1000 {
			got = append(got, drain(r)...)
		}
	}
	if len(c.buf) != captureSize {
		t.Errorf("it has %d bytes of memory", len(c.buf))
	}
	for c.End(); !c.Over(); c.Flush() {
		got = append(got, drain(r)...)
	}
	got = append(got, drain(r)...)
	all, _, statistics := readLive(t, got)
	next, lost := 0, uint64(0)
	for _, f := range all {
		n := int(f.data[0]) | int(f.data[1])<<8
		if len(f.data) != size || n != next+int(f.lost) {
			t.Fatalf("frame %d of %d bytes behind %d, with %d left out", n, len(f.data), next-1, f.lost)
		}
		next, lost = n+1, lost+f.lost
	}
	if lost < 500 || lost != uint64(frames-len(all)) || next != frames {
		t.Errorf("%d frames, %d left out, the last is %d", len(all), lost, next-1)
	}
	if statistics == nil || statistics.PacketsReceived != frames || statistics.PacketsDropped != lost || statistics.Comment == "" {
		t.Errorf("%+v, want %d left out of %d", statistics, lost, frames)
	}
}

// TestLiveNobodyReads: the far end is closed.
func TestLiveNobodyReads(t *testing.T) {
	r, w := sink(t)
	var c Live
	c.Start(LiveTo{FD: w, Name: "eth0"})
	unix.Close(r)
	for range 1000 {
		c.Frame(1, ToGuest, &Note{}, nil, make([]byte, 1000), nil)
		c.Flush()
	}
	if c.End(); !c.Over() {
		t.Error("it goes on")
	}
	unix.Close(int(w))
}

func TestLiveAllocates(t *testing.T) {
	r, w := widePipe(t)
	var c Live
	c.Start(LiveTo{FD: w, Name: "eth0"})
	super := tcpSuper(true, packet.ACK, 0, random(30000), 1448)
	note := Note{"dropped: ", "it"}
	b := make([]byte, 1<<20)
	if n := testing.AllocsPerRun(100, func() {
		c.Frame(1, ToGuest, &note, &super.o, super.headers, super.payload)
		c.Frame(1, FromGuest, &note, nil, super.payload, nil)
		c.Flush()
		_, _ = unix.Read(r, b)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	buf := &c.buf[0]
	c.Drop()
	c.Gone()
	if n := testing.AllocsPerRun(1, func() { c.Start(LiveTo{FD: w}) }); n != 0 || &c.buf[0] != buf {
		t.Errorf("the next one has %v allocations", n)
	}
}

var (
	filter4 = [2]packet.Addr{packet.AddrFrom4([4]byte{192, 0, 2, 1}), packet.AddrFrom4([4]byte{198, 51, 100, 7})}
	filter6 = [2]packet.Addr{{0: 0x20, 15: 1}, {0: 0x20, 15: 2}}
)

// filterFrames are frames between the addresses above, from port 1000 to 53.
func filterFrames() map[string][]byte {
	all := map[string][]byte{}
	for name, a := range map[string][2]packet.Addr{"4": filter4, "6": filter6} {
		e := &packet.Ends{Src: a[0], Dst: a[1], TTL: 64}
		b, o := make([]byte, 1500), packet.Offload{}
		n := packet.PutTCP(b, e, &packet.TCPFields{SrcPort: 1000, DstPort: 53, Flags: packet.SYN, WScale: -1}, 0, &o)
		all["tcp"+name] = bytes.Clone(b[:n])
		n = packet.PutUDPFull(b, e, 1000, 53, []byte("question"))
		udp := bytes.Clone(b[:n])
		all["udp"+name] = udp
		back := &packet.Ends{Src: packet.Addr{10: 0xff, 11: 0xff, 12: 10}, Dst: a[0], TTL: 64}
		typ := uint8(packet.ICMPDestUnreachable)
		if name == "6" {
			back.Src, typ = packet.Addr{0: 0x30}, packet.ICMPv6DestUnreachable
		}
		n = packet.PutICMPError(b, back, typ, 3, 0, udp[packet.EthernetLen:])
		all["error"+name] = bytes.Clone(b[:n])
	}
	first, later := bytes.Clone(all["udp4"]), bytes.Clone(all["udp4"])
	first[20], later[21] = 0x20, 1
	all["first4"], all["later4"] = first, later
	u := all["udp6"]
	fragment := func(offset byte) []byte {
		return slices.Concat(u[:20], []byte{44}, u[21:54], []byte{17, 0, 0, offset, 0, 0, 0, 1}, u[54:])
	}
	all["first6"], all["later6"] = fragment(1), fragment(8)
	all["options6"] = slices.Concat(u[:20], []byte{0}, u[21:54], []byte{60, 0, 1, 4, 0, 0, 0, 0}, []byte{17, 1, 1, 12, 14: 0, 15: 0}, u[54:])
	all["cut6"] = slices.Concat(u[:20], []byte{60}, u[21:54], []byte{17, 9, 1, 4})
	arp := make([]byte, 42)
	arp[12], arp[13] = 8, 6
	copy(arp[28:], filter4[0][12:])
	copy(arp[38:], filter4[1][12:])
	all["arp"] = arp
	all["other"] = append(make([]byte, 12), 0x88, 0xcc, 1, 2, 3)
	all["short"] = make([]byte, 13)
	return all
}

func TestFilter(t *testing.T) {
	frames := filterFrames()
	for _, tt := range []struct {
		f    Filter
		want []string
	}{
		{Filter{}, []string{"arp", "cut6", "error4", "error6", "first4", "first6", "later4", "later6", "options6", "other", "short", "tcp4", "tcp6", "udp4", "udp6"}},
		{Filter{Proto: packet.ProtoTCP}, []string{"tcp4", "tcp6"}},
		{Filter{Proto: packet.ProtoUDP}, []string{"error4", "error6", "first4", "first6", "later4", "later6", "options6", "udp4", "udp6"}},
		{Filter{Proto: packet.ProtoICMP}, []string{"error4", "error6"}},
		{Filter{Proto: ProtoARP}, []string{"arp"}},
		{Filter{Proto: ProtoARP, Addr: filter4[1]}, []string{"arp"}},
		{Filter{Proto: ProtoARP, Addr: filter6[1]}, nil},
		{Filter{Port: 53}, []string{"error4", "error6", "first4", "first6", "options6", "tcp4", "tcp6", "udp4", "udp6"}},
		{Filter{Port: 1000, Proto: packet.ProtoUDP}, []string{"error4", "error6", "first4", "first6", "options6", "udp4", "udp6"}},
		{Filter{Port: 54}, nil},
		{Filter{Addr: filter4[1]}, []string{"arp", "error4", "first4", "later4", "tcp4", "udp4"}},
		{Filter{Addr: filter6[1]}, []string{"cut6", "error6", "first6", "later6", "options6", "tcp6", "udp6"}},
		{Filter{Addr: filter6[0], Port: 53, Proto: packet.ProtoTCP}, []string{"tcp6"}},
		{Filter{Addr: packet.Addr{10: 0xff, 11: 0xff, 12: 10}}, []string{"error4"}},
		{Filter{Addr: packet.AddrFrom4([4]byte{192, 0, 2, 9})}, nil},
	} {
		var got []string
		for name, f := range frames {
			if tt.f.match(f) {
				got = append(got, name)
			}
		}
		if slices.Sort(got); !slices.Equal(got, tt.want) {
			t.Errorf("%+v: %q, want %q", tt.f, got, tt.want)
		}
	}
}

// FuzzLive captures anything, by any filter. Of packets that the decoder takes, the
// filter wants those that it says; what comes out is read by pcapgo.
func FuzzLive(f *testing.F) {
	for _, frame := range filterFrames() {
		fuzz.Add(f, slices.Concat([]byte{0, 0}, frame))
		fuzz.Add(f, slices.Concat([]byte{7, 20}, frame))
		fuzz.Add(f, slices.Concat([]byte{0x2b, 0}, frame))
	}
	for _, frame := range fuzz.Captured("ping", "curl") {
		fuzz.Add(f, slices.Concat([]byte{9, 100}, frame))
		fuzz.Add(f, slices.Concat([]byte{0x50, 0}, frame))
		fuzz.Add(f, slices.Concat([]byte{9, 0}, frame[:20]))
	}
	for _, b := range superSeeds() {
		fuzz.Add(f, slices.Concat([]byte{0x80, 40}, b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &fuzz.Source{B: b}
		mode, snap := s.Byte(), s.Byte()
		to := LiveTo{Snap: uint32(snap), Name: "eth0", Drops: mode&0x40 != 0}
		if mode&1 != 0 {
			to.Filter.Proto = []uint8{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoICMP, ProtoARP}[mode>>1&3]
		}
		if mode&8 != 0 {
			to.Filter.Addr = append(filter4[:], filter6[:]...)[mode>>1&3]
		}
		if mode&0x20 != 0 && to.Filter.Proto != ProtoARP && to.Filter.Proto != packet.ProtoICMP {
			to.Filter.Port = 53
		}
		frame := &super{headers: s.B}
		if mode&0x80 != 0 {
			frame, _ = takeSuper(s)
		}
		r, w := widePipe(t)
		defer unix.Close(int(w))
		to.FD = w
		var c Live
		c.Start(to)
		note := Note{string(b[:min(len(b), 300)])}
		wanted := c.Wants(frame.headers, true)
		checkWanted(t, &to.Filter, frame.headers, wanted)
		var want []recorded
		if wanted {
			want = expectRecords(frame, false)
			c.Frame(42, FromGuest, &note, &frame.o, frame.headers, frame.payload)
		}
		if late := c.WantsLate(frame.headers); late != (wanted && to.Drops) {
			t.Fatalf("wanted %v, late %v", wanted, late)
		}
		got := []byte(nil)
		if n := 1; mode&0x10 != 0 && len(want) == 1 {
			for ; c.dropped == 0; n++ { // nobody reads
				c.Frame(42, FromGuest, &note, &frame.o, frame.headers, frame.payload)
			}
			got = drain(r)
			c.Frame(42, FromGuest, &note, &frame.o, frame.headers, frame.payload)
			want = slices.Repeat(want, n+1-int(c.dropped))
		}
		for c.End(); !c.Over(); c.Flush() {
			got = append(got, drain(r)...)
		}
		all, _, _ := readLive(t, append(got, drain(r)...))
		if len(all) != len(want) {
			t.Fatalf("%d frames, want %d", len(all), len(want))
		}
		for i, f := range all {
			if captured := min(want[i].size, int(snap)); f.length != want[i].size || snap > 0 && len(f.data) != captured || snap == 0 && !bytes.HasSuffix(f.data, want[i].tail) ||
				f.comment != note[0][:min(len(note[0]), commentSize)] {
				t.Fatalf("frame %d of %d: %d of %d bytes, comment %q", i, len(all), len(f.data), f.length, f.comment)
			}
		}
	})
}

// checkWanted compares with what the decoder makes of a frame.
func checkWanted(t *testing.T, f *Filter, frame []byte, wanted bool) {
	t.Helper()
	var p packet.Packet
	if p.Decode(frame) != nil || p.IPVersion == 0 || p.Fragment || p.FragNext != 0 || p.Proto == packet.ProtoICMP || p.Proto == packet.ProtoICMPv6 {
		return
	}
	want := (f.Proto == 0 || f.Proto == p.Proto) && (f.Addr.IsZero() || f.Addr == p.Src || f.Addr == p.Dst)
	if l4 := p.Payload(); want && f.Port != 0 {
		if len(l4) < 4 {
			return // there is padding behind the packet
		}
		src, dst := int(l4[0])<<8|int(l4[1]), int(l4[2])<<8|int(l4[3])
		want = (p.Proto == packet.ProtoTCP || p.Proto == packet.ProtoUDP) && (src == 53 || dst == 53)
	}
	if wanted != want {
		t.Fatalf("%+v wants %x: %v", f, frame, wanted)
	}
}
