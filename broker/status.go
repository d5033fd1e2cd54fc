// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"aldente/broker/budget"
	"aldente/broker/cli"
	"aldente/broker/control/api"
	"aldente/broker/sockets"
	"aldente/broker/supervise"
	"aldente/ipc"
)

// workerEnds remembers how workers have ended.
type workerEnds struct {
	mu   sync.Mutex
	n    int
	last string // of those that were not to end
}

func (w *workerEnds) note(e supervise.Exit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n++; !e.Renewed {
		w.last = time.Now().Format(time.RFC3339) + " " + e.Cause
	}
}

func (w *workerEnds) get() (n int, last string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n, w.last
}

// shown is what clients are told and nothing else knows once this process is confined.
type shown struct {
	level       *slog.LevelVar // of the log
	began       time.Time
	pid         int
	user        uint32 // whose this process is going to be
	controlPath string // of --control
	ends        workerEnds
	namesEnds   workerEnds // of aldente-names
}

// liveStatus is the instance as clients of the status socket see it.
type liveStatus struct {
	*instance
	explained
}

// linkNames are what clients know the kinds of link by.
var linkNames = map[uint8]string{
	ipc.LinkTap: "tap", ipc.LinkPlainTap: "tap without offloads",
	ipc.LinkStream: "stream socket", ipc.LinkDatagram: "datagram socket", ipc.LinkSeqpacket: "seqpacket socket",
	ipc.LinkVhostUser: "vhost-user",
}

// Status says what the instance is and how it fares.
func (l *liveStatus) Status() api.StatusReply {
	view := l.view()
	told := view.Told()
	s := api.StatusReply{
		Version:     cli.Version,
		Personality: l.cfg.Personality.String(),
		PID:         l.shown.pid,
		WorkerPID:   max(l.worker.Pid(), 0),
		User:        int(l.shown.user),
		Started:     l.shown.began.Format(time.RFC3339),
		Link:        cmp.Or(linkNames[l.cfg.LinkKind], fmt.Sprintf("kind %d", l.cfg.LinkKind)),
		Guest:       l.guest(),
		Interface:   told.Interface,
		MTU:         told.MTU,
		Addresses:   told.Addresses,
		Gateways:    told.Gateways,
		Resolvers:   told.Resolvers,
		Search:      told.Search,
		Egress:      l.plan.EgressLine(),
		LogLevel:    levelName(l.shown.level.Level()),
		Limits:      l.limits(),
	}
	s.Network = l.network()
	s.Restarts, s.LastDeath = l.shown.ends.get()
	if l.asking != nil {
		s.Names = &api.NamesReply{PID: max(l.asking.Pid(), 0), Resolvers: []string{}}
		s.Names.Restarts, s.Names.LastDeath = l.shown.namesEnds.get()
		for _, a := range view.Names.Resolvers {
			s.Names.Resolvers = append(s.Names.Resolvers, a.String())
		}
	}
	s.Proxy = l.proxyStatus()
	switch {
	case l.stream != nil:
		s.Connected = l.stream.Connected()
	case l.cfg.SpliceOnly:
		s.Link, s.Connected = "none, loopback only", true
	default:
		s.Connected = l.linkFD >= 0
	}
	if l.cfg.Controllable() {
		s.ControlPath = l.shown.controlPath
	}
	return s
}

// proxyStatus tells of the proxy that connections go by; nil: there is none.
func (l *liveStatus) proxyStatus() *api.ProxyReply {
	v := l.plan.Factory.Via
	if v == nil {
		return nil
	}
	u := l.factory.Proxied()
	p := &api.ProxyReply{URL: v.Text, Address: v.To.String(), Names: v.Names,
		Waiting: uint64(u.Waiting), Connected: u.Connected, Refused: u.Refused, Failed: u.Failed}
	for _, e := range v.Except {
		p.Except = append(p.Except, e.String())
	}
	return p
}

// network says what of the host's network the guest's follows.
func (l *liveStatus) network() *api.NetworkReply {
	n := &l.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.plan == nil {
		return nil
	}
	r := &api.NetworkReply{Connected: n.plan.Connected(), Template: n.plan.Template(), Changes: n.changes}
	if !n.last.IsZero() {
		r.LastChange = n.last.Format(time.RFC3339)
	}
	return r
}

// guest says where the guest is.
func (l *liveStatus) guest() string {
	t := l.cfg.Target
	switch t.Kind {
	case cli.TargetSpawn:
		return fmt.Sprintf("command %s, process %d", filepath.Base(l.cfg.Command[0]), l.child.PID)
	case cli.TargetPID:
		return fmt.Sprintf("namespace of process %d", t.PID)
	case cli.TargetPath:
		return "namespace " + t.Path
	case cli.TargetName:
		return "namespace " + t.Name
	}
	if l.cfg.FD >= 0 {
		return fmt.Sprintf("descriptor %d", l.cfg.FD)
	}
	return "socket " + l.stream.Path()
}

// limits are the budgets.
func (l *liveStatus) limits() (all []api.Limit) {
	for k, u := range l.factory.Usage() {
		if budget.Kind(k) == budget.Upstream && l.asking == nil || budget.Kind(k) == budget.Conn && u.Limit == budget.Unlimited {
			continue
		}
		all = append(all, api.Limit{Name: budget.Kind(k).String(), Used: uint64(max(u.Held, 0)), Max: uint64(max(u.Limit, 0)), Refused: u.Refused})
	}
	if n := l.plan.Limits.NewConns.PerSecond; n != budget.Unlimited {
		all = append(all, api.Limit{Name: "new flows a second", Max: uint64(n), Refused: l.factory.Usage()[budget.Conn].By[budget.Paced]})
	}
	if n := l.plan.Limits.Bytes; n != budget.Unlimited {
		all = append(all, api.Limit{Name: "bytes a second, each way", Max: uint64(n)})
	}
	if p := l.plan.Egress; p != nil && p.ByName() {
		entries, bound := p.Table()
		all = append(all, api.Limit{Name: "addresses of names", Used: uint64(entries), Max: uint64(bound)})
	}
	if u := l.factory.Stages(); u.Bound > 0 {
		all = append(all, api.Limit{Name: "flows whose hello is looked at", Used: uint64(u.Held), Max: uint64(u.Bound), Refused: u.Ended[sockets.StageNoRoom]})
	}
	return all
}

// levels are those of the log, by the names that clients have for them.
var levels = []struct {
	name  string
	level slog.Level
}{{"error", slog.LevelError}, {"warning", slog.LevelWarn}, {"info", slog.LevelInfo}, {"debug", slog.LevelDebug}}

func levelName(l slog.Level) string {
	for _, n := range levels {
		if l >= n.level {
			return n.name
		}
	}
	return levels[len(levels)-1].name
}

// SetLogLevel changes what the log shows, of the worker's lines as well. Lines about each
// flow and packet the worker writes only if it was started for that.
func (l *liveStatus) SetLogLevel(name string) error {
	for _, n := range levels {
		if n.name == name {
			l.shown.level.Set(n.level)
			return nil
		}
	}
	if name == "trace" {
		return fmt.Errorf("packets are traced from the start or not at all (start the instance with --trace)")
	}
	return fmt.Errorf("there is no level %.20q (give error, warning, info or debug)", name)
}
