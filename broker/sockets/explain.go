// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"aldente/broker/budget"
	"aldente/broker/egress"
	"aldente/broker/inet"
	"aldente/ipc"
)

// Explanation is what becomes of a destination, and how that comes.
type Explanation struct {
	Steps   []Step // in the order in which they are taken; the last says what is decided
	Allowed bool   // there would be a socket
}

// Step is one of them.
type Step struct{ What, Result string }

func (e *Explanation) step(what, format string, args ...any) {
	e.Steps = append(e.Steps, Step{what, fmt.Sprintf(format, args...)})
}

// Decided adds the last step.
func (e *Explanation) Decided(allowed bool, format string, args ...any) *Explanation {
	e.Allowed = allowed
	e.step("verdict", format, args...)
	return e
}

// Why tells what would become of the guest's next flow to a destination: by decide,
// which is asked as for a worker, and by the budget. It opens and counts nothing, and
// may be called at any time.
func (f *Factory) Why(proto uint8, dst netip.AddrPort) *Explanation {
	var asked []egress.Asked
	q := request{proto: proto, src: netip.AddrPortFrom(inet.Any(dst.Addr()), 0), dst: dst, asked: &asked}
	e := &Explanation{}
	if l, ok := f.outbound(proto, dst); ok {
		q.splice, q.listener, q.src = true, l, netip.AddrPortFrom(dst.Addr(), l.GuestPort)
		e.step("listener", "port %d of the namespace's loopback is forwarded to the host: past the link", dst.Port())
	}
	d := f.cfg().decide(&q)
	fam := f.cfg().family(dst.Addr())
	switch name := familyName(dst.Addr()); {
	case d.always == noFamily:
		e.step("family", "the guest has no %s", name)
		return e.Decided(false, "refused: an option takes %s away (-4, -6, a small MTU), or the host has none of it", name)
	case !q.splice:
		e.step("family", "the guest has %s", name)
	}
	if !f.explainAddress(e, &q, &d, fam) {
		return e
	}
	if d.names {
		e.step("names", "aldente-names answers what is asked there, by the rules, and passes on what they allow")
		return e.Decided(true, "answered by aldente-names")
	}
	if d.always == possible && !q.splice {
		e.step("source", "%s", d.sourceText())
	}
	return f.explainRules(e, &q, &d, asked)
}

// outbound finds the listener of -T or -U that has a port of the namespace's loopback.
func (f *Factory) outbound(proto uint8, dst netip.AddrPort) (Listener, bool) {
	if dst.Addr().IsLoopback() {
		for _, l := range f.Listeners() {
			if l.Namespace && l.Proto == proto && l.Port == dst.Port() {
				return l, true
			}
		}
	}
	return Listener{}, false
}

// explainAddress tells what the destination stands for. It reports false if that was
// the end.
func (f *Factory) explainAddress(e *Explanation, q *request, d *decision, fam *Family) bool {
	a := q.dst.Addr()
	switch d.always {
	case noPort:
		e.Decided(false, "refused: nothing has port 0")
		return false
	case possible:
		if d.refused != 0 && !d.byRules {
			e.Decided(false, "refused: %v", d.refused)
			return false
		}
		e.step("address", "%s", d.meaningText(q, fam))
		return true
	case isPrivateDNS:
		e.step("names", "%v is a resolver for which aldente-names answers, on port 53 and in plain", a)
		e.Decided(false, "refused, whatever the rules say: what is asked there nobody could read")
		return false
	case isLoopback:
		e.step("address", "%v is the guest itself: no packet to it leaves the guest, and none is taken", a)
		e.Decided(false, "refused: the host's loopback has %s", f.loopbackHint(q.proto, q.dst, fam))
		return false
	}
	e.step("address", "%v is %s", a, map[always]string{
		isUnspecified: "no destination", isMulticast: "multicast, which is not forwarded", isBroadcast: "the broadcast address, which is not forwarded",
		isVirtual: "in the guest's own network, where it means nothing",
	}[d.always])
	e.Decided(false, "refused, whatever the rules say: name one address")
	return false
}

// loopbackHint says by which names a guest reaches the host's loopback.
func (f *Factory) loopbackHint(proto uint8, dst netip.AddrPort, fam *Family) string {
	s := "no name in the guest; --map-host-loopback ADDR gives it one"
	if fam.MapHostLoopback.IsValid() {
		s = fmt.Sprintf("another name in the guest, %v", fam.MapHostLoopback)
	}
	if f.cfg().Namespace == nil || proto != ipc.ProtoTCP && proto != ipc.ProtoUDP {
		return s
	}
	option := "-T"
	if proto == ipc.ProtoUDP {
		option = "-U"
	}
	return fmt.Sprintf("%s; %s %d brings its port here", s, option, dst.Port())
}

