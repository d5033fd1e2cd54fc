// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"aldente/broker/control/api"
	"aldente/broker/inet"
	"aldente/ipc"
)

// explained answers what is allowed and forwarded, and why, and changes the latter.
type explained struct{ in *instance }

// Rules are all that decide where the guest may connect, in the order in which they
// are asked.
func (e explained) Rules() []api.Rule {
	all := append(e.in.factory.Rules(), e.in.factory.IngressRules()...)
	rules := make([]api.Rule, len(all))
	for i, r := range all {
		rules[i] = api.Rule{Number: i + 1, Text: r.Text, Source: string(r.Source), Note: r.Note, Hits: r.Hits}
	}
	return rules
}

// Why tells step by step what would become of the guest's next flow to a target.
func (e explained) Why(t *api.Target) ([]api.Step, error) {
	if t != nil && t.Name != "" {
		return e.whyName(t)
	}
	proto, dst, err := targetOf(t)
	if err != nil {
		return nil, err
	}
	steps := []api.Step{{What: "packet", Result: fmt.Sprintf("%s from the guest to %s", t.Protocol, destination(dst))}}
	decided := func(allow bool, result string) []api.Step {
		return append(steps, api.Step{What: "verdict", Result: result, Final: true, Allow: allow})
	}
	if why := e.in.plan.Keeps(proto); why != "" {
		return decided(false, "refused by "+why), nil
	}
	for _, note := range e.in.view().Knows(dst.Addr()) {
		steps = append(steps, api.Step{What: "note", Result: note})
	}
	if !e.in.plan.Linked() && !dst.Addr().IsLoopback() {
		return decided(false, "refused by --splice-only: the guest has no interface but its loopback"), nil
	}
	x := e.in.factory.Why(proto, dst)
	if x.Allowed && (proto == ipc.ProtoICMP || proto == ipc.ProtoICMPv6) && !inet.PingAllowed() {
		x.Steps = x.Steps[:len(x.Steps)-1]
		x.Decided(false, "refused by the host: echo needs a group of ours in sysctl net.ipv4.ping_group_range")
	}
	for i, s := range x.Steps {
		final := i == len(x.Steps)-1
		steps = append(steps, api.Step{What: s.What, Result: s.Result, Final: final, Allow: final && x.Allowed})
	}
	return steps, nil
}

var errPorts = errors.New("icmp has no ports")

// targetOf reads a target.
func targetOf(t *api.Target) (proto uint8, dst netip.AddrPort, err error) {
	if t == nil {
		return 0, dst, errors.New("no target is given")
	}
	a, err := netip.ParseAddr(t.Address)
	if err != nil || a.Zone() != "" {
		return 0, dst, fmt.Errorf("%.100q is no address without a zone", t.Address)
	}
	a = a.Unmap()
	switch t.Protocol {
	case "tcp":
		proto = ipc.ProtoTCP
	case "udp":
		proto = ipc.ProtoUDP
	case "icmp":
		if proto = ipc.ProtoICMP; a.Is6() {
			proto = ipc.ProtoICMPv6
		}
		if t.Port != 0 {
			return 0, dst, errPorts
		}
	default:
		return 0, dst, fmt.Errorf("%.20q is none of tcp, udp and icmp", t.Protocol)
	}
	return proto, netip.AddrPortFrom(a, t.Port), nil
}

func destination(dst netip.AddrPort) string {
	if dst.Port() == 0 {
		return dst.Addr().String()
	}
	return dst.String()
}

// Forwards are the port rules in force.
func (e explained) Forwards() []api.PortRule {
	var all []api.PortRule
	for _, s := range e.in.forward.States() {
		bare := s.Rule
		bare.Weak, bare.Auto = false, false
		from, target, _ := strings.Cut(bare.String(), "  =>  ")
		protocol, listen, _ := strings.Cut(from, " ")
		r := api.PortRule{
			Direction: "in", Protocol: strings.ToLower(protocol), Listen: listen, Target: target,
			Option: s.Option(s.Outbound), Ports: s.Len(), Listens: s.Listens, Listening: s.Listens == s.Len() || s.Auto,
			Dropped: s.Dropped,
		}
		if s.Outbound {
			r.Direction = "out"
		}
		var flags []string
		if s.Weak {
			flags = append(flags, "best effort")
		}
		if s.Auto {
			flags = append(flags, "auto-scan")
		}
		r.Flags = strings.Join(flags, ", ")
		all = append(all, r)
	}
	return all
}

// Forward changes the port rules, all that is asked for or nothing.
func (e explained) Forward(f *api.ForwardSpec) error {
	if f == nil || len(f.Specs) == 0 {
		return errors.New("no port rules are given")
	}
	change := e.in.forward.Add
	if f.Delete {
		change = e.in.forward.Delete
	}
	return withNext(change(f.Specs))
}

// Load changes the egress rules, all that is asked for or nothing.
func (e explained) Load(l *api.LoadSpec) (*api.LoadReply, error) {
	loaded, err := e.in.loadRules(l)
	if err != nil {
		return nil, withNext(err)
	}
	e.in.tellLoaded(loaded)
	return loaded, nil
}
