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
	Interface string // -i: for both families, before the outbound interfaces
	Outbound4 string // --outbound-if4
	Outbound6 string // --outbound-if6
	Skip4     bool   // IPv4 is not wanted: Network.V4 stays zero
	Skip6     bool   // IPv6 is not wanted: Network.V6 stays zero
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

	Link      Link         // the template; Index is zero if there is none
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

	var t tables
	if err := t.read(c); err != nil {
		return nil, fmt.Errorf("cannot read the host's network: %w", err)
	}
	n := &Network{Own: t.own()}
	if !o.Skip4 {
		if n.V4, err = family(c, &t, unix.AF_INET, o.Interface, o.Outbound4); err != nil {
			return nil, err
		}
	}
	if !o.Skip6 {
		if n.V6, err = family(c, &t, unix.AF_INET6, o.Interface, o.Outbound6); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// family derives one address family.
func family(c *rtnl.Conn, t *tables, af uint8, names ...string) (Family, error) {
	if !supported(af) {
		return Family{Unsupported: true}, nil
	}
	index := 0
	var link Link
	for _, name := range names {
		if name == "" {
			continue
		}
		var err error
		if link, err = linkByName(c, name); err != nil {
			return Family{}, err
		}
		index = link.Index
		break
	}
	f := t.derive(af, index)
	if f.Link.Index != 0 && link.Index == 0 {
		var err error
		if link, err = linkByIndex(c, f.Link.Index); err != nil {
			return Family{}, err
		}
	}
	if f.Link.Index != 0 {
		f.Link = link
	}
	return f, nil
}

// supported tells whether the kernel knows the family. It may be compiled
// without IPv6, or booted with ipv6.disable=1.
func supported(af uint8) bool {
	fd, err := unix.Socket(int(af), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return !errors.Is(err, unix.EAFNOSUPPORT)
	}
	unix.Close(fd)
	return true
}

// maxDumps is how often a dump is repeated that changes kept interrupting.
const maxDumps = 8

// read fills the tables from the kernel.
func (t *tables) read(c *rtnl.Conn) error {
	dump := func(typ uint16, body []byte, reset func(), each func(rtnl.Message)) error {
		for try := 1; ; try++ {
			reset()
			err := c.Dump(typ, body, each)
			if !errors.Is(err, rtnl.ErrInterrupted) || try == maxDumps {
				return err
			}
		}
	}
	err := dump(unix.RTM_GETADDR, (&rtnl.AddrHeader{}).Body(),
		func() { t.addrs = t.addrs[:0] }, t.addAddr)
	if err != nil {
		return err
	}
	for _, af := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := rtnl.RouteHeader{Family: af, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}
		routes := &t.routes4
		if af == unix.AF_INET6 {
			routes = &t.routes6
		}
		err := dump(unix.RTM_GETROUTE, req.Body(), func() { *routes = (*routes)[:0] },
			func(m rtnl.Message) { t.addRoute(routes, af, m) })
		if err != nil {
			return err
		}
	}
	return nil
}

func linkByName(c *rtnl.Conn, name string) (Link, error) {
	l, err := c.LinkNamed(name)
	if err != nil {
		return Link{}, fmt.Errorf("interface %q: %w (\"ip link\" lists them)", name, err)
	}
	return linkOf(l), nil
}

func linkByIndex(c *rtnl.Conn, index int) (Link, error) {
	l, err := c.LinkAt(index)
	if err != nil {
		return Link{}, fmt.Errorf("interface %d: %w", index, err)
	}
	return linkOf(l), nil
}

func linkOf(l rtnl.Link) Link {
	return Link{Index: l.Index(), Name: l.Name(), MAC: l.MAC()}
}
