// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/egress"
	"aldente/broker/limiter"
	"aldente/ipc"
	"aldente/ipc/domain"
	"aldente/ipc/sock"
)

// A flow that a rule by name allows may be looked at before it goes on (--verify-sni):
// many names may share an address, and the first bytes say which is meant.
//
// The socket to the destination is connected as ever, but stays here. The worker gets
// one end of a pair, the process for names the other, where it reads what the guest
// sends first. It says which name that holds, and whether the rules let that name be
// where the flow leads is decided here. Only then the socket is passed on: to the
// process for names, which writes what it has read, and to the worker, which goes on
// behind that (ipc.Stage).

// stageTime is how long a guest has for its first bytes. A variable for tests.
var stageTime = 10 * time.Second

// stageLines is how many lines of the log refusals by what was looked at may be.
var stageLines = limiter.Rate{PerSecond: 10, Burst: 50}

// proxyLines is the same for what did not get by the proxy.
var proxyLines = limiter.Rate{PerSecond: 1, Burst: 10}

// stages are the flows that are looked at, and those for which the proxy is asked.
type stages struct {
	send func(rec []byte, fd int) error // to the process for names, without waiting; nil: there is none

	mu    sync.Mutex
	flows map[uint32]*staged
	last  uint32 // ID that was given last
	lines limiter.Bucket
	usage StageUsage

	proxied    ProxyUsage
	proxyLines limiter.Bucket // of the log on what did not get by the proxy
}

// staged is one flow that is looked at.
type staged struct {
	id        uint32
	q         request
	d         decision
	flow      egress.Flow
	s         *served
	fd        int         // the socket to the destination, ours until the worker has it
	localPort uint16      // that it has, as outcome.localPort
	name      domain.Name // that was found and may be; empty: none yet
	opening   bool        // the worker has not been told of it yet
	over      func()      // with opening: what has ended it meanwhile; nil: nothing
	busy      bool        // somebody passes fd on, and closes it if it has gone meanwhile
	timer     *time.Timer

	proxying bool         // it is the proxy that is to answer
	said     proxySaid    // what it has
	early    *ipc.Relayed // its answer, which has come while busy
}

// SetNames tells how to send the process for names a record, without waiting for it, and
// has flows looked at from then on, as Config.VerifySNI says. It must be called before
// the first worker is served.
func (f *Factory) SetNames(send func(rec []byte, fd int) error) { f.stages.send = send }

// looksAt tells whether a flow is looked at before it goes on.
func (f *Factory) looksAt(q *request, d *decision) bool {
	if !d.verdict.ByName || !d.verdict.Allowed || q.listener.ID != 0 || q.proto != ipc.ProtoTCP && q.proto != ipc.ProtoUDP {
		return false
	}
	return f.cfg().looksAt(d.to.Port())
}

// LooksAt tells whether flows to a port are looked at that a rule by name allows.
func (f *Factory) LooksAt(port uint16) bool { return f.cfg().looksAt(port) }

func (c *Config) looksAt(port uint16) bool {
	return slices.ContainsFunc(c.VerifySNI, func(r PortRange) bool { return r.First <= port && port <= r.Last })
}

// openStaged opens the socket of a flow that is looked at. Its answer is always a late
// one: nothing of what becomes of it can come before that.
func (f *Factory) openStaged(q *request, d *decision, s *served) (outcome, error) {
	if f.stages.send == nil {
		return nothing(unix.EACCES), nil
	}
	t := &staged{q: *q, d: *d, s: s, fd: -1}
	t.flow = judgedAs(q, d)
	if q.proto == ipc.ProtoTCP && f.ledger != nil {
		t.q.connected = func(fd int) { f.connected(t, fd) }
	}
	o, err := f.openAny(&t.q, d, s)
	switch t.localPort = o.localPort; {
	case err != nil || o.fd < 0:
		return o, err
	case !o.kept: // else it is called when the connect has ended
		f.connected(t, o.fd)
	}
	return outcome{fd: -1, wait: true}, nil
}

