// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/packet"
	"aldente/worker/store"
	"aldente/worker/tcp/tcptest"
)

// end is a connection's end on the host. It sends tcptest.Stream and expects
// the same.
type end struct {
	w           *world
	fd          int // -1: closed
	total, sent int
	received    int
	fin, eof    bool // sent and received
	reset       bool // by anybody
	byUs        bool
	left        bool  // hung up, with bytes still in the kernel's hands
	at          int64 // when it acts next
	resetAt     int64
	slow        float64 // of pauses of seconds
	appetite    int
}

func (w *world) newEnd(fd, total int) *end {
	e := &end{w: w, fd: fd, total: total, at: w.now, resetAt: never, slow: float64(w.r.IntN(2)) * 0.02,
		appetite: []int{500, 20000, 1 << 20}[w.r.IntN(3)]}
	if w.r.IntN(8) == 0 {
		e.resetAt = w.now + w.r.Int64N(300*ms)
	}
	w.ends = append(w.ends, e)
	return e
}

func (e *end) close() {
	if e.fd >= 0 {
		unix.Close(e.fd)
		e.fd = -1
	}
	e.at, e.resetAt = never, never
}

// abort closes with RST.
func (e *end) abort() {
	if e.fd >= 0 {
		unix.SetsockoptLinger(e.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	e.reset, e.byUs = true, true
	e.close()
}

// over tells whether the application has hung up.
func (e *end) over() bool { return e.fd < 0 }

// act has the application do something.
func (e *end) act() {
	w := e.w
	if w.now >= e.resetAt {
		e.abort()
		w.moves++
		return
	}
	if w.now < e.at || e.idle() {
		return
	}
	w.moves++
	w.patience = 300
	e.write(w.r.IntN(60000))
	e.read(1 + w.r.IntN(e.appetite))
	if e.fd >= 0 && e.sent == e.total && !e.fin && w.r.IntN(3) == 0 {
		e.fin = true
		unix.Shutdown(e.fd, unix.SHUT_WR)
	}
	if e.fd >= 0 && e.fin && e.eof {
		n, err := unix.IoctlGetInt(e.fd, unix.SIOCOUTQ)
		e.left = err == nil && n > 0
		e.close()
		return
	}
	if e.fd >= 0 {
		e.at = w.pause(e.slow)
	}
}

// idle tells whether nothing can be done before the other side does something.
func (e *end) idle() bool {
	events := int16(0)
	if !e.eof {
		events |= unix.POLLIN
	}
	if e.sent < e.total {
		events |= unix.POLLOUT
	}
	return (e.fin || e.sent < e.total) && !ready(e.fd, events, 0)
}

func (e *end) write(n int) {
	for n = min(n, e.total-e.sent); n > 0; {
		// The last byte of some pieces is urgent.
		k, err := unix.SendmsgN(e.fd, tcptest.Stream(e.sent, min(n, 1<<16)), nil, nil, unix.MSG_OOB*boolInt(e.sent%3 == 2))
		if err == unix.EAGAIN {
			return
		}
		if err != nil {
			e.lost(err)
			return
		}
		e.sent += k
		n -= k
	}
}

func (e *end) read(n int) {
	var buf [1 << 16]byte
	for n > 0 && e.fd >= 0 && !e.eof {
		k, err := unix.Read(e.fd, buf[:min(n, len(buf))])
		switch {
		case err == unix.EAGAIN:
			return
		case err != nil:
			e.lost(err)
			return
		case k == 0:
			e.eof = true
			return
		}
		if !bytes.Equal(buf[:k], tcptest.Stream(e.received, k)) {
			e.w.t.Fatalf("wrong bytes to the host at %d", e.received)
		}
		e.received += k
		n -= k
	}
}

// lost notes an error that ends the connection.
func (e *end) lost(err error) {
	switch err {
	case unix.ECONNRESET, unix.EPIPE:
		e.reset = true
		e.close()
	default:
		e.w.t.Fatalf("the host's end: %v", err)
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// inline does the broker's part: urgent bytes stay in the stream.
func inline(t testing.TB, fd int) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1); err != nil {
		t.Fatal(err)
	}
}

// pause is when an application acts next.
func (w *world) pause(slow float64) int64 {
	if w.r.Float64() < slow {
		return w.now + w.r.Int64N(4*second)
	}
	return w.now + w.r.Int64N(2*ms)
}

// loopback is a listening socket, and its address, of which one serves all
// worlds.
type loopback struct {
	fd   int
	addr unix.Sockaddr
}

var hostListener *loopback

func (w *world) listening() *loopback {
	if hostListener == nil {
		hostListener = w.newListener()
	}
	return hostListener
}

func (w *world) newListener() *loopback {
	fd := w.socket(unix.SOCK_STREAM)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		w.t.Skipf("no loopback interface: %v", err)
	}
	inline(w.t, fd)
	if err := unix.Listen(fd, 64); err != nil {
		w.t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		w.t.Fatal(err)
	}
	return &loopback{fd, sa}
}

func (w *world) socket(typ int) int {
	fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return fd
}

// buffers sets the sizes of a socket's buffers.
func (w *world) buffers(fd int) {
	if n := []int{0, 16 << 10, 64 << 10}[w.r.IntN(3)]; n > 0 {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, n)
	}
	if n := []int{0, 16 << 10, 64 << 10}[w.r.IntN(3)]; n > 0 {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, n)
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1400)
}

