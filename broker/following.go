// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"aldente/broker/agent"
	"aldente/broker/follow"
	"aldente/broker/hostnet"
	"aldente/broker/inet"
	"aldente/broker/limiter"
	"aldente/broker/plan"
	"aldente/broker/rtnl"
	"aldente/ipc"
)

// following is what an instance knows of the host's network, which changes, and what it
// has told of it.
type following struct {
	watcher *follow.Watcher // nil: neither rules nor guest depend on changes
	conn    *rtnl.Conn      // by which the network is read
	local   *hostnet.Local  // nil: nobody asks what is the host's

	// Used by whoever reads the network, and nobody else.
	guest  *agent.Sockets // of the agent that changes the guest's network, nil: none does
	setup  agent.Setup    // what the guest's network was made to be
	behind bool           // it could not be made to be as the plan has it
	broken string         // why the plan could not be made, empty: it could
	lines  limiter.Bucket // of the log: whoever sends router advertisements changes a network

	mu      sync.Mutex  // held while what follows is used or told
	plan    *plan.Plan  // of the network as it was read last; who reads that alone changes it
	config  *ipc.Config // that a worker is told, nil: not known yet
	told    *ipc.Config // that the last worker was told
	changes uint64
	last    time.Time // of the last, zero: there was none
}

// follows tells whether the guest's network is to follow the host's.
func (in *instance) follows() bool { return !in.cfg.NoFollow && !in.cfg.SpliceOnly }

// watchNetwork begins to listen for changes, before anything is read of which changes count.
func (in *instance) watchNetwork() {
	if !in.follows() && !plan.HasEgressRules(in.cfg) {
		return
	}
	var err error
	if in.net.watcher, err = follow.New(); err != nil {
		in.log.Warn("the host's network cannot be watched: the guest's stays as it is, and open flows outlive a change of the host's addresses", "error", err)
	}
}

// hostOptions say what of the host's network counts.
func (in *instance) hostOptions() hostnet.Options {
	return hostnet.Options{
		Interface: in.cfg.Interface, Outbound4: in.cfg.OutboundIf4, Outbound6: in.cfg.OutboundIf6,
		Source4: in.cfg.Outbound4, Source6: in.cfg.Outbound6,
		Skip4: in.cfg.IPv6Only, Skip6: in.cfg.IPv4Only,
	}
}

// linkIndex is the number of the host's interface of a name.
func (in *instance) linkIndex(name string) (int, error) {
	l, err := in.net.conn.LinkNamed(name)
	if err != nil {
		return 0, err
	}
	return l.Index(), nil
}

// readNetwork reads it, at start. An interface that options name has to be there.
func (in *instance) readNetwork() (*hostnet.Network, error) {
	conn, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	in.net.conn = conn
	s, err := hostnet.Read(conn, in.hostOptions())
	if err != nil {
		return nil, err
	}
	return s.Network(in.hostOptions())
}

// view is the plan of the network as it is.
func (in *instance) view() *plan.Plan {
	in.net.mu.Lock()
	defer in.net.mu.Unlock()
	if in.net.plan == nil {
		return in.plan
	}
	return in.net.plan
}

// setConfig says what workers are told, until the network changes.
func (in *instance) setConfig(c *ipc.Config) {
	in.net.mu.Lock()
	defer in.net.mu.Unlock()
	in.net.config = c
}

// configForNew is what a new worker is told, nil if there is no link to the guest.
func (in *instance) configForNew() *ipc.Config {
	in.net.mu.Lock()
	defer in.net.mu.Unlock()
	in.net.told = in.net.config
	return in.net.config
}

// workerReady tells a worker that is up what has changed since it was made.
func (in *instance) workerReady() {
	in.net.mu.Lock()
	defer in.net.mu.Unlock()
	in.tellWorker()
}

// tellWorker tells the worker, if there is one, what it has not been told. The caller
// holds net.mu.
func (in *instance) tellWorker() {
	n := &in.net
	if n.config == nil || n.told == nil || *n.told == *n.config {
		return
	}
	if in.worker.Send(n.config.Encode(), -1) == nil { // otherwise the next one is told
		n.told = n.config
	}
}

// followNetwork has the guest's network follow the host's, and flows end that the egress
// rules have allowed and refuse since the host's addresses or routes have changed. It
// returns at once.
func (in *instance) followNetwork() {
	n := &in.net
	if n.watcher == nil {
		return
	}
	var l follow.Listener
	if in.plan.Egress != nil && (in.plan.Egress.Varies() || in.cfg.Reloads()) {
		l.Owns = func() (again bool) {
			if in.names != nil {
				in.names.Forget()
			}
			return in.plan.Egress.Varies() && in.recheck() > 0
		}
	}
	if in.follows() {
		n.plan, n.lines.Rate = in.plan, networkLines
		l.Network = in.networkChanged
		n.watcher.Mark() // it may have changed since it was read
	}
	go n.watcher.Run(l)
}