// openAny is carryOut, within the budget if there is one.
func (f *Factory) openAny(q *request, d *decision, s *served) (outcome, error) {
	if f.ledger == nil {
		return f.carryOut(q, d, s)
	}
	return f.openWithin(q, d, s)
}

// connected goes on with a flow whose socket's connect has ended, one way or the other.
// Of UDP it has none.
func (f *Factory) connected(t *staged, fd int) {
	t.fd = fd
	o := nothing(0)
	if t.q.proto == ipc.ProtoTCP {
		o.errno = connectError(fd)
	}
	switch {
	case t.d.via == nil:
	case o.errno == 0:
		f.askProxy(t)
		return
	default:
		f.stages.proxyAway()
		f.tellProxy(t, o.errno.Error(), 0)
	}
	f.proceed(t, o)
}

// proceed has a flow looked at whose socket leads to the destination, or tells the worker
// why it does not.
func (f *Factory) proceed(t *staged, o outcome) {
	if o.errno == 0 {
		o = f.begin(t)
	}
	o.localPort, o.late = t.localPort, true
	if o.fd < 0 {
		unix.Close(t.fd)
	}
	a := o.record(t.q.token, t.q.proto, t.d.to)
	f.tellFlow(&t.q, &t.d, &o)
	sent := t.s.send(func(channel int) error {
		var rec [ipc.OpenedSize]byte
		a.Encode(rec[:])
		return ipc.Send(channel, rec[:], o.fd)
	})
	if o.fd < 0 {
		return
	}
	unix.Close(o.fd)
	// Now, and no sooner: what becomes of it is to find the worker's flow.
	over := f.stages.opened(t)
	what := uint8(ipc.StageTLS)
	if t.q.proto == ipc.ProtoUDP {
		what = ipc.StageQUIC
	}
	err := error(unix.EPIPE)
	if sent && over == nil {
		err = f.stages.send((&ipc.Stage{ID: t.id, What: what}).Encode(), o.far)
	}
	unix.Close(o.far)
	switch {
	case over != nil:
		over()
	case err != nil:
		f.endStaged(t.id, unix.ECONNRESET, StageLost)
	}
}

// opened notes that the worker was told of a flow, and returns what has ended it
// before; nil: nothing.
func (g *stages) opened(t *staged) (over func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t.opening = false
	return t.over
}

// connectError is why a connect has come to nothing, zero if it has not.
func connectError(fd int) unix.Errno {
	e, err := sock.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	switch {
	case err != nil:
		return errno(err)
	case e != 0:
		return unix.Errno(e)
	}
	switch connectState(fd) {
	case unix.BPF_TCP_CLOSE: // disconnected by us
		return unix.ECONNRESET
	case unix.BPF_TCP_SYN_SENT: // nobody would tell us of its end
		return unix.EAGAIN
	}
	return 0
}

// begin makes a flow one that is looked at. It returns both ends of its pair, the
// worker's and the other.
func (f *Factory) begin(t *staged) outcome {
	g := &f.stages
	pair, err := sock.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		g.mu.Lock()
		g.usage.Ended[StageNoRoom]++
		g.mu.Unlock()
		return nothing(errno(os.NewSyscallError("socketpair", err)))
	}
	if !g.register(t, func(id uint32) { f.refuseStaged(id, "", unix.ETIMEDOUT, StageLate, "nothing to see in time") }) {
		unix.Close(pair[0])
		unix.Close(pair[1])
		return nothing(unix.EAGAIN) // the guest tries again
	}
	return outcome{fd: pair[0], far: pair[1], staged: true}
}

// register gives a flow its number, and has late called unless it ends in time. It reports
// false if there are as many as may be.
func (g *stages) register(t *staged, late func(id uint32)) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.flows) >= ipc.MaxStages {
		g.ended(t, func(u *StageUsage) { u.Ended[StageNoRoom]++ })
		return false
	}
	for g.last++; g.last == 0 || g.flows[g.last] != nil; g.last++ {
	}
	t.id, t.opening = g.last, !t.proxying
	if g.flows == nil {
		g.flows = map[uint32]*staged{}
	}
	g.flows[t.id] = t
	id := t.id // which t may lose for another
	t.timer = time.AfterFunc(stageTime, func() { late(id) })
	return true
}