func (w *world) dial(fd int, to unix.Sockaddr) {
	if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
		w.t.Fatalf("connect on loopback: %v", err)
	}
}

func (w *world) accept(l *loopback) int {
	if !ready(l.fd, unix.POLLIN, 5000) {
		w.t.Fatal("no connection on loopback")
	}
	fd, _, err := unix.Accept4(l.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		w.t.Fatal(err)
	}
	return fd
}

// connected returns both ends of a connection on the host; the first is for
// the lane.
func (w *world) connected() (lane, host int) {
	l := w.listening()
	lane = w.socket(unix.SOCK_STREAM)
	w.buffers(lane)
	inline(w.t, lane)
	w.dial(lane, l.addr)
	host = w.accept(l)
	w.buffers(host)
	if w.peek {
		if err := unix.SetsockoptInt(lane, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
			w.t.Skipf("SO_PEEK_OFF: %v", err)
		}
	}
	return lane, host
}

// open is a request of the lane.
type open struct {
	at int64
	ipc.Open
	stage *stage // the answer to it was a socket that is looked at, nil: there was none
}

// nextOpen is when the next answer is due.
func (w *world) nextOpen() int64 {
	at := never
	for _, o := range w.opens {
		at = min(at, o.at)
	}
	return at
}

// answer does the broker's part.
func (w *world) answer() {
	for k := 0; k < len(w.opens); k++ {
		if o := w.opens[k]; o.at <= w.now {
			w.opens = append(w.opens[:k], w.opens[k+1:]...)
			k--
			w.moves++
			if o.stage != nil {
				w.switchFlow(&o)
			} else {
				w.reply(&o.Open)
			}
		}
	}
}

func (w *world) reply(o *ipc.Open) {
	a := ipc.Opened{Token: o.Token}
	fd := -1
	switch {
	case o.Flags&ipc.OpenBypass != 0:
		fd = w.openPair(o, &a)
	case o.Proto == ipc.ProtoTCP:
		fd = w.openTCP(o, &a)
	case o.Proto == ipc.ProtoUDP:
		fd = w.openUDP(o, &a)
	default:
		fd = w.openEcho(o, &a)
	}
	if fd < 0 && a.Errno == 0 {
		a.Errno = uint16(syscall.ECONNREFUSED)
	}
	if w.staging && fd >= 0 && a.Flags == 0 && o.Listener == 0 && (o.Proto == ipc.ProtoTCP || o.Proto == ipc.ProtoUDP) && w.r.IntN(4) == 0 {
		fd = w.stageFlow(o, &a, fd)
	}
	var rec [ipc.OpenedSize]byte
	a.Encode(rec[:])
	w.tell(rec[:], fd)
}

