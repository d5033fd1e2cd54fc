// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
	"aldente/ipc"
)

// Clients tells which UDP sockets of this host are clients of a port: those that
// are connected to it. A service is connected to nobody, so that whoever asks for
// a socket to one cannot take it for a client.
type Clients struct {
	mu   sync.Mutex
	diag *rtnl.SockDiag
}

// OpenClients opens a socket in the namespace of the calling thread.
func OpenClients() (*Clients, error) {
	d, err := rtnl.DialSockDiag()
	if err != nil {
		return nil, err
	}
	return &Clients{diag: d}, nil
}

// Connected tells whether a UDP socket of this host at peer is connected to local.
// Neither address is mapped, unspecified, or has a zone.
func (c *Clients) Connected(peer, local netip.AddrPort) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	q := rtnl.SockQuery{Family: unix.AF_INET6, Proto: ipc.ProtoUDP, States: ^uint32(0), Local: peer, Peer: local}
	if peer.Addr().Is4() {
		q.Family = unix.AF_INET
	}
	k, ok := c.diag.Lookup(&q)
	return ok && k.State() == rtnl.StateEstablished && k.Local() == peer && k.Peer() == local
}
