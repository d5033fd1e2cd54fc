// SPDX-License-Identifier: Apache-2.0

//go:build captive

package captive

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// statusPrefix is how the names of status sockets begin, see broker/control/api.
const statusPrefix = "aldente/"

var sockets = attempts{
	"socket-tcp":          call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP),
	"socket-udp":          call(unix.SYS_SOCKET, unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP),
	"socket-mptcp":        call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP),
	"socket-unix":         call(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM, 0),
	"socket-netlink":      call(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, 0),
	"socket-raw":          call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP),
	"socket-vsock":        call(unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0),
	"socketpair":          call(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_STREAM, 0, addr(&[2]int32{})),
	"socketpair-datagram": call(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_DGRAM, 0, addr(&[2]int32{})),
	"socketpair-inet":     call(unix.SYS_SOCKETPAIR, unix.AF_INET, unix.SOCK_SEQPACKET, 0, addr(&[2]int32{})),
	"pair-connect":        pairConnect,
	"connect":             withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_CONNECT, uintptr(h.Flow), addr(loopback()), 16} }),
	"bind":                withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_BIND, uintptr(h.Flow), addr(loopback()), 16} }),
	"listen":              withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_LISTEN, uintptr(h.Flow), 1} }),
	"sendto-aimed": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_SENDTO, uintptr(h.Flow), addr(&[4]byte{}), 4, 0, addr(loopback()), 16}
	}),
	"sendto-null": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_SENDTO, uintptr(h.Flow), addr(&[4]byte{}), 4, 0, 0, 0}
	}),
	"sendmsg-aimed": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_SENDMSG, uintptr(h.Flow), addr(aimed()), 0}
	}),
	"sendmmsg": withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_SENDMMSG, uintptr(h.Flow), addr(aimed()), 1, 0} }),
	"sockopt-bindtodevice": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_SETSOCKOPT, uintptr(h.Flow), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, cstr("lo"), 2}
	}),
	"sockopt-mark": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_SETSOCKOPT, uintptr(h.Flow), unix.SOL_SOCKET, unix.SO_MARK, addr(&[4]byte{1}), 4}
	}),
	"sockopt-filter": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_SETSOCKOPT, uintptr(h.Flow), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, addr(&[16]byte{}), 16}
	}),
	"sockopt-wrong-level": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_SETSOCKOPT, uintptr(h.Flow), unix.IPPROTO_IPV6, unix.IP_TTL, addr(&[4]byte{1}), 4}
	}),
	"sockopt-pktinfo": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_SETSOCKOPT, uintptr(h.Flow), unix.IPPROTO_IP, unix.IP_PKTINFO, addr(&[4]byte{1}), 4}
	}),
	"getsockopt-other": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_GETSOCKOPT, uintptr(h.Flow), unix.SOL_SOCKET, unix.SO_PEERCRED, addr(&[16]byte{}), addr(&[1]uint32{16})}
	}),
	"getsockopt-filter": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_GETSOCKOPT, uintptr(h.Datagram), unix.SOL_SOCKET, unix.SO_GET_FILTER, addr(&[16]byte{}), addr(&[1]uint32{16})}
	}),
	"getsockopt-level": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_GETSOCKOPT, uintptr(h.Stream), unix.IPPROTO_IP, unix.TCP_INFO, addr(&[16]byte{}), addr(&[1]uint32{16})}
	}),
	"accept-plain": withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_ACCEPT, uintptr(h.Listener), 0, 0} }),
	"accept4-blocking": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_ACCEPT4, uintptr(h.Listener), 0, 0, 0}
	}),
	"socket-packet":       call(unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_RAW, 0x0300),
	"socket-sctp":         call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP),
	"socket-netlink-diag": call(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG),
	"socket-audit":        call(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT),
	"socket-generic":      call(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC),
	"socket-alg":          call(unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET, 0),
	"socket-xdp":          call(unix.SYS_SOCKET, unix.AF_XDP, unix.SOCK_RAW, 0),
	"socket-echo":         call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP),
	"socket-high-bits":    call(unix.SYS_SOCKET, unix.AF_INET|1<<32, unix.SOCK_STREAM, unix.IPPROTO_TCP),
	"socket-unnamed":      call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0),
	"sockopt-transparent": flowOption(unix.IPPROTO_IP, unix.IP_TRANSPARENT),
	"sockopt-ip-options":  flowOption(unix.IPPROTO_IP, unix.IP_OPTIONS),
	"sockopt-rthdr":       flowOption(unix.IPPROTO_IPV6, unix.IPV6_RTHDR),
	"sockopt-broadcast":   flowOption(unix.SOL_SOCKET, unix.SO_BROADCAST),
	"sockopt-membership":  flowOption(unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP),
	"sockopt-by-source":   flowOption(unix.IPPROTO_IP, unix.IP_ADD_SOURCE_MEMBERSHIP),
	"sockopt-repair":      streamOption(unix.IPPROTO_TCP, unix.TCP_REPAIR),
	"sockopt-ulp":         streamOption(unix.IPPROTO_TCP, unix.TCP_ULP),
	"sockopt-congestion":  streamOption(unix.IPPROTO_TCP, unix.TCP_CONGESTION),
	"sockopt-detach":      flowOption(unix.SOL_SOCKET, unix.SO_DETACH_FILTER),
	"sockopt-reuseport":   flowOption(unix.SOL_SOCKET, unix.SO_REUSEPORT),

	// A connected datagram socket aimed elsewhere, by all that the kernel offers.
	"reconnect":         withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_CONNECT, uintptr(h.Flow), addr(loopback()), 16} }),
	"disconnect":        withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_CONNECT, uintptr(h.Flow), addr(&[16]byte{}), 16} }),
	"sendto-listener":   aimedFrom(func(h Held) int { return h.Datagram }),
	"sendto-echo":       aimedFrom(func(h Held) int { return h.Echo }),
	"sendto-stream":     aimedFrom(func(h Held) int { return h.Stream }),
	"sendto-channel":    aimedFrom(func(h Held) int { return h.Channel }),
	"write-listener":    writeTo(func(h Held) int { return h.Datagram }),
	"write-tcplistener": writeTo(func(h Held) int { return h.Listener }),
	"splice-listener":   func(h Held) error { return spliceTo(h.Datagram) },
	"bind-echo":         withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_BIND, uintptr(h.Echo), addr(loopback()), 16} }),
	"bind-stream":       withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_BIND, uintptr(h.Stream), addr(loopback()), 16} }),
	"listen-stream":     withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_LISTEN, uintptr(h.Stream), 1} }),
	"connect-listener":  withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_CONNECT, uintptr(h.Listener), addr(loopback()), 16} }),
	"passfd":            passDescriptor,
	"connect-status":    connectStatus,
}

