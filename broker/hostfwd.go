// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"slices"
	"sync"

	"aldente/broker/cli"
	"aldente/broker/control/hostfwd"
	"aldente/broker/forward"
	"aldente/broker/plan"
	"aldente/ipc"
)

// hostfwds are the rules that clients of slirp4netns's API have made. Nobody else makes
// any.
type hostfwds struct {
	forward *forward.Forwarder
	guest   netip.Addr // where a port leads that no address is given for

	mu   sync.Mutex
	last int // number given
	all  []hostfwdRule
}

type hostfwdRule struct {
	hostfwd.Forward
	rule cli.Rule
}

// Add implements control.Hostfwds.
func (h *hostfwds) Add(r *hostfwd.Request) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := hostfwdRule{Forward: r.Forward, rule: h.rule(r)}
	err := h.forward.Update(func(now plan.Rules) (to plan.Rules, err error) {
		now.Inbound, err = cli.AddRules(now.Inbound, []cli.Rule{n.rule})
		return now, err
	})
	if err != nil {
		return 0, err
	}
	if n.GuestAddr == "" {
		n.GuestAddr = h.guest.String()
	}
	h.last++
	n.ID = h.last
	h.all = append(h.all, n)
	return n.ID, nil
}

// rule is what a client asks for. A target that is the guest itself is none: what comes
// goes to the guest as to any other port.
func (h *hostfwds) rule(r *hostfwd.Request) cli.Rule {
	rule := cli.Rule{
		Proto: ipc.ProtoTCP, Addr: r.Host,
		PortRange:  cli.PortRange{First: uint16(r.Forward.HostPort), Last: uint16(r.Forward.HostPort)},
		TargetPort: uint16(r.Forward.GuestPort),
	}
	if r.Forward.Proto == "udp" {
		rule.Proto = ipc.ProtoUDP
	}
	if r.Guest.IsValid() && !r.Guest.IsUnspecified() && r.Guest != h.guest {
		rule.TargetAddr = r.Guest
	}
	return rule
}

// Remove implements control.Hostfwds.
func (h *hostfwds) Remove(id int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.all, func(n hostfwdRule) bool { return n.ID == id })
	if i < 0 {
		return false
	}
	gone := h.all[i].rule
	err := h.forward.Update(func(now plan.Rules) (plan.Rules, error) {
		now.Inbound = slices.DeleteFunc(now.Inbound, func(r cli.Rule) bool { return r == gone })
		return now, nil
	})
	if err != nil {
		return false
	}
	h.all = slices.Delete(h.all, i, i+1)
	return true
}

// List implements control.Hostfwds.
func (h *hostfwds) List() []hostfwd.Forward {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []hostfwd.Forward
	for i := range h.all {
		all = append(all, h.all[i].Forward)
	}
	return all
}