// meaningText is how the destination was translated.
func (d *decision) meaningText(q *request, fam *Family) string {
	a := q.dst.Addr()
	switch {
	case d.group:
		return fmt.Sprintf("%v is many: --multicast has it leave, on the host's link", a)
	case q.splice:
		return fmt.Sprintf("the rule leads to %s", place(q.proto, d.to))
	case d.meaning == redirected:
		return fmt.Sprintf("%s leads to %s instead, by \"%v\"", place(q.proto, q.dst), place(q.proto, d.to), d.redirect)
	case d.meaning == hostResolver:
		return fmt.Sprintf("%v is the guest's name for a resolver of the host's: %v", a, d.to.Addr())
	case d.meaning == hostLoopback:
		return fmt.Sprintf("%v is the guest's name for the host's loopback: %v", a, d.to.Addr())
	case d.meaning == guestOnHost:
		return fmt.Sprintf("%v is the guest's name for the host where both have one address: %v", a, d.to.Addr())
	case fam.DNSForward.IsValid() && a == fam.DNSForward:
		return fmt.Sprintf("%v stands for a resolver on ports 53 and 853 of TCP and UDP only: here for itself", a)
	}
	return fmt.Sprintf("%v stands for itself", a)
}

// sourceText is where a flow comes from.
func (d *decision) sourceText() string {
	s := "an address of the host's, as its routes say"
	if d.Source.IsValid() {
		s = d.Source.String()
	}
	if d.Interface != "" {
		s += ", by interface " + d.Interface
	}
	return s
}

// explainRules tells which rules were asked, and what is left of the budget.
func (f *Factory) explainRules(e *Explanation, q *request, d *decision, asked []egress.Asked) *Explanation {
	before := len(f.beforeRules())
	for i := range asked {
		a := &asked[i]
		about := ""
		if a.To != d.to.Addr().WithZone("") {
			about = fmt.Sprintf(" (for %v, which %v may become on the way)", a.To, d.to.Addr())
		}
		e.step(fmt.Sprintf("rule %d", before+a.Index+1), "%s: %s%s", a.Text, a.Result, about)
	}
	if d.unproxied != "" {
		e.step("proxy", "%s %s", f.cfg().Via.Text, d.unproxied)
		return e.Decided(false, "refused: the guest hears \"administratively prohibited\"; --via-except PREFIX has it pass by the proxy's side")
	}
	if d.byRules && len(asked) > 0 {
		last := &asked[len(asked)-1]
		return e.Decided(false, "refused by \"%s\": the guest hears \"administratively prohibited\"; %s", last.Text, remedy(q, d, last))
	}
	switch {
	case d.lifted:
		e.step("audit", "--audit allows what \"%s\" refuses, and records it", d.verdict.Rule)
	case d.byRules:
		return e.Decided(false, "refused by \"%s\"", d.verdict.Rule)
	case f.cfg().Egress == nil:
		e.step("rules", "there are none")
	case d.verdict.Rule == "":
		e.step("rules", "none fits")
	}
	if d.via != nil {
		e.step("proxy", "%s is asked for it", d.via.Text)
	}
	if f.looksAt(q, d) {
		e.step("hello", "%s", HelloText)
	}
	if f.ledger != nil {
		text, reason := f.ledger.would(kindOf(q))
		if e.step("limits", "%s", text); reason != budget.Granted {
			return e.Decided(false, "refused at the moment: see --limit")
		}
	}
	return e.Decided(true, "allowed: to %s", place(q.proto, d.to))
}

// HelloText is what --verify-sni asks of a flow, for people.
const HelloText = "--verify-sni: it has to begin with a client hello, whose name a rule by name lets be there"

// remedy says which option would allow a flow that a rule refuses.
func remedy(q *request, d *decision, by *egress.Asked) string {
	to := by.To.String()
	if to6 := by.To.Is6(); to6 && q.proto != ipc.ProtoICMPv6 {
		to = "[" + to + "]"
	}
	option := fmt.Sprintf("--allow %s:%s", protoName(q.proto), to)
	if port := d.to.Port(); port != 0 {
		option = fmt.Sprintf("%s:%d", option, port)
	}
	if by.Source != egress.ByOption {
		return fmt.Sprintf("\"%s\" would allow it", option)
	}
	return fmt.Sprintf("\"%s\" before it would allow it", option)
}

// would tells how much of a limit is used, and whether there is room for one more.
func (g *ledger) would(k budget.Kind) (string, budget.Reason) {
	g.mu.Lock()
	defer g.mu.Unlock()
	reason := g.budget.Would(k, time.Now())
	u := g.budget.Usage()[k]
	held := fmt.Sprintf("%d of %d %s", u.Held, u.Limit, k)
	if u.Limit == budget.Unlimited {
		held = fmt.Sprintf("%d %s, without limit", u.Held, k)
	}
	if k == budget.TCP {
		held += " under way"
	}
	if all := g.budget.Usage()[budget.Conn]; all.Limit != budget.Unlimited {
		held += fmt.Sprintf(", %d of %d flows", all.Held, all.Limit)
	}
	return held + [...]string{
		budget.Granted: ": there is room", budget.TooMany: ": no more may be", budget.TooFast: ": too many in too short a time",
		budget.HostShort: ": the host has few ports left", budget.ManyFlows: ": no more flows may be", budget.Paced: ": too many new flows in a second",
	}[reason], reason
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// place is a destination in words.
func place(proto uint8, to netip.AddrPort) string {
	if to.Port() == 0 {
		return to.Addr().String()
	}
	return strings.Join([]string{protoName(proto), to.String()}, " ")
}
