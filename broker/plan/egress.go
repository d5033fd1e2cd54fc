// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"aldente/broker/cli"
	"aldente/broker/egress"
	"aldente/broker/sockets"
	"aldente/ipc"
)

// egressRuleSet is what --allow and --deny add up to; nil if there are none, nor may
// be any later.
func egressRuleSet(cfg *cli.Config, h Host) (*egress.RuleSet, error) {
	rules := egressRules(cfg, outbound(cfg))
	if len(rules) == 0 && !cfg.Reloads() && cfg.Audit == "" && cfg.Via == nil {
		return nil, nil
	}
	p, err := egress.New(rules, h.Network.Own)
	if err != nil {
		return nil, err
	}
	p.SetLocal(h.Local)
	p.SetNAT64(cfg.NAT64)
	return p, nil
}

// byName tells whether a rule is by name.
func (p *Plan) byName() bool { return p.Egress != nil && p.Egress.ByName() }

// needsAnswers tells whether aldente-names is to answer the guest: where a rule is by name,
// where names are to be learned, and where connections go by a proxy, which takes no
// questions. That is decided once: a process that is there stays when the rules change.
func (p *Plan) needsAnswers() bool {
	learn := p.cfg.Audit != "" && !p.cfg.SpliceOnly && (!p.cfg.DNSNone || p.cfg.DNSForward4.IsValid() || p.cfg.DNSForward6.IsValid())
	return learn || p.byName() || p.cfg.Via != nil
}

// checkNames tells what keeps rules by name from ever fitting: they know addresses from
// what the guest asks.
func (p *Plan) checkNames() error {
	forward := p.cfg.DNSForward4.IsValid() || p.cfg.DNSForward6.IsValid()
	switch {
	case !p.byName():
		return nil
	case p.cfg.SpliceOnly:
		return errors.New("rules by name are for what crosses the guest's interface, and --splice-only gives it none: leave one of them out")
	case p.cfg.DNSNone && !forward:
		return errors.New("rules by name need a resolver that the guest asks: leave out --dns none, or give --dns-forward ADDR as well")
	}
	return nil
}

// Forwarded has the policy allow what rules of -T and -U ask for, in place of what
// they asked for before.
func (p *Plan) Forwarded(rules []cli.Rule) error {
	if p.Egress == nil {
		return nil
	}
	var all []*cli.Rule
	for i := range rules {
		all = append(all, &rules[i])
	}
	return p.Egress.Replace(egressRules(p.ruled.Load(), all))
}

// ChangeRules puts the egress rules of another command line into force, which differs
// from that of the start in nothing but those. outbound are the rules of -T and -U.
func (p *Plan) ChangeRules(cfg *cli.Config, outbound []cli.Rule) (n int, err error) {
	if p.Egress == nil {
		return 0, errors.New("this instance was started without --rules and --control: its rules stay")
	}
	if err := p.checkChange(cfg); err != nil {
		return 0, err
	}
	before := p.ruled.Swap(cfg)
	if err := p.Forwarded(outbound); err != nil {
		p.ruled.Store(before)
		return 0, err
	}
	if p.Redirects != nil {
		p.Redirects.Replace(cfg.Redirects)
	}
	return len(cfg.Egress) + len(cfg.Redirects) + len(cfg.Ingress), nil
}

// checkChange tells what of other rules cannot be had while the instance runs.
func (p *Plan) checkChange(cfg *cli.Config) error {
	byName := 0
	for _, r := range cfg.Egress {
		if egress.IsName(r.Dest) {
			byName++
		}
	}
	switch {
	case byName > 0 && p.Names == nil:
		return errors.New("no rule was by name at the start, so that nobody reads what the guest asks for: start the instance again with the new rules")
	case byName > ipc.MaxNameRules:
		return fmt.Errorf("%d rules are by name, at most %d are possible: use wildcards", byName, ipc.MaxNameRules)
	}
	return nil
}

// egressRules are those of --allow and --deny, and aldente's own behind them, with
// the rules of -T and -U.
func egressRules(cfg *cli.Config, outbound []*cli.Rule) []egress.Rule {
	var rules []egress.Rule
	for _, r := range cfg.Egress {
		rule := egress.Rule{Allow: r.Allow, Dest: r.Dest, Note: r.At}
		if r.At != "" {
			rule.Source = egress.ByFile
		}
		rules = append(rules, rule)
	}
	if cfg.Personality == cli.Aldente {
		rules = append(rules, outboundAllowed(outbound)...)
		for i := range cfg.Redirects {
			rules = append(rules, cfg.Redirects[i].Allowed()...)
		}
		rules = append(rules, defaultDeny("host"), defaultDeny("metadata"))
		if slices.ContainsFunc(rules, func(r egress.Rule) bool { return egress.IsName(r.Dest) }) {
			rules = append(rules, defaultDeny("private")) // whoever answers decides where names lead
		}
	}
	return rules
}

func defaultDeny(set string) egress.Rule {
	return egress.Rule{Dest: set, Source: egress.ByDefault, Guard: true}
}

// outboundAllowed is what -T and -U ask for: whoever forwards a port of the
// host's loopback allows it to be used.
func outboundAllowed(outbound []*cli.Rule) []egress.Rule {
	var rules []egress.Rule
	for _, r := range outbound {
		hosts := []string{"127.0.0.0/8", "[::1]"}
		if r.TargetAddr.IsValid() {
			hosts = []string{"[" + r.TargetAddr.String() + "]"}
		}
		proto := "tcp:"
		if r.Proto == ipc.ProtoUDP {
			proto = "udp:"
		}
		for _, h := range hosts {
			rules = append(rules, egress.Rule{Allow: true, Dest: proto + h + ":" + r.Target().String(), Note: "by " + r.Option(true)})
		}
	}
	return rules
}

// pinResolvers keeps the resolvers reachable that forwarded queries go to. Where
// only the mapped gateway stands for one, nobody asked for that exception.
func (p *Plan) pinResolvers() {
	var pins []netip.Addr
	for _, f := range []*guestFamily{&p.net.v4, &p.net.v6} {
		if f.dnsForward.IsValid() && !f.dnsGateway {
			pins = append(pins, f.dnsHost)
		}
	}
	p.Egress.Pin(pins...)
}

// asked is p as an interface, nil if there are no rules.
func asked(p *egress.RuleSet) sockets.Egress {
	if p == nil {
		return nil
	}
	return p
}
