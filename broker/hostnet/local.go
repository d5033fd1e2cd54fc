// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"cmp"
	"encoding/binary"
	"sync"

	"golang.org/x/sys/unix"

	"aldente/broker/egress"
	"aldente/broker/rtnl"
)

// Local finds out whether what a socket sends would stay on the host. It asks the
// kernel each time, on a socket that it keeps: an address may have come a moment
// ago, and routes of type "local" make whole prefixes the host's.
type Local struct {
	mu    sync.Mutex
	c     *rtnl.Conn
	scope uint32
}

// NewLocal opens the socket in the namespace of the calling thread. scope is the
// index of the interface that link-local addresses are meant on, where a flow does not say.
func NewLocal(scope int) (*Local, error) {
	c, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	return &Local{c: c, scope: uint32(scope)}, nil
}

// SetScope changes the interface that link-local addresses are meant on.
func (l *Local) SetScope(index int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.scope = uint32(index)
}

// Has tells whether what the socket sends would stay on the host. Only a unicast
// route that leads out by an interface is none of the host's; anything else that
// the kernel may answer, or not answer, is taken for the host. Where there is no
// route, nothing is sent: that is for connect to tell.
func (l *Local) Has(f egress.Flow) bool {
	a := f.To.Addr()
	l.mu.Lock()
	defer l.mu.Unlock()
	if scope := cmp.Or(f.Scope, l.scope); a.Is6() && a.IsLinkLocalUnicast() && scope != 0 {
		return l.stays(f, scope)
	}
	if f.Device == "" {
		return l.stays(f, 0)
	}
	// What leaves by an interface comes back if the network sends it back: an
	// address of the host is the host by whatever interface.
	return l.stays(f, 0) || l.staysOn(f)
}

// staysOn asks for the socket's interface, which may be another one of the same
// name since the last time.
func (l *Local) staysOn(f egress.Flow) bool {
	link, err := l.c.LinkNamed(f.Device)
	if err == unix.ENODEV {
		return false // nothing is sent
	}
	return err != nil || l.stays(f, uint32(link.Index()))
}

// stays has the kernel look the route up, as connect would.
func (l *Local) stays(f egress.Flow, oif uint32) bool {
	r, err := l.c.Route(routeRequest(f, oif))
	switch err {
	case nil:
		return !leaves(r)
	case unix.ENETUNREACH, unix.EHOSTUNREACH:
		return false // no route, or one of type unreachable: connect says the same
	}
	return true // among others: prohibit, and IPv4's blackhole
}

// routeRequest is what a flow looks like to the kernel's rules and routes.
func routeRequest(f egress.Flow, oif uint32) []byte {
	a, from := f.To.Addr(), f.From.Addr()
	h := rtnl.RouteHeader{Family: unix.AF_INET6, DstLen: a.BitLen()}
	if a.Is4() {
		h.Family = unix.AF_INET
	}
	hasSource := from.IsValid() && !from.IsUnspecified() && from.Is4() == a.Is4()
	if hasSource {
		h.SrcLen = from.BitLen()
	}
	b := rtnl.AppendAttr(h.Body(), unix.RTA_DST, a.AsSlice())
	if hasSource {
		b = rtnl.AppendAttr(b, unix.RTA_SRC, from.AsSlice())
	}
	if oif != 0 {
		b = rtnl.AppendAttrUint32(b, unix.RTA_OIF, oif)
	}
	proto := f.Proto
	if proto == unix.IPPROTO_ICMP && a.Is6() {
		proto = unix.IPPROTO_ICMPV6
	}
	b = rtnl.AppendAttr(b, unix.RTA_IP_PROTO, []byte{proto})
	if port := f.From.Port(); port != 0 && proto == unix.IPPROTO_UDP {
		b = rtnl.AppendAttr(b, unix.RTA_SPORT, binary.BigEndian.AppendUint16(nil, port))
	}
	if port := f.To.Port(); port != 0 {
		b = rtnl.AppendAttr(b, unix.RTA_DPORT, binary.BigEndian.AppendUint16(nil, port))
	}
	return b
}

// leaves tells whether a route leads away: of type unicast, by an interface other
// than lo.
func leaves(r rtnl.Route) bool {
	oif, ok := r.Out()
	return r.Type() == unix.RTN_UNICAST && ok && oif != rtnl.Loopback
}
