// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/rtnl"
)

// Local finds out whether addresses are the host's own. It asks the kernel each
// time, on a socket that it keeps: an address may have come a moment ago, and
// routes of type "local" make whole prefixes the host's.
type Local struct {
	mu    sync.Mutex
	c     *rtnl.Conn
	scope uint32
}

// NewLocal opens the socket in the namespace of the calling thread. scope is the
// index of the interface that link-local addresses are meant on.
func NewLocal(scope int) (*Local, error) {
	c, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	return &Local{c: c, scope: uint32(scope)}, nil
}

// Has tells whether a packet to the address would be delivered to the host. An
// address without a route is nobody's; if the kernel does not answer, all are
// the host's.
func (l *Local) Has(a netip.Addr) bool {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[1] = unix.AF_INET6, 128
	if a = a.Unmap().WithZone(""); a.Is4() {
		b[0], b[1] = unix.AF_INET, 32
	}
	b = rtnl.AppendAttr(b, unix.RTA_DST, a.AsSlice())
	if a.IsLinkLocalUnicast() && !a.Is4() && l.scope != 0 {
		b = rtnl.AppendAttrUint32(b, unix.RTA_OIF, l.scope)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r, err := l.c.Get(unix.RTM_GETROUTE, b)
	switch err {
	case nil:
		return len(r) < unix.SizeofRtMsg || r[7] == unix.RTN_LOCAL || r[7] == unix.RTN_BROADCAST
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL:
		return false // unreachable, prohibit and blackhole routes
	}
	return true
}