// FromNames takes a record of the process for names about flows that are looked at. An
// error is the end of that process.
func (f *Factory) FromNames(kind ipc.Kind, rec []byte) error {
	switch kind {
	case ipc.NamesKindStaged:
		var r ipc.Staged
		if err := r.Decode(rec); err != nil {
			return err
		}
		f.found(&r)
	case ipc.NamesKindPassed:
		var r ipc.Passed
		if err := r.Decode(rec); err != nil {
			return err
		}
		f.passed(&r)
	case ipc.NamesKindRelayed:
		var r ipc.Relayed
		if err := r.Decode(rec); err != nil {
			return err
		}
		f.relayed(&r)
	default:
		return fmt.Errorf("%w: nobody takes kind %#x", ipc.ErrMalformed, uint16(kind))
	}
	return nil
}

// found judges what a flow was found to be.
func (f *Factory) found(r *ipc.Staged) {
	if r.Found != ipc.FoundName {
		if f.stages.proxying(r.ID) {
			return // it was never asked to look
		}
		f.refuseStaged(r.ID, "", unix.EACCES, reasonOf(r.Found), ipc.FoundText(r.Found))
		return
	}
	name, err := domain.Parse(r.Name.String())
	if err != nil {
		f.refuseStaged(r.ID, "", unix.EACCES, StageNoName, ipc.FoundText(ipc.FoundBadName))
		return
	}
	g := &f.stages
	g.mu.Lock()
	t := g.flows[r.ID]
	if t == nil || t.opening || t.proxying || t.name != "" {
		g.mu.Unlock()
		return // too late, too soon, or said before
	}
	g.mu.Unlock()
	if !f.mayBe(t, name) {
		f.refuseStaged(r.ID, name, unix.EACCES, StageOtherName, "another name")
		return
	}
	g.mu.Lock()
	if g.flows[r.ID] != t || t.name != "" {
		g.mu.Unlock()
		return
	}
	t.name, t.busy = name, true // nobody else closes the socket meanwhile
	g.mu.Unlock()
	err = g.send((&ipc.StageSocket{ID: r.ID}).Encode(), t.fd)
	g.mu.Lock()
	if t.busy = false; g.flows[r.ID] != t {
		unix.Close(t.fd)
	}
	g.mu.Unlock()
	if err != nil {
		f.endStaged(r.ID, unix.ECONNRESET, StageLost)
	}
}

// proxying tells whether it is the proxy that is to answer for a flow.
func (g *stages) proxying(id uint32) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.flows[id]
	return t != nil && t.proxying
}

// mayBe tells whether a rule by name lets a name be where a flow leads.
func (f *Factory) mayBe(t *staged, name domain.Name) bool {
	flow := t.flow
	flow.Open, flow.Name = true, name
	v := f.cfg().Egress.Judge(flow)
	return v.Allowed && v.ByName
}

// passed gives the worker the socket, to which was written what was read.
func (f *Factory) passed(r *ipc.Passed) {
	g := &f.stages
	g.mu.Lock()
	t := g.flows[r.ID]
	if t == nil || t.name == "" || t.busy || t.proxying {
		g.mu.Unlock()
		return // too late, or never asked for
	}
	g.mu.Unlock()
	switch {
	case r.Errno != 0:
		f.endStaged(r.ID, unix.Errno(r.Errno), StageLost)
		return
	case !f.mayBe(t, t.name): // the rules have changed
		f.refuseStaged(r.ID, t.name, unix.EACCES, StageOtherName, "another name")
		return
	}
	if t = g.take(r.ID, func(u *StageUsage) { u.Passed++ }); t == nil {
		return
	}
	var rec [ipc.SwitchSize]byte
	(&ipc.Switch{Token: t.q.token, Count: r.Count}).Encode(rec[:])
	t.s.send(func(channel int) error { return ipc.Send(channel, rec[:], t.fd) })
	unix.Close(t.fd)
}

