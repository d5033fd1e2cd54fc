// SPDX-License-Identifier: Apache-2.0

// Package ingress decides who may connect to the guest by the ports that are
// forwarded to it.
//
// What comes by a listener the worker would take, which is not believed. So connections
// of TCP the broker accepts itself, asks the rules, and passes on what they let in; it
// reads no byte of them. Of UDP the worker has the listening socket, and the kernel
// decides, by a program on it that the rules are compiled to: what that refuses reaches
// no worker.
package ingress

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"aldente/broker/egress"
)

// MaxRules bounds the rules, and so the length of programs.
const MaxRules = 64

// Rule is one rule as given: an option and its argument.
type Rule struct {
	Allow  bool   // --allow-in, else --deny-in
	Source string // see egress.ParsePeers; ports are the guest's
	At     string // FILE:LINE that says so, empty: an option
}

// String returns the rule as an option.
func (r Rule) String() string {
	if r.Allow {
		return "--allow-in " + r.Source
	}
	return "--deny-in " + r.Source
}

// RuleSet decides: rules in order, the first that fits counts, and what none fits
// is allowed.
type RuleSet struct{ rules atomic.Pointer[[]rule] }

type rule struct {
	Rule
	egress.Peers
	hits *atomic.Uint64 // a rule that stays when others are replaced keeps it
}

// New parses rules.
func New(rules []Rule) (*RuleSet, error) {
	s := &RuleSet{}
	return s, s.Replace(rules)
}

// Replace puts other rules in the place of the set's, or none of them if one cannot
// be parsed. Sockets that have a program keep it.
func (s *RuleSet) Replace(rules []Rule) error {
	if len(rules) > MaxRules {
		return fmt.Errorf("too many --allow-in and --deny-in: at most %d", MaxRules)
	}
	parsed := make([]rule, len(rules))
	for i, r := range rules {
		src, err := egress.ParsePeers(r.Source)
		if err != nil {
			return fmt.Errorf("%v: %w", r, err)
		}
		parsed[i] = rule{r, src, s.counter(r)}
	}
	s.rules.Store(&parsed)
	return nil
}

// counter returns that of a rule, a new one if there is none.
func (s *RuleSet) counter(r Rule) *atomic.Uint64 {
	if old := s.rules.Load(); old != nil {
		for _, o := range *old {
			if o.Allow == r.Allow && o.Source == r.Source { // wherever it stands now
				return o.hits
			}
		}
	}
	return new(atomic.Uint64)
}

// Any tells whether there is a rule.
func (s *RuleSet) Any() bool { return s != nil && len(*s.rules.Load()) > 0 }

// AsksHost tells whether a rule is about who is on the host itself.
func (s *RuleSet) AsksHost() bool {
	return slices.ContainsFunc(*s.rules.Load(), func(r rule) bool { return r.Host })
}

// List returns the rules in order.
func (s *RuleSet) List() (list []egress.Listed) {
	if s == nil {
		return nil
	}
	for _, r := range *s.rules.Load() {
		l := egress.Listed{Text: r.Rule.String(), Source: egress.ByOption, Note: "who connects to the guest; of UDP not counted", Hits: r.hits.Load()}
		list = append(list, l.SaidAt(r.At))
	}
	return list
}

// Peer is who wants to connect, and where.
type Peer struct {
	Proto uint8      // ipc.ProtoTCP or ipc.ProtoUDP
	Port  uint16     // of the guest
	Addr  netip.Addr // the peer's, neither mapped nor with a zone
	Host  bool       // it is on the host itself
}

// Allowed tells whether a peer may connect.
func (s *RuleSet) Allowed(p Peer) bool {
	if s == nil {
		return true
	}
	for _, r := range *s.rules.Load() {
		if r.about(p.Proto, p.Port) && r.fits(p) {
			return r.Allow
		}
	}
	return true
}

// Admit is Allowed for a connection that is there, which counts, and tells which rule
// has decided; empty: none fits.
func (s *RuleSet) Admit(p Peer) (allowed bool, by string) {
	for _, r := range *s.rules.Load() {
		if r.about(p.Proto, p.Port) && r.fits(p) {
			r.hits.Add(1)
			return r.Allow, r.Rule.String()
		}
	}
	return true, ""
}

// about tells whether a rule says something of a port.
func (r *rule) about(proto uint8, port uint16) bool {
	return (r.Proto == 0 || r.Proto == proto) && (r.Last == 0 || r.First <= port && port <= r.Last)
}

func (r *rule) fits(p Peer) bool {
	return r.Host && p.Host || slices.ContainsFunc(r.Prefixes, func(x netip.Prefix) bool { return x.Contains(p.Addr) })
}
