// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"encoding/binary"
	"sort"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/packet"
	"aldente/worker/store"
	"aldente/worker/tcp/tcptest"
)

// network loses, repeats, delays and damages frames in one direction, until
// the world is calm.
type network struct {
	queue []travelling
	lost  int // in a row
}

type travelling struct {
	at      int64
	frame   []byte // to the lane: as the link takes it, without a length before it
	damaged bool
	conn    *conn // nil: not TCP
	seg     packet.TCP
}

func (n *network) clear() { n.queue = nil }

func (n *network) next() int64 {
	if len(n.queue) == 0 {
		return never
	}
	return n.queue[0].at
}

func (n *network) take() travelling {
	t := n.queue[0]
	n.queue = n.queue[1:]
	return t
}

// travel puts a frame on its way.
func (w *world) travel(n *network, t travelling) {
	if w.packets++; w.packets > 800 {
		w.calm = true
	}
	copies := 1
	if !w.calm {
		if w.r.Float64() < w.loss && n.lost < 3 && t.conn.mayLose() {
			n.lost++
			t.conn.loses()
			return
		}
		if w.r.Float64() < w.dup {
			copies = 2
		}
	}
	n.lost = 0
	switch {
	case t.damaged:
		t.conn.loses()
	case n == &w.up && t.conn != nil && t.seg.Flags&packet.ACK != 0:
		t.conn.hears(t.seg.Ack)
	}
	for range copies {
		t.at = w.now + 50_000
		if !w.calm && w.r.Float64() < w.late {
			t.at += w.r.Int64N(5 * ms)
		}
		k := sort.Search(len(n.queue), func(k int) bool { return n.queue[k].at > t.at })
		n.queue = append(n.queue, travelling{})
		copy(n.queue[k+1:], n.queue[k:])
		n.queue[k] = t
	}
}

// conn is a TCP connection between the guest and a host.
type conn struct {
	g        *tcptest.Guest
	key      store.Key
	host     *end // nil: not yet
	toHost   int  // bytes
	toGuest  int
	refused  bool
	inbound  bool
	first    uint32 // sequence number of the lane's SYN
	sent     uint32 // by the lane so far
	answered uint32 // of it, acknowledged in a frame that reaches the lane whole
	lost     int    // frames since a sign of life
	at       int64  // when the guest's application acts next
	abortAt  int64
	slow     float64
	scale    int // of the lane's windows
	shown    [maxPairs]shown
	expected bool // the guest or the test has reset it
}

// shown is what a queue's segments have told of the lane's state last: the queues of a
// machine are looked at one after the other, so it sees in order what came by one of
// them.
type shown struct {
	edge, ack uint32 // right edge of the lane's window, and what it has acknowledged
	some      bool
}

// mayLose bounds what the network does to a connection between two signs of
// life that its lane gets: were each repetition or probe lost, it would give up,
// and rightly so (RFC 9293, R2). Five are one less than its attempts to open a
// connection.
func (c *conn) mayLose() bool { return c == nil || c.lost < 5 }

func (c *conn) loses() {
	if c != nil {
		c.lost++
	}
}

// hears notes an acknowledgment that reaches the lane. It is a sign of life if it
// is new, or if nothing is to be acknowledged.
func (c *conn) hears(ack uint32) {
	switch {
	case before(c.answered, ack):
		c.answered, c.lost = ack, 0
	case !before(c.answered, c.sent):
		c.lost = 0
	}
}

// sends notes how far the lane has come.
func (c *conn) sends(s *packet.TCP) {
	if s.Flags&packet.RST != 0 {
		return
	}
	end := s.Seq + uint32(len(s.Payload))
	if s.Flags&packet.SYN != 0 {
		end++
		if c.first != s.Seq {
			c.first, c.sent, c.answered = s.Seq, s.Seq, s.Seq
		}
	}
	if s.Flags&packet.FIN != 0 {
		end++
	}
	if before(c.sent, end) {
		c.sent = end
	}
}

func (w *world) find(k store.Key) *conn {
	for _, c := range w.conns {
		if c.key == k {
			return c
		}
	}
	return nil
}