// take makes a flow one that is not looked at any more. Its socket is the caller's then,
// unless somebody is just passing it on, who closes it: then it is -1. It returns nil if
// there is no such flow.
func (g *stages) take(id uint32, count func(u *StageUsage)) *staged {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.flows[id]
	if t == nil {
		return nil
	}
	delete(g.flows, id)
	t.timer.Stop()
	g.ended(t, count)
	if t.busy {
		gone := *t
		gone.fd = -1
		return &gone
	}
	return t
}

// endStaged ends a flow that is looked at, for an error of which the worker is told. If
// that does not know of it yet, it ends when it does, and nothing is returned.
func (f *Factory) endStaged(id uint32, e unix.Errno, why StageReason) *staged {
	if f.stages.postpone(id, func() { f.endStaged(id, e, why) }) {
		return nil
	}
	t := f.stages.take(id, func(u *StageUsage) { u.Ended[why]++ })
	if t == nil {
		return nil
	}
	_ = f.stages.send((&ipc.StageEnd{ID: id}).Encode(), -1)
	if t.proxying { // the guest has no answer yet
		f.answerLate(t, nothing(e))
	} else {
		var rec [ipc.SwitchSize]byte
		(&ipc.Switch{Token: t.q.token, Errno: uint16(e)}).Encode(rec[:])
		t.s.send(func(channel int) error { return ipc.Send(channel, rec[:], -1) })
	}
	if t.fd >= 0 {
		unix.Close(t.fd)
	}
	return t
}

// postpone has a flow end when the worker has been told of it, by end. It reports false
// if that has been told.
func (g *stages) postpone(id uint32, end func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.flows[id]
	if t == nil || !t.opening {
		return false
	}
	if t.over == nil {
		t.over = end
	}
	return true
}

// refuseStaged ends a flow for what it has begun with, and has the log say so.
func (f *Factory) refuseStaged(id uint32, name domain.Name, e unix.Errno, reason StageReason, why string) {
	t := f.endStaged(id, e, reason)
	if t == nil {
		return
	}
	g := &f.stages
	g.mu.Lock()
	said := g.lines.Take(time.Now())
	g.mu.Unlock()
	if !said {
		return
	}
	fields := []any{"protocol", protoName(t.q.proto), "to", t.d.to.String(), "name", string(t.d.verdict.Name), "rule", t.d.verdict.Rule}
	if name != "" {
		fields = append(fields, "hello", string(name))
	}
	f.cfg().Logger.Warn("refused for its client hello", append(fields, "reason", why)...)
}

// StagesGone ends all flows that are looked at: nobody does any more.
func (f *Factory) StagesGone() {
	f.endStages(unix.ECONNRESET, StageLost, func(*staged) bool { return true })
}

// recheckStages ends the flows that are looked at and that the egress rules refuse now,
// whatever their hello will say. Their sockets are ours, so nobody has to be asked.
func (f *Factory) recheckStages() (ended int) {
	return f.endStages(unix.EACCES, StageOtherName, func(t *staged) bool {
		v, refused := f.refusedStaged(t)
		if refused {
			v.Count()
			f.refusals.note(f.cfg().Logger, t.flow.Proto, t.flow.To, &v)
		}
		return refused
	})
}

// refusedStaged tells whether the egress rules refuse a flow now that they have allowed.
func (f *Factory) refusedStaged(t *staged) (egress.Verdict, bool) {
	flow := t.flow
	flow.Open, flow.Name = true, t.d.verdict.Name
	v := f.cfg().Egress.Judge(flow)
	return v, !v.Allowed && !f.cfg().lifts(flow)
}

// endStages ends the flows that are looked at and of a kind, and returns how many.
func (f *Factory) endStages(e unix.Errno, why StageReason, of func(t *staged) bool) int {
	g := &f.stages
	g.mu.Lock()
	all := maps.Clone(g.flows) // asked about without the lock: rules may be many
	g.mu.Unlock()
	ended := 0
	for id, t := range all {
		if of(t) {
			f.endStaged(id, e, why)
			ended++
		}
	}
	return ended
}
