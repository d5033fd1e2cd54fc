// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"aldente/broker/foreign"
	"aldente/broker/hostnet"
	"aldente/broker/netns"
	"aldente/broker/rtnl"
	"aldente/ipc"
	"aldente/policy"
)

// Client is the broker's end of an agent while it sets the namespace up. It is
// not for concurrent use. After that, Sockets speaks to the agent.
type Client struct {
	process *netns.Agent
	channel int
	id      uint32

	silent chan struct{} // closed when the agent will say nothing more

	flags  uint32 // of set-ups, besides their own
	layers policy.Report
}

// Setup is what the namespace's network is to be.
type Setup struct {
	Name     string  // of the interface
	MAC      [6]byte // --ns-mac-addr; zero: the kernel chooses
	MTU      int     // zero: the kernel's default
	QueueLen int     // transmit queue in packets; zero: the kernel's default

	Configure bool   // --config-net; without it the families are ignored
	V4, V6    Family // zero: nothing but what the kernel does by itself
}

// Family is the configuration of one address family.
type Family struct {
	Addresses [][]byte     // copied, as hostnet gives them
	Address   netip.Prefix // one more, if valid
	Routes    [][]byte     // copied, as hostnet gives them
	Gateway   netip.Addr   // of one more default route, if valid
	Kept      []netip.Addr // for connections that have them, and no others
}

// Copy describes a family for --config-net: the template's addresses and routes,
// or in local mode the defaults that stand for them. A valid address (-a)
// replaces all addresses, and a valid gateway (-g) all routes.
func Copy(f *hostnet.Family, address netip.Prefix, gateway netip.Addr) Family {
	var c Family
	switch {
	case f.Unsupported:
		return c
	case address.IsValid():
		c.Address = address
	case f.Local:
		c.Address = f.Address
	default:
		c.Addresses = f.Addresses
	}
	switch {
	case gateway.IsValid():
		c.Gateway = gateway
		c.Addresses = nil
		if !c.Address.IsValid() {
			for _, a := range f.Addresses {
				c.Addresses = append(c.Addresses, hostnet.WithPrefixRoute(a))
			}
		}
	case f.Local:
		c.Gateway = f.Gateway
	case address.IsValid():
		// The copied addresses would have brought these along.
		c.Routes = append(slices.Clone(f.Connected), f.Routes...)
	default:
		c.Routes = f.Routes
	}
	return c
}

// Reach adds a route to an address that we answer for on the link, if no other of
// the family leads there, as on a host without a default route.
func (f *Family) Reach(a netip.Addr) {
	if !a.IsValid() || a.IsLinkLocalUnicast() && a.Is6() || f.Gateway.IsValid() || f.Address.Masked().Contains(a) {
		return
	}
	onLink := func(b []byte) bool {
		has, ok := rtnl.AddrOf(b)
		return ok && has.Network().Masked().Contains(a)
	}
	leads := func(b []byte) bool {
		r, ok := rtnl.RouteOf(b)
		return ok && r.Dst().Masked().Contains(a)
	}
	if !slices.ContainsFunc(f.Addresses, onLink) && !slices.ContainsFunc(f.Routes, leads) {
		f.Routes = append(slices.Clone(f.Routes), linkRoute(a))
	}
}

// Tap is the namespace's interface. The descriptor is the caller's. The agent
// keeps one as well, so that the interface ends with the agent: that takes the
// kernel tens of milliseconds. So close FD first, and do not wait for the agent
// on the way out.
type Tap struct {
	FD       int      // non-blocking, close-on-exec; frames follow a 10-byte virtio_net_hdr
	MAC      [6]byte  // the hardware address that the kernel gave it, or the one asked for
	IfIndex  int      // its number in the namespace, above zero
	Name     string   // its name in the namespace
	Offload  uint32   // TUN_F_* bits in force
	Warnings []string // what could not be done and may not matter
}

