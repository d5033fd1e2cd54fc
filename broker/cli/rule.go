// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"net/netip"
	"strings"

	"aldente/ipc"
)

// MaxRules bounds the rules of one protocol in one direction.
const MaxRules = 4096

// PortRange is a range of ports, both ends included, First <= Last.
type PortRange struct{ First, Last uint16 }

// String returns "22" or "22-25".
func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Len is the number of ports, 1 to 65536.
func (r PortRange) Len() int { return int(r.Last) - int(r.First) + 1 }

func (r PortRange) overlaps(s PortRange) bool { return r.First <= s.Last && s.First <= r.Last }

// Rule forwards one range of ports to an equally long one.
type Rule struct {
	Proto     uint8      // ipc.ProtoTCP or ipc.ProtoUDP
	Addr      netip.Addr // listening address; zero: any, IPv4 and IPv6
	Interface string     // listening interface, "": any
	PortRange            // listening ports, never 0

	TargetAddr netip.Addr // never unspecified; zero: the guest's or namespace's own
	TargetPort uint16     // port that First goes to, never 0

	Weak bool // a port that can't be bound is skipped, unless none can
	Auto bool // only while the target port is bound in the target namespace
}

// Target returns the ports that the rule's ports go to.
func (r *Rule) Target() PortRange {
	return PortRange{r.TargetPort, r.TargetPort + (r.Last - r.First)}
}

// String returns the rule as the start-up summary and messages show it, for
// example "TCP [192.0.2.1]%eth0:2200  =>  192.0.2.5:22 (best effort)".
func (r *Rule) String() string {
	var b strings.Builder
	proto, addr := "TCP", "*"
	if r.Proto == ipc.ProtoUDP {
		proto = "UDP"
	}
	if r.Addr.IsValid() {
		addr = r.Addr.String()
	}
	fmt.Fprintf(&b, "%s [%s]", proto, addr)
	if r.Interface != "" {
		b.WriteString("%" + r.Interface)
	}
	fmt.Fprintf(&b, ":%v  =>  ", r.PortRange)
	switch {
	case r.TargetAddr.Is4():
		fmt.Fprintf(&b, "%v:", r.TargetAddr)
	case r.TargetAddr.IsValid():
		fmt.Fprintf(&b, "[%v]:", r.TargetAddr)
	}
	b.WriteString(r.Target().String())
	if r.Weak {
		b.WriteString(" (best effort)")
	}
	if r.Auto {
		b.WriteString(" (auto-scan)")
	}
	return b.String()
}

// Spec returns a port specification that ParseSpec makes this rule of, given
// the same SpecOptions. Weak rules, which no explicit range gives, are written
// as everything but the rest.
func (r *Rule) Spec() string {
	var b strings.Builder
	if r.Addr.IsValid() {
		b.WriteString(r.Addr.String())
	}
	if r.Interface != "" {
		b.WriteString("%" + r.Interface)
	}
	if b.Len() > 0 {
		b.WriteByte('/')
	}
	if r.Weak {
		b.WriteString("all")
		if r.TargetAddr.IsValid() {
			fmt.Fprintf(&b, ":[%v]", r.TargetAddr)
		}
		if r.First > 1 {
			fmt.Fprintf(&b, ",~1-%d", r.First-1)
		}
		if r.Last < maxPort {
			fmt.Fprintf(&b, ",~%d-%d", r.Last+1, maxPort)
		}
	} else {
		fmt.Fprintf(&b, "%v:", r.PortRange)
		if r.TargetAddr.IsValid() {
			fmt.Fprintf(&b, "[%v]/", r.TargetAddr)
		}
		b.WriteString(r.Target().String())
	}
	if r.Auto {
		b.WriteString(",auto")
	}
	return b.String()
}

// Option returns the option that makes this rule, see Spec. Outbound ones have no
// address to listen on.
func (r *Rule) Option(outbound bool) string {
	bare, letter := *r, "t"
	if r.Proto == ipc.ProtoUDP {
		letter = "u"
	}
	if outbound {
		bare.Addr, bare.Interface, letter = netip.Addr{}, "", strings.ToUpper(letter)
	}
	return "-" + letter + " " + bare.Spec()
}

