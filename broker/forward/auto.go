// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"slices"

	"aldente/broker/agent"
	"aldente/broker/ports"
	"aldente/broker/sockets"
	"aldente/broker/wait"
	"aldente/ipc"
)

// scanPeriod is how often bound ports are listed for rules with "auto", and what could
// not be bound is tried again. The kernel tells nobody of a socket that is bound.
const scanPeriod = agent.ScanPeriod

// autoForward keeps listeners for what is bound on the other side.
type autoForward struct {
	*Forwarder
	bound   [2]func(tcp, udp *ports.Set) error // by direction: lists its targets; nil if no rule can want to know
	warn    [2]bool                            // the last such list has failed
	targets [2]targets                         // of the last scan, by direction

	timer   wait.Timer
	set     wait.Set      // of the timer
	news    chan struct{} // the namespace's ports have changed
	running bool          // the timer is on
	started bool          // a goroutine waits for it
}

// autoRules are the rules in force that have "auto".
func (f *Forwarder) autoRules() (all []*rule) {
	for _, rules := range f.rules {
		for _, r := range rules {
			if r.Auto {
				all = append(all, r)
			}
		}
	}
	return all
}

// prepareAuto opens what lists the ports that are bound, as far as a rule wants to
// know, now or later: once this process is confined, it could not.
func (f *Forwarder) prepareAuto() error {
	a := &autoForward{Forwarder: f}
	live := f.plan.LiveRules()
	wanted := [2]bool{live, live}
	for _, r := range f.autoRules() {
		wanted[r.dir] = true
	}
	if wanted[inbound] {
		a.bound[inbound] = f.ns.Bound
	}
	if wanted[outbound] {
		s, err := ports.Open()
		if err != nil {
			return err
		}
		a.bound[outbound] = s.Scan
	}
	if !wanted[inbound] && !wanted[outbound] {
		return nil
	}
	if err := a.timer.Open(); err != nil {
		return err
	}
	if err := a.set.Open(); err != nil {
		return err
	}
	if err := a.set.Add(a.timer.FD()); err != nil {
		return err
	}
	if wanted[inbound] {
		a.hear()
	}
	f.auto = a
	return nil
}

// hear has listeners brought in line as soon as something has changed in the namespace.
func (a *autoForward) hear() {
	a.news = make(chan struct{}, 1)
	go func() {
		for range a.news {
			a.again()
		}
	}()
	a.ns.Changed(func() {
		select {
		case a.news <- struct{}{}:
		default:
		}
	})
}

// follow forwards what is bound now, and goes on in the background for as long as
// a rule asks for it. Without, nothing is ever scanned.
func (f *Forwarder) follow() {
	a := f.auto
	if a == nil || len(f.autoRules()) == 0 {
		return
	}
	a.lookAnew() // the agent works while we do
	a.sync()
	if err := a.timer.Start(f.period); err != nil {
		f.log.Error("ports that are bound from now on are not forwarded", "error", err)
		return
	}
	a.running = true
	if !a.started {
		a.started = true
		go a.goOn()
	}
}

// lookAnew has the agent list what is bound now, if it can. Of changes it tells only once
// that was asked for, and so not where no rule wants to know.
func (a *autoForward) lookAnew() {
	if a.bound[inbound] != nil {
		a.ns.StartScan()
	}
}

// goOn scans in the background, by a timer that the runtime's poller waits for: no
// thread waits besides, and none is woken to wake another.
func (a *autoForward) goOn() {
	for a.set.Wait() == nil {
		a.timer.Take()
		a.again()
	}
}

// again is one scan in the background, and the last if no rule asks for one any more.
func (a *autoForward) again() {
	a.change.Lock()
	defer a.change.Unlock()
	switch {
	case !a.running:
	case len(a.autoRules()) == 0:
		a.running = false
		_ = a.timer.Stop()
		a.lookAnew()
	default:
		a.sync()
	}
}

// asked tells whether a rule in force has "auto" in a direction.
func (a *autoForward) asked(d direction) bool {
	return slices.ContainsFunc(a.rules[d], func(r *rule) bool { return r.Auto })
}

// targets holds what may be forwarded in one direction, by protocol.
type targets struct{ tcp, udp ports.Set }

func (t *targets) of(proto uint8) *ports.Set {
	if proto == ipc.ProtoUDP {
		return &t.udp
	}
	return &t.tcp
}

// sync brings the listeners in line with what is bound. Whoever calls it holds
// change.
func (a *autoForward) sync() {
	a.targets = [2]targets{}
	t := &a.targets
	var known [2]bool
	rules := a.autoRules()
	for _, d := range []direction{outbound, inbound} {
		known[d] = a.asked(d) && !a.failed(d, a.bound[d](&t[d].tcp, &t[d].udp))
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
	for _, r := range rules {
		if known[r.dir] {
			a.close(r, t[r.dir].of(r.Proto))
		}
	}
	for _, r := range rules {
		if known[r.dir] {
			a.open(r, t[r.dir].of(r.Proto))
		}
	}
}

// failed tells whether a list of a direction's targets has failed, and the log
// once. What is forwarded already stays, the other direction goes on.
func (a *autoForward) failed(d direction, err error) bool {
	if err != nil && !a.warn[d] {
		where := "namespace"
		if d == outbound {
			where = "host"
		}
		a.log.Warn("cannot list the ports that are bound: none is newly forwarded until that works", "where", where, "error", err)
	}
	a.warn[d] = err != nil
	return a.warn[d]
}

// close drops the listeners of a rule whose targets are not bound any more.
func (a *autoForward) close(r *rule, bound *ports.Set) {
	for port, ids := range r.open {
		if bound.Has(r.TargetPort + (port - r.First)) {
			continue
		}
		for _, id := range ids {
			a.drop(id)
		}
		delete(r.open, port)
		a.log.Debug("port not forwarded any more", "rule", r.String(), "port", port)
	}
}

// open makes the listeners of a rule that are missing. What cannot be bound is
// tried again with the next scan: whoever has the port may let it go. The guest
// may have ports of the host that need privileges only where the rule names
// them. Who listens on 443 in the guest is not to get the host's 443 by that.
func (a *autoForward) open(r *rule, bound *ports.Set) {
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
	opened := func(port uint16, ls []sockets.Listener) {
		for _, l := range ls {
			r.open[port] = append(r.open[port], a.add(l).ID)
		}
		a.log.Debug("port forwarded", "rule", r.String(), "port", port)
	}
	if r.dir == outbound {
		a.listenNamespace(&r.Rule, missing, 0, opened)
		return
	}
	for _, p := range missing {
		if r.Weak && p < a.firstOpen {
			continue
		}
		if l, err := a.factory.Bind(a.plan.HostListener(&r.Rule, p)); err == nil {
			opened(p, []sockets.Listener{l})
		}
	}
}