// openTCP connects a flow of the guest: the first request for it gets a socket,
// others, which come of segments that were late, are refused.
func (w *world) openTCP(o *ipc.Open, a *ipc.Opened) int {
	c := w.find(store.MakeKey((*packet.Addr)(&o.Dst), (*packet.Addr)(&o.Src), o.DstPort, o.SrcPort))
	if c == nil || c.host != nil || c.refused {
		return -1
	}
	switch w.r.IntN(16) {
	case 0:
		c.refused = true
		a.Errno = uint16([]syscall.Errno{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EMFILE}[w.r.IntN(4)])
		return -1
	case 1: // to a port that nobody listens on
		c.refused = true
		l := w.newListener()
		unix.Close(l.fd)
		fd := w.socket(unix.SOCK_STREAM)
		if err := unix.Connect(fd, l.addr); err != nil && err != unix.EINPROGRESS {
			unix.Close(fd)
			return -1
		}
		a.Flags = ipc.OpenedInProgress
		return fd
	}
	lane, host := w.connected()
	c.host = w.newEnd(host, c.toGuest)
	if w.r.IntN(2) == 0 {
		a.Flags = ipc.OpenedInProgress
	}
	return lane
}

// pair is a flow of the bypass.
type pair struct {
	near, far *end
	port      uint16 // of near
	toNear    int
	refused   bool
}

func (w *world) openPair(o *ipc.Open, a *ipc.Opened) int {
	for _, p := range w.pairs {
		if p.port != o.DstPort || p.far != nil || p.refused {
			continue
		}
		if w.r.IntN(8) == 0 {
			p.refused = true
			return -1
		}
		lane, host := w.connected()
		p.far = w.newEnd(host, p.toNear)
		a.Flags = ipc.OpenedInProgress
		return lane
	}
	w.t.Fatalf("a request for a flow of the bypass that nobody began: %+v", *o)
	return -1
}

// offer gives the lane a listener on the host's loopback, and returns its
// address and identifier.
func (w *world) offer(flags uint8, proto uint8, guestPort uint16) (unix.Sockaddr, uint32) {
	var l *loopback
	if proto == ipc.ProtoTCP {
		l = w.newListener()
	} else {
		l = w.newDatagramSocket()
	}
	w.lastID++
	w.told++
	rec := ipc.Listener{ID: w.lastID, Proto: proto, Flags: flags, GuestPort: guestPort, HostPort: uint16(l.addr.(*unix.SockaddrInet4).Port)}
	w.tell(rec.Encode(ipc.KindListener), l.fd)
	w.turn()
	return l.addr, w.lastID
}

func (w *world) withdraw(id uint32, proto uint8) {
	w.tell((&ipc.Listener{ID: id, Proto: proto}).Encode(ipc.KindUnlisten), -1)
	w.turn()
}

// call connects to a listener that the lane has.
func (w *world) call(to unix.Sockaddr, total int) (*end, uint16) {
	return w.callWith(to, total, nil)
}

// callWith is call for connections that the guest is to be ready for.
func (w *world) callWith(to unix.Sockaddr, total int, expect func(port uint16) *conn) (*end, uint16) {
	fd := w.socket(unix.SOCK_STREAM)
	w.buffers(fd)
	// The address is chosen before anybody can hear of the connection.
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		w.t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		w.t.Fatal(err)
	}
	port := uint16(sa.(*unix.SockaddrInet4).Port)
	if expect != nil {
		expect(port)
	}
	w.dial(fd, to)
	return w.newEnd(fd, total), port
}

// giveUp has ends hang up that wait for a reset which they did not believe. Where
// segments before it were dropped for want of buffer, a RST is not at the number
// that is expected; who gets it asks whether it is meant (RFC 5961 section 3.2),
// but not twice within half a second, and then nobody is left to repeat it.
func (w *world) giveUp() bool {
	if skippedChallenges(w.t) == w.skipped {
		return false
	}
	gave := false
	for _, c := range w.conns {
		// The guest has reset it, and the lane its socket.
		if h := c.host; c.expected && h != nil && h.fd >= 0 {
			h.close()
			gave = true
		}
	}
	for _, p := range w.pairs {
		if p.far == nil {
			continue
		}
		for _, e := range [][2]*end{{p.near, p.far}, {p.far, p.near}} {
			if e[0].fd >= 0 && e[1].byUs {
				e[0].close()
				gave = true
			}
		}
	}
	return gave
}

// skippedChallenges is how many such questions this kernel has not asked.
func skippedChallenges(t testing.TB) string {
	b, err := os.ReadFile("/proc/net/netstat")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	k := slices.Index(strings.Fields(lines[0]), "TCPACKSkippedChallenge")
	if k < 0 {
		return "" // a kernel before 4.0
	}
	return strings.Fields(lines[1])[k]
}
