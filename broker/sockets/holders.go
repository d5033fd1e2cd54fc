// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/netlink"
	"aldente/ipc"
)

// holder is a socket that is bound to a port of ours, as sock_diag(7) tells.
type holder struct {
	local  netip.AddrPort // IPv4 addresses as such, of whichever family the socket is
	peer   netip.AddrPort // port zero: not connected
	v6only bool           // of family AF_INET6, and of no concern to IPv4
	cookie uint64         // SO_COOKIE
	uid    uint32
	inode  uint32
}

// inFamily tells whether the socket may stand in the way of another of the
// family.
func (h *holder) inFamily(v4 bool) bool {
	switch a := h.local.Addr(); {
	case a.Is4():
		return v4
	case a.IsUnspecified():
		return !v4 || !h.v6only
	}
	return !v4
}

// Sizes and values of include/uapi/linux/inet_diag.h, sock_diag.h and
// net/tcp_states.h; offsets into struct inet_diag_msg and its struct
// inet_diag_sockid.
const (
	sockDiagByFamily = 20
	inetDiagReqLen   = 56
	inetDiagMsgLen   = 72
	stateListen      = 10

	diagSport  = 4
	diagDport  = 6
	diagSrc    = 8
	diagDst    = 24
	diagCookie = 44
	diagUID    = 64
	diagInode  = 68
	skV6Only   = 11 // INET_DIAG_SKV6ONLY, told of sockets that are not connected

	dumpInterrupted = 0x10 // NLM_F_DUMP_INTR, include/uapi/linux/netlink.h
)

// lister asks the kernel which sockets are bound to a port of the network namespace
// that it was opened in. It is not for concurrent use.
type lister struct {
	socket *netlink.Socket
	seq    uint32
	buf    []byte
}

func openLister() (*lister, error) {
	s, err := netlink.Dial(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	return &lister{socket: s, seq: rand.Uint32(), buf: make([]byte, 64<<10)}, nil
}

// listRetries is how often a list that was disturbed is begun anew.
const listRetries = 3

// on lists the sockets on a port: of UDP all, of TCP those that listen. With a
// peer's port, only those that are connected to such a one.
func (l *lister) on(proto uint8, port, peerPort uint16) ([]holder, error) {
	if l == nil {
		return nil, unix.EOPNOTSUPP
	}
	var all []holder
	for _, family := range [...]uint8{unix.AF_INET, unix.AF_INET6} {
		err := error(unix.EINTR)
		var some []holder
		for try := 0; err != nil && try < listRetries; try++ {
			if some, err = l.dump(family, proto, port, peerPort); err != nil {
				l.socket.Drain()
			}
			if err == unix.ENOENT {
				break
			}
		}
		if err == unix.ENOENT && family == unix.AF_INET6 {
			break // a kernel without it
		}
		if err != nil {
			return nil, fmt.Errorf("sock_diag: %w", err)
		}
		all = append(all, some...)
	}
	return all, nil
}

func (l *lister) dump(family, proto uint8, port, peerPort uint16) ([]holder, error) {
	l.seq++
	var req [unix.SizeofNlMsghdr + inetDiagReqLen]byte
	binary.NativeEndian.PutUint32(req[0:], uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(req[8:], l.seq)
	body := req[unix.SizeofNlMsghdr:]
	body[0], body[1] = family, proto
	states := ^uint32(0)
	if proto == ipc.ProtoTCP {
		states = 1 << stateListen
	}
	binary.NativeEndian.PutUint32(body[4:], states)
	binary.BigEndian.PutUint16(body[8:], port)
	binary.BigEndian.PutUint16(body[10:], peerPort)
	if err := l.socket.Send(req[:]); err != nil {
		return nil, err
	}
	var all []holder
	for {
		b, err := l.socket.Receive(l.buf)
		if err != nil {
			return nil, err
		}
		done, err := takeHolders(b, l.seq, port, &all)
		if err != nil || done {
			return all, err
		}
	}
}

// takeHolders reads one datagram of a dump. done tells that it was the last.
func takeHolders(b []byte, seq uint32, port uint16, all *[]holder) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return true, unix.EBADMSG
		}
		typ, flags := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:])
		ours := binary.NativeEndian.Uint32(b[8:]) == seq
		body := b[unix.SizeofNlMsghdr:n]
		b = b[min((n+3)&^3, len(b)):]
		switch {
		case !ours:
		case flags&dumpInterrupted != 0:
			return true, unix.EINTR
		case typ == unix.NLMSG_DONE:
			return true, nil
		case typ == unix.NLMSG_ERROR && len(body) >= 4:
			return true, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		case typ == sockDiagByFamily && len(body) >= inetDiagMsgLen:
			if h := parseHolder(body); h.local.Port() == port {
				*all = append(*all, h)
			}
		}
	}
	return false, nil
}

// parseHolder reads one struct inet_diag_msg with its attributes.
func parseHolder(b []byte) holder {
	addr := func(at int) netip.Addr {
		if b[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[at : at+4]))
		}
		return netip.AddrFrom16([16]byte(b[at : at+16])).Unmap()
	}
	h := holder{
		local: netip.AddrPortFrom(addr(diagSrc), binary.BigEndian.Uint16(b[diagSport:])),
		peer:  netip.AddrPortFrom(addr(diagDst), binary.BigEndian.Uint16(b[diagDport:])),
		// Two words, the lower first.
		cookie: uint64(binary.NativeEndian.Uint32(b[diagCookie:])) | uint64(binary.NativeEndian.Uint32(b[diagCookie+4:]))<<32,
		uid:    binary.NativeEndian.Uint32(b[diagUID:]),
		inode:  binary.NativeEndian.Uint32(b[diagInode:]),
	}
	for a := b[inetDiagMsgLen:]; len(a) >= unix.SizeofRtAttr; {
		n := int(binary.NativeEndian.Uint16(a))
		if n < unix.SizeofRtAttr || n > len(a) {
			break
		}
		if binary.NativeEndian.Uint16(a[2:]) == skV6Only && n > unix.SizeofRtAttr {
			h.v6only = a[unix.SizeofRtAttr] != 0
		}
		a = a[min((n+3)&^3, len(a)):]
	}
	return h
}

// cookie is the socket's number, which no other ever has; zero if the kernel
// does not tell.
func cookie(fd int) uint64 {
	c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return 0
	}
	return c
}
