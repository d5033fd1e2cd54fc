// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"iter"
	"syscall"

	"golang.org/x/sys/unix"

	"aldente/worker/flow"
	"aldente/worker/packet"
)

// cmsg is one control message, cmsg(3).
type cmsg struct {
	level, typ int32
	data       []byte
}

// cmsgs walks control messages as the kernel wrote them.
func cmsgs(oob []byte) iter.Seq[cmsg] {
	return func(yield func(cmsg) bool) {
		const head = unix.SizeofCmsghdr
		for len(oob) >= head {
			n := int(binary.NativeEndian.Uint64(oob))
			if n < head || n > len(oob) {
				return
			}
			level := int32(binary.NativeEndian.Uint32(oob[8:]))
			typ := int32(binary.NativeEndian.Uint32(oob[12:]))
			if !yield(cmsg{level, typ, oob[head:n]}) {
				return
			}
			oob = oob[min((n+7)&^7, len(oob)):]
		}
	}
}

// datagramControl reads control messages from the kernel.
func datagramControl(oob []byte, d *flow.Datagram) {
	for m := range cmsgs(oob) {
		level, typ, data := m.level, m.typ, m.data
		switch {
		case level == unix.SOL_UDP && typ == unix.UDP_GRO && len(data) >= 4:
			if seg := int(int32(binary.NativeEndian.Uint32(data))); seg > 0 && seg < d.N {
				d.Segment = seg
			}
		case level == unix.SOL_IP && typ == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			d.To = packet.AddrFrom4([4]byte(data[8:12])) // ipi_addr: where it was sent to
		case level == unix.SOL_IPV6 && typ == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			copy(d.To[:], data[:16])
		}
	}
}

// errorControl reads control messages of the error queue.
func errorControl(oob []byte, e *flow.SocketError) {
	for m := range cmsgs(oob) {
		level, typ, data := m.level, m.typ, m.data
		v4 := level == unix.SOL_IP && typ == unix.IP_RECVERR
		v6 := level == unix.SOL_IPV6 && typ == unix.IPV6_RECVERR
		if !v4 && !v6 || len(data) < 16 {
			continue
		}
		e.Errno = syscall.Errno(binary.NativeEndian.Uint32(data))
		e.Origin, e.Type, e.Code = data[4], data[5], data[6]
		e.Info = binary.NativeEndian.Uint32(data[8:])
		// SO_EE_OFFENDER: a socket address follows.
		if v4 && len(data) >= 16+unix.SizeofSockaddrInet4 {
			if binary.NativeEndian.Uint16(data[16:]) == unix.AF_INET {
				e.Offender = packet.AddrFrom4([4]byte(data[20:24]))
			}
		}
		if v6 && len(data) >= 16+unix.SizeofSockaddrInet6 {
			if binary.NativeEndian.Uint16(data[16:]) == unix.AF_INET6 {
				copy(e.Offender[:], data[24:40])
			}
		}
	}
}
