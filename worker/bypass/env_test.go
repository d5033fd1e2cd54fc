// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// lane is a small one: it makes real system calls, and has a broker that opens
// what open says.
type lane struct {
	tb     testing.TB
	ep     int
	start  time.Time
	wheel  *store.Wheel
	guest  flow.Guest
	t      *Translator
	opens  []ipc.Open
	open   func(o *ipc.Open) (fd int, errno syscall.Errno)
	noPipe bool
	pipes  int

	reports int // events so far
	events  [64]unix.EpollEvent
	change  unix.EpollEvent
	msgs    [readBatch]struct {
		hdr unix.Msghdr
		n   uint32
		_   [4]byte
	}
	iov    [maxSegments]unix.Iovec
	names  [readBatch]unix.RawSockaddrInet6
	oob    [readBatch][128]byte
	value  int32
	linger unix.Linger
	pair   [2]int32
}

func newLane(tb testing.TB) *lane {
	tb.Helper()
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		tb.Fatal(err)
	}
	l := &lane{tb: tb, ep: ep, start: time.Now().Add(-time.Second)}
	l.guest.Seen4 = packet.AddrFrom4([4]byte{127, 0, 0, 1})
	l.guest.Seen6 = packet.Addr{15: 1}
	l.wheel = store.NewWheel(64, l.Now())
	l.t = New(l, &l.guest, l.wheel, 0, store.NewPool(make([]byte, 64*store.ChunkSize)), 4096, 64)
	l.t.Return = func(id uint32, d []flow.Datagram) {
		l.t.Datagrams(id, ipc.ListenerMayBypass, 53, d)
	}
	tb.Cleanup(func() {
		l.t.Close()
		unix.Close(ep)
	})
	return l
}

// step waits for events, for at most a millisecond, and has the translator
// handle them.
func (l *lane) step() {
	timeout := 1
	if l.t.Pending() {
		timeout = 0
	}
	n, _, _ := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.ep), uintptr(unsafe.Pointer(&l.events)), uintptr(len(l.events)), uintptr(timeout), 0, 0)
	if int(n) < 0 || int(n) > len(l.events) {
		n = 0
	}
	l.reports += int(n)
	for i := range int(n) {
		e := &l.events[i]
		l.t.Ready(*(*uint64)(unsafe.Pointer(&e.Fd)), e.Events)
	}
	if l.t.Patience() > 0 {
		l.t.Impatient()
	}
	if l.t.Pending() {
		l.t.Poll()
	}
	l.t.Sweep()
	l.answer()
}

// answer plays the broker.
func (l *lane) answer() {
	for len(l.opens) > 0 {
		o := l.opens[0]
		l.opens = append(l.opens[:0], l.opens[1:]...)
		fd, errno := l.open(&o)
		a := ipc.Opened{Token: o.Token, Errno: uint16(errno)}
		if fd >= 0 {
			if sa, err := unix.Getpeername(fd); err == nil {
				peer, port := address(sa)
				a.Addr, a.PeerPort = peer, port
			}
		}
		l.t.Opened(o.Token, int32(fd), &a)
	}
}

// until steps until the condition holds.
func (l *lane) until(what string, done func() bool) {
	l.tb.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); {
		if time.Now().After(deadline) {
			l.tb.Fatalf("%s: not after 20 s", what)
		}
		l.step()
	}
}

func (l *lane) Now() int64                                { return int64(time.Since(l.start)) }
func (l *lane) Send(*packet.Offload, []byte, []byte) bool { panic("the bypass sends no frame") }
func (l *lane) CanSend() bool                             { return true }

func (l *lane) Open(r *ipc.Open) bool {
	l.opens = append(l.opens, *r)
	return true
}

func raw(trap, a, b, c uintptr) (int, syscall.Errno) {
	for {
		n, _, e := syscall.RawSyscall(trap, a, b, c)
		if e != syscall.EINTR {
			return int(n), e
		}
	}
}

func raw6(trap, a, b, c, d, e, f uintptr) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(trap, a, b, c, d, e, f)
		if errno != syscall.EINTR {
			return int(n), errno
		}
	}
}

