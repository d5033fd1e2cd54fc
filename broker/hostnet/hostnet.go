// SPDX-License-Identifier: Apache-2.0

// Package hostnet reads what the host's network looks like, so that a guest's
// can be made to look the same: the interface taken as template, its addresses,
// gateway and routes, and the resolvers.
package hostnet

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
	"aldente/ipc/sock"
)

// DefaultTapName names the guest's interface where no template has a name.
const DefaultTapName = "tap0"

// What a family is given where the host has nothing to offer ("local mode").
var (
	LocalAddress4 = netip.MustParsePrefix("169.254.2.1/16")
	LocalGateway4 = netip.MustParseAddr("169.254.2.2")
	LocalGateway6 = netip.MustParseAddr("fe80::1")
)

// Options direct the choice of the template interface. Empty names mean: take
// the first default route.
type Options struct {
	Interface string     // -i: for both families, before the outbound interfaces
	Outbound4 string     // --outbound-if4
	Outbound6 string     // --outbound-if6
	Source4   netip.Addr // --outbound: sockets of IPv4 come from there; invalid: the kernel's choice
	Source6   netip.Addr // the same of IPv6
	Skip4     bool       // IPv4 is not wanted: Network.V4 stays zero
	Skip6     bool       // IPv6 is not wanted: Network.V6 stays zero
}

// Link is a network interface of the host.
type Link struct {
	Index int     // zero: none
	Name  string  // as the host has it
	MAC   [6]byte // zero if it has none
}

// Family is what the host offers a guest in one address family.
type Family struct {
	Unsupported bool // the kernel does not know the family
	Local       bool // no usable template: link-local defaults are in place
	Multiple    bool // several default routes, the first was taken
	Default     bool // a default route leads out, by a gateway or without one

	Link      Link         // the template; Index is zero if there is none
	Scope     int          // index of the interface on which sockets find link-local addresses; zero: unknown
	Address   netip.Prefix // for the guest; invalid for IPv6 in local mode
	Gateway   netip.Addr   // invalid: routes without gateway, or no default route
	LinkLocal netip.Addr   // IPv6: the template's own link-local address, if any

	// Addresses and Routes are what --config-net copies: bodies of RTM_NEWADDR
	// and RTM_NEWROUTE messages, stripped of what only means something on
	// the host, without an interface index (see package agent).
	Addresses [][]byte
	Routes    [][]byte // in the order in which they can be set

	Locals []netip.Addr // what Addresses hold

	// Connected are the routes that the kernel makes by itself where Addresses
	// are set. Inserted as well, IPv4's would stand in the table twice; where
	// other addresses take their place they belong to the copy.
	Connected [][]byte
}

// Network is the host's network at one moment.
type Network struct {
	V4, V6 Family       // IPv4 and IPv6
	Own    []netip.Addr // every address of the host, loopback included
}

// TapName is the name that the guest's interface has by default: that of the
// template, IPv4's first.
func (n *Network) TapName() string {
	switch {
	case !n.V4.Local && n.V4.Link.Name != "":
		return n.V4.Link.Name
	case !n.V6.Local && n.V6.Link.Name != "":
		return n.V6.Link.Name
	}
	return DefaultTapName
}

// Discover reads the network of the namespace that the calling thread is in.
// Without any usable interface it succeeds, with both families in local mode;
// it fails if an interface named in the options does not exist.
func Discover(o Options) (*Network, error) {
	c, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	s, err := Read(c, o)
	if err != nil {
		return nil, fmt.Errorf("cannot read the host's network: %w", err)
	}
	return s.Network(o)
}

// Snapshot is what the kernel said of links, addresses and routes, at about one moment.
type Snapshot struct {
	tables
	links      map[int]Link
	named      map[string]Link // those of the options that there are
	way4, way6 way
	no4, no6   bool // the kernel does not know the family
}

