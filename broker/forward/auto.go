// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"time"

	"aldente/broker/cli"
	"aldente/broker/ports"
	"aldente/broker/sockets"
	"aldente/ipc"
)

// scanPeriod is how often bound ports are listed for rules with "auto". The
// kernel tells nobody of a socket that is bound.
const scanPeriod = time.Second

// autoForward keeps listeners for what is bound on the other side.
type autoForward struct {
	*Forwarder
	rules []autoRule
	bound [2]func(tcp, udp *ports.Set) error // by direction: lists its targets; nil if no rule wants to know
	warn  [2]bool                            // the last such list has failed
}

// autoRule is a rule with "auto" and the ports that it forwards now.
type autoRule struct {
	*cli.Rule
	dir  direction
	open map[uint16][]sockets.Listener
}

// startAuto forwards what is bound now, and goes on in the background. Without
// a rule that asks for it, nothing is ever scanned.
func (f *Forwarder) startAuto() error {
	a := &autoForward{Forwarder: f}
	for d, rules := range [...][]*cli.Rule{inbound: f.plan.Inbound, outbound: f.plan.Outbound} {
		for _, r := range rules {
			if r.Auto {
				a.rules = append(a.rules, autoRule{r, direction(d), make(map[uint16][]sockets.Listener)})
			}
		}
	}
	if len(a.rules) == 0 {
		return nil
	}
	for i := range a.rules {
		switch d := a.rules[i].dir; {
		case a.bound[d] != nil:
		case d == inbound:
			a.bound[d] = f.ns.Bound
		default:
			s, err := ports.Open()
			if err != nil {
				return err
			}
			a.bound[d] = s.Scan
		}
	}
	f.auto = a
	a.sync()
	go func() {
		for range time.Tick(f.period) {
			a.sync()
		}
	}()
	return nil
}

// targets holds what may be forwarded in one direction, by protocol.
type targets struct{ tcp, udp ports.Set }

func (t *targets) of(proto uint8) *ports.Set {
	if proto == ipc.ProtoUDP {
		return &t.udp
	}
	return &t.tcp
}

// sync brings the listeners in line with what is bound. It is called by one
// goroutine at a time.
func (a *autoForward) sync() {
	var t [2]targets
	var known [2]bool
	if a.bound[inbound] != nil {
		a.ns.StartScan() // the agent works while we do
	}
	for _, d := range []direction{outbound, inbound} {
		list := a.bound[d]
		known[d] = list != nil && !a.failed(d, list(&t[d].tcp, &t[d].udp))
	}
	// What we listen on ourselves leads to the other side: it is no target.
	for _, l := range a.factory.Listeners() {
		d := outbound
		if l.Namespace {
			d = inbound
		}
		t[d].of(l.Proto).Clear(l.Port)
	}
	// A service on TCP may have a sibling on UDP that is not bound all the time,
	// such as iperf3's.
	for d := range t {
		t[d].udp.Merge(&t[d].tcp)
	}
	for i := range a.rules {
		if r := &a.rules[i]; known[r.dir] {
			a.close(r, t[r.dir].of(r.Proto))
		}
	}
	for i := range a.rules {
		if r := &a.rules[i]; known[r.dir] {
			a.open(r, t[r.dir].of(r.Proto))
		}
	}
}

// failed tells whether a list of a direction's targets has failed, and the log
// once. What is forwarded already stays, the other direction goes on.
func (a *autoForward) failed(d direction, err error) bool {
	if err != nil && !a.warn[d] {
		where := "in the namespace"
		if d == outbound {
			where = "on the host"
		}
		a.log.Warn("cannot list the ports that are bound "+where+": none of them is newly forwarded until that works", "error", err)
	}
	a.warn[d] = err != nil
	return a.warn[d]
}

// close drops the listeners of a rule whose targets are not bound any more.
func (a *autoForward) close(r *autoRule, bound *ports.Set) {
	for port, ls := range r.open {
		if bound.Has(r.TargetPort + (port - r.First)) {
			continue
		}
		for i := range ls {
			a.drop(&ls[i])
		}
		delete(r.open, port)
		a.log.Debug("port not forwarded any more", "rule", r.String(), "port", port)
	}
}

// open makes the listeners of a rule that are missing. What cannot be bound is
// tried again with the next scan: whoever has the port may let it go. Ports of the
// host that need privileges are the guest's to have only where the rule names
// them: one that listens on 443 in the guest is not to get the host's by that.
func (a *autoForward) open(r *autoRule, bound *ports.Set) {
	var missing []uint16
	target := r.Target()
	for port := range bound.All() {
		if port < target.First || port > target.Last {
			continue
		}
		p := r.First + (port - target.First)
		if _, ok := r.open[p]; !ok {
			missing = append(missing, p)
		}
	}
	opened := func(port uint16, l sockets.Listener) {
		r.open[port] = append(r.open[port], l)
		a.log.Debug("port forwarded", "rule", r.String(), "port", port)
	}
	if r.dir == outbound {
		a.listenNamespace(r.Rule, missing, opened)
		return
	}
	for _, p := range missing {
		if r.Weak && p < a.firstOpen {
			continue
		}
		if l, err := a.factory.Bind(a.plan.HostListener(r.Rule, p)); err == nil {
			opened(p, a.add(l))
		}
	}
}
