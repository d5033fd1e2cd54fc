// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"net/netip"
	"strings"
)

const maxPort = 65535

// SpecOptions is what the meaning of a port specification depends on besides
// its text.
type SpecOptions struct {
	Proto     uint8     // ipc.ProtoTCP or ipc.ProtoUDP
	Auto      bool      // "auto" is allowed: there is a namespace to scan
	Outbound  bool      // -T, -U: from the namespace's loopback, without a listening address
	IPv4Only  bool      // the wildcard is 0.0.0.0, IPv6 addresses are errors
	IPv6Only  bool      // the wildcard is ::, IPv4 addresses are errors
	Ephemeral PortRange // ports that "all" leaves out; zero: none
}

// ParseSpec turns one port specification into rules, in the order in which it
// names the ports. The grammar:
//
//	spec   = [ listen "/" ] entry { "," entry }
//	listen = [ "*" | addr | "[" addr "]" ] [ "%" interface ]
//	entry  = range [ ":" target ] | "~" range | "all" [ ":" address ] | "auto"
//	target = range | address [ "/" range ]
//	range  = port [ "-" port ]
//
// Without any range, all ports but the ephemeral ones are meant, as far as they
// can be bound. With one, "all" adds nothing. The word "none" is the caller's.
// Errors are UsageErrors.
func ParseSpec(spec string, o SpecOptions) ([]Rule, error) {
	base := Rule{Proto: o.Proto}
	ports, note := spec, ""
	if listen, rest, ok := strings.Cut(spec, "/"); ok {
		switch addr, ifname, ok := parseListen(listen); {
		case ok && o.Outbound:
			return nil, nextf("-T and -U listen on the namespace's loopback: give ports alone",
				"Listening address not allowed for outbound rule '%s'", spec)
		case ok && ifname != "" && !validIfName(ifname):
			return nil, usagef("Invalid interface name: %s, in port specifier '%s'", ifname, spec)
		case ok:
			base.Addr, base.Interface, ports = addr, ifname, rest
		case !strings.Contains(listen, ":"):
			note = ", nor '" + listen + "' a listening address"
		}
	}
	if err := narrow(&base, o); err != nil {
		return nil, err
	}
	var p portSet
	for item := range strings.SplitSeq(ports, ",") {
		if why := p.parseItem(item); why != "" {
			return nil, nextf(specHint(spec), "Invalid port specifier '%s': %s%s", spec, why, note)
		}
	}
	if p.auto && !o.Auto {
		return nil, nextf("name the ports", "'auto' port forwarding is only allowed for pasta: '%s'", spec)
	}
	return p.rules(base, o.Ephemeral)
}

// narrow applies what the options say about addresses to the listening side.
func narrow(r *Rule, o SpecOptions) error {
	if o.Outbound {
		r.Interface = "lo"
	}
	switch {
	case o.IPv4Only && !r.Addr.IsValid():
		r.Addr = netip.IPv4Unspecified()
	case o.IPv6Only && !r.Addr.IsValid():
		r.Addr = netip.IPv6Unspecified()
	case o.IPv4Only && r.Addr.Is6():
		return nextf("leave out -4, or the address", "IPv6 forward, but IPv6 not enabled: %v", r.Addr)
	case o.IPv6Only && r.Addr.Is4():
		return nextf("leave out -6, or the address", "IPv4 forward, but IPv4 not enabled: %v", r.Addr)
	}
	return nil
}

// parseListen splits "ADDR%IF". False means that s is no listening address, so
// that the slash after it belongs to a target.
func parseListen(s string) (addr netip.Addr, ifname string, ok bool) {
	s, ifname, scoped := strings.Cut(s, "%")
	if scoped && (ifname == "" || len(ifname) > maxIfName || strings.ContainsAny(ifname, " \t\n\v\f\r")) {
		return addr, "", false
	}
	if s == "" || s == "*" {
		return addr, ifname, true
	}
	addr, ok = parseAddr(unbracket(s), anyAddr)
	return addr, ifname, ok
}

