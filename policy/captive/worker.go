// SPDX-License-Identifier: Apache-2.0

//go:build captive

package captive

import "golang.org/x/sys/unix"

// ofWorker are calls that a worker's list permits. Those who read names have no use for
// them.
var ofWorker = attempts{
	"worker-shutdown": withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_SHUTDOWN, uintptr(h.Stream), unix.SHUT_WR} }),
	"worker-ttl":      flowOption(unix.IPPROTO_IP, unix.IP_TTL),
	"worker-linger":   streamOption(unix.SOL_SOCKET, unix.SO_LINGER),
	"worker-nodelay":  streamOption(unix.IPPROTO_TCP, unix.TCP_NODELAY),
	"worker-error": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_GETSOCKOPT, uintptr(h.Stream), unix.SOL_SOCKET, unix.SO_ERROR, addr(&[4]byte{}), addr(&[1]uint32{4})}
	}),
	"worker-info": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_GETSOCKOPT, uintptr(h.Stream), unix.IPPROTO_TCP, unix.TCP_INFO, addr(&[256]byte{}), addr(&[1]uint32{256})}
	}),
	"worker-accept": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_ACCEPT4, uintptr(h.Stream), 0, 0, unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC}
	}),
	"worker-sockname": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_GETSOCKNAME, uintptr(h.Stream), addr(&[28]byte{}), addr(&[1]uint32{28})}
	}),
	"worker-writev": withHeld(func(h Held) []uintptr { return []uintptr{unix.SYS_WRITEV, uintptr(h.Flow), 0, 0} }),
	"worker-recvfrom": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_RECVFROM, uintptr(h.Flow), addr(&[4]byte{}), 4, unix.MSG_DONTWAIT, 0, 0}
	}),
	"worker-recvmmsg": withHeld(func(h Held) []uintptr {
		return []uintptr{unix.SYS_RECVMMSG, uintptr(h.Flow), 0, 0, unix.MSG_DONTWAIT, 0}
	}),
	"worker-pipe":   call(unix.SYS_PIPE2, addr(&[2]int32{}), unix.O_NONBLOCK|unix.O_CLOEXEC),
	"worker-splice": call(unix.SYS_SPLICE, mask, 0, mask, 0, 1, unix.SPLICE_F_NONBLOCK),
	"worker-wait":   call(unix.SYS_EPOLL_PWAIT2, mask, 0, 0, 0, 0, 0),
}
