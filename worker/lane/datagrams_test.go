// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/packet"
	"aldente/worker/tcp/tcptest"
)

// dgrams is a flow of datagrams, or of echo requests. Each carries the flow's
// number and its own, so that one that is changed, doubled or gone astray is
// told from the others.
type dgrams struct {
	id           int
	guest        packet.Addr
	remote       packet.Addr
	guestPort    uint16 // or identifier
	remotePort   uint16
	echo         bool
	fd           int           // the host's socket, -1: none
	to           unix.Sockaddr // where it sends to, nil: not known yet
	sent         [2]uint32     // to the host, to the guest
	seen         [2]map[uint32]int
	at           int64
	left         int // things that it will still do
	fromListener bool
}

const (
	toHost  = 0
	toGuest = 1
)

const datagramHead = 12

// newDatagrams makes a flow; the guest speaks first, or a host to a listener.
func (w *world) newDatagrams(d dgrams) *dgrams {
	d.id, d.at, d.left = len(w.dgrams), w.now, 1+w.r.IntN(40)
	d.seen = [2]map[uint32]int{{}, {}}
	w.dgrams = append(w.dgrams, &d)
	return &d
}

// payload is the next datagram in one direction, of n bytes.
func (d *dgrams) payload(dir, n int) []byte {
	d.sent[dir]++
	b := binary.BigEndian.AppendUint32(nil, uint32(d.id)<<8|uint32(dir))
	b = binary.BigEndian.AppendUint32(b, d.sent[dir])
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	return append(b, tcptest.Stream(int(d.sent[dir]), n-datagramHead)...)
}

// check takes a datagram at its destination.
func (w *world) check(d *dgrams, dir int, b []byte, copies int) {
	w.moves++
	if len(b) < datagramHead || binary.BigEndian.Uint32(b) != uint32(d.id)<<8|uint32(dir) {
		w.t.Fatalf("flow %d: a datagram of another, %d bytes", d.id, len(b))
	}
	k, n := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	if k == 0 || k > d.sent[dir] || int(n) != len(b) || !bytes.Equal(b[datagramHead:], tcptest.Stream(int(k), len(b)-datagramHead)) {
		w.t.Fatalf("flow %d: datagram %d was changed", d.id, k)
	}
	if d.seen[dir][k]++; d.seen[dir][k] > copies {
		w.t.Fatalf("flow %d: datagram %d came %d times", d.id, k, d.seen[dir][k])
	}
}

func (w *world) newDatagramSocket() *loopback {
	fd := w.socket(unix.SOCK_DGRAM)
	unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		w.t.Fatal(err)
	}
	// Not before: the kernel might choose a port that another one has.
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	sa, err := unix.Getsockname(fd)
	if err != nil {
		w.t.Fatal(err)
	}
	return &loopback{fd, sa}
}

// openUDP is the broker's answer: a connected socket.
func (w *world) openUDP(o *ipc.Open, a *ipc.Opened) int {
	for _, d := range w.dgrams {
		switch {
		case d.echo:
		case o.Listener == 0 && d.guest == o.Src && d.guestPort == o.SrcPort && d.remotePort == o.DstPort:
			if d.fromListener {
				return -1 // an answer after the flow is over
			}
			return w.connectUDP(d, a)
		case o.Listener != 0 && d.fromListener && d.remotePort == o.DstPort:
			a.Addr = packet.AddrFrom4([4]byte{127, 0, 0, 1})
			return w.answering(d, o)
		}
	}
	w.t.Fatalf("a request for datagrams that nobody sent: %+v", *o)
	return -1
}

func (w *world) connectUDP(d *dgrams, a *ipc.Opened) int {
	if w.r.IntN(8) == 0 {
		return -1
	}
	if d.fd < 0 {
		d.fd = w.newDatagramSocket().fd
	}
	far, err := unix.Getsockname(d.fd)
	if err != nil {
		w.t.Fatal(err)
	}
	near := w.newDatagramSocket()
	w.dial(near.fd, far)
	unix.SetsockoptInt(near.fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	unix.SetsockoptInt(near.fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	d.to = near.addr
	a.Addr = packet.AddrFrom4([4]byte{127, 0, 0, 1})
	return near.fd
}

// answering is a socket on a listener's port, connected to the peer.
func (w *world) answering(d *dgrams, o *ipc.Open) int {
	fd := w.socket(unix.SOCK_DGRAM)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(o.SrcPort)}); err != nil {
		w.t.Fatal(err)
	}
	w.dial(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(o.DstPort)})
	unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	return fd
}

// openEcho is a ping socket, where the kernel lets us have one.
func (w *world) openEcho(o *ipc.Open, a *ipc.Opened) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
	if err != nil {
		a.Errno = uint16(unix.EACCES)
		return -1
	}
	w.dial(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	a.Addr = packet.AddrFrom4([4]byte{127, 0, 0, 1})
	return fd
}

