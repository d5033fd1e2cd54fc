// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Finding is what is to be told of one rule of a list, before it is used.
type Finding struct {
	Text     string   // the rule as it is understood, in its one form
	Warnings []string // what whoever has written it may not have meant
}

// Lint reads rules as New does, and looks for those that do not do what they seem to:
// that can never decide, since one before them fits whatever they fit, and others. name
// is what a warning calls the rule with an index.
func Lint(rules []Rule, name func(i int) string) ([]Finding, error) {
	e, err := New(rules, nil)
	if err != nil {
		return nil, err
	}
	l := e.list.Load()
	all := make([]Finding, len(l.rules))
	for i := range l.rules {
		r := &l.rules[i]
		if all[i].Text = r.normal(); r.source != ByFile && (r.source != ByOption || r.note != "") {
			continue // nobody has written it as it is
		}
		warn := func(format string, args ...any) {
			all[i].Warnings = append(all[i].Warnings, fmt.Sprintf(format, args...))
		}
		if k := slices.IndexFunc(l.rules[:i], func(before rule) bool { return before.includes(r) }); k >= 0 {
			warn("never decides: %s stands before it and %s all of it", name(k), map[bool]string{true: "allows", false: "denies"}[l.rules[k].allow])
			continue
		}
		if r.byName {
			l.lintName(i, warn, name)
		}
	}
	return all, nil
}

// lintName looks at a rule by name.
func (l *ruleList) lintName(i int, warn func(string, ...any), name func(int) string) {
	r := &l.rules[i]
	if !r.allow {
		if r.narrow() {
			warn("the name is resolved all the same: only a rule without protocol and ports keeps it from being asked for")
		}
		return
	}
	if !r.ports && r.proto == 0 {
		warn("all ports and protocols of whatever addresses the name has: tcp:%s:443 would be for HTTPS alone", r.pattern)
	}
	if suffix := inside(r.pattern.String()); suffix != "" && len(l.guards) > 0 {
		warn("names below %s have addresses of the network's own as a rule, which no rule by name may lead to here: allow those by address, before this", suffix)
	}
	for k := range l.rules[:i] {
		b := &l.rules[k]
		if !b.allow && b.byName && !b.narrow() && b.pattern.Covers(r.pattern) {
			warn("never decides: %s refuses the name, so that nobody learns its addresses", name(k))
		}
	}
}

// insides are domains that are resolved inside networks alone: RFC 6762, RFC 8375, that
// which ICANN keeps for private use, and what routers and companies have taken.
var insides = []string{"internal", "local", "home.arpa", "lan", "home", "corp", "localdomain", "localhost", "intranet", "private"}

// inside returns which of them a pattern is below, "" if it is below none.
func inside(pattern string) string {
	for _, s := range insides {
		if pattern == s || strings.HasSuffix(pattern, "."+s) {
			return s
		}
	}
	return ""
}

// includes tells whether a rule fits whatever another fits. False may mean that it is
// not known.
func (r *rule) includes(o *rule) bool {
	switch {
	case r.proto != 0 && r.proto != o.proto:
		return false
	case r.ports && (!o.ports || o.first < r.first || o.last > r.last):
		return false
	case r.all:
		return true
	case r.byName != o.byName:
		return false
	case r.byName:
		return r.pattern.Covers(o.pattern)
	case o.host:
		return r.host // what else it fits changes
	}
	return !slices.ContainsFunc(o.prefixes, func(p netip.Prefix) bool {
		return !slices.ContainsFunc(r.prefixes, func(q netip.Prefix) bool {
			return q.Bits() <= p.Bits() && q.Contains(p.Addr())
		})
	})
}

// normal is the rule in its one form, as a line of a rules file.
func (r *rule) normal() string {
	var b strings.Builder
	b.WriteString(map[bool]string{true: "allow ", false: "deny "}[r.allow])
	b.WriteString(map[uint8]string{protoTCP: "tcp:", protoUDP: "udp:", protoICMP: "icmp:"}[r.proto])
	b.WriteString(r.where())
	if r.ports {
		b.WriteString(":" + strconv.Itoa(int(r.first)))
		if r.last != r.first {
			b.WriteString("-" + strconv.Itoa(int(r.last)))
		}
	}
	return b.String()
}

// where is the destination without protocol and ports.
func (r *rule) where() string {
	switch {
	case r.byName:
		s := r.pattern.String()
		if !strings.Contains(s, ".") {
			s += "."
		}
		return s
	case r.host:
		return "host"
	case len(r.prefixes) != 1:
		for name, prefixes := range sets {
			if slices.Equal(prefixes, r.prefixes) {
				return name
			}
		}
	}
	p := r.prefixes[0]
	s := p.String()
	if p.IsSingleIP() {
		s = p.Addr().String()
	}
	if r.ports && p.Addr().Is6() {
		addr, length, is := strings.Cut(s, "/")
		if s = "[" + addr + "]"; is {
			s += "/" + length
		}
	}
	return s
}