func base(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

func (l *lane) Watch(fd int32, token uint64, events uint32) syscall.Errno {
	return l.control(unix.EPOLL_CTL_ADD, fd, token, events)
}

func (l *lane) Rewatch(fd int32, token uint64, events uint32) syscall.Errno {
	return l.control(unix.EPOLL_CTL_MOD, fd, token, events)
}

func (l *lane) control(op int, fd int32, token uint64, events uint32) syscall.Errno {
	if events&flow.Readable != 0 {
		events |= flow.Urgent
	}
	l.change.Events = events | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff
	*(*uint64)(unsafe.Pointer(&l.change.Fd)) = token
	_, e := raw6(unix.SYS_EPOLL_CTL, uintptr(l.ep), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&l.change)), 0, 0)
	return e
}

func (l *lane) Close(fd int32) { raw(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

func (l *lane) Abort(fd int32) {
	l.linger = unix.Linger{Onoff: 1}
	raw6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&l.linger)), unsafe.Sizeof(l.linger), 0)
	l.Close(fd)
}

func (l *lane) Pipe() (r, w int32, size int, err syscall.Errno) {
	if l.noPipe {
		return -1, -1, 0, syscall.EMFILE
	}
	_, e := raw(unix.SYS_PIPE2, uintptr(unsafe.Pointer(&l.pair)), unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	l.pipes++
	return l.pair[0], l.pair[1], 64 << 10, e
}

func (l *lane) Splice(from, to int32, n int) (int, syscall.Errno) {
	return raw6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_NONBLOCK)
}

func (l *lane) LowWater(fd int32, n int) syscall.Errno {
	return l.set(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, n)
}

func (l *lane) set(fd int32, level, name, v int) syscall.Errno {
	l.value = int32(v)
	_, e := raw6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(&l.value)), 4, 0)
	return e
}

func (l *lane) Read(fd int32, b []byte) (int, syscall.Errno) {
	return raw(unix.SYS_READ, uintptr(fd), base(b), uintptr(len(b)))
}

func (l *lane) Recv(fd int32, b []byte, flags int) (int, syscall.Errno) {
	return raw6(unix.SYS_RECVFROM, uintptr(fd), base(b), uintptr(len(b)), uintptr(flags), 0, 0)
}

func (l *lane) RecvSkip(int32, int, []byte) (int, syscall.Errno) { panic("not for the bypass") }

func (l *lane) Discard(fd int32, n int) (int, syscall.Errno) {
	return raw6(unix.SYS_RECVFROM, uintptr(fd), 0, uintptr(n), unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
}

func (l *lane) Write(fd int32, b []byte) (int, syscall.Errno) {
	return raw(unix.SYS_WRITE, uintptr(fd), base(b), uintptr(len(b)))
}

func (l *lane) Writev(fd int32, bufs [][]byte) (int, syscall.Errno) {
	for i, b := range bufs {
		l.iov[i].Base = unsafe.SliceData(b)
		l.iov[i].SetLen(len(b))
	}
	return raw(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&l.iov)), uintptr(len(bufs)))
}

func (l *lane) Accept(int32) (int32, packet.Addr, uint16, syscall.Errno) { panic("tcp accepts") }

func (l *lane) LocalAddr(fd int32) (packet.Addr, uint16, syscall.Errno) {
	sa, err := unix.Getsockname(int(fd))
	if err != nil {
		return packet.Addr{}, 0, err.(syscall.Errno)
	}
	a, port := address(sa)
	return a, port, 0
}

func (l *lane) ShutdownWrite(fd int32) syscall.Errno {
	_, e := raw(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return e
}

func (l *lane) Option(fd int32, o flow.Option, v int) syscall.Errno {
	switch o {
	case flow.OptionNoDelay:
		return l.set(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, v)
	case flow.OptionUDPSegment:
		return l.set(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, v)
	}
	panic("an option that the bypass has no use for")
}

func (l *lane) RTT(int32) (time.Duration, syscall.Errno) { panic("not for the bypass") }

func (l *lane) TakeError(fd int32) syscall.Errno {
	e, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err.(syscall.Errno)
	}
	return syscall.Errno(e)
}

