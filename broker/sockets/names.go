// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/budget"
	"aldente/broker/inet"
	"aldente/broker/limiter"
	"aldente/ipc"
	"aldente/ipc/sock"
)

// Names is aldente-names, which answers the guest's questions.
type Names interface {
	// Client passes it a socket, which stays the caller's to close, with the port that this
	// has. It does not wait.
	Client(proto uint8, fd int, port uint16) error
	// Settle has the egress rules know of all names that the guest may have been told of. It
	// returns what it has handled for that counts for.
	Settle() (handled int)
}

// decideSettled is decide, when the egress rules know of all names that the guest has been
// told of.
func (f *Factory) decideSettled(q *request, s *served) decision {
	if f.Names != nil && q.listener.ID == 0 {
		s.refusals += f.Names.Settle() // nobody gets them handled for nothing
	}
	return f.cfg().decide(q)
}

// openNames makes a pair of sockets, for the worker and for aldente-names. Where that is
// not there, the guest asks again: nothing else answers for it.
func (f *Factory) openNames(proto uint8) outcome {
	if f.Names == nil {
		return nothing(unix.EACCES)
	}
	ours, theirs, port, err := inet.Pair(proto)
	if err != nil {
		f.noPair(err)
		return nothing(errno(err))
	}
	err = f.Names.Client(proto, theirs, port)
	sock.Close(theirs)
	if err != nil {
		unix.Close(ours)
		return nothing(unix.EAGAIN)
	}
	return outcome{fd: ours, at: netip.AddrPortFrom(inet.PairAddr, port), names: proto == ipc.ProtoUDP}
}

// pairLines is how many lines of the log may say that questions are not answered.
var pairLines = limiter.Rate{PerSecond: 1, Burst: 1}

// noPair has the log say that a question is not answered, for want of sockets. At the start
// there were some: the host has changed.
func (f *Factory) noPair(err error) {
	if !f.pairLines.Take(time.Now()) {
		return
	}
	fields := []any{"error", err, "questions", f.pairLines.Missed() + 1}
	if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) {
		fields = append(fields, "needs", inet.PairAddr.String()+" on the host's loopback interface (ip link set lo up; ip address add 127.0.0.1/8 dev lo)")
	}
	f.cfg().Logger.Warn("questions for names cannot be answered", fields...)
}

// Upstream makes a socket by which aldente-names asks a resolver. Its connect may not have
// ended. Names is hostile, too: how many it has is counted as the worker's are.
func (f *Factory) Upstream(proto uint8, resolver netip.Addr) (fd int, e unix.Errno) {
	if g := f.ledger; g != nil && g.may(budget.Upstream) != budget.Granted {
		return -1, unix.EMFILE
	}
	d := f.cfg().decideUpstream(resolver)
	var r inet.Result
	if proto == ipc.ProtoTCP {
		c := inet.Connect{Path: d.inet(), Source: d.Source, To: d.to}
		r = c.Dial()
	} else {
		q := inet.Question{Path: d.inet(), Source: d.Source, To: d.to}
		r = q.Dial()
	}
	if r.Err != nil {
		return -1, errno(r.Err)
	}
	if g := f.ledger; g != nil && !g.opened(budget.Upstream, r.FD, stood{}) {
		unix.Close(r.FD)
		return -1, unix.ENOMEM
	}
	return r.FD, 0
}

// NamesClosed has the worker end a flow whose client aldente-names has closed by itself:
// what the guest sends next is asked for anew.
func (f *Factory) NamesClosed(port uint16, revoke func(*ipc.Revoke) error) {
	_ = revoke(&ipc.Revoke{Proto: ipc.ProtoUDP, Addr: inet.PairAddr.As16(), Port: port})
}

// NamesGone has the worker end the flows that aldente-names answered, which has ended:
// what the guest sends next is asked for anew, and nobody else gets a port that it has
// left. Streams end by themselves.
func (f *Factory) NamesGone(revoke func(*ipc.Revoke) error) {
	if g := f.ledger; g != nil {
		g.mu.Lock()
		g.budget.NamesGone()
		g.mu.Unlock()
	}
	_ = revoke(&ipc.Revoke{Proto: ipc.ProtoUDP, Addr: inet.PairAddr.As16()})
}