// Start starts an agent in the namespace. The lines that it writes to its standard
// error are passed to tell, if that is not nil, bounded and fit to be shown. It does
// not wait: a failure to join shows in the first request.
func Start(ns *netns.Namespace, tell func(line string)) (*Client, error) {
	ours, its, err := ipc.Pair()
	if err != nil {
		return nil, err
	}
	defer unix.Close(its)
	hear, speak, err := os.Pipe()
	if err != nil {
		unix.Close(ours)
		return nil, err
	}
	defer speak.Close()
	p, err := netns.SpawnAgent(ns, its, int(speak.Fd()), true)
	if err != nil {
		unix.Close(ours)
		hear.Close()
		return nil, err
	}
	c := &Client{process: p, channel: ours, silent: make(chan struct{})}
	go said(hear, tell, c.silent)
	return c, nil
}

// PID returns the agent's process identifier.
func (c *Client) PID() int { return c.process.PID }

// FD returns the channel, for a poller: outside of a request it becomes
// readable only when the agent has died.
func (c *Client) FD() int { return c.channel }

// Close ends the agent and waits for it, and so for the end of its tap. A
// process that is about to exit leaves that to the kernel instead.
func (c *Client) Close() error {
	unix.Close(c.channel)
	_, err := c.process.Reap()
	return err
}

// Setup creates the tap and configures the namespace's network. When it
// returns, all addresses are usable.
func (c *Client) Setup(s Setup) (Tap, error) {
	records, err := c.records(&s)
	if err != nil {
		return Tap{}, err
	}
	for _, r := range records {
		if err := ipc.Send(c.channel, r, -1); err != nil {
			return Tap{}, c.died(err)
		}
	}
	tap, err := c.answer()
	if err == nil && tap.FD < 0 {
		err = fmt.Errorf("agent: %w: set-up without a tap", ipc.ErrMalformed)
	}
	return tap, err
}

// SetupLoopback only brings up the namespace's loopback.
func (c *Client) SetupLoopback() error {
	c.id++
	head := ipc.AgentSetup{ID: c.id, Flags: ipc.AgentSetupNoLink | c.flags}
	commit := ipc.AgentCommit{ID: c.id}
	for _, r := range [][]byte{head.Encode(), commit.Encode()} {
		if err := ipc.Send(c.channel, r, -1); err != nil {
			return c.died(err)
		}
	}
	_, err := c.answer()
	return err
}

// records encodes a set-up.
func (c *Client) records(s *Setup) ([][]byte, error) {
	c.id++
	head := ipc.AgentSetup{ID: c.id, Flags: c.flags, MAC: s.MAC, MTU: uint32(s.MTU), QueueLen: uint32(s.QueueLen)}
	if len(s.Name) >= len(head.Name) {
		return nil, fmt.Errorf("interface name %q is longer than %d bytes", s.Name, len(head.Name)-1)
	}
	copy(head.Name[:], s.Name)
	if s.Configure {
		head.Flags |= ipc.AgentSetupConfigure
	}
	records := [][]byte{head.Encode()}
	// The agent ends over a malformed record, which a name can make of this one.
	if err := new(ipc.AgentSetup).Decode(records[0]); err != nil {
		return nil, fmt.Errorf("interface name %q is not valid", s.Name)
	}
	changes := 0
	add := func(typ, flags uint16, body []byte) error {
		if changes == ipc.MaxChanges {
			return fmt.Errorf("more than %d addresses and routes", ipc.MaxChanges)
		}
		if len(body) > ipc.MaxChange {
			return fmt.Errorf("an address or route takes %d bytes, at most %d fit", len(body), ipc.MaxChange)
		}
		changes++
		ch := ipc.AgentChange{ID: c.id, Type: typ, Flags: flags, Body: body}
		records = append(records, ch.Encode())
		return nil
	}
	if s.Configure {
		for _, f := range []*Family{&s.V4, &s.V6} {
			if err := f.changes(add); err != nil {
				return nil, err
			}
		}
	}
	commit := ipc.AgentCommit{ID: c.id, Changes: uint32(changes)}
	return append(records, commit.Encode()), nil
}