// newConn makes the guest's end of a connection.
func (w *world) newConn(remote, guest packet.Addr, remotePort, guestPort uint16) *conn {
	r := w.r
	c := &conn{key: store.MakeKey(&remote, &guest, remotePort, guestPort), toHost: mostly(r, 200000), toGuest: mostly(r, 200000),
		at: w.now, abortAt: never, slow: float64(r.IntN(2)) * 0.02}
	if r.IntN(8) == 0 {
		c.abortAt = w.now + r.Int64N(300*ms)
	}
	mtu := w.l.guest.LinkMTU()
	ip := 40
	if guest.Is4() {
		ip = 20
	}
	c.g = &tcptest.Guest{T: w.t, Now: &w.now, Rand: r, MSS: mtu - ip - 20, Scale: int8(r.IntN(10)) - 1, WantSACK: r.IntN(4) > 0,
		ISS: r.Uint32(), TSO: w.kind != ipc.LinkPlainTap && r.IntN(2) == 0, Buf: []int{1000, 4000, 65536, 200000, 1 << 20}[r.IntN(5)]}
	ends := packet.Ends{SrcMAC: guestMAC, DstMAC: ourMAC, Src: guest, Dst: remote, TTL: 64, DF: true}
	c.g.Send = func(s packet.TCP) {
		s.SrcPort, s.DstPort = guestPort, remotePort
		t := travelling{frame: w.segmentFrame(&ends, &s, c), conn: c, seg: s}
		t.damaged = w.damaged
		w.travel(&w.up, t)
	}
	w.conns = append(w.conns, c)
	return c
}

// mostly returns small numbers often and large ones now and then.
func mostly(r interface{ IntN(int) int }, n int) int {
	switch r.IntN(4) {
	case 0:
		return 0
	case 1:
		return r.IntN(n/100 + 2)
	case 2:
		return r.IntN(n/10 + 2)
	}
	return r.IntN(n)
}

// segmentFrame is a TCP segment, or super-segment, in a frame.
func (w *world) segmentFrame(e *packet.Ends, s *packet.TCP, c *conn) []byte {
	var hdr [packet.MaxHeaders]byte
	var o packet.Offload
	f := packet.TCPFields{SrcPort: s.SrcPort, DstPort: s.DstPort, Seq: s.Seq, Ack: s.Ack, Flags: s.Flags, Window: s.Window,
		MSS: s.MSS, WScale: s.WScale, SACKPermitted: s.SACKPermitted, SACK: s.SACK[:s.NumSACK]}
	n := packet.PutTCP(hdr[:], e, &f, len(s.Payload), &o)
	mss := w.l.guest.LinkMTU() - (n - packet.EthernetLen)
	if len(s.Payload) > mss {
		packet.SetGSO(&o, e, packet.ProtoTCP, mss)
	}
	return w.frame(append(append(make([]byte, 0, n+len(s.Payload)), hdr[:n]...), s.Payload...), &o, c)
}

// frame makes of b, which is of connection c if any, what the link takes. Where that is
// the frame alone, nothing tells that a checksum is to be filled in, or what to cut.
func (w *world) frame(b []byte, o *packet.Offload, c *conn) []byte {
	whole := w.kind == ipc.LinkPlainTap || o.GSOType == packet.GSONone && w.r.IntN(2) == 0
	if whole && o.Flags != 0 {
		packet.CompleteChecksum(b, o)
		*o = packet.Offload{}
	}
	w.damaged = whole && !w.calm && w.r.Float64() < w.flip && c.mayLose()
	if w.damaged {
		k := packet.EthernetLen + w.r.IntN(len(b)-packet.EthernetLen)
		b[k] ^= 1 << w.r.IntN(8)
	}
	if !w.hasHeader() {
		return b
	}
	h := make([]byte, packet.OffloadSize, packet.OffloadSize+len(b))
	h[0], h[1] = o.Flags, o.GSOType
	binary.NativeEndian.PutUint16(h[2:], o.HdrLen)
	binary.NativeEndian.PutUint16(h[4:], o.GSOSize)
	binary.NativeEndian.PutUint16(h[6:], o.CsumStart)
	binary.NativeEndian.PutUint16(h[8:], o.CsumOffset)
	return append(h, b...)
}