// datagramsAct has both applications of a flow say something.
func (w *world) datagramsAct(d *dgrams) {
	w.heardByHost(d)
	if w.now < d.at {
		return
	}
	w.moves++
	if d.left--; d.left == 0 {
		d.at = never
		return
	}
	d.at = w.pause(0.05)
	n := datagramHead + mostly(w.r, 3000)
	if w.r.IntN(10) == 0 {
		n = datagramHead + w.r.IntN(60000)
	}
	switch {
	case d.echo:
		b := make([]byte, packet.MaxHeaders+n)
		n := packet.PutEcho(b, w.endsOf(d), true, d.guestPort, uint16(d.sent[toHost]), d.payload(toHost, min(n, 1200)))
		w.travel(&w.up, travelling{frame: w.frame(b[:n], &packet.Offload{}, nil)})
	case d.to != nil && w.r.IntN(2) == 0:
		for range 1 + w.r.IntN(4) {
			unix.Sendto(d.fd, d.payload(toGuest, n), 0, d.to)
		}
	case !d.fromListener || d.sent[toGuest] > 0:
		w.sendUp(d, n)
	}
}

func (w *world) endsOf(d *dgrams) *packet.Ends {
	return &packet.Ends{SrcMAC: guestMAC, DstMAC: ourMAC, Src: d.guest, Dst: d.remote, TTL: 64}
}

// sendUp sends datagrams from the guest: alone, in fragments, too large for one frame and
// in one all the same, or several in one frame where the link has that.
func (w *world) sendUp(d *dgrams, n int) {
	e := w.endsOf(d)
	b := make([]byte, packet.MaxHeaders+1<<16)
	room := w.l.guest.LinkMTU() - 60
	switch {
	case w.untold() && w.r.IntN(3) == 0: // left to hardware, cutting too
		var o packet.Offload
		h := packet.PutUDP(b, e, d.guestPort, d.remotePort, n, &o)
		w.travel(&w.up, travelling{frame: w.frame(append(b[:h:h], d.payload(toHost, n)...), &o, nil)})
	case n > room:
		var f packet.Fragmenter
		size := packet.PutUDPFull(b, e, d.guestPort, d.remotePort, d.payload(toHost, n))
		flip := w.flip
		w.lastFragment++
		f.Fragment(b[:size], w.l.guest.LinkMTU(), w.lastFragment, func(h, p []byte) {
			w.travel(&w.up, travelling{frame: w.frame(append(append([]byte(nil), h...), p...), &packet.Offload{}, nil)})
			w.flip = 0 // the sum of two wrong bits may be right
		})
		w.flip = flip
	case w.hasHeader() && n*8 < 60000 && w.r.IntN(3) == 0:
		var all []byte
		for range 2 + w.r.IntN(6) {
			all = append(all, d.payload(toHost, n)...)
		}
		var o packet.Offload
		h := packet.PutUDP(b, e, d.guestPort, d.remotePort, len(all), &o)
		packet.SetGSO(&o, e, packet.ProtoUDP, n)
		w.travel(&w.up, travelling{frame: w.frame(append(b[:h:h], all...), &o, nil)})
	default:
		size := packet.PutUDPFull(b, e, d.guestPort, d.remotePort, d.payload(toHost, n))
		w.travel(&w.up, travelling{frame: w.frame(b[:size], &packet.Offload{}, nil)})
	}
}

func (w *world) heardByHost(d *dgrams) {
	if d.fd < 0 {
		return
	}
	var b [1 << 16]byte
	for {
		n, from, err := unix.Recvfrom(d.fd, b[:], unix.MSG_DONTWAIT)
		if err != nil {
			return // nothing there, or an error that a socket of the lane's has caused
		}
		if d.fromListener {
			if got, want := from.(*unix.SockaddrInet4).Port, d.to.(*unix.SockaddrInet4).Port; got != want {
				w.t.Fatalf("flow %d: answered from port %d, asked at %d", d.id, got, want)
			}
		}
		w.check(d, toHost, b[:n], 2)
	}
}

// datagram takes one from the lane, or several in one frame. None may come
// twice.
func (w *world) datagram(p *packet.Packet, o *packet.Offload) {
	var u packet.UDP
	err := u.Decode(p.Payload())
	if o.GSOType == packet.GSOUDPL4 {
		err = u.DecodeGSO(p.Payload())
	}
	if err != nil {
		w.t.Fatalf("datagram to the guest: %v", err)
	}
	for _, d := range w.dgrams {
		if d.echo || d.remote != p.Src || d.guest != p.Dst || d.remotePort != u.SrcPort || d.guestPort != u.DstPort {
			continue
		}
		size := len(u.Payload)
		if o.GSOType == packet.GSOUDPL4 {
			size = int(o.GSOSize)
		}
		for b := u.Payload; len(b) > 0; b = b[min(size, len(b)):] {
			w.check(d, toGuest, b[:min(size, len(b))], 1)
		}
		return
	}
	w.t.Fatalf("a datagram of no flow, from port %d to port %d", u.SrcPort, u.DstPort)
}

// echoReply takes what a ping socket brought.
func (w *world) echoReply(p *packet.Packet) {
	var e packet.Echo
	if e.Decode(p.Payload()) != nil || e.Type != packet.ICMPEchoReply {
		return // an error
	}
	for _, d := range w.dgrams {
		if d.echo && d.guestPort == e.ID && d.remote == p.Src {
			// The request is what comes back: 2, should the network double it.
			w.check(d, toHost, e.Payload, 2)
			return
		}
	}
	w.t.Fatalf("an echo reply to nobody, identifier %d", e.ID)
}
