// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"aldente/broker/cli"
	"aldente/broker/sockets"
	"aldente/ipc"
)

// scanPeriod is how often bound ports are listed for rules with "auto". The
// kernel tells nobody of a socket that is bound.
const scanPeriod = time.Second

// autoForward keeps listeners for what is bound on the other side.
type autoForward struct {
	in    *instance
	rules []autoRule
	bound [2]*sockets.Scanner // by direction: where its targets are; nil if no rule wants to know
	warn  bool                // the last scan has failed
}

// autoRule is a rule with "auto" and the ports that it forwards now.
type autoRule struct {
	*cli.Rule
	dir  direction
	open map[uint16][]sockets.Listener
}

// startAuto forwards what is bound now, and goes on in the background. Without
// a rule that asks for it, nothing is ever scanned.
func (in *instance) startAuto() error {
	a := &autoForward{in: in}
	for _, d := range []direction{inbound, outbound} {
		for _, r := range in.rules(d) {
			if r.Auto {
				a.rules = append(a.rules, autoRule{r, d, make(map[uint16][]sockets.Listener)})
			}
		}
	}
	if len(a.rules) == 0 {
		return nil
	}
	if err := a.scanners(); err != nil {
		return err
	}
	in.forward.auto = a
	a.sync()
	go func() {
		for range time.Tick(scanPeriod) {
			a.sync()
		}
	}()
	return nil
}

// scanners opens what lists bound ports, where rules need that.
func (a *autoForward) scanners() error {
	for i := range a.rules {
		switch d := a.rules[i].dir; {
		case a.bound[d] != nil:
		case d == outbound:
			s, err := sockets.OpenScanner()
			if err != nil {
				return err
			}
			a.bound[d] = s
		default:
			done := make(chan error, 1)
			a.in.forward.ns.Open(ipc.AgentOpen{Proto: ipc.AgentProtoDiag}, func(fd int, err error) {
				if err == nil {
					a.bound[d] = sockets.NewScanner(fd)
				}
				done <- err
			})
			if err := <-done; err != nil {
				return fmt.Errorf("sock_diag socket in the namespace: %w", err)
			}
		}
	}
	return nil
}

// targets holds what may be forwarded in one direction, by protocol.
type targets struct{ tcp, udp sockets.Ports }

func (t *targets) of(proto uint8) *sockets.Ports {
	if proto == ipc.ProtoUDP {
		return &t.udp
	}
	return &t.tcp
}

// sync brings the listeners in line with what is bound. It is called by one
// goroutine at a time.
func (a *autoForward) sync() {
	var t [2]targets
	for d, s := range a.bound {
		if s == nil {
			continue
		}
		err := s.Bound(ipc.ProtoTCP, &t[d].tcp)
		if err == nil {
			err = s.Bound(ipc.ProtoUDP, &t[d].udp)
		}
		if a.failed(err) {
			return
		}
	}
	// What we listen on ourselves leads to the other side: it is no target.
	for _, l := range a.in.factory.Listeners() {
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
		r := &a.rules[i]
		a.close(r, t[r.dir].of(r.Proto))
	}
	for i := range a.rules {
		r := &a.rules[i]
		a.open(r, t[r.dir].of(r.Proto))
	}
}

// failed tells whether a scan has failed, and the log once.
func (a *autoForward) failed(err error) bool {
	if err != nil && !a.warn {
		a.in.log.Warn("cannot list bound ports: nothing more is forwarded automatically", "error", err)
	}
	a.warn = err != nil
	return a.warn
}

// close drops the listeners of a rule whose targets are not bound any more.
func (a *autoForward) close(r *autoRule, bound *sockets.Ports) {
	for port, ls := range r.open {
		if bound.Has(r.TargetPort + (port - r.First)) {
			continue
		}
		for i := range ls {
			a.in.drop(&ls[i])
		}
		delete(r.open, port)
		a.in.log.Debug("port not forwarded any more", "rule", r.String(), "port", port)
	}
}

// open makes the listeners of a rule that are missing. What cannot be bound is
// tried again with the next scan: whoever has the port may let it go.
func (a *autoForward) open(r *autoRule, bound *sockets.Ports) {
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
		a.in.log.Debug("port forwarded", "rule", r.String(), "port", port)
	}
	if r.dir == outbound {
		a.in.listenNamespace(r.Rule, missing, opened)
		return
	}
	for _, p := range missing {
		if l, err := a.in.factory.Bind(a.in.hostListener(r.Rule, p)); err == nil {
			opened(p, a.in.add(l))
		}
	}
}