// changes passes what the family consists of to add, addresses first.
func (f *Family) changes(add func(typ, flags uint16, body []byte) error) error {
	for _, a := range f.Addresses {
		if err := add(ipc.AgentAddress, 0, a); err != nil {
			return err
		}
	}
	if f.Address.IsValid() {
		if err := add(ipc.AgentAddress, 0, addressBody(f.Address, unix.RT_SCOPE_UNIVERSE, 0)); err != nil {
			return err
		}
	}
	for _, a := range f.Kept {
		if err := add(ipc.AgentAddress, 0, keptBody(a)); err != nil {
			return err
		}
	}
	for _, r := range f.Routes {
		if err := add(ipc.AgentRoute, 0, r); err != nil {
			return err
		}
	}
	if f.Gateway.IsValid() {
		return add(ipc.AgentRoute, ipc.AgentChangeOnLink, defaultRoute(f.Gateway))
	}
	return nil
}

// answer waits for the answer to the request made last.
func (c *Client) answer() (Tap, error) {
	var tap Tap
	buf := make([]byte, ipc.MaxRecord)
	for {
		n, fd, err := ipc.Receive(c.channel, buf, 0)
		if err != nil {
			return Tap{}, c.died(err)
		}
		kind, err := ipc.FromAgent.Check(buf[:n], fd >= 0, ipc.Starting)
		if err != nil {
			if fd >= 0 {
				unix.Close(fd)
			}
			return Tap{}, fmt.Errorf("agent: %w", err)
		}
		switch kind {
		case ipc.AgentKindTap:
			return tap, c.takeTap(&tap, buf[:n], fd)
		case ipc.AgentKindDone:
			var d ipc.AgentDone
			if err := d.Decode(buf[:n]); err != nil || d.ID != c.id {
				return Tap{}, fmt.Errorf("agent: %w: end of request %d", ipc.ErrMalformed, d.ID)
			}
			return Tap{FD: -1}, nil
		case ipc.AgentKindLayer:
			if err := c.takeLayer(buf[:n]); err != nil {
				return Tap{}, fmt.Errorf("agent: %w", err)
			}
		case ipc.AgentKindReport:
			fatal, text, err := c.report(buf[:n])
			if err != nil {
				return Tap{}, err
			}
			if fatal {
				return Tap{}, errors.New(text)
			}
			tap.Warnings = append(tap.Warnings, text)
			if len(tap.Warnings) > maxReports {
				return Tap{}, fmt.Errorf("agent: %w: too many warnings", ipc.ErrMalformed)
			}
		default:
			return Tap{}, fmt.Errorf("agent: %w: nobody takes kind %#x", ipc.ErrMalformed, uint16(kind))
		}
	}
}

// maxReports bounds what an agent that was taken over can make us keep.
const maxReports = 1024

func (c *Client) takeTap(tap *Tap, b []byte, fd int) error {
	var r ipc.AgentTap
	if err := r.Decode(b); err != nil || r.ID != c.id || !isTap(fd) {
		if fd >= 0 {
			unix.Close(fd)
		}
		return fmt.Errorf("agent: %w: tap %d for request %d", errors.Join(ipc.ErrMalformed, err), r.ID, c.id)
	}
	tap.FD, tap.MAC, tap.IfIndex, tap.Offload = fd, r.MAC, int(r.Index), r.Offload
	tap.Name = foreign.Line(unix.ByteSliceToString(r.Name[:]))
	return nil
}

// isTap tells whether a descriptor is the clone device of taps: reading anything
// else, or closing it, might take as long as a guest wants.
func isTap(fd int) bool {
	const tun = 10<<8 | 200 // drivers/net/tun.c, TUN_MINOR
	var st unix.Stat_t
	return fd >= 0 && unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == tun
}

func (c *Client) report(b []byte) (fatal bool, text string, err error) {
	var r ipc.AgentReport
	if err := r.Decode(b); err != nil {
		return false, "", fmt.Errorf("agent: %w", err)
	}
	if r.ID != c.id {
		return false, "", fmt.Errorf("agent: %w: report for request %d", ipc.ErrMalformed, r.ID)
	}
	text = foreign.Line(r.Text.String())
	if r.Errno != 0 {
		text += ": " + unix.Errno(r.Errno).Error()
	}
	return r.Fatal != 0, text, nil
}

// died explains the end of the channel.
func (c *Client) died(err error) error {
	defer c.heard()
	if failure := c.process.Failure(); failure != nil {
		return failure
	}
	if errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return errors.New("the agent in the namespace died unexpectedly")
	}
	return fmt.Errorf("agent: %w", err)
}
