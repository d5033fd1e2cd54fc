// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// backlog is how many connections may wait to be accepted; the kernel bounds
// it by net.core.somaxconn.
const backlog = 4096

// open carries out one request for a socket. Its answer may wait for the next.
func (s *server) open(b []byte) error {
	var o ipc.AgentOpen
	if err := o.Decode(b); err != nil {
		return err
	}
	opened := ipc.AgentOpened{ID: o.ID}
	fd, err := openSocket(&o)
	if err != nil {
		opened.Errno = errno(err)
	}
	s.held = append(s.held, answer{opened.Encode(), fd})
	if len(s.held) < maxHeld {
		return nil
	}
	return s.answer()
}

// answer sends the answers held back.
func (s *server) answer() (err error) {
	for _, a := range s.held {
		if err == nil {
			err = ipc.Send(s.channel, a.rec, a.fd)
		}
		if a.fd >= 0 {
			unix.Close(a.fd)
		}
	}
	s.held = s.held[:0]
	return err
}

// openSocket makes the socket that a request describes.
func openSocket(o *ipc.AgentOpen) (int, error) {
	domain, typ := unix.AF_INET6, unix.SOCK_STREAM
	if o.Flags&ipc.AgentOpenIPv4 != 0 {
		domain = unix.AF_INET
	}
	if o.Proto == ipc.ProtoUDP {
		typ = unix.SOCK_DGRAM
	}
	// Without a protocol: TCP would not be, where MPTCP is the default.
	fd, err := unix.Socket(domain, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(o.Proto))
	if err != nil {
		return -1, err
	}
	setOptions(fd, domain, o)
	if o.Flags&ipc.AgentOpenBind != 0 {
		err = bind(fd, domain, o)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// setOptions sets what a socket is better with; none is missed where the kernel
// lacks it.
func setOptions(fd, domain int, o *ipc.AgentOpen) {
	set := func(level, name int) { _ = unix.SetsockoptInt(fd, level, name, 1) }
	v4, v6 := domain == unix.AF_INET, domain == unix.AF_INET6
	if o.Proto == ipc.ProtoTCP {
		set(unix.SOL_SOCKET, unix.SO_OOBINLINE) // urgent bytes stay in the stream; a listener's connections inherit it
		set(unix.SOL_SOCKET, unix.SO_REUSEADDR)
		return
	}
	set(unix.IPPROTO_UDP, unix.UDP_GRO)
	listens, binds := o.Flags&ipc.AgentOpenListen != 0, o.Flags&ipc.AgentOpenBind != 0
	if binds && !listens {
		set(unix.SOL_SOCKET, unix.SO_REUSEPORT) // it answers from a listener's port
	}
	switch {
	case listens:
		if v4 || o.Flags&ipc.AgentOpenDual != 0 {
			set(unix.IPPROTO_IP, unix.IP_PKTINFO)
		}
		if v6 {
			set(unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO)
		}
	case v4:
		set(unix.IPPROTO_IP, unix.IP_RECVERR)
	default:
		set(unix.IPPROTO_IPV6, unix.IPV6_RECVERR)
	}
}

// bind binds the socket, and has it listen if it is to.
func bind(fd, domain int, o *ipc.AgentOpen) error {
	if domain == unix.AF_INET6 {
		v6only := 1
		if o.Flags&ipc.AgentOpenDual != 0 {
			v6only = 0
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only); err != nil {
			return err
		}
	}
	listen := o.Flags&ipc.AgentOpenListen != 0
	if o.Flags&ipc.AgentOpenDevice != 0 {
		if err := unix.BindToDevice(fd, "lo"); err != nil {
			return err
		}
	}
	local := netip.AddrPortFrom(netip.AddrFrom16(o.Local), o.LocalPort)
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(o.LocalPort), Addr: local.Addr().As16()}
	if domain == unix.AF_INET {
		v4 := &unix.SockaddrInet4{Port: int(o.LocalPort)}
		copy(v4.Addr[:], o.Local[12:])
		sa = v4
	}
	if err := unix.Bind(fd, sa); err != nil {
		return err
	}
	if !listen {
		return nil
	}
	if o.Proto == ipc.ProtoUDP {
		// A port that nobody else had. Only now it may be shared by sockets that
		// answer from it, which the kernel wants to be of the same user.
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	return unix.Listen(fd, backlog)
}
