// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"

	"aldente/broker/egress"
	"aldente/broker/inet"
	"aldente/broker/ingress"
	"aldente/ipc"
)

// hears is the program of a UDP listener on the host: who may speak to the guest by it.
func (f *Factory) hears(l *Listener) inet.Filter {
	if l.Namespace || l.Proto != ipc.ProtoUDP {
		return nil
	}
	return f.cfg().Ingress.Program(l.Proto, l.GuestPort)
}

// hearsOn is the program of our UDP listener that has a whole port, if one has: a
// flow's socket beside it gets what is meant for it, until it is connected.
func (f *Factory) hearsOn(listens []Listener, v4 bool) inet.Filter {
	for i := range listens {
		if coveredBy(listens[i:i+1], v4) {
			return f.hears(&listens[i])
		}
	}
	return nil
}

// mayBeAnswered tells whether a peer may have spoken to a listener at all.
func (c *Config) mayBeAnswered(r *request, d *decision) bool {
	if !c.Ingress.Any() {
		return true
	}
	peer := d.to.Addr().WithZone("")
	return c.Ingress.Allowed(ingress.Peer{Proto: r.listener.Proto, Port: r.listener.GuestPort, Addr: peer, Host: c.onHost(judgedAs(r, d))})
}

// onHost tells whether a peer is on the host itself: what is sent to it stays there. One
// that has answered is where answers go, whatever its address.
func (c *Config) onHost(f egress.Flow) bool {
	return f.To.Addr().IsLoopback() || c.Local != nil && c.Ingress.AsksHost() && c.Local(f)
}

// ReplaceIngress puts other rules in the place of those that say who may connect to the
// guest, and has all listeners follow them. Connections that are made stay. An error
// leaves the rules as they were; where the kernel has no room for a program, its
// listener hears nobody. The caller sees to it that no listener is made meanwhile, and
// Config.Ingress has to be there from the start.
func (f *Factory) ReplaceIngress(rules []ingress.Rule) error {
	if err := f.cfg().Ingress.Replace(rules); err != nil {
		return err
	}
	var errs []error
	for _, l := range f.Listeners() {
		if l.Proto == ipc.ProtoUDP && !l.Namespace {
			errs = append(errs, inet.Refilter(l.FD, f.hears(&l)))
		}
	}
	return errors.Join(errs...)
}

// Dropped is how many connections the rules have refused at a listener, or how many
// packets the kernel has dropped there, for the rules or for want of room.
func (f *Factory) Dropped(id uint32) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, ok := f.listeners[id]
	switch {
	case !ok || l.Namespace || l.FD < 0:
		return 0
	case l.Guarded:
		return f.gate.refused[id]
	}
	return inet.Dropped(l.FD)
}

// IngressRules are the rules that say who may connect to the guest, in order.
func (f *Factory) IngressRules() []egress.Listed { return f.cfg().Ingress.List() }
