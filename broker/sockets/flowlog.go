// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"fmt"
	"net/netip"

	"aldente/broker/budget"
	"aldente/broker/flowlog"
	"aldente/ipc"
)

// tellFlow has the flow log take note of what has become of a request.
func (f *Factory) tellFlow(q *request, d *decision, o *outcome) {
	switch {
	case f.cfg().Flows == nil || o.later || o.wait:
	case d.byRules:
		f.cfg().Flows.Refused(flowOf(q, d), "egress rules")
	case d.refused != 0:
		f.cfg().Flows.Refused(flowOf(q, d), impossible[d.always])
	case o.limit != budget.Granted:
		f.cfg().Flows.Refused(flowOf(q, d), limitReason(o.limit))
	case answersBypass(q):
	case o.fd < 0:
		f.cfg().Flows.Failed(flowOf(q, d), o.errno)
	default:
		f.cfg().Flows.Opened(q.token, flowOf(q, d))
	}
}

// impossible is why a flow is refused whatever the rules say.
var impossible = [numAlways]string{
	possible: "not from this port of the guest's", noFamily: "address family is not enabled", noPort: "no port",
	isLoopback: "loopback", isUnspecified: "no address", isMulticast: "multicast", isBroadcast: "broadcast", isVirtual: "nothing there",
	isPrivateDNS: "names are answered on port 53",
}

func limitReason(r budget.Reason) string {
	switch r {
	case budget.TooFast, budget.Paced:
		return "limit on new flows"
	case budget.HostShort:
		return "few ports left on the host"
	}
	return "limit on flows"
}

// answersBypass tells whether a socket is the second of a flow past the link: the one
// by which its peer, on loopback, is answered.
func answersBypass(q *request) bool {
	l := &q.listener
	return l.ID != 0 && !q.splice && (l.Namespace || l.Splice && q.dst.Addr().IsLoopback())
}

// flowOf is the flow that a request is for.
func flowOf(q *request, d *decision) flowlog.Flow {
	l := &q.listener
	w := flowlog.Flow{Proto: q.proto, Rule: d.rule(), Name: string(d.verdict.Name)}
	switch {
	case l.ID == 0:
		w.Direction, w.Guest, w.Remote, w.To = "out", q.src, q.dst, d.to
	case q.splice && l.Namespace:
		w.Direction, w.Guest, w.Remote = "bypass-out", q.dst, d.to
	case q.splice:
		w.Direction, w.Guest, w.Remote = "bypass-in", d.to, q.dst
	default:
		w.Direction, w.Guest, w.Remote = "in", ofGuest(l), q.dst
	}
	if l.ID != 0 && w.Rule == "" {
		w.Rule = portRule(l)
	}
	return w
}

// ofGuest is the guest's side of what comes by a listener.
func ofGuest(l *Listener) netip.AddrPort { return netip.AddrPortFrom(l.Target, l.GuestPort) }

// portRule is the rule for ports that a listener is of, in short.
func portRule(l *Listener) string {
	option := "-t"
	switch tcp := l.Proto == ipc.ProtoTCP; {
	case tcp && l.Namespace:
		option = "-T"
	case !tcp && l.Namespace:
		option = "-U"
	case !tcp:
		option = "-u"
	}
	return fmt.Sprintf("%s %d", option, l.Port)
}

// flowNews handles a message that is for the flow log. Without one, no worker of ours
// sends it.
func (f *Factory) flowNews(kind ipc.Kind, b []byte) error {
	if f.cfg().Flows == nil {
		return fmt.Errorf("%w: nobody takes kind %#x", ipc.ErrMalformed, uint16(kind))
	}
	if kind == ipc.KindAccepted {
		return f.accepted(b)
	}
	for ; len(b) > 0; b = b[ipc.EndedSize:] {
		var e ipc.Ended
		if err := e.Decode(b[:ipc.EndedSize]); err != nil {
			return err
		}
		f.cfg().Flows.Ended(&e)
	}
	return nil
}

// accepted takes note of connections that came by listeners. Of one that is gone since,
// the worker may have had some in hand.
func (f *Factory) accepted(b []byte) error {
	for ; len(b) > 0; b = b[ipc.AcceptedSize:] {
		var a ipc.Accepted
		if err := a.Decode(b[:ipc.AcceptedSize]); err != nil {
			return err
		}
		w := flowlog.Flow{
			Proto: ipc.ProtoTCP, Direction: "in",
			Remote: netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), a.Port),
		}
		if l, ok := f.listener(a.Listener); ok {
			w.Guest, w.Rule = ofGuest(&l), portRule(&l)
		}
		f.cfg().Flows.Opened(a.Token, w)
	}
	return nil
}
