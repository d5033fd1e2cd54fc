// SPDX-License-Identifier: Apache-2.0

// Package flowlog tells of each flow between the guest and somebody outside as it
// ends, and of each that is refused.
//
// Who a flow is of, where it leads and what was decided on it is the broker's own
// word. How much it has carried and how it has ended only its worker knows, and which
// connections have come by listeners. A worker that was taken over can lie about that,
// and tell of connections that never came. It cannot have a flow left out that it got a
// socket for from the broker, but by many lines, of which those that are left out are
// counted: one whose end it keeps to itself is told of when the worker ends. Not told
// of are sockets by which a peer on loopback is answered: they belong to a flow past
// the link that has its line already.
package flowlog

import (
	"context"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"aldente/broker/limiter"
	"aldente/ipc"
)

// Flow is what the broker knows of a flow.
type Flow struct {
	Proto     uint8          // ipc.Proto*
	Direction string         // out, in; bypass-out, bypass-in past the link
	Guest     netip.AddrPort // the guest's; without an address: the one that it was given
	Remote    netip.AddrPort // the other side's, as the guest sees it
	To        netip.AddrPort // where the socket leads, zero: to Remote
	Name      string         // by which the guest has come to the other side, empty: not known
	Rule      string         // that allows or refuses it
}

// Ends that the broker itself knows of, beside those of ipc.How.
const (
	Lost    = "lost"    // the worker that had it has ended
	Stopped = "stopped" // the instance has
	untold  = "untold"  // its worker has told nothing
)

// Log is the flow log of an instance. Its methods may be called at any time.
type Log struct {
	mu    sync.Mutex
	log   *slog.Logger
	guest [2]netip.Addr // the guest's addresses, IPv4 and IPv6
	max   int
	open  map[uint64]open // by token
	lines limiter.Bucket
	now   func() time.Time
}

type open struct {
	Flow
	began time.Time
}

// Options say how a Log is to be.
type Options struct {
	Logger *slog.Logger  // takes the lines
	Rate   limiter.Rate  // of lines
	Max    int           // flows at a time whose ends are told
	Guest  [2]netip.Addr // addresses that the guest was given, IPv4 and IPv6
}

// New makes a flow log.
func New(o Options) *Log {
	return &Log{log: o.Logger, guest: o.Guest, max: o.Max, open: map[uint64]open{}, lines: limiter.Bucket{Rate: o.Rate}, now: time.Now}
}

// SetGuest says which addresses the guest was given, of flows that begin from now on.
func (l *Log) SetGuest(addrs [2]netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.guest = addrs
}

// Opened takes note of a flow whose socket is about to be passed on. Where there are
// too many, it is told of at once.
func (l *Log) Opened(token uint64, f Flow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	f.Guest = l.ofGuest(&f)
	if o, ok := l.open[token]; ok {
		l.line(now, "flow ended", &o.Flow, "allowed", slog.String("end", untold))
	} else if len(l.open) >= l.max {
		l.line(now, "flow opened", &f, "allowed", slog.String("end", untold))
		return
	}
	l.open[token] = open{f, now}
}

// Refused tells of a flow that gets no socket, and why.
func (l *Log) Refused(f Flow, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.line(l.now(), "flow refused", &f, "refused", slog.String("reason", reason))
}

// Failed tells of a flow that may be, and gets no socket for an error.
func (l *Log) Failed(f Flow, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.line(l.now(), "flow failed", &f, "allowed", slog.String("end", "failed"), slog.String("error", err.Error()))
}

// Ended tells of a flow that has ended. Sockets that are no flow by themselves end
// too: of those that are not known nothing is said.
func (l *Log) Ended(e *ipc.Ended) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o, ok := l.open[e.Token]
	if !ok {
		return
	}
	delete(l.open, e.Token)
	now := l.now()
	l.line(now, "flow ended", &o.Flow, "allowed",
		slog.Uint64("sent", e.Sent), slog.Uint64("received", e.Received),
		slog.Uint64("sent_packets", e.SentPackets), slog.Uint64("received_packets", e.ReceivedPackets),
		seconds(now.Sub(o.began)), slog.String("end", e.How.String()))
}

// Gone tells of all flows that have not ended that they have, and how. What they have
// carried nobody knows.
func (l *Log) Gone(end string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for _, o := range l.open {
		l.line(now, "flow ended", &o.Flow, "allowed", seconds(now.Sub(o.began)), slog.String("end", end))
	}
	clear(l.open)
	l.tellMissed()
}

func seconds(d time.Duration) slog.Attr {
	return slog.String("seconds", strconv.FormatFloat(max(d, 0).Seconds(), 'f', 3, 64))
}

// line writes one line, unless there were many.
func (l *Log) line(now time.Time, what string, f *Flow, verdict string, more ...slog.Attr) {
	if !l.lines.Take(now) {
		return
	}
	l.tellMissed()
	attrs := make([]slog.Attr, 0, 16)
	attrs = append(attrs,
		slog.String("protocol", protocol(f.Proto)), slog.String("direction", f.Direction),
		slog.String("guest", text(l.ofGuest(f))), slog.String("remote", text(f.Remote)))
	if f.To.IsValid() && f.To != f.Remote {
		attrs = append(attrs, slog.String("to", text(f.To)))
	}
	if f.Name != "" {
		attrs = append(attrs, slog.String("name", f.Name))
	}
	attrs = append(attrs, slog.String("verdict", verdict), slog.String("rule", f.Rule))
	l.log.LogAttrs(context.Background(), slog.LevelInfo, what, append(attrs, more...)...)
}

func (l *Log) tellMissed() {
	if n := l.lines.Missed(); n > 0 {
		l.log.Warn("lines about flows are left out", "count", n)
	}
}

// ofGuest is the guest's side, with the address that it was given where none is known.
func (l *Log) ofGuest(f *Flow) netip.AddrPort {
	if f.Guest.Addr().IsValid() {
		return f.Guest
	}
	a := l.guest[0]
	if f.Remote.Addr().Is6() {
		a = l.guest[1]
	}
	return netip.AddrPortFrom(a, f.Guest.Port())
}

// text is an address with its port, if it has one.
func text(a netip.AddrPort) string {
	switch {
	case !a.Addr().IsValid():
		return ":" + strconv.Itoa(int(a.Port()))
	case a.Port() == 0:
		return a.Addr().String()
	}
	return a.String()
}

func protocol(p uint8) string {
	switch p {
	case ipc.ProtoTCP:
		return "tcp"
	case ipc.ProtoUDP:
		return "udp"
	}
	return "icmp"
}
