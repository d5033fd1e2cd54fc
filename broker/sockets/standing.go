// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"maps"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/budget"
	"aldente/broker/egress"
	"aldente/ipc"
)

const (
	// maxRevokes bounds what a worker is told at a time: the rest next time.
	maxRevokes = 256
	// fewStanding are not worth a look at which of them are closed.
	fewStanding = 1024
	// promptly is how long a connect may take of which no segment was sent twice:
	// what was decided when the first was sent holds for it.
	promptly = 100 * time.Millisecond
)

// revokeTimeout is how long a worker of ours may take to end what was revoked, an
// answer on its way that it has not read included. A variable for tests.
var revokeTimeout = 5 * time.Second

// standing are the flows that the egress rules have allowed and that may outlive
// its consent: what leads elsewhere today may be the host's own address tomorrow, and
// rules may be changed. Those whose sockets were closed are among them until there are
// many.
type standing struct {
	recheck sync.Mutex // one at a time
	all     bool       // connections that are made, and the bypass, too
	flows   map[uint32]stood
	next    uint32
	prune   int
	refused map[uint32]time.Time // since when, for those that were revoked
}

// stood is one of them; without destination: none.
type stood struct {
	egress.Flow
	token     uint64 // of the request that opened it
	bypass    bool   // it is past the link: the port rules decide on it, and the egress rules when they are changed
	kept      bool   // whoever has changed the rules wants it to go on
	condemned bool   // the rules that are refuse it, which have come later than it
}

// Follow has the factory remember what it has opened, for Recheck. It must be
// called after SetBudget, before the first worker is served.
func (f *Factory) Follow() {
	if f.ledger != nil && f.ledger.info >= 0 && f.cfg().Egress != nil {
		f.ledger.standing = &standing{flows: map[uint32]stood{}, prune: fewStanding, refused: map[uint32]time.Time{}}
		f.ledger.judge = f.refusedNow
	}
}

// FollowAll is Follow where the egress rules may be changed, so that connections which
// are made are remembered as well: RulesChanged. It reports false if that cannot be.
func (f *Factory) FollowAll() bool {
	f.Follow()
	if f.ledger == nil || f.ledger.standing == nil {
		return false
	}
	f.ledger.standing.all = true
	return true
}

