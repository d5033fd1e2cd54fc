// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/egress"
	"aldente/broker/limiter"
	"aldente/ipc"
	"aldente/ipc/domain"
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

// stages are the flows that are looked at.
type stages struct {
	send func(rec []byte, fd int) error // to the process for names; nil: there is none

	mu    sync.Mutex
	flows map[uint32]*staged
	last  uint32 // ID that was given last
	lines limiter.Bucket
	usage StageUsage
}

// StageUsage is what has become of flows that were looked at.
type StageUsage struct {
	Held    int    // are being looked at
	Passed  uint64 // were let through
	Refused uint64 // held another name, or none, or were cut off
	Failed  uint64 // came to nothing: no process for names, or too many at a time
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
	busy      bool        // somebody passes fd on, and closes it if it has gone meanwhile
	timer     *time.Timer
}

// SetNames tells how to send the process for names a record, and has flows looked at
// from then on, as Config.VerifySNI says. It must be called before the first worker is
// served.
func (f *Factory) SetNames(send func(rec []byte, fd int) error) { f.stages.send = send }

// Stages tells what has become of flows that were looked at.
func (f *Factory) Stages() StageUsage {
	f.stages.mu.Lock()
	defer f.stages.mu.Unlock()
	u := f.stages.usage
	u.Held = len(f.stages.flows)
	return u
}

// looksAt tells whether a flow is looked at before it goes on.
func (f *Factory) looksAt(q *request, d *decision) bool {
	if !d.verdict.ByName || !d.verdict.Allowed || q.listener.ID != 0 || q.proto != ipc.ProtoTCP && q.proto != ipc.ProtoUDP {
		return false
	}
	port := d.to.Port()
	return slices.ContainsFunc(f.cfg.VerifySNI, func(r PortRange) bool { return r.First <= port && port <= r.Last })
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
	if !sent {
		unix.Close(o.far)
		f.endStaged(t.id, unix.ECONNRESET, failed)
		return
	}
	// Now, and no sooner: what becomes of it is to find the worker's flow.
	what := uint8(ipc.StageTLS)
	if t.q.proto == ipc.ProtoUDP {
		what = ipc.StageQUIC
	}
	err := f.stages.send((&ipc.Stage{ID: t.id, What: what}).Encode(), o.far)
	unix.Close(o.far)
	if err != nil {
		f.endStaged(t.id, unix.ECONNRESET, failed)
	}
}

// connectError is why a connect has come to nothing, zero if it has not.
func connectError(fd int) unix.Errno {
	e, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
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
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.flows) >= ipc.MaxStages {
		g.usage.Failed++
		return nothing(unix.EAGAIN) // the guest tries again
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		g.usage.Failed++
		return nothing(errno(os.NewSyscallError("socketpair", err)))
	}
	for g.last++; g.last == 0 || g.flows[g.last] != nil; g.last++ {
	}
	t.id = g.last
	if g.flows == nil {
		g.flows = map[uint32]*staged{}
	}
	g.flows[t.id] = t
	id := t.id
	t.timer = time.AfterFunc(stageTime, func() { f.refuseStaged(id, "", unix.ETIMEDOUT, "nothing to see in time") })
	return outcome{fd: pair[0], far: pair[1], staged: true}
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
	default:
		return fmt.Errorf("%w: nobody takes kind %#x", ipc.ErrMalformed, uint16(kind))
	}
	return nil
}

// found judges what a flow was found to be.
func (f *Factory) found(r *ipc.Staged) {
	if r.Found != ipc.FoundName {
		f.refuseStaged(r.ID, "", unix.EACCES, ipc.FoundText(r.Found))
		return
	}
	name, err := domain.Parse(r.Name.String())
	if err != nil {
		f.refuseStaged(r.ID, "", unix.EACCES, ipc.FoundText(ipc.FoundBadName))
		return
	}
	g := &f.stages
	g.mu.Lock()
	t := g.flows[r.ID]
	if t == nil || t.name != "" {
		g.mu.Unlock()
		return // too late, or said before
	}
	g.mu.Unlock()
	if !f.mayBe(t, name) {
		f.refuseStaged(r.ID, name, unix.EACCES, "another name")
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
		f.endStaged(r.ID, unix.ECONNRESET, failed)
	}
}

// mayBe tells whether a rule by name lets a name be where a flow leads.
func (f *Factory) mayBe(t *staged, name domain.Name) bool {
	flow := t.flow
	flow.Open, flow.Name = true, name
	v := f.cfg.Egress.Judge(flow)
	return v.Allowed && v.ByName
}

// passed gives the worker the socket, to which was written what was read.
func (f *Factory) passed(r *ipc.Passed) {
	g := &f.stages
	g.mu.Lock()
	t := g.flows[r.ID]
	if t == nil || t.name == "" || t.busy {
		g.mu.Unlock()
		return // too late, or never asked for
	}
	g.mu.Unlock()
	switch {
	case r.Errno != 0:
		f.endStaged(r.ID, unix.Errno(r.Errno), failed)
		return
	case !f.mayBe(t, t.name): // the rules have changed
		f.refuseStaged(r.ID, t.name, unix.EACCES, "another name")
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
	count(&g.usage)
	if t.busy {
		gone := *t
		gone.fd = -1
		return &gone
	}
	return t
}

func failed(u *StageUsage)  { u.Failed++ }
func refused(u *StageUsage) { u.Refused++ }

// endStaged ends a flow that is looked at, for an error of which the worker is told.
func (f *Factory) endStaged(id uint32, e unix.Errno, count func(u *StageUsage)) *staged {
	t := f.stages.take(id, count)
	if t == nil {
		return nil
	}
	_ = f.stages.send((&ipc.StageEnd{ID: id}).Encode(), -1)
	var rec [ipc.SwitchSize]byte
	(&ipc.Switch{Token: t.q.token, Errno: uint16(e)}).Encode(rec[:])
	t.s.send(func(channel int) error { return ipc.Send(channel, rec[:], -1) })
	if t.fd >= 0 {
		unix.Close(t.fd)
	}
	return t
}

// refuseStaged ends a flow for what it has begun with, and has the log say so.
func (f *Factory) refuseStaged(id uint32, name domain.Name, e unix.Errno, why string) {
	t := f.endStaged(id, e, refused)
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
	f.cfg.Logger.Warn("refused for its client hello", append(fields, "reason", why)...)
}

// StagesGone ends all flows that are looked at: nobody does any more.
func (f *Factory) StagesGone() {
	f.endStages(unix.ECONNRESET, func(*staged) bool { return true })
}

// endStages ends the flows that are looked at and of a kind.
func (f *Factory) endStages(e unix.Errno, of func(t *staged) bool) {
	g := &f.stages
	g.mu.Lock()
	var ids []uint32
	for id, t := range g.flows {
		if of(t) {
			ids = append(ids, id)
		}
	}
	g.mu.Unlock()
	for _, id := range ids {
		f.endStaged(id, e, failed)
	}
}
