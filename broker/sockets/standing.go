// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"maps"
	"time"

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
// its consent: what leads elsewhere today may be the host's own address tomorrow.
// Those whose sockets were closed are among them until there are many.
type standing struct {
	flows   map[uint32]egress.Flow
	next    uint32
	prune   int
	refused map[uint32]time.Time // since when, for those that were revoked
}

// Follow has the factory remember what it has opened, for Recheck. It must be
// called after SetBudget, before the first worker is served.
func (f *Factory) Follow() {
	if f.ledger != nil && f.ledger.info >= 0 && f.cfg.Egress != nil {
		f.ledger.standing = &standing{flows: map[uint32]egress.Flow{}, prune: fewStanding, refused: map[uint32]time.Time{}}
		f.ledger.judge = f.refusedNow
	}
}

// Recheck asks the egress rules again about all sockets that are open, and ends
// those that they refuse now. Connections under way it ends at once; flows the
// worker ends, which is told by send. It reports how many flows are left that
// have to go, or that the worker has kept them for longer than any of ours
// would.
func (f *Factory) Recheck(send func(*ipc.Revoke) error) (left int, defied bool) {
	g := f.ledger
	if g == nil || g.standing == nil {
		return 0, false
	}
	g.mu.Lock()
	g.waiting.each(func(s *waitingSlot) {
		if f.refusedNow(&s.flow) {
			disconnect(s.fd) // which ends its wait
		}
	})
	live, ok := g.living()
	live = maps.Clone(live) // judged without the lock: that takes a while
	g.mu.Unlock()
	if !ok {
		return 0, false
	}
	now, told := time.Now(), map[ipc.Revoke]bool{}
	since, mute := map[uint32]time.Time{}, false
	for id, flow := range live {
		v := f.cfg.Egress.Judge(flow)
		if v.Allowed {
			continue
		}
		left++
		r := ipc.Revoke{Proto: flow.Proto, Addr: flow.To.Addr().As16()}
		if r.Proto == ipc.ProtoUDP {
			r.Port = flow.To.Port()
		}
		at, again := g.standing.refused[id]
		if !told[r] && (mute || len(told) == maxRevokes) {
			if again { // told before: its time goes on
				since[id] = at
				defied = defied || now.Sub(at) > revokeTimeout
			}
			continue
		}
		if !again {
			at = now
			v.Count()
			f.refusals.note(f.cfg.Logger, flow.Proto, flow.To, &v)
		}
		defied = defied || again && now.Sub(at) > revokeTimeout
		if !told[r] && send(&r) != nil {
			mute = true // no worker, or one that does not read
			if again {
				since[id] = at
			}
			continue
		}
		since[id], told[r] = at, true
	}
	if g.standing.refused = since; defied {
		clear(since) // the next worker has its time
	}
	return left, defied
}

// refusedNow asks the egress rules about a connection that is under way, or was.
func (f *Factory) refusedNow(flow *egress.Flow) bool {
	if !flow.To.IsValid() {
		return false
	}
	v := f.cfg.Egress.Judge(*flow)
	if !v.Allowed {
		v.Count()
		f.refusals.note(f.cfg.Logger, flow.Proto, flow.To, &v)
	}
	return !v.Allowed
}

// stands is the flow to be remembered of a socket on the host; without destination:
// none. The far ends of the bypass are the host's by rule, and clients of the host's
// own get answers whatever the egress rules say of their addresses.
func (f *Factory) stands(q *request, d *decision) (flow egress.Flow) {
	if f.ledger.standing == nil || q.splice || d.client || d.names {
		return flow
	}
	flow = judgedAs(q, d)
	// The name that it was opened by is the flow's as long as it is open, whatever
	// its address stands for later.
	flow.Open, flow.Name = true, d.verdict.Name
	return flow
}

// add remembers a flow and returns its number, which is never zero.
func (s *standing) add(flow egress.Flow) uint32 {
	if s.next++; s.next == 0 {
		s.next++
	}
	s.flows[s.next] = flow
	return s.next
}

// living returns the flows that are remembered and whose sockets are open, and
// forgets the others. The caller holds g.mu.
func (g *ledger) living() (map[uint32]egress.Flow, bool) {
	b, ok := g.read(g.info)
	if !ok {
		return nil, false
	}
	live := map[uint32]egress.Flow{}
	eachEntry(b, func(_ budget.Kind, id uint32) {
		if flow, known := g.standing.flows[id]; known {
			live[id] = flow
		}
	})
	g.standing.flows, g.standing.prune = live, max(fewStanding, 2*len(live))
	return live, true
}
