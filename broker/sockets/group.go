// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"aldente/broker/budget"
	"aldente/broker/egress"
	"aldente/broker/inet"
	"aldente/ipc"
)

// Multicast says what the guest may have of groups. The zero value: nothing.
type Multicast struct {
	Send      bool             // what it sends to groups leaves, and answers come back
	Broadcast bool             // what it sends to everybody on its network, too
	Groups    []netip.AddrPort // ports of groups that it may hear
}

// reaches tells whether a flow of the guest's may lead to a group, or to everybody. Of
// DHCP nothing leaves: the host's network would take the guest for a host of its own.
func (m *Multicast) reaches(f *Family, proto uint8, dst netip.AddrPort) bool {
	a := dst.Addr()
	if proto != ipc.ProtoUDP || slices.Contains([]uint16{67, 68, 546, 547}, dst.Port()) || dst.Port() == 0 {
		return false
	}
	if a.IsMulticast() {
		return m.Send && !a.IsInterfaceLocalMulticast() && (a.Is4() || a.As16()[1]&15 > 1)
	}
	return m.Broadcast && (a == broadcast || f.Broadcast.IsValid() && a == f.Broadcast)
}

// decideMember is for the socket by which the guest hears a group.
func (c *Config) decideMember(r *request) decision {
	fam := c.family(r.dst.Addr())
	switch {
	case !fam.Enabled:
		return decision{refused: unix.EAFNOSUPPORT, always: noFamily}
	case r.proto != ipc.ProtoUDP || !slices.Contains(c.Multicast.Groups, r.dst):
		return decision{refused: unix.EACCES, always: isMulticast}
	case fam.Scope == 0:
		return refuse(unix.ENODEV)
	}
	return decision{to: r.dst, from: r.dst, path: fam.path()}
}

// openMember opens it. Who may connect to the guest may speak to it by a group.
func (f *Factory) openMember(d *decision) outcome {
	g := inet.Group{Path: d.inet(), At: d.to, Filter: f.cfg().Ingress.Program(ipc.ProtoUDP, d.to.Port())}
	return made(g.Join(), d.to.Port())
}

// openGroup opens the two sockets of a flow to a group: the one that sends, and beside it
// on the same port one for answers. Where the port is that of a group which the guest may
// hear, others of the host have it for the same purpose: answers to that port are theirs.
func (f *Factory) openGroup(d *decision) outcome {
	port := d.from.Port()
	if port < f.ports.low {
		port = 0
	}
	fd, port := f.openAnswers(d, port)
	if port == 0 {
		return nothing(unix.EADDRINUSE)
	}
	g := inet.Group{Path: d.inet(), At: d.to, From: port, NotHost: !f.cfg().hostHears(d.to)}
	o := made(g.Dial(), port)
	switch {
	case fd >= 0 && o.fd < 0:
		unix.Close(fd)
	case fd >= 0:
		o.answers = fd
	}
	return o
}

// hostHears tells whether the host's own members of a group hear what the guest sends:
// where the egress rules would let it speak to them.
func (c *Config) hostHears(to netip.AddrPort) bool {
	host := netip.IPv6Loopback()
	if to.Addr().Is4() {
		host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return c.Egress == nil || c.Egress.Judge(egress.Flow{Proto: ipc.ProtoUDP, To: netip.AddrPortFrom(host, to.Port())}).Allowed
}

// openAnswers opens the socket for answers, and returns the port that both are to have:
// the guest's, where that is free or ours, and else another.
func (f *Factory) openAnswers(d *decision, port uint16) (int, uint16) {
	v4 := d.to.Addr().Is4()
	l := Listener{Proto: ipc.ProtoUDP, Addr: inet.Any(d.to.Addr()), Interface: d.Interface, Port: port, GuestPort: d.from.Port(), FD: -1}
	if d.Source.IsValid() {
		l.Addr = d.Source
	}
	fd, err := f.listenSocket(&l, false)
	alone := err == nil
	if errors.Is(err, unix.EADDRINUSE) && port != 0 && f.ports.mayLook(port) {
		fd, err = f.join(&l, v4)
	}
	if errors.Is(err, unix.EADDRINUSE) && port != 0 {
		if f.cfg().Multicast.hasPort(port) {
			return -1, port
		}
		l.Port = 0
		fd, err = f.listenSocket(&l, false)
		alone = err == nil
	}
	if err != nil {
		return -1, 0
	}
	if f.ledger != nil && !f.ledger.opened(budget.UDP, fd, stood{}) {
		unix.Close(fd)
		return -1, 0
	}
	if port = inet.LocalPort(fd); alone {
		f.ports.mu.Lock()
		f.ports.takes(portKey{v4, port}, fd)
		f.ports.mu.Unlock()
	}
	return fd, port
}

func (m *Multicast) hasPort(port uint16) bool {
	return slices.ContainsFunc(m.Groups, func(g netip.AddrPort) bool { return g.Port() == port })
}

// mayLook tells whether the kernel may be asked who is on a port, for which a guest gives
// the occasion.
func (p *udpPorts) mayLook(port uint16) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.look(port, 0)
	return err == nil
}