// Read asks the kernel by a connection, for what Network of the same options decides on. It
// changes nothing, and may be called again at any time.
func Read(c *rtnl.Conn, o Options) (*Snapshot, error) {
	s := &Snapshot{links: map[int]Link{}, named: map[string]Link{}, no4: !supported(unix.AF_INET), no6: !supported(unix.AF_INET6)}
	if err := s.read(c); err != nil {
		return nil, err
	}
	for _, name := range []string{o.Interface, o.Outbound4, o.Outbound6} {
		if name == "" {
			continue
		}
		switch l, err := c.LinkNamed(name); {
		case err == nil:
			s.named[name] = linkOf(l)
		case !errors.Is(err, unix.ENODEV):
			return nil, fmt.Errorf("interface %q: %w", name, err)
		}
	}
	for _, f := range []struct {
		af   uint8
		skip bool
		w    *way
	}{{unix.AF_INET, o.Skip4 || s.no4, &s.way4}, {unix.AF_INET6, o.Skip6 || s.no6, &s.way6}} {
		if f.skip {
			continue
		}
		template, _, source := o.bound(f.af)
		link, ok := s.named[template]
		if template != "" && !ok {
			continue
		}
		var err error
		if *f.w, err = s.complete(c, f.af, link, source); err != nil {
			return nil, err
		}
		if err := s.nameLink(c, s.derive(f.af, f.w.by(link.Index), *f.w).Link.Index); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// nameLink asks for the name of the interface that is going to be a template. One that has
// gone in the meantime has none.
func (s *Snapshot) nameLink(c *rtnl.Conn, index int) error {
	if index == 0 {
		return nil
	}
	l, err := c.LinkAt(index)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("interface %d: %w", index, err)
	}
	s.links[index] = linkOf(l)
	return nil
}

// Network decides what the host's network is to the guest. An interface of the options
// that does not exist is an error, and the families that it is for are in local mode.
func (s *Snapshot) Network(o Options) (*Network, error) {
	n := &Network{Own: s.own()}
	var err4, err6 error
	if !o.Skip4 {
		n.V4, err4 = s.family(unix.AF_INET, o)
	}
	if !o.Skip6 {
		n.V6, err6 = s.family(unix.AF_INET6, o)
	}
	if err4 == nil {
		err4 = err6
	}
	return n, err4
}

// bound is what the options say of one family.
func (o *Options) bound(af uint8) (template, outbound string, source netip.Addr) {
	template, outbound, source = o.Interface, o.Outbound4, o.Source4
	if af == unix.AF_INET6 {
		outbound, source = o.Outbound6, o.Source6
	}
	if template == "" {
		template = outbound
	}
	return template, outbound, source
}

// family derives one address family.
func (s *Snapshot) family(af uint8, o Options) (f Family, err error) {
	unsupported, w := s.no4, s.way4
	if af == unix.AF_INET6 {
		unsupported, w = s.no6, s.way6
	}
	if unsupported {
		return Family{Unsupported: true}, nil
	}
	template, outbound, _ := o.bound(af)
	for _, name := range []string{template, outbound} {
		if _, ok := s.named[name]; name != "" && !ok {
			f.local(af)
			return f, fmt.Errorf("interface %q: %w (\"ip link\" lists them)", name, unix.ENODEV)
		}
	}
	f = s.derive(af, w.by(s.named[template].Index), w)
	if f.Link.Index != 0 {
		f.Link = s.links[f.Link.Index]
	}
	f.Scope = f.Link.Index
	if outbound != "" && outbound != template {
		f.Scope = s.named[outbound].Index
	}
	return f, nil
}

// complete adds the routes of another table than main, where the default route is there:
// that of the interface, if one is named.
func (t *tables) complete(c *rtnl.Conn, af uint8, named Link, source netip.Addr) (w way, err error) {
	routes := t.routes(af)
	if best := defaultOf(*routes, named.Index); best != nil && best.SrcLen() == 0 {
		return way{}, nil
	}
	w, ok := t.ask(c, af, named, source)
	if !ok {
		return way{}, nil
	}
	if w.table == unix.RT_TABLE_MAIN || w.table == unix.RT_TABLE_LOCAL {
		return w, nil
	}
	main := len(*routes)
	err = t.readRoutes(c, af, w.table, func() { *routes = (*routes)[:main] })
	return w, err
}

// supported tells whether the kernel knows the family. It may be compiled
// without IPv6, or booted with ipv6.disable=1. The socket is one that a confined
// broker may make.
func supported(af uint8) bool {
	fd, err := sock.Socket(int(af), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return !errors.Is(err, unix.EAFNOSUPPORT)
	}
	unix.Close(fd)
	return true
}

// maxDumps is how often a dump is repeated that changes kept interrupting.
const maxDumps = 8

// dump is Conn.Dump, again as often as it takes; reset forgets what came before.
func dump(c *rtnl.Conn, typ uint16, body []byte, reset func(), each func(rtnl.Message)) error {
	for try := 1; ; try++ {
		reset()
		err := c.Dump(typ, body, each)
		if !errors.Is(err, rtnl.ErrInterrupted) || try == maxDumps {
			return err
		}
	}
}

// read fills the tables from the kernel.
func (t *tables) read(c *rtnl.Conn) error {
	t.nexthops = nil
	err := dump(c, unix.RTM_GETADDR, (&rtnl.AddrHeader{}).Body(), func() { t.addrs = t.addrs[:0] }, t.addAddr)
	if err != nil {
		return err
	}
	for _, af := range []uint8{unix.AF_INET, unix.AF_INET6} {
		routes := t.routes(af)
		if err := t.readRoutes(c, af, unix.RT_TABLE_MAIN, func() { *routes = (*routes)[:0] }); err != nil {
			return err
		}
	}
	return nil
}

// readRoutes adds those of a table.
func (t *tables) readRoutes(c *rtnl.Conn, af uint8, table uint32, reset func()) error {
	routes := t.routes(af)
	req := rtnl.RouteHeader{Family: af, Type: unix.RTN_UNICAST}
	body := rtnl.AppendAttrUint32(req.Body(), unix.RTA_TABLE, table)
	if err := dump(c, unix.RTM_GETROUTE, body, reset, func(m rtnl.Message) { t.addRoute(routes, af, table, m) }); err != nil {
		return err
	}
	return t.resolveNexthops(c, *routes)
}

// LinkIndex is the number of the interface of a name, in the namespace of the calling
// thread.
func LinkIndex(name string) (int, error) {
	c, err := rtnl.Dial()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	l, err := c.LinkNamed(name)
	if err != nil {
		return 0, err
	}
	return l.Index(), nil
}

func linkOf(l rtnl.Link) Link {
	return Link{Index: l.Index(), Name: l.Name(), MAC: l.MAC()}
}
