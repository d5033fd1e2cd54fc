// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
	"aldente/ipc"
	"aldente/ipc/sock"
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

// lister asks the kernel which sockets are bound to a port of the network namespace
// that it was opened in. It is not for concurrent use.
type lister struct{ diag *rtnl.SockDiag }

func openLister() (*lister, error) {
	d, err := rtnl.DialSockDiag()
	if err != nil {
		return nil, err
	}
	return &lister{d}, nil
}

// listRetries is how often a list that was disturbed is begun anew.
const listRetries = 3

// on lists the sockets on a port: of UDP all, of TCP those that listen. With a
// peer's port, only those that are connected to such a one.
func (l *lister) on(proto uint8, port, peerPort uint16) ([]holder, error) {
	if l == nil {
		return nil, unix.EOPNOTSUPP
	}
	q := rtnl.SockQuery{Proto: proto, States: ^uint32(0), Local: rtnl.PortOnly(port), Peer: rtnl.PortOnly(peerPort)}
	if proto == ipc.ProtoTCP {
		q.States = 1 << rtnl.StateListen
	}
	var all []holder
	for _, q.Family = range [...]uint8{unix.AF_INET, unix.AF_INET6} {
		err := error(unix.EINTR)
		var some []holder
		for try := 0; err != nil && try < listRetries; try++ {
			if some, err = l.list(&q); err != nil {
				l.diag.Drain()
			}
			if errors.Is(err, unix.ENOENT) {
				break
			}
		}
		if errors.Is(err, unix.ENOENT) && q.Family == unix.AF_INET6 {
			break // a kernel without it
		}
		if err != nil {
			return nil, fmt.Errorf("sock_diag: %w", err)
		}
		all = append(all, some...)
	}
	return all, nil
}

func (l *lister) list(q *rtnl.SockQuery) (all []holder, err error) {
	if err := l.diag.List(q); err != nil {
		return nil, err
	}
	for done := false; !done; {
		done, err = l.diag.Next(func(k rtnl.Sock) {
			if k.Port() == q.Local.Port() {
				all = append(all, holderOf(k))
			}
		})
		if err != nil {
			return nil, err
		}
		if l.diag.Interrupted() {
			return nil, unix.EINTR
		}
	}
	return all, nil
}

// holderOf keeps what is of interest of a socket.
func holderOf(k rtnl.Sock) holder {
	return holder{local: k.Local(), peer: k.Peer(), v6only: k.V6Only(), cookie: k.Cookie(), uid: k.UID(), inode: k.Inode()}
}

// cookie is the socket's number, which no other ever has; zero if the kernel
// does not tell.
func cookie(fd int) uint64 {
	c, err := sock.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return 0
	}
	return c
}
