// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/netlink"
)

// Clients tells which UDP sockets of this host are clients of a port: those that
// are connected to it. A service is connected to nobody, so that whoever asks for
// a socket to one cannot take it for a client.
type Clients struct {
	mu     sync.Mutex
	socket *netlink.Socket
	seq    uint32
	buf    [4096]byte
}

// OpenClients opens a socket in the namespace of the calling thread.
func OpenClients() (*Clients, error) {
	s, err := netlink.Dial(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	return &Clients{socket: s}, nil
}

// Offsets in include/uapi/linux/inet_diag.h: struct inet_diag_msg has the family
// and the state in front of struct inet_diag_sockid, struct inet_diag_req_v2 has
// four bytes more.
const (
	diagState        = 1
	diagID           = 4
	diagRequestID    = 8
	stateEstablished = 1
)

// Connected tells whether a UDP socket of this host at peer is connected to local.
// Neither address is mapped, unspecified, or has a zone.
func (c *Clients) Connected(peer, local netip.AddrPort) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	var req [unix.SizeofNlMsghdr + inetDiagReqLen]byte
	binary.NativeEndian.PutUint32(req[0:], uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(req[8:], c.seq)
	body := req[unix.SizeofNlMsghdr:]
	body[0], body[1] = unix.AF_INET6, unix.IPPROTO_UDP
	if peer.Addr().Is4() {
		body[0] = unix.AF_INET
	}
	binary.NativeEndian.PutUint32(body[4:], ^uint32(0)) // in any state
	// The kernel looks up who would get what local sends: for this question the
	// source is the other end, "for historical reasons".
	id := body[diagRequestID:]
	putEnd(id[0:], id[4:], local)
	putEnd(id[2:], id[20:], peer)
	binary.NativeEndian.PutUint64(id[40:], ^uint64(0)) // of any cookie
	c.socket.Drain()
	if c.socket.Send(req[:]) != nil {
		return false
	}
	b, err := c.socket.Receive(c.buf[:])
	if err != nil || len(b) < unix.SizeofNlMsghdr+inetDiagMsgLen || binary.NativeEndian.Uint16(b[4:]) != sockDiagByFamily ||
		binary.NativeEndian.Uint32(b[8:]) != c.seq {
		return false
	}
	m := b[unix.SizeofNlMsghdr:]
	return m[diagState] == stateEstablished &&
		end(m[0], m[diagID:], m[diagID+4:]) == peer && end(m[0], m[diagID+2:], m[diagID+20:]) == local
}

func putEnd(port, addr []byte, a netip.AddrPort) {
	binary.BigEndian.PutUint16(port, a.Port())
	copy(addr, a.Addr().AsSlice())
}

func end(family byte, port, addr []byte) netip.AddrPort {
	a := netip.AddrFrom4([4]byte(addr))
	if family == unix.AF_INET6 {
		a = netip.AddrFrom16([16]byte(addr)).Unmap()
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port))
}
