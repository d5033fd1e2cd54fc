// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/worker/flow"
	"aldente/worker/packet"
)

// Sockets makes the calls on sockets and pipes that translators ask for. What it
// holds is memory for one call at a time.
type Sockets struct {
	iov    [flowVec]unix.Iovec
	msg    unix.Msghdr
	name   unix.RawSockaddrInet6
	oob    [512]byte
	skip   [64 << 10]byte
	linger unix.Linger
	value  int32
	pipe   [2]int32

	mmsg  [maxDatagrams]mmsghdr
	miov  [maxDatagrams]unix.Iovec
	mname [maxDatagrams]unix.RawSockaddrInet6
	moob  [maxDatagrams][128]byte // 128: a multiple of what cmsghdr is aligned to
}

const (
	flowVec      = 1024 // UIO_MAXIOV
	maxDatagrams = 64
)

// mmsghdr is struct mmsghdr of include/linux/socket.h.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// Read is read(2).
func (s *Sockets) Read(fd int32, b []byte) (int, syscall.Errno) {
	return raw(unix.SYS_READ, uintptr(fd), base(b), uintptr(len(b)))
}

// Recv is recv(2).
func (s *Sockets) Recv(fd int32, b []byte, flags int) (int, syscall.Errno) {
	return raw6(unix.SYS_RECVFROM, uintptr(fd), base(b), uintptr(len(b)), uintptr(flags), 0, 0)
}

// RecvPieces is recvmsg(2), into flowVec pieces at most.
func (s *Sockets) RecvPieces(fd int32, bufs [][]byte, flags int) (int, syscall.Errno) {
	n := min(len(bufs), len(s.iov))
	for i, b := range bufs[:n] {
		s.iov[i].Base = unsafe.SliceData(b)
		s.iov[i].SetLen(len(b))
	}
	s.msg = unix.Msghdr{Iov: &s.iov[0]}
	s.msg.SetIovlen(n)
	return raw(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&s.msg)), uintptr(flags))
}

// RecvSkip has recvmsg(2) copy what is to be skipped into memory that nobody reads.
func (s *Sockets) RecvSkip(fd int32, skip int, b []byte) (int, syscall.Errno) {
	n := 0
	for left := skip; left > 0 && n < len(s.iov)-1; n++ {
		k := min(left, len(s.skip))
		s.iov[n].Base = &s.skip[0]
		s.iov[n].SetLen(k)
		left -= k
	}
	s.iov[n].Base = unsafe.SliceData(b)
	s.iov[n].SetLen(len(b))
	s.msg = unix.Msghdr{Iov: &s.iov[0]}
	s.msg.SetIovlen(n + 1)
	for again := false; ; again = true {
		got, e := raw(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&s.msg)), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case e != 0:
			return 0, e
		case got < skip:
			return 0, syscall.EAGAIN
		case got > skip || len(b) == 0 || again:
			return got - skip, 0
		case !s.atEnd(fd):
			return 0, syscall.EAGAIN
		}
		// The last bytes may have come with the end, after the peek; behind it
		// none come.
	}
}

// RTT is the least round-trip time that TCP has seen, of TCP_INFO.
func (s *Sockets) RTT(fd int32) (time.Duration, syscall.Errno) {
	info, e := s.info(fd)
	return time.Duration(info.Min_rtt) * time.Microsecond, e
}

// Path is what TCP_INFO says of the way to the peer.
func (s *Sockets) Path(fd int32) (flow.Path, syscall.Errno) {
	info, e := s.info(fd)
	return flow.Path{RTT: time.Duration(info.Rtt) * time.Microsecond, Retransmits: info.Total_retrans}, e
}

func (s *Sockets) info(fd int32) (info unix.TCPInfo, e syscall.Errno) {
	n := uint32(unsafe.Sizeof(info))
	_, e = raw6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&n)), 0)
	return info, e
}

// atEnd tells whether the peer has closed: only then does a read that skipped
// all there is mean the end of the stream.
func (s *Sockets) atEnd(fd int32) bool {
	info, e := s.info(fd)
	switch info.State {
	case unix.BPF_TCP_CLOSE_WAIT, unix.BPF_TCP_LAST_ACK, unix.BPF_TCP_CLOSING, unix.BPF_TCP_TIME_WAIT, unix.BPF_TCP_CLOSE:
		return e == 0
	}
	return false
}