func flowOption(level, name uintptr) func(Held) error {
	return withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_SETSOCKOPT, uintptr(h.Flow), level, name, addr(&[16]byte{1}), 4}
	})
}

func streamOption(level, name uintptr) func(Held) error {
	return withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_SETSOCKOPT, uintptr(h.Stream), level, name, addr(&[16]byte{1}), 4}
	})
}

func aimedFrom(which func(Held) int) func(Held) error {
	return withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_SENDTO, uintptr(which(h)), addr(&[4]byte{}), 4, 0, addr(loopback()), 16}
	})
}

func writeTo(which func(Held) int) func(Held) error {
	return withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_WRITE, uintptr(which(h)), addr(&[4]byte{}), 4}
	})
}

// spliceTo moves a byte from a pipe to a socket.
func spliceTo(fd int) error {
	var p [2]int32
	if err := raw(unix.SYS_PIPE2, addr(&p), unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return err
	}
	if err := raw(unix.SYS_WRITE, uintptr(p[1]), addr(&[1]byte{}), 1); err != nil {
		return err
	}
	return raw(unix.SYS_SPLICE, uintptr(p[0]), 0, uintptr(fd), 0, 1, unix.SPLICE_F_NONBLOCK)
}

// pairConnect makes what a channel is made of and dissolves the connection, to
// make another.
func pairConnect(Held) error {
	var p [2]int32
	if err := raw(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0, addr(&p)); err != nil {
		return err
	}
	return raw(unix.SYS_CONNECT, uintptr(p[0]), addr(&[16]byte{}), 16) // AF_UNSPEC
}

// connectStatus connects to the status socket of this process, which is in reach of any
// other process of its user's.
func connectStatus(Held) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	a := append([]byte{unix.AF_UNIX, 0, 0}, statusPrefix+strconv.Itoa(os.Getpid())...)
	kept = append(kept, a)
	return raw(unix.SYS_CONNECT, uintptr(fd), addr((*[3]byte)(a)), uintptr(len(a)))
}

// passDescriptor sends a descriptor over the channel.
func passDescriptor(h Held) error {
	oob := unix.UnixRights(h.Log)
	iov := &unix.Iovec{Base: &[]byte{1}[0], Len: 1}
	m := &unix.Msghdr{Iov: iov, Iovlen: 1, Control: &oob[0]}
	m.SetControllen(len(oob))
	kept = append(kept, iov, oob, m)
	return raw(unix.SYS_SENDMSG, uintptr(h.Channel), addr(m), 0)
}
