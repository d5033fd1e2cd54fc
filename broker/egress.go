// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"aldente/broker/cli"
	"aldente/broker/egress"
	"aldente/broker/hostnet"
	"aldente/broker/sockets"
	"aldente/ipc"
)

// egress makes the policy of --allow and --deny; nil if there is none.
func (in *instance) egress(host *hostnet.Network) (*egress.Policy, error) {
	var rules []egress.Rule
	for _, r := range in.cfg.Egress {
		rules = append(rules, egress.Rule(r))
	}
	if in.cfg.Personality == cli.Aldente {
		rules = append(rules, in.outboundAllowed()...)
		rules = append(rules, egress.Rule{Dest: "host"}, egress.Rule{Dest: "metadata"})
	}
	if len(rules) == 0 {
		return nil, nil
	}
	p, err := egress.New(rules, host.Own)
	if err != nil {
		return nil, err
	}
	local, err := hostnet.NewLocal(in.net.v6.link.Index)
	if err != nil {
		return nil, err
	}
	p.SetLocal(local.Has)
	p.SetNAT64(in.cfg.NAT64)
	return p, nil
}

// tellRefused sums up at the end what the egress policy has refused, unless the
// lines that name each destination have said it all.
func (in *instance) tellRefused() {
	if total, named := in.factory.Refused(); total > named {
		in.log.Warn(fmt.Sprintf("the egress policy has refused %d times in all, %d destinations are named above", total, named))
	}
}

// outboundAllowed is what -T and -U ask for: whoever forwards a port of the
// host's loopback allows it to be used.
func (in *instance) outboundAllowed() []egress.Rule {
	var rules []egress.Rule
	for _, r := range in.rules(outbound) {
		hosts := []string{"127.0.0.0/8", "[::1]"}
		if r.TargetAddr.IsValid() {
			hosts = []string{"[" + r.TargetAddr.String() + "]"}
		}
		proto := "tcp:"
		if r.Proto == ipc.ProtoUDP {
			proto = "udp:"
		}
		for _, h := range hosts {
			rules = append(rules, egress.Rule{Allow: true, Dest: proto + h + ":" + r.Target().String()})
		}
	}
	return rules
}

// pinResolvers keeps the resolvers reachable that forwarded queries go to. Where
// only the mapped gateway stands for one, nobody asked for that exception.
func (in *instance) pinResolvers(p *egress.Policy) {
	for _, f := range []*guestFamily{&in.net.v4, &in.net.v6} {
		if f.dnsForward.IsValid() && !f.dnsGateway {
			p.Pin(f.dnsHost)
		}
	}
}

// asked is p as an interface, nil if there is no policy.
func asked(p *egress.Policy) sockets.Policy {
	if p == nil {
		return nil
	}
	return p
}