// check reports what makes the rule impossible by itself.
func (r *Rule) check() error {
	switch {
	case r.First == 0:
		return usagef("Forwarding rule attempts to map from port 0: %v", r)
	case r.TargetPort == 0:
		return usagef("Forwarding rule attempts to map to port 0: %v", r)
	case !r.TargetAddr.IsValid():
		return nil
	case r.TargetAddr.IsMulticast() || r.TargetAddr == broadcast4:
		return usagef("Multicast target address %v for forwarding rule: %v", r.TargetAddr, r)
	case !r.Addr.IsValid():
		wildcard := "0.0.0.0"
		if r.TargetAddr.Is6() {
			wildcard = "::"
		}
		return usagef("Dual stack forward to %s address %v unsupported, listen on %s or another address: %v",
			familyName(r.TargetAddr), r.TargetAddr, wildcard, r)
	case r.Addr.Is4() != r.TargetAddr.Is4():
		return usagef("Forward from %s (%v) to %s (%v) unsupported: %v",
			familyName(r.Addr), r.Addr, familyName(r.TargetAddr), r.TargetAddr, r)
	}
	return nil
}

// conflicts tells whether the rules would listen on the same port of the same
// address. Interfaces don't part them, as in passt: what holds for two devices
// does not for a device and none, and the kernel's choice is not ours to guess.
func (r *Rule) conflicts(s *Rule) bool {
	return r.Proto == s.Proto && r.overlaps(s.PortRange) && addrsOverlap(r.Addr, s.Addr)
}

func addrsOverlap(a, b netip.Addr) bool {
	switch {
	case !a.IsValid() || !b.IsValid():
		return true
	case a.Is4() != b.Is4():
		return false
	}
	return a == b || a.IsUnspecified() || b.IsUnspecified()
}

// AddRules appends fresh to rules. An error names the first rule that
// overlaps one before it, or that there are more than MaxRules.
func AddRules(rules, fresh []Rule) ([]Rule, error) {
	for i := range fresh {
		f := &fresh[i]
		if err := overlaps(f, rules); err != nil {
			return nil, err
		}
		if len(rules) == MaxRules {
			return nil, usagef("Too many rules (maximum %d): %v", MaxRules, f)
		}
		rules = append(rules, *f)
	}
	return rules, nil
}

// overlaps returns an error that names the first of the rules that conflicts with r.
func overlaps(r *Rule, rules []Rule) error {
	for j := range rules {
		if r.conflicts(&rules[j]) {
			return usagef("Forwarding configuration conflict: %v versus %v", r, &rules[j])
		}
	}
	return nil
}

// Admit looks at rules that came by another way than a command line and returns them
// as ParseSpec would have made them, given the same SpecOptions, and without
// overlaps. Proto and Ephemeral of the options count for nothing.
func Admit(rules []Rule, o SpecOptions) ([]Rule, error) {
	admitted := make([]Rule, 0, len(rules))
	for _, r := range rules {
		if err := r.admit(o); err != nil {
			return nil, err
		}
		admitted = append(admitted, r)
	}
	for i := range admitted {
		if err := overlaps(&admitted[i], admitted[:i]); err != nil {
			return nil, err
		}
	}
	for _, proto := range []uint8{ipc.ProtoTCP, ipc.ProtoUDP} {
		if n := count(admitted, proto); n > MaxRules {
			return nil, usagef("Too many rules (maximum %d)", MaxRules)
		}
	}
	return admitted, nil
}

func count(rules []Rule, proto uint8) (n int) {
	for i := range rules {
		if rules[i].Proto == proto {
			n++
		}
	}
	return n
}

func (r *Rule) admit(o SpecOptions) error {
	switch {
	case r.Interface != "" && !validIfName(r.Interface):
		return usagef("Invalid interface name: %q", r.Interface)
	case o.Outbound && r.Addr.IsValid() && !r.wildcard(o), o.Outbound && r.Interface != "" && r.Interface != "lo":
		return usagef("Listening address not allowed for outbound rule: %v", r)
	case r.Auto && !o.Auto:
		return usagef("'auto' port forwarding is only allowed for pasta: %v", r)
	}
	if err := narrow(r, o); err != nil {
		return err
	}
	return r.check()
}

// wildcard tells whether the rule's address is that of a rule without one, where there
// is one family: outbound rules have that of the run, and no other.
func (r *Rule) wildcard(o SpecOptions) bool {
	return r.Addr.IsUnspecified() && (o.IPv4Only && r.Addr.Is4() || o.IPv6Only && r.Addr.Is6())
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}
