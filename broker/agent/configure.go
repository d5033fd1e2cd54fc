// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
	"aldente/ipc"
)

// Values of IFLA_INET6_ADDR_GEN_MODE, include/uapi/linux/if_link.h.
const (
	addrGenEUI64 = 0
	addrGenNone  = 1
)

// maxWarnings bounds how many routes that cannot be set are named one by one.
const maxWarnings = 8

// How long addresses may take to become usable, and how often that is looked up.
const (
	usableTimeout = 500 * time.Millisecond
	usablePoll    = 200 * time.Microsecond
)

// link is an interface in the namespace.
type link struct {
	index int
	mac   [6]byte
}

// step is one request with what it is for. optional ones fail without notice.
type step struct {
	what     string
	optional func(error) bool
	ipv6     bool // an address that a namespace without IPv6 cannot have
	req      rtnl.Request
}

// configure sets up lo and the interface, which exists. Without
// AgentSetupConfigure the interface is left down, for a DHCP client to bring up.
func configure(name string, s *ipc.AgentSetup, changes []ipc.AgentChange) (l link, warnings []error, err error) {
	c, err := rtnl.Dial()
	if err != nil {
		return l, nil, err
	}
	defer c.Close()
	if l, err = getLink(c, name); err != nil {
		return l, nil, err
	}
	if s.MAC != [6]byte{} {
		l.mac = s.MAC
	}
	steps := []step{{what: "bring lo up", req: linkUp(rtnl.Loopback)}}
	if req, ok := linkParameters(l, s); ok {
		steps = append(steps, step{what: fmt.Sprintf("set MAC address %s, MTU %d or queue length %d of the tap",
			macString(s.MAC), s.MTU, s.QueueLen), req: req})
	}
	if s.Flags&ipc.AgentSetupConfigure == 0 {
		_, err := run(c, steps)
		return l, nil, err
	}
	addrs, routes, err := split(changes, l.index)
	if err != nil {
		return l, nil, err
	}
	// The kernel would make the link-local address itself when the interface
	// comes up, and probe for a second whether it is unique. Made by us, without
	// detection, it is usable at once.
	linkLocal := linkLocalAddress(l)
	steps = append(steps, addrGenMode(l.index, addrGenNone), step{what: "bring the tap up", req: linkUp(l.index)},
		step{what: "set the link-local address", optional: always, req: linkLocal})
	steps = append(steps, addrs...)
	steps = append(steps, addrGenMode(l.index, addrGenEUI64))
	if warnings, err = run(c, steps); err != nil {
		return l, warnings, err
	}
	more, err := addRoutes(c, routes)
	if err != nil {
		return l, warnings, err
	}
	return l, append(warnings, more...), awaitUsable(c, l.index)
}

// bringUpLoopback is all there is to configure without an interface.
func bringUpLoopback() error {
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = run(c, []step{{what: "bring lo up", req: linkUp(rtnl.Loopback)}})
	return err
}

// run does the steps in one go. IPv6 addresses fail without harm if the
// namespace has IPv6 disabled.
func run(c *rtnl.Conn, steps []step) (warnings []error, err error) {
	reqs := make([]rtnl.Request, len(steps))
	for i := range steps {
		reqs[i] = steps[i].req
	}
	errs, err := c.Do(reqs)
	if err != nil {
		return nil, err
	}
	for i, err := range errs {
		s := &steps[i]
		switch {
		case err == nil, s.optional != nil && s.optional(err):
		case s.ipv6 && noIPv6(err):
			warnings = append(warnings, &failure{"cannot " + s.what + " (IPv6 is disabled in the namespace)", err})
		default:
			return warnings, &failure{"cannot " + s.what, err}
		}
	}
	return warnings, nil
}

func always(error) bool { return true }

func noIPv6(err error) bool {
	return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)
}

// split turns the description into requests for the interface.
func split(changes []ipc.AgentChange, index int) (addrs []step, routes []route, err error) {
	for i := range changes {
		ch := &changes[i]
		switch ch.Type {
		case ipc.AgentAddress:
			a, err := bindAddress(ch.Body, index)
			if err != nil {
				return nil, nil, err
			}
			addrs = append(addrs, step{what: "set address " + addressString(a), ipv6: a.Family() == unix.AF_INET6, req: rtnl.Request{
				Type: unix.RTM_NEWADDR, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, Body: ch.Body}})
		case ipc.AgentRoute:
			r, err := bindRoute(ch.Body, index)
			if err != nil {
				return nil, nil, err
			}
			routes = append(routes, route{r, ch.Flags&ipc.AgentChangeOnLink != 0})
		}
	}
	return addrs, routes, nil
}

