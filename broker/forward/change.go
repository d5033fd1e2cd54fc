// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/broker/plan"
	"aldente/broker/sockets"
)

// Rules returns the rules in force.
func (f *Forwarder) Rules() plan.Rules {
	f.change.Lock()
	defer f.change.Unlock()
	return f.inForce()
}

func (f *Forwarder) inForce() plan.Rules {
	var now plan.Rules
	for d, to := range [...]*[]cli.Rule{inbound: &now.Inbound, outbound: &now.Outbound} {
		for _, r := range f.rules[d] {
			*to = append(*to, r.Rule)
		}
	}
	return now
}

// Change puts other rules in the place of those in force, all or none: an error names
// the rule for which nothing was changed. Sockets that both have are not touched. What
// is new listens before what it replaces is closed; but ports that "auto" finds listen
// a moment later. Connections stay, whichever rule they came by.
func (f *Forwarder) Change(to plan.Rules) error {
	return f.Update(func(plan.Rules) (plan.Rules, error) { return to, nil })
}

// Update is Change for somebody who makes the new rules of those in force: between the
// two nobody else changes any. An error of next leaves all as it is.
func (f *Forwarder) Update(next func(now plan.Rules) (plan.Rules, error)) error {
	f.change.Lock()
	defer f.change.Unlock()
	to, err := next(f.inForce())
	if err == nil {
		to, err = f.plan.Admit(to)
	}
	if err != nil {
		return err
	}
	t := f.begin(to)
	for _, r := range t.fresh {
		if err := t.open(r); err != nil {
			t.undo()
			return err
		}
	}
	if err := f.plan.Forwarded(to.Outbound); err != nil {
		t.undo()
		return err
	}
	t.commit()
	f.follow()
	return nil
}

// ChangeRules has other rules put into force, beside what the rules of -T and -U, which it
// is told, allow. No port rule changes, and no listener is made, meanwhile.
func (f *Forwarder) ChangeRules(change func(outbound []cli.Rule) error) error {
	f.change.Lock()
	defer f.change.Unlock()
	return change(f.inForce().Outbound)
}

// transaction is a change of rules on its way.
type transaction struct {
	*Forwarder
	next  [2][]*rule // what is to be in force
	fresh []*rule    // of these the new ones
	gone  []*rule    // what is in force and is not to be

	going  map[endpoint][]sockets.Listener // of the rules in gone
	opened []opened
}

// opened is a listener of a new rule: one that an old rule has, bound as it is to be,
// which has an identifier, or a new one that is not adopted yet.
type opened struct {
	rule *rule
	sockets.Listener
	retarget bool // it is an old rule's, and leads elsewhere
}

// endpoint is what a new listener may have to take from an old one.
type endpoint struct {
	namespace bool
	proto     uint8
	port      uint16
}

// place is where exactly a listener of the host is bound.
type place struct {
	addr      netip.Addr
	ifaceName string
}

func endpointOf(l *sockets.Listener) endpoint { return endpoint{l.Namespace, l.Proto, l.Port} }

func placeOf(l *sockets.Listener) place { return place{l.Addr, l.Interface} }

// begin compares the rules that are to be with those that are.
func (f *Forwarder) begin(to plan.Rules) *transaction {
	t := &transaction{Forwarder: f, going: map[endpoint][]sockets.Listener{}}
	going := map[uint32]bool{}
	for d, rules := range [...][]cli.Rule{inbound: to.Inbound, outbound: to.Outbound} {
		old := map[cli.Rule]*rule{}
		for _, r := range f.rules[d] {
			old[r.Rule] = r
		}
		for i := range rules {
			r := old[rules[i]]
			if delete(old, rules[i]); r == nil {
				r = newRule(&rules[i], direction(d))
				t.fresh = append(t.fresh, r)
			}
			t.next[d] = append(t.next[d], r)
		}
		for _, r := range f.rules[d] {
			if old[r.Rule] == nil {
				continue
			}
			t.gone = append(t.gone, r)
			for _, id := range r.listeners() {
				going[id] = true
			}
		}
	}
	if len(t.fresh) > 0 && len(going) > 0 {
		for _, l := range f.factory.Listeners() {
			if e := endpointOf(&l); going[l.ID] {
				t.going[e] = append(t.going[e], l)
			}
		}
	}
	return t
}

// open opens the listeners of a new rule. Those with "auto" follow later.
func (t *transaction) open(r *rule) error {
	keep := func(l sockets.Listener) { t.opened = append(t.opened, opened{rule: r, Listener: l}) }
	if r.dir == inbound {
		listen := func(l sockets.Listener) (sockets.Listener, error) { return t.bind(r, l) }
		return t.listenHost(r, listen, func(l sockets.Listener) {
			if l.ID == 0 {
				keep(l)
			}
		})
	}
	if r.Auto {
		return nil
	}
	var ask []uint16
	for _, port := range portsOf(&r.Rule) {
		old := t.going[endpoint{true, r.Proto, port}]
		for _, l := range old {
			t.takeOver(r, t.plan.NamespaceListener(&r.Rule, port, -1), l)
		}
		if len(old) == 0 {
			ask = append(ask, port)
		}
	}
	o := t.listenNamespace(&r.Rule, ask, len(t.opened), func(_ uint16, ls []sockets.Listener) {
		for _, l := range ls {
			keep(l)
		}
	})
	o.bound += r.Len() - len(ask)
	return o.judge(&r.Rule, t.log)
}

// bind opens one listener of the host's, or takes over an old one, which is returned.
func (t *transaction) bind(r *rule, l sockets.Listener) (sockets.Listener, error) {
	going := t.going[endpointOf(&l)]
	for _, old := range going {
		if placeOf(&old) == placeOf(&l) {
			t.takeOver(r, l, old)
			return old, nil
		}
	}
	if err := t.factory.Room(len(t.opened)); err != nil {
		return l, err
	}
	if len(going) > 0 {
		return t.factory.Beside(l, going)
	}
	return t.factory.Bind(l)
}

// takeOver has a new rule have an old one's listener, which leads where l would.
func (t *transaction) takeOver(r *rule, l, old sockets.Listener) {
	l.ID, l.FD = old.ID, old.FD
	elsewhere := l.GuestPort != old.GuestPort || l.Target != old.Target || l.Splice != old.Splice
	t.opened = append(t.opened, opened{r, l, elsewhere})
}

// undo closes what was opened.
func (t *transaction) undo() {
	for i := range t.opened {
		if o := &t.opened[i]; o.ID == 0 {
			unix.Close(o.FD)
		}
	}
}

// commit has the worker hear of what was opened, and then of what goes.
func (t *transaction) commit() {
	kept := map[uint32]bool{}
	for i := range t.opened {
		o := &t.opened[i]
		switch {
		case o.ID == 0:
			o.Listener = t.add(o.Listener)
		case o.retarget:
			t.retarget(o.ID, o.Listener)
		}
		kept[o.ID] = true
		o.rule.ids = append(o.rule.ids, o.ID)
	}
	for _, r := range t.gone {
		for _, id := range r.listeners() {
			if !kept[id] {
				t.drop(id)
			}
		}
		t.log.Info("no longer forwarded", "rule", r.String())
	}
	for _, r := range t.fresh {
		t.log.Info("forwarded from now on", "rule", r.String())
	}
	t.rules = t.next
}