func (l *lane) RecvDatagrams(fd int32, d []flow.Datagram) (int, syscall.Errno) {
	for i := range d {
		l.iov[i].Base = unsafe.SliceData(d[i].Buf)
		l.iov[i].SetLen(len(d[i].Buf))
		m := &l.msgs[i].hdr
		*m = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&l.names[i])), Namelen: unix.SizeofSockaddrInet6, Iov: &l.iov[i], Control: &l.oob[i][0]}
		m.SetIovlen(1)
		m.SetControllen(len(l.oob[i]))
	}
	n, e := raw6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&l.msgs)), uintptr(len(d)), unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return 0, e
	}
	for i := range n {
		m := &l.msgs[i]
		d[i].N, d[i].Segment, d[i].Truncated = int(m.n), 0, m.hdr.Flags&unix.MSG_TRUNC != 0
		d[i].From, d[i].FromPort = sender(&l.names[i])
		d[i].To = packet.Addr{}
		oob := l.oob[i][:m.hdr.Controllen]
		if len(oob) >= 20 && binary.NativeEndian.Uint32(oob[8:]) == unix.SOL_UDP {
			if s := int(binary.NativeEndian.Uint32(oob[16:])); s < d[i].N {
				d[i].Segment = s
			}
		}
	}
	return n, 0
}

func (l *lane) RecvError(fd int32, e *flow.SocketError) syscall.Errno {
	_, _, _, _, err := unix.Recvmsg(int(fd), e.Buf, nil, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return err.(syscall.Errno)
	}
	return 0
}

func sender(sa *unix.RawSockaddrInet6) (packet.Addr, uint16) {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	if sa.Family == unix.AF_INET {
		return packet.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), port
	}
	return packet.Addr(sa.Addr), port
}

func address(sa unix.Sockaddr) (packet.Addr, uint16) {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return packet.AddrFrom4(a.Addr), uint16(a.Port)
	case *unix.SockaddrInet6:
		return packet.Addr(a.Addr), uint16(a.Port)
	}
	return packet.Addr{}, 0
}

// listenTCP returns a listening socket on the loopback address.
func listenTCP(tb testing.TB, addr string) (fd int, at unix.Sockaddr) {
	tb.Helper()
	fd = newSocket(tb, addr, unix.SOCK_STREAM)
	must(tb, unix.Listen(fd, 64))
	at, err := unix.Getsockname(fd)
	must(tb, err)
	return fd, at
}

// newSocket returns a blocking socket bound to a loopback address.
func newSocket(tb testing.TB, addr string, typ int) int {
	tb.Helper()
	a := netip.MustParseAddr(addr)
	domain := unix.AF_INET6
	var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: a.As16()}
	if a.Is4() {
		domain, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: a.As4()}
	}
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, 0)
	must(tb, err)
	must(tb, unix.Bind(fd, sa))
	if typ == unix.SOCK_STREAM {
		must(tb, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)) // the broker's part
	}
	return fd
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// timeouts make a blocking socket fail rather than hang.
func timeouts(fd int) {
	tv := unix.Timeval{Sec: 20}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
}

// connection is a flow under test: two peers and the bypass between them.
type connection struct {
	client, server int
}

// connect makes a flow: a client's connection is accepted and given to the
// translator, whose far end is connected to a server.
func (l *lane) connect(addr string) connection {
	l.tb.Helper()
	front, frontAt := listenTCP(l.tb, addr)
	back, backAt := listenTCP(l.tb, addr)
	defer unix.Close(front)
	defer unix.Close(back)
	l.open = func(*ipc.Open) (int, syscall.Errno) { return l.dial(addr, backAt) }
	c := newSocket(l.tb, addr, unix.SOCK_STREAM)
	must(l.tb, unix.Connect(c, frontAt))
	l.accept(front, ipc.ListenerMayBypass)
	opened := l.t.Stats.Opened
	l.until("open", func() bool { return l.t.Stats.Opened > opened })
	s, _, err := unix.Accept4(back, unix.SOCK_CLOEXEC)
	must(l.tb, err)
	for _, fd := range []int{c, s} {
		timeouts(fd)
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	return connection{c, s}
}

func (l *lane) accept(listener int, flags uint8) {
	l.tb.Helper()
	fd, sa, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	must(l.tb, err)
	peer, port := address(sa)
	l.t.Accepted(7, flags, int32(fd), peer, port)
	l.answer()
	l.t.Sweep()
}

// dial connects without waiting, as the broker does.
func (l *lane) dial(addr string, to unix.Sockaddr) (int, syscall.Errno) {
	fd := newSocket(l.tb, addr, unix.SOCK_STREAM)
	must(l.tb, unix.SetNonblock(fd, true))
	must(l.tb, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return -1, err.(syscall.Errno)
	}
	return fd, 0
}

func (c connection) close() {
	unix.Close(c.client)
	unix.Close(c.server)
}