func getLink(c *rtnl.Conn, name string) (link, error) {
	l, err := c.LinkNamed(name)
	if err != nil {
		return link{}, &failure{fmt.Sprintf("cannot look up interface %q", name), err}
	}
	return link{l.Index(), l.MAC()}, nil
}

func linkUp(index int) rtnl.Request {
	h := rtnl.LinkHeader{Index: index, Flags: unix.IFF_UP, Change: unix.IFF_UP}
	return rtnl.Request{Type: unix.RTM_NEWLINK, Body: h.Body()}
}

// linkParameters returns the request for what the set-up wants to differ from
// the kernel's defaults, if anything.
func linkParameters(l link, s *ipc.AgentSetup) (rtnl.Request, bool) {
	b := (&rtnl.LinkHeader{Index: l.index}).Body()
	size := len(b)
	if s.MAC != [6]byte{} {
		b = rtnl.AppendAttr(b, unix.IFLA_ADDRESS, s.MAC[:])
	}
	if s.MTU != 0 {
		b = rtnl.AppendAttrUint32(b, unix.IFLA_MTU, s.MTU)
	}
	if s.QueueLen != 0 {
		b = rtnl.AppendAttrUint32(b, unix.IFLA_TXQLEN, s.QueueLen)
	}
	return rtnl.Request{Type: unix.RTM_NEWLINK, Body: b}, len(b) > size
}

// addrGenMode says whether the kernel makes the link-local address. Kernels
// without IPv6 refuse it, in which case there is nothing to say.
func addrGenMode(index int, mode uint8) step {
	inet6 := rtnl.AppendAttr(nil, unix.IFLA_INET6_ADDR_GEN_MODE, []byte{mode})
	spec := rtnl.AppendAttr(nil, unix.AF_INET6, inet6)
	b := rtnl.AppendAttr((&rtnl.LinkHeader{Index: index}).Body(), unix.IFLA_AF_SPEC, spec)
	return step{what: "set the address mode", optional: always, req: rtnl.Request{Type: unix.RTM_NEWLINK, Body: b}}
}

// linkLocalAddress is the address that RFC 4291 appendix A makes of the MAC.
func linkLocalAddress(l link) rtnl.Request {
	m := l.mac
	ip := [16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]}
	body := addressBody(netip.PrefixFrom(netip.AddrFrom16(ip), 64), unix.RT_SCOPE_LINK, l.index)
	return rtnl.Request{Type: unix.RTM_NEWADDR, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, Body: body}
}

// awaitUsable waits until no IPv6 address of the interface is tentative and the
// kernel delivers to all of them, which it arranges in the background.
func awaitUsable(c *rtnl.Conn, index int) error {
	for deadline := time.Now().Add(usableTimeout); ; time.Sleep(usablePoll) {
		waiting, err := unusable(c, index)
		if err != nil || !waiting || time.Now().After(deadline) {
			return err
		}
	}
}

func unusable(c *rtnl.Conn, index int) (bool, error) {
	var local []netip.Addr
	tentative := false
	asked := rtnl.AddrHeader{Family: unix.AF_INET6, Index: index}
	err := c.Dump(unix.RTM_GETADDR, asked.Body(), func(m rtnl.Message) {
		a, ok := m.Addr()
		if !ok || a.Family() != unix.AF_INET6 || a.Index() != index {
			return
		}
		tentative = tentative || a.Flags()&unix.IFA_F_TENTATIVE != 0 && a.Flags()&unix.IFA_F_DADFAILED == 0
		if ip, ok := a.Attrs().Addr(unix.AF_INET6, unix.IFA_ADDRESS); ok {
			local = append(local, ip)
		}
	})
	if errors.Is(err, rtnl.ErrInterrupted) {
		return true, nil
	}
	if err != nil || tentative {
		return tentative, err
	}
	for _, ip := range local {
		if !delivered(c, ip, index) {
			return true, nil
		}
	}
	return false, nil
}

// delivered tells whether the kernel routes the address to the host itself.
func delivered(c *rtnl.Conn, ip netip.Addr, index int) bool {
	b := (&rtnl.RouteHeader{Family: unix.AF_INET6, DstLen: ip.BitLen()}).Body()
	b = rtnl.AppendAttr(b, unix.RTA_DST, ip.AsSlice())
	b = rtnl.AppendAttrUint32(b, unix.RTA_OIF, uint32(index))
	r, err := c.Route(b)
	return err == nil && r.Type() == unix.RTN_LOCAL
}