// networkChanged reads the host's network and tells each part what has changed for it. It
// reports true if it has to be called again.
func (in *instance) networkChanged() (again bool) {
	n := &in.net
	s, err := hostnet.Read(n.conn, in.hostOptions())
	if err != nil {
		in.log.Debug("the host's network cannot be read now", "error", err)
		return true
	}
	// A named interface that is not there is a state like any other: there is no network.
	network, _ := s.Network(in.hostOptions())
	in.owns(network.Own)
	before := n.plan // nobody else changes it
	after, err := before.Again(network, in.readResolvers(before.Resolvers()))
	if err != nil {
		if n.broken != err.Error() {
			n.broken = err.Error()
			in.sayOfNetwork(slog.LevelWarn, "the guest's network cannot follow the host's", "error", err)
		}
		return false
	}
	d := before.Difference(after)
	n.broken = ""
	n.mu.Lock()
	n.plan = after
	if d.Any() {
		n.changes, n.last = n.changes+1, time.Now()
		in.change(&d, after)
	}
	n.mu.Unlock()
	in.forward.Rebind()
	in.endFlowsFrom(before.Lost(after))
	if d.Any() {
		in.tellNetwork(before, after)
	}
	if n.guest != nil && (d.Guest || n.behind) {
		again = in.changeGuest(after)
	}
	in.changeResolvers(&d, after)
	return again
}

// owns tells the egress rules which addresses the host has. What aldente-names was told of
// others may be otherwise now.
func (in *instance) owns(all []netip.Addr) {
	if p := in.plan.Egress; p != nil && p.SetOwn(all) && in.names != nil {
		in.names.Forget()
	}
}

// change puts another network into force for what is opened from now on, and tells the
// worker. The caller holds net.mu.
func (in *instance) change(d *plan.Difference, after *plan.Plan) {
	n := &in.net
	in.factory.SetNetwork(&after.Factory)
	if n.local != nil {
		n.local.SetScope(after.Scope())
	}
	if in.flows != nil {
		in.flows.SetGuest(given(&after.Worker))
	}
	if n.config != nil {
		c := after.Worker
		c.GuestMAC = n.config.GuestMAC
		n.config = &c
		if d.Link && n.told != nil {
			n.told = &ipc.Config{} // groups are joined anew, also where all else is the same
		}
		in.tellWorker()
	}
	if d.Asks && in.names != nil {
		// The worker knows where questions were answered, and takes others there without
		// asking. An address that is a resolver's no more is to lead to who has it.
		r := ipc.Revoke{Proto: ipc.ProtoUDP, Addr: inet.PairAddr.As16()}
		b := make([]byte, ipc.RevokeSize)
		r.Encode(b)
		_ = in.worker.Send(b, -1) // the next one knows of none
	}
}

// changeGuest has the agent change the guest's network. It reports true if it has to be
// tried again.
func (in *instance) changeGuest(after *plan.Plan) (again bool) {
	n := &in.net
	warnings, err := n.guest.Update(&n.setup, &after.Tap)
	for _, w := range warnings {
		in.sayOfNetwork(slog.LevelWarn, "the guest's network does not follow in all: "+w)
	}
	if n.behind = err != nil; n.behind {
		in.sayOfNetwork(slog.LevelWarn, "the guest's network cannot be changed", "error", err)
		return errors.Is(err, agent.ErrSlow)
	}
	n.setup = after.Tap
	return false
}

// tellNetwork tells the log what has changed.
func (in *instance) tellNetwork(before, after *plan.Plan) {
	for _, line := range before.Changes(after) {
		in.sayOfNetwork(slog.LevelInfo, "the host's network has changed: "+line)
	}
	for _, note := range after.Notes {
		if !slices.Contains(before.Notes, note) {
			in.sayOfNetwork(slog.LevelInfo, note)
		}
	}
}

// networkLines bounds the lines of the log about changes of the host's network, which are
// up to who is on it.
var networkLines = limiter.Rate{PerSecond: 1, Burst: 30}

func (in *instance) sayOfNetwork(level slog.Level, line string, more ...any) {
	n := &in.net
	if !n.lines.Take(time.Now()) {
		return
	}
	if missed := n.lines.Missed(); missed > 0 {
		more = append(more, "not_told", missed)
	}
	in.log.Log(context.Background(), level, line, more...)
}

// endFlowsFrom has flows end whose sockets have an address that the host has no more.
func (in *instance) endFlowsFrom(gone []netip.Addr) {
	for some := range slices.Chunk(gone, ipc.MaxGone) {
		r := ipc.Gone{N: uint8(len(some))}
		for i, a := range some {
			r.Addrs[i] = a.As16()
		}
		_ = in.worker.Send(r.Encode(), -1) // without a worker there are no flows
	}
	if len(gone) > 0 && in.net.guest != nil {
		// The guest hears resets at addresses that it is about to lose. So they have to be
		// sent before: a worker answers in the order in which it hears.
		ctx, done := context.WithTimeout(context.Background(), resetTime)
		defer done()
		in.figures.Counters(ctx)
	}
}

// resetTime is how long a worker may take to end flows before the guest loses their
// addresses. One that does not answer is no reason to wait longer.
const resetTime = time.Second