// transmit writes frames that are due to the link.
func (w *world) transmit() {
	for k := 0; w.up.next() <= w.now && k < 500; k++ {
		w.moves++
		f := w.up.take().frame
		if w.kind == ipc.LinkStream {
			w.tx = append(binary.BigEndian.AppendUint32(w.tx, uint32(len(f))), f...)
			w.txEnds = append(w.txEnds, w.txDone+len(w.tx))
			continue
		}
		if w.machine != nil {
			if w.machine.transmit(w, f) {
				w.handed++
			}
			continue
		}
		if w.peer >= 0 {
			if _, err := unix.Write(w.peer, f); err == nil { // one that does not fit is lost
				w.handed++
			}
		}
	}
	for w.kind == ipc.LinkStream && len(w.tx) > 0 && w.peer >= 0 {
		piece := len(w.tx)
		if w.r.IntN(8) == 0 {
			piece = 1 + w.r.IntN(piece)
		}
		n, err := unix.Write(w.peer, w.tx[:piece])
		if err != nil {
			return
		}
		w.moves++
		w.tx = w.tx[n:]
		w.txDone += n
		for len(w.txEnds) > 0 && w.txEnds[0] <= w.txDone {
			w.handed++
			w.txEnds = w.txEnds[1:]
		}
		w.turn()
	}
}

// receive takes what the lane has written to the link.
func (w *world) receive() {
	if w.stalled || w.peer < 0 {
		return
	}
	if w.machine != nil {
		w.machine.receive(w)
		return
	}
	for {
		n, err := unix.Read(w.peer, w.inbox[:])
		if err != nil || n == 0 {
			return
		}
		w.moves++
		switch w.kind {
		case ipc.LinkTap:
			w.fromTap(w.inbox[:n])
			continue
		case ipc.LinkPlainTap, ipc.LinkDatagram, ipc.LinkSeqpacket:
			if n < 60 || n > 65535 {
				w.t.Fatalf("a frame of %d bytes to the guest", n)
			}
			w.arrives(w.inbox[:n], &packet.Offload{})
			continue
		}
		w.rx = append(w.rx, w.inbox[:n]...)
		for len(w.rx) >= 4 {
			size := int(binary.BigEndian.Uint32(w.rx))
			if size < 60 || size > 65535 {
				w.t.Fatalf("a frame of %d bytes to the guest", size)
			}
			if len(w.rx) < 4+size {
				break
			}
			w.arrives(w.rx[4:4+size], &packet.Offload{})
			w.rx = w.rx[4+size:]
		}
	}
}

func (w *world) fromTap(b []byte) {
	if len(b) < packet.OffloadSize+60 {
		w.t.Fatalf("%d bytes to the tap", len(b))
	}
	o := packet.Offload{Flags: b[0], GSOType: b[1], HdrLen: binary.NativeEndian.Uint16(b[2:]), GSOSize: binary.NativeEndian.Uint16(b[4:]),
		CsumStart: binary.NativeEndian.Uint16(b[6:]), CsumOffset: binary.NativeEndian.Uint16(b[8:])}
	w.arrives(b[packet.OffloadSize:], &o)
}

// arrives checks a frame from the lane and sends it on its way.
func (w *world) arrives(b []byte, o *packet.Offload) {
	if w.watch != nil {
		w.watch(b)
		return
	}
	p := &w.pkt
	if err := p.Decode(b); err != nil {
		w.t.Fatalf("frame to the guest: %v", err)
	}
	if p.SrcMAC != ourMAC {
		w.t.Fatalf("frame from %x", p.SrcMAC)
	}
	if p.IPVersion == 0 {
		return // ARP
	}
	if limit := w.l.guest.LinkMTU(); o.GSOType == packet.GSONone && p.End-p.L3 > limit {
		w.t.Fatalf("a packet of %d bytes to the guest", p.End-p.L3)
	}
	if p.Fragment {
		whole, ok := w.reasm.Reassemble(p, w.now)
		if !ok {
			return
		}
		if err := p.Decode(whole); err != nil {
			w.t.Fatalf("fragments to the guest: %v", err)
		}
	}
	if !p.ChecksumOK(o) {
		w.t.Fatal("bad checksum to the guest")
	}
	switch p.Proto {
	case packet.ProtoTCP:
		w.segment(p, o)
	case packet.ProtoUDP:
		w.datagram(p, o)
	case packet.ProtoICMP:
		w.echoReply(p)
	}
}