// RulesChanged prepares for the Recheck that follows when the egress rules were changed.
// With keep, what there is may go on until it ends, whatever the rules say now.
func (f *Factory) RulesChanged(keep bool) {
	g := f.ledger
	if g == nil || g.standing == nil {
		return
	}
	f.rechecks.Add(1)
	refused := map[egress.Flow]bool{}
	for _, s := range g.remembered() { // judged without the lock: that takes a while
		refused[s.Flow] = f.refuses(s.Flow)
	}
	mark := func(s *stood) {
		if !s.To.IsValid() {
			return
		}
		no, judged := refused[s.Flow]
		if !judged { // opened meanwhile
			no = f.refuses(s.Flow)
		}
		s.kept, s.condemned = keep && no, !keep && no && s.bypass
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting.each(func(s *waitingSlot) { mark(&s.flow) })
	for id, s := range g.standing.flows {
		mark(&s)
		g.standing.flows[id] = s
	}
}

// refuses tells whether the egress rules are against a flow.
func (f *Factory) refuses(flow egress.Flow) bool {
	return !f.cfg().Egress.Judge(flow).Allowed && !f.cfg().lifts(flow)
}

// remembered returns the flows that are under way, and those that stand.
func (g *ledger) remembered() (all []stood) {
	g.mu.Lock()
	defer g.mu.Unlock()
	all = g.underWay()
	g.living()
	for _, s := range g.standing.flows {
		all = append(all, s)
	}
	return all
}

// underWay returns the flows whose connect has not ended, as far as a change of the rules
// concerns them. The caller holds g.mu.
func (g *ledger) underWay() (all []stood) {
	g.waiting.each(func(s *waitingSlot) {
		if s.flow.To.IsValid() {
			all = append(all, s.flow)
		}
	})
	return all
}

// stays tells whether a flow may go on, and which rule says so if one was asked.
func (f *Factory) stays(s *stood) (egress.Verdict, bool) {
	switch {
	case !s.To.IsValid(), s.kept, s.bypass && !s.condemned:
		return egress.Verdict{}, true
	}
	v := f.cfg().Egress.Judge(s.Flow)
	return v, !s.condemned && (v.Allowed || f.cfg().lifts(s.Flow))
}

// Revoker tells the worker what ends. Each returns an error if there is no worker, or
// one that does not read.
type Revoker struct {
	Peers func(*ipc.Revoke) error      // of UDP and echo: all flows to a peer
	Flows func(*ipc.RevokeFlows) error // the others one by one; nil without FollowAll
}

// Recheck asks the egress rules again about all sockets that are open, and ends
// those that they refuse now. Connections under way it ends at once; flows the
// worker ends, which is told. It reports how many flows are left that have to go, or
// that the worker has kept them for longer than any of ours would.
func (f *Factory) Recheck(to Revoker) (left int, defied bool) {
	g := f.ledger
	if g == nil || g.standing == nil {
		return 0, false
	}
	f.rechecks.Add(1)
	g.standing.recheck.Lock()
	defer g.standing.recheck.Unlock()
	left = f.recheckStages()
	f.recheckUnderWay()
	g.mu.Lock()
	live, ok := g.living()
	live = maps.Clone(live) // judged without the lock: that takes a while
	g.mu.Unlock()
	if !ok {
		return left, false
	}
	now, since := time.Now(), map[uint32]time.Time{}
	t := telling{to: to, told: map[ipc.Revoke]bool{}, since: since}
	for id, flow := range live {
		v, stays := f.stays(&flow)
		if stays {
			continue
		}
		left++
		at, again := g.standing.refused[id]
		if !t.may(&flow) {
			if again { // told before: its time goes on
				since[id] = at
				defied = defied || now.Sub(at) > revokeTimeout
			}
			continue
		}
		if !again {
			at = now
			v.Count()
			f.refusals.note(f.cfg().Logger, flow.Proto, flow.To, &v)
		}
		defied = defied || again && now.Sub(at) > revokeTimeout
		if t.tell(&flow) || again {
			since[id] = at
		}
		if !again && flow.single() && t.flows.N > 0 {
			t.fresh = append(t.fresh, id)
		}
	}
	t.flush()
	if g.standing.refused = since; defied {
		clear(since) // the next worker has its time
	}
	return left, defied
}

// decidedAgain decides once more about a flow whose socket was opened while others were
// judged anew: whoever did that may have come between its decision and its being remembered.
func (f *Factory) decidedAgain(q *request, d *decision, o outcome) outcome {
	now := f.cfg().decide(q)
	if now.refused == 0 {
		return o
	}
	if o.kept {
		disconnect(o.fd) // which ends its wait
	} else {
		unix.Close(o.fd)
	}
	if o.answers > 0 {
		unix.Close(o.answers)
	}
	*d = now
	return f.refused(q, d)
}

// recheckUnderWay ends the connections under way that the egress rules refuse now.
func (f *Factory) recheckUnderWay() {
	g := f.ledger
	g.mu.Lock()
	all := g.underWay()
	g.mu.Unlock()
	refused := map[stood]bool{}
	for i := range all { // without the lock
		if f.refusedNow(&all[i]) {
			refused[all[i]] = true
		}
	}
	if len(refused) == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting.each(func(s *waitingSlot) {
		if refused[s.flow] {
			disconnect(s.fd) // which ends its wait
		}
	})
}

// telling is what a worker is told in one Recheck.
type telling struct {
	to    Revoker
	told  map[ipc.Revoke]bool
	flows ipc.RevokeFlows
	fresh []uint32             // flows in it that were not named before
	since map[uint32]time.Time // as standing.refused will be
	sent  int                  // records
	mute  bool                 // no worker, or one that does not read
}

// single tells whether a flow ends by its token.
func (s *stood) single() bool { return s.Proto == ipc.ProtoTCP || s.bypass }

// peer is the record that ends the flow, with all to the same peer.
func (s *stood) peer() ipc.Revoke {
	r := ipc.Revoke{Proto: s.Proto, Addr: s.To.Addr().As16()}
	if r.Proto == ipc.ProtoUDP {
		r.Port = s.To.Port()
	}
	return r
}

// may tells whether the worker can be told of a flow now, or was.
func (t *telling) may(s *stood) bool {
	room := !t.mute && t.sent < maxRevokes
	return room || !s.single() && t.told[s.peer()]
}

// tell has the worker end a flow, and reports false if it is not told.
func (t *telling) tell(s *stood) bool {
	if s.single() {
		t.flows.Tokens[t.flows.N] = s.token
		if t.flows.N++; t.flows.N == ipc.MaxRevoke {
			t.flush()
		}
		return !t.mute
	}
	r := s.peer()
	if t.told[r] {
		return true
	}
	if t.to.Peers(&r) != nil {
		t.mute = true
		return false
	}
	t.sent++
	t.told[r] = true
	return true
}

// flush sends the flows that are gathered.
func (t *telling) flush() {
	if t.flows.N > 0 && !t.mute {
		if t.mute = t.to.Flows == nil || t.to.Flows(&t.flows) != nil; t.mute {
			for _, id := range t.fresh {
				delete(t.since, id)
			}
		}
		t.sent++
	}
	t.flows, t.fresh = ipc.RevokeFlows{}, t.fresh[:0]
}

// refusedNow asks the egress rules about a connection that is under way, or was.
func (f *Factory) refusedNow(s *stood) bool {
	v, stays := f.stays(s)
	if !stays {
		v.Count()
		f.refusals.note(f.cfg().Logger, s.Proto, s.To, &v)
	}
	return !stays
}

// stands is what is to be remembered of a socket on the host; without destination:
// nothing. The far ends of the bypass are the host's by rule, and clients of the host's
// own get answers whatever the egress rules say of their addresses.
func (f *Factory) stands(q *request, d *decision) (s stood) {
	if st := f.ledger.standing; st == nil || q.splice && !st.all || d.client || d.names || q.member {
		return s
	}
	s = stood{Flow: judgedAs(q, d), token: q.token, bypass: q.splice}
	// The name that it was opened by is the flow's as long as it is open, whatever
	// its address stands for later.
	s.Open, s.Name = true, d.verdict.Name
	return s
}

// add remembers a flow and returns its number, which is never zero.
func (s *standing) add(flow stood) uint32 {
	if s.next++; s.next == 0 {
		s.next++
	}
	s.flows[s.next] = flow
	return s.next
}

// living returns the flows that are remembered and whose sockets are open, and
// forgets the others. The caller holds g.mu.
func (g *ledger) living() (map[uint32]stood, bool) {
	b, ok := g.read(g.info)
	if !ok {
		return nil, false
	}
	live := map[uint32]stood{}
	eachEntry(b, func(_ budget.Kind, id uint32) {
		if flow, known := g.standing.flows[id]; known {
			live[id] = flow
		}
	})
	g.standing.flows, g.standing.prune = live, max(fewStanding, 2*len(live))
	return live, true
}
