// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/rtnl"
	"aldente/ipc"
)

// loopback is the index of lo in every network namespace.
const loopback = 1

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
	steps := []step{{what: "bring lo up", req: linkUp(loopback)}}
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
	_, err = run(c, []step{{what: "bring lo up", req: linkUp(loopback)}})
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
		case s.req.Type == unix.RTM_NEWADDR && s.req.Body[0] == unix.AF_INET6 && noIPv6(err):
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
			if err := bindAddress(ch.Body, index); err != nil {
				return nil, nil, err
			}
			addrs = append(addrs, step{what: "set address " + addressString(ch.Body), req: rtnl.Request{
				Type: unix.RTM_NEWADDR, Flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, Body: ch.Body}})
		case ipc.AgentRoute:
			body, err := bindRoute(ch.Body, index)
			if err != nil {
				return nil, nil, err
			}
			routes = append(routes, route{body: body, onLink: ch.Flags&ipc.AgentChangeOnLink != 0})
		}
	}
	return addrs, routes, nil
}

func getLink(c *rtnl.Conn, name string) (link, error) {
	body := rtnl.AppendAttr(make([]byte, unix.SizeofIfInfomsg), unix.IFLA_IFNAME, append([]byte(name), 0))
	body = rtnl.AppendAttrUint32(body, unix.IFLA_EXT_MASK, 1<<3) // RTEXT_FILTER_SKIP_STATS
	b, err := c.Get(unix.RTM_GETLINK, body)
	if err != nil {
		return link{}, &failure{fmt.Sprintf("cannot look up interface %q", name), err}
	}
	if len(b) < unix.SizeofIfInfomsg {
		return link{}, &failure{"short answer about the tap", unix.EBADMSG}
	}
	l := link{index: int(int32(binary.NativeEndian.Uint32(b[4:])))}
	copy(l.mac[:], rtnl.Attr(b[unix.SizeofIfInfomsg:], unix.IFLA_ADDRESS))
	return l, nil
}

// linkBody returns a struct ifinfomsg.
func linkBody(index int, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

func linkUp(index int) rtnl.Request {
	return rtnl.Request{Type: unix.RTM_NEWLINK, Body: linkBody(index, unix.IFF_UP, unix.IFF_UP)}
}

// linkParameters returns the request for what the set-up wants to differ from
// the kernel's defaults, if anything.
func linkParameters(l link, s *ipc.AgentSetup) (rtnl.Request, bool) {
	b := linkBody(l.index, 0, 0)
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
	b := rtnl.AppendAttr(linkBody(index, 0, 0), unix.IFLA_AF_SPEC, spec)
	return step{what: "set the address mode", optional: always, req: rtnl.Request{Type: unix.RTM_NEWLINK, Body: b}}
}

// linkLocalAddress is the address that RFC 4291 appendix A makes of the MAC.
func linkLocalAddress(l link) rtnl.Request {
	m := l.mac
	ip := [16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]}
	body := addressBody(netip.PrefixFrom(netip.AddrFrom16(ip), 64), unix.RT_SCOPE_LINK)
	binary.NativeEndian.PutUint32(body[4:], uint32(l.index))
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
	var local [][]byte
	tentative := false
	body := make([]byte, unix.SizeofIfAddrmsg)
	body[0] = unix.AF_INET6
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	err := c.Dump(unix.RTM_GETADDR, body, func(m rtnl.Message) {
		if len(m.Body) < unix.SizeofIfAddrmsg || m.Body[0] != unix.AF_INET6 ||
			binary.NativeEndian.Uint32(m.Body[4:]) != uint32(index) {
			return
		}
		attrs := m.Body[unix.SizeofIfAddrmsg:]
		flags, ok := rtnl.AttrUint32(attrs, unix.IFA_FLAGS)
		if !ok {
			flags = uint32(m.Body[2])
		}
		tentative = tentative || flags&unix.IFA_F_TENTATIVE != 0 && flags&unix.IFA_F_DADFAILED == 0
		if ip := rtnl.Attr(attrs, unix.IFA_ADDRESS); len(ip) == 16 {
			local = append(local, append([]byte(nil), ip...))
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
func delivered(c *rtnl.Conn, ip []byte, index int) bool {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[1] = unix.AF_INET6, 128
	b = rtnl.AppendAttr(b, unix.RTA_DST, ip)
	b = rtnl.AppendAttrUint32(b, unix.RTA_OIF, uint32(index))
	r, err := c.Get(unix.RTM_GETROUTE, b)
	return err == nil && len(r) >= unix.SizeofRtMsg && r[7] == unix.RTN_LOCAL
}