// segment takes a TCP segment, or several in one frame.
func (w *world) segment(p *packet.Packet, o *packet.Offload) {
	s := &w.seg
	if err := s.Decode(p.Payload()); err != nil {
		w.t.Fatalf("segment to the guest: %v", err)
	}
	c := w.find(store.MakeKey(&p.Src, &p.Dst, s.SrcPort, s.DstPort))
	if c == nil {
		if s.Flags&packet.RST == 0 {
			w.t.Fatalf("a segment of no connection: %+v", *s)
		}
		return
	}
	w.sees(c, s)
	size := int(o.GSOSize)
	if o.GSOType == packet.GSONone {
		size = len(s.Payload) + 1
	} else if size > w.l.guest.LinkMTU()-(p.L4-p.L3)-20 || size == 0 {
		w.t.Fatalf("segments of %d bytes", size)
	}
	for b := append([]byte(nil), s.Payload...); ; {
		part := *s
		n := min(size, len(b))
		part.Payload = b[:n]
		b = b[n:]
		if len(b) > 0 {
			part.Flags &^= packet.FIN | packet.PSH
		}
		w.travel(&w.down, travelling{conn: c, seg: part})
		if len(b) == 0 {
			return
		}
		s.Seq += uint32(n)
	}
}

func before(a, b uint32) bool { return int32(a-b) < 0 }

// sees checks what a segment tells of the lane's state, in the order in which
// segments leave the lane.
func (w *world) sees(c *conn, s *packet.TCP) {
	g := c.g
	c.sends(s)
	if s.Flags&packet.SYN != 0 && g.Scale >= 0 && s.WScale >= 0 {
		c.scale = int(s.WScale)
	}
	if s.Flags&packet.RST != 0 || s.Flags&packet.ACK == 0 {
		return
	}
	if before(g.Max, s.Ack) {
		w.t.Fatalf("acknowledges %d, the guest has sent up to %d", s.Ack-g.ISS, g.Max-g.ISS)
	}
	unit, right := uint32(1), s.Ack+uint32(s.Window)
	if s.Flags&packet.SYN == 0 {
		unit, right = 1<<c.scale, s.Ack+uint32(s.Window)<<c.scale
	}
	last := &c.shown[w.pair]
	if last.some {
		if before(s.Ack, last.ack) {
			w.t.Fatalf("acknowledgment moved left, from %d to %d", last.ack-g.ISS, s.Ack-g.ISS)
		}
		// Behind the guest's FIN a window means nothing.
		ended := g.Closed && s.Ack == g.ISS+uint32(g.Total)+2
		if !ended && !before(last.edge, right+unit) {
			w.t.Fatalf("right edge moved left, from %d to %d", last.edge-g.ISS, right-g.ISS)
		}
	}
	if !last.some || before(last.edge, right) {
		last.edge = right
	}
	last.some, last.ack = true, s.Ack
	for _, x := range s.SACK[:s.NumSACK] {
		if !before(s.Ack, x.Left) || !before(x.Left, x.Right) || before(g.Max, x.Right) {
			w.t.Fatalf("SACK [%d,%d) with ACK %d", x.Left-g.ISS, x.Right-g.ISS, s.Ack-g.ISS)
		}
	}
	if end := s.Seq + uint32(len(s.Payload)); s.Flags&packet.SYN == 0 && before(g.RcvAdv, end) {
		w.t.Fatalf("sends up to %d, the guest's window ends at %d", end-g.IRS, g.RcvAdv-g.IRS)
	}
}

// deliver gives the guest what has arrived.
func (w *world) deliver() {
	for k := 0; w.down.next() <= w.now; k++ {
		w.moves++
		t := w.down.take()
		t.conn.g.Receive(&t.seg)
		if k%8 == 7 {
			t.conn.g.Acknowledge()
		}
	}
	for _, c := range w.conns {
		c.g.Acknowledge()
		c.g.Expire()
	}
}

// guestActs has an application of the guest's do something.
func (w *world) guestActs(c *conn) {
	g := c.g
	if w.now >= c.abortAt {
		c.abortAt, c.expected = never, true
		g.Abort()
		w.moves++
	}
	if w.now < c.at {
		return
	}
	w.moves++
	n := min(c.toHost-g.Total, 1+w.r.IntN(60000))
	if g.State == tcptest.Open && !g.Closed {
		g.Write(n, g.Total+n == c.toHost)
	}
	g.Read(1 + w.r.IntN(100000))
	c.at = w.pause(c.slow)
	if g.State != tcptest.Open || g.Closed && g.Unread == 0 {
		c.at = never // until next finds that there is something to do
	}
}