// entry is an included range and where it goes.
type entry struct {
	PortRange
	targetAddr netip.Addr
	targetPort uint16
}

// portSet is the right-hand side of a specification.
type portSet struct {
	include   []entry
	exclude   bitmap
	auto      bool
	allTarget netip.Addr // of the last "all:ADDR"
}

// parseItem returns what is wrong with the item, or "".
func (p *portSet) parseItem(item string) string {
	quoted := "'" + item + "'"
	if item == "" {
		return "no port given"
	}
	if item == "auto" {
		p.auto = true
		return ""
	}
	if text, ok := strings.CutPrefix(item, "~"); ok {
		r, ok := parseRange(text)
		if !ok {
			return quoted + " excludes no range of ports"
		}
		p.exclude.add(r)
		return ""
	}
	from, to, mapped := strings.Cut(item, ":")
	if from == "all" {
		p.allTarget = netip.Addr{}
		if !mapped {
			return ""
		}
		addr, ok := parseTarget(to)
		if !ok {
			return quoted + " has no target address"
		}
		p.allTarget = addr
		return ""
	}
	e, why := parseEntry(from, to, mapped)
	if why != "" {
		return quoted + why
	}
	p.include = append(p.include, e)
	return ""
}

func parseEntry(from, to string, mapped bool) (e entry, why string) {
	var ok bool
	if e.PortRange, ok = parseRange(from); !ok {
		return e, " is not a range of ports"
	}
	e.targetPort = e.First
	if !mapped {
		return e, ""
	}
	var target PortRange
	var ranged bool
	if addr, ports, slash := strings.Cut(to, "/"); slash {
		if e.targetAddr, ok = parseTarget(addr); !ok {
			return e, " has no valid target address"
		}
		target, ranged = parseRange(ports)
		ok = ranged
	} else if target, ranged = parseRange(to); !ranged {
		target = e.PortRange
		e.targetAddr, ok = parseTarget(to)
	}
	switch {
	case !ok:
		return e, " has no valid target"
	case target.Len() != e.Len():
		return e, " maps ranges of different length"
	}
	e.targetPort = target.First
	return e, ""
}

// rules puts the set together with the listening side.
func (p *portSet) rules(base Rule, ephemeral PortRange) ([]Rule, error) {
	include := p.include
	if len(include) == 0 {
		base.Weak = true
		if ephemeral != (PortRange{}) {
			p.exclude.add(ephemeral)
		}
		include = []entry{{PortRange{1, maxPort}, p.allTarget, 1}}
	}
	base.Auto = p.auto
	var rules []Rule
	for _, e := range include {
		for r := range p.exclude.subtractFrom(e.PortRange) {
			rule := base
			rule.PortRange = r
			rule.TargetAddr = e.targetAddr
			rule.TargetPort = e.targetPort + (r.First - e.First)
			if err := rule.check(); err != nil {
				return nil, err
			}
			var err error
			if rules, err = AddRules(rules, []Rule{rule}); err != nil {
				return nil, err
			}
		}
	}
	return rules, nil
}

// parseRange reads "a" or "a-b" with a <= b.
func parseRange(s string) (PortRange, bool) {
	a, b, ranged := strings.Cut(s, "-")
	first, ok := parseNumber(a, 10, maxPort)
	last := first
	if ok && ranged {
		last, ok = parseNumber(b, 10, maxPort)
	}
	return PortRange{uint16(first), uint16(last)}, ok && first <= last
}

// parseTarget reads an address, in brackets or not. The unspecified address
// stands for the guest's own, like none at all.
func parseTarget(s string) (netip.Addr, bool) {
	addr, ok := parseAddr(unbracket(s), anyAddr)
	if addr.IsUnspecified() {
		addr = netip.Addr{}
	}
	return addr, ok
}

// unbracket takes one pair of brackets off, if there is one.
func unbracket(s string) string {
	if n := len(s); n >= 2 && s[0] == '[' && s[n-1] == ']' {
		return s[1 : n-1]
	}
	return s
}