// Discard dequeues up to n bytes of a stream.
func (s *Sockets) Discard(fd int32, n int) (int, syscall.Errno) {
	// With MSG_TRUNC, TCP copies nothing and touches no buffer, tcp(7).
	return raw6(unix.SYS_RECVFROM, uintptr(fd), 0, uintptr(n), unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
}

// Write is write(2).
func (s *Sockets) Write(fd int32, b []byte) (int, syscall.Errno) {
	return raw(unix.SYS_WRITE, uintptr(fd), base(b), uintptr(len(b)))
}

// Writev is writev(2), of flowVec pieces at most.
func (s *Sockets) Writev(fd int32, bufs [][]byte) (int, syscall.Errno) {
	n := min(len(bufs), len(s.iov))
	for i, b := range bufs[:n] {
		s.iov[i].Base = unsafe.SliceData(b)
		s.iov[i].SetLen(len(b))
	}
	return raw(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&s.iov)), uintptr(n))
}

// Accept is accept4(2).
func (s *Sockets) Accept(fd int32) (int32, packet.Addr, uint16, syscall.Errno) {
	n := uint32(unsafe.Sizeof(s.name))
	conn, e := raw6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&s.name)), uintptr(unsafe.Pointer(&n)),
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if e != 0 {
		return -1, packet.Addr{}, 0, e
	}
	a, port := sockaddr(&s.name)
	return int32(conn), a, port, 0
}

// LocalAddr is getsockname(2).
func (s *Sockets) LocalAddr(fd int32) (packet.Addr, uint16, syscall.Errno) {
	n := uint32(unsafe.Sizeof(s.name))
	_, e := raw(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&s.name)), uintptr(unsafe.Pointer(&n)))
	if e != 0 {
		return packet.Addr{}, 0, e
	}
	a, port := sockaddr(&s.name)
	return a, port, 0
}

// ShutdownWrite is shutdown(2) of what is sent.
func (s *Sockets) ShutdownWrite(fd int32) syscall.Errno {
	_, e := raw(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return e
}

// ResetOnClose has a close send RST (SO_LINGER with zero seconds), except where
// the ends of both directions are on their way. In LAST_ACK and CLOSING the
// kernel would send no RST and forget what the peer has not acknowledged
// (tcp_disconnect in net/ipv4/tcp.c): the peer would wait for ever.
func (s *Sockets) ResetOnClose(fd int32) {
	info, e := s.info(fd)
	if e == 0 && (info.State == unix.BPF_TCP_LAST_ACK || info.State == unix.BPF_TCP_CLOSING) {
		return
	}
	s.resetIn(fd, info.State)
}

// resetIn is ResetOnClose for a socket that was in this state a moment ago.
func (s *Sockets) resetIn(fd int32, state uint8) {
	s.linger = unix.Linger{Onoff: 1}
	raw6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&s.linger)), unsafe.Sizeof(s.linger), 0)
	if state == unix.BPF_TCP_SYN_SENT {
		// The broker has a copy until the connect has ended: this ends it. A peer
		// that has answered meanwhile gets FIN, but then RST.
		raw(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_RDWR, 0)
	}
}

// TakeError reads SO_ERROR, and clears it so.
func (s *Sockets) TakeError(fd int32) syscall.Errno {
	s.value = 0
	n := uint32(4)
	_, e := raw6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR,
		uintptr(unsafe.Pointer(&s.value)), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return e
	}
	return syscall.Errno(s.value)
}

