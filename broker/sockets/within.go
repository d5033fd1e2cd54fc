// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/budget"
	"aldente/broker/flowlog"
	"aldente/ipc"
)

// SetBudget bounds what the guest may hold. It has to be called before this process
// confines itself and the first worker is served. An error says what cannot be
// watched; the rest is.
func (f *Factory) SetBudget(l budget.Limits, h budget.Host) (err error) {
	if f.gate != nil {
		f.gate.pace.Rate = l.NewConns
	}
	f.ledger, err = newLedger(l, h)
	return err
}

// Usage tells how the budget of each kind of socket was used.
func (f *Factory) Usage() (u [budget.Kinds]budget.Usage) {
	if f.ledger != nil {
		u = f.ledger.usage()
	}
	return u
}

// openWithin carries a decision out on the host within the budget. Sockets of the
// guest's namespace are the guest's own affair.
func (f *Factory) openWithin(q *request, d *decision, s *served) (outcome, error) {
	kind := kindOf(q)
	if reason := f.ledger.may(kind); reason != budget.Granted {
		f.overBudget(kind, reason)
		o := nothing(overBudgetErrno(reason))
		o.limit = reason
		return o, nil
	}
	o, err := f.carryOut(q, d, s)
	switch {
	case o.fd < 0:
	case kind == budget.TCP:
		o = f.ledger.connecting(o, f.stands(q, d), q.connected)
	case !f.ledger.opened(kind, o.fd, f.stands(q, d)):
		unix.Close(o.fd)
		o = nothing(unix.ENOMEM)
	}
	return o, err
}

// kindOf is what a socket of the host counts as.
func kindOf(q *request) budget.Kind {
	switch {
	case q.proto == ipc.ProtoTCP:
		return budget.TCP
	case q.proto != ipc.ProtoUDP:
		return budget.Echo
	case q.listener.ID != 0 && !q.splice:
		return budget.Reply
	}
	return budget.UDP
}

// overBudgetErrno is what the worker is told: to let go of something, or that it
// may be better the next time.
func overBudgetErrno(r budget.Reason) unix.Errno {
	switch r {
	case budget.TooFast:
		return unix.EAGAIN
	case budget.Paced:
		return unix.ENOBUFS // the guest is told nothing, and asks again by itself
	}
	return unix.EMFILE
}

// overBudget tells the log, at most once a second for each kind.
func (f *Factory) overBudget(k budget.Kind, r budget.Reason) {
	l := &f.ledger.refused[k]
	if !l.Take(time.Now()) {
		return
	}
	text, limit := "", ""
	switch {
	case r == budget.Paced:
		text, limit = "the guest begins more flows in a second than it may", "new-conns"
	case r == budget.ManyFlows:
		text, limit = "the guest has as many flows as it may", "conns"
	case r == budget.TooMany && k == budget.UDP:
		text, limit = "the guest has as many UDP flows as it may", "udp"
	case r == budget.TooMany && k == budget.Echo:
		text, limit = "the guest has as many echo flows as it may", "icmp"
	case r == budget.TooMany:
		text = "the guest has as many peers of its UDP ports as it may"
	case r == budget.HostShort:
		text = "the host has few UDP ports left: the guest gets no more"
	case k == budget.TCP:
		text, limit = "the guest opens TCP connections that nobody answers too fast", "new"
	default:
		text, limit = "the guest opens UDP or echo flows too fast", "new-udp"
	}
	log := f.cfg().Logger
	if limit != "" {
		log = log.With("change_by", "--limit "+limit+"=N")
	}
	log.Warn(text, "refusals", l.Missed()+1)
}

// await returns when the worker's next message may be read. While connections are under way
// it waits for them too and lets go of those that have come to an end: only then a worker's
// close is the last. All answers were sent.
func (f *Factory) await(s *served) error {
	g := f.ledger
	if g != nil {
		g.waiting.closeDone()
		g.settle()
	}
	for {
		if g != nil && g.waiting.ep != s.ep {
			if s.ep = g.waiting.ep; s.ep >= 0 {
				if err := s.set.Add(s.ep); err != nil {
					return err
				}
			}
		}
		if err := s.set.Wait(); err != nil {
			return err
		}
		if s.ep >= 0 && s.set.Ready(s.ep) {
			g.swept()
			g.settle()
		}
		if s.set.Ready(s.fd) {
			return nil
		}
	}
}

// workerGone lets go of what a worker had under way.
func (f *Factory) workerGone() {
	if f.ledger != nil {
		f.ledger.gone()
		f.ledger.settle()
	}
	f.StagesGone()
	if f.cfg().Flows != nil {
		f.cfg().Flows.Gone(flowlog.Lost)
	}
}