// options are the level and name of each flow.Option.
var options = [...][2]uintptr{
	flow.OptionPeekOff:      {unix.SOL_SOCKET, unix.SO_PEEK_OFF},
	flow.OptionKeepAlive:    {unix.SOL_SOCKET, unix.SO_KEEPALIVE},
	flow.OptionTTL:          {unix.IPPROTO_IP, unix.IP_TTL},
	flow.OptionHopLimit:     {unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS},
	flow.OptionUDPSegment:   {unix.IPPROTO_UDP, unix.UDP_SEGMENT},
	flow.OptionNoDelay:      {unix.IPPROTO_TCP, unix.TCP_NODELAY},
	flow.OptionSendBuffer:   {unix.SOL_SOCKET, unix.SO_SNDBUF},
	flow.OptionRecvBuffer:   {unix.SOL_SOCKET, unix.SO_RCVBUF},
	flow.OptionWindowClamp:  {unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP},
	flow.OptionTOS:          {unix.IPPROTO_IP, unix.IP_TOS},
	flow.OptionTrafficClass: {unix.IPPROTO_IPV6, unix.IPV6_TCLASS},
	flow.OptionGroupTTL:     {unix.IPPROTO_IP, unix.IP_MULTICAST_TTL},
	flow.OptionGroupHops:    {unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS},
	flow.OptionDiscover4:    {unix.IPPROTO_IP, unix.IP_MTU_DISCOVER},
	flow.OptionDiscover6:    {unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER},
}

// Option is setsockopt(2) of an integer.
func (s *Sockets) Option(fd int32, o flow.Option, v int) syscall.Errno {
	s.value = int32(v)
	_, e := raw6(unix.SYS_SETSOCKOPT, uintptr(fd), options[o][0], options[o][1], uintptr(unsafe.Pointer(&s.value)), 4, 0)
	return e
}

// RecvDatagrams uses recvmmsg(2) with room for the addresses of both ends and
// for the segment size that UDP_GRO reports.
func (s *Sockets) RecvDatagrams(fd int32, d []flow.Datagram) (int, syscall.Errno) {
	n := min(len(d), maxDatagrams)
	for i := range n {
		s.miov[i].Base = unsafe.SliceData(d[i].Buf)
		s.miov[i].SetLen(len(d[i].Buf))
		m := &s.mmsg[i].hdr
		*m = unix.Msghdr{
			Name: (*byte)(unsafe.Pointer(&s.mname[i])), Namelen: uint32(unsafe.Sizeof(s.mname[i])),
			Iov: &s.miov[i], Control: &s.moob[i][0],
		}
		m.SetIovlen(1)
		m.SetControllen(len(s.moob[i]))
	}
	got, e := raw6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&s.mmsg)), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return 0, e
	}
	for i := range got {
		m := &s.mmsg[i]
		d[i].N = int(m.n)
		// Of one whose control messages were cut nobody knows where its parts end.
		d[i].Truncated = m.hdr.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0
		d[i].Segment = 0
		d[i].From, d[i].FromPort, d[i].Scope, d[i].To = packet.Addr{}, 0, 0, packet.Addr{}
		if m.hdr.Namelen >= unix.SizeofSockaddrInet4 {
			d[i].From, d[i].FromPort = sockaddr(&s.mname[i])
		}
		if m.hdr.Namelen >= unix.SizeofSockaddrInet6 { // zero but for link-local addresses
			d[i].Scope = s.mname[i].Scope_id
		}
		datagramControl(s.moob[i][:m.hdr.Controllen], &d[i])
	}
	return got, 0
}

// RecvError uses recvmsg(2) with MSG_ERRQUEUE, ip(7) IP_RECVERR.
func (s *Sockets) RecvError(fd int32, e *flow.SocketError) syscall.Errno {
	s.iov[0].Base = unsafe.SliceData(e.Buf)
	s.iov[0].SetLen(len(e.Buf))
	s.msg = unix.Msghdr{Iov: &s.iov[0], Control: &s.oob[0]}
	s.msg.SetIovlen(1)
	s.msg.SetControllen(len(s.oob))
	n, errno := raw(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&s.msg)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if errno != 0 {
		return errno
	}
	*e = flow.SocketError{Buf: e.Buf, N: n}
	errorControl(s.oob[:s.msg.Controllen], e)
	return 0
}

// sockaddr reads an address of either family.
func sockaddr(sa *unix.RawSockaddrInet6) (packet.Addr, uint16) {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	if sa.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return packet.AddrFrom4(v4.Addr), port
	}
	return packet.Addr(sa.Addr), port
}
