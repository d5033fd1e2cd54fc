// SPDX-License-Identifier: Apache-2.0

// Package names is the broker's end of the channel to aldente-names, which reads what the
// guest asks and what resolvers answer. So it is taken to be hostile, as a worker is: it
// is given sockets to the resolvers that the configuration names, and no others; it says
// which addresses a name has, and the egress rules judge them. A guest gains nothing by
// its lies that a rule by address denies.
package names

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/audit"
	"aldente/broker/limiter"
	"aldente/broker/wait"
	"aldente/ipc"
	"aldente/ipc/domain"
	"aldente/ipc/sock"
)

// How many records may be handled. An address to be judged counts for a quarter of one.
// A guest that asks 1,000 questions a second needs a third of that.
var pace = limiter.Rate{PerSecond: 10_000, Burst: 10_000}

// refusalLines is how many refused names the log tells of, those that debugging shows as
// well.
var refusalLines = limiter.Rate{PerSecond: 5, Burst: 20}

// Rules are the egress rules, see egress.RuleSet.
type Rules interface {
	// Names are the rules by name.
	Names() domain.Rules
	// Grant notes that a name, and those that it leads to, stand for addresses until then,
	// and tells which of them the guest may know.
	Grant(name domain.Name, aliases []domain.Name, addrs []netip.Addr, until time.Time) (granted uint64)
	// Around tells how far around an address that was granted the same holds, see
	// ipc.Granted.
	Around(addr netip.Addr) (bits uint8)
}

// Sockets makes sockets to resolvers.
type Sockets interface {
	Upstream(proto uint8, resolver netip.Addr) (fd int, e unix.Errno) // the caller's to close, or why there is none
}

// Process is the supervisor of aldente-names.
type Process interface {
	Send(rec []byte, fd int) error    // unix.EPIPE: there is none at the moment
	PassNow(rec []byte, fd int) error // unix.EAGAIN: it has no room
	Kill()                            // it is replaced
	Renew()                           // it is replaced, by no fault of its own
}

// FlowLog takes names that are refused, see flowlog.Log.
type FlowLog interface {
	NameRefused(name, typ, reason string) // all in letters that a log can show
}

// Audit learns which names the guest needs, see audit.Log. What no rule by name refuses is
// told it then.
type Audit interface {
	// Named notes the addresses that the guest is told of a name.
	Named(name string, addrs []netip.Addr)
	// Asked notes a name that the guest has asked for.
	Asked(name, verdict, rule string)
}

// Options say what a server does. All but Proxy, FlowLog, Audit, Lasting, Closed and Other are required.
type Options struct {
	Logger    *slog.Logger    // takes refused names, and with debugging those that are resolved
	Config    ipc.NamesConfig // but for the number of resolvers
	Resolvers []netip.Addr    // that may be asked
	Proxy     *ipc.Proxy      // that connections of the guest's go by; nil: none
	Rules     Rules           // judge addresses
	Sockets   Sockets         // to resolvers
	FlowLog   FlowLog         // nil: none
	Audit     Audit           // nil: none
	// Lasting tells whether what the rules say of an address holds until Update or Forget is
	// called; nil: it does.
	Lasting func() bool
	// Closed is told that the process has closed a client of UDP, whose socket had this
	// port; nil: nobody wants to know.
	Closed func(port uint16)
	// Other takes records of kinds that are none of ours; its error is the process's end.
	Other func(kind ipc.Kind, rec []byte) error
}

// Server serves one process after the other.
type Server struct {
	Options
	process Process

	lastID atomic.Uint32 // of a client

	mu      sync.Mutex
	version int   // of the rules
	told    int   // the version that the running process was told
	asks    int   // how often the resolvers have changed
	toldAsk int   // of these the last that the running process was told of
	toldOf  uint8 // how many resolvers it was told of

	next int // of a process that is about to be served: our end of its channel for notes; -1: none

	turn   sync.Mutex // who has it takes notes of the process, see Settle
	notes  int        // where from, -1: there is none
	looked [ipc.MaxRecord]byte
	owed   []ipc.Granted // answers to them, that Serve sends
	bad    error         // what none of ours notes: the process's end
	wake   int           // eventfd: Serve is to look at these
	set    wait.Set      // what Serve waits for: that, and a process's channel
	setErr error         // it could not be made

	counted counted
	lines   limiter.Bucket // of the log on refusals
	named   map[string]struct{}
}

// New makes a server. SetProcess has to be called before it is used.
func New(o Options) *Server {
	o.Config.Resolvers = uint8(min(len(o.Resolvers), ipc.MaxResolvers))
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		wake = -1 // what Settle has handled is answered when something else comes
	}
	s := &Server{Options: o, toldOf: o.Config.Resolvers, next: -1, notes: -1, wake: wake,
		lines: limiter.Bucket{Rate: refusalLines}, named: map[string]struct{}{}}
	if s.setErr = s.set.Open(); s.setErr == nil && wake >= 0 {
		s.setErr = s.set.Add(wake)
	}
	return s
}

// Close gives back what New has opened, when nobody serves or settles any more.
func (s *Server) Close() {
	for _, fd := range []int{s.wake, s.next, s.notes} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	s.wake, s.next, s.notes = -1, -1, -1
	s.set.Close()
}

// SetProcess says who is served.
func (s *Server) SetProcess(p Process) { s.process = p }

// Setup sends a new process its start-up records.
func (s *Server) Setup(control int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ipc.Send(control, s.Config.Encode(), -1); err != nil {
		return err
	}
	if s.Proxy != nil {
		rec := s.Proxy.Encode()
		err := ipc.Send(control, rec, -1)
		clear(rec) // there is a secret in it
		if err != nil {
			return err
		}
	}
	s.told, s.toldOf, s.toldAsk = s.version, s.Config.Resolvers, s.asks
	if err := s.sendRules(func(rec []byte) error { return ipc.Send(control, rec, -1) }); err != nil {
		return err
	}
	return s.offer(control)
}

// Ready has a process that is up hear of rules that have changed since its set-up.
func (s *Server) Ready() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.toldAsk != s.asks {
		s.process.Renew()
		return
	}
	s.update()
}

// SetResolvers says whom questions go to from now on. The process is replaced, with what
// it knows of others and of their answers, which may not hold in another network.
func (s *Server) SetResolvers(c ipc.NamesConfig, all []netip.Addr) {
	s.mu.Lock()
	c.Resolvers = uint8(min(len(all), ipc.MaxResolvers))
	s.Config, s.Resolvers, s.asks = c, all, s.asks+1
	s.mu.Unlock()
	s.process.Renew()
}

// Update tells the process that the rules have changed.
func (s *Server) Update() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	s.update()
}

// Forget has the process ask of each address anew: the host's own addresses, which rules
// may be about, have changed. One that cannot be told at once is replaced.
func (s *Server) Forget() {
	switch err := s.process.PassNow(ipc.Empty(ipc.NamesKindForget), -1); {
	case err == nil, errors.Is(err, unix.EPIPE):
	default:
		s.Logger.Error("names does not take what it is told: it is replaced", "error", err)
		s.process.Kill()
	}
}

// update sends the rules in force unless the process knows them. One that does not take them
// would go on by rules that are gone: the next gets them at its start.
func (s *Server) update() {
	if s.told == s.version {
		return
	}
	switch err := s.sendRules(func(rec []byte) error { return s.process.Send(rec, -1) }); {
	case err == nil:
		s.told = s.version
	case !errors.Is(err, unix.EPIPE):
		s.Logger.Error("names does not take its rules: it is replaced", "error", err)
		s.process.Kill()
	}
}

func (s *Server) sendRules(send func(rec []byte) error) error {
	rules := s.Rules.Names()
	if len(rules.List) > ipc.MaxNameRules {
		return fmt.Errorf("%d rules by name: at most %d are possible", len(rules.List), ipc.MaxNameRules)
	}
	for i := range rules.List {
		r := &rules.List[i]
		rec := ipc.NamesRule{Index: uint16(i)}
		if r.Allow {
			rec.Flags |= ipc.NameRuleAllow
		}
		if r.Narrow {
			rec.Flags |= ipc.NameRulePorts
		}
		var err error
		if rec.Pattern, err = ipc.MakeName(r.Pattern.String()); err != nil {
			return err
		}
		if err := send(rec.Encode()); err != nil {
			return err
		}
	}
	end := ipc.NamesRules{Count: uint16(len(rules.List))}
	if rules.Default {
		end.Default = 1
	}
	return send(end.Encode())
}

// Tell sends a record for those who may not wait. With a descriptor, one for which there is
// no room is not sent, which is unix.EAGAIN. Without, it is sent when there is, by somebody who
// waits for some seconds.
func (s *Server) Tell(rec []byte, fd int) error {
	err := s.process.PassNow(rec, fd)
	if fd < 0 && errors.Is(err, unix.EAGAIN) {
		go func() { _ = s.process.Send(rec, -1) }() // few: there are ipc.MaxStages at a time
		return nil
	}
	return err
}

// Client implements sockets.Names.
func (s *Server) Client(proto uint8, fd int, port uint16) error {
	id := s.lastID.Add(1)
	if id == 0 { // round, after four milliards
		id = s.lastID.Add(1)
	}
	c := ipc.Client{ID: id, Proto: proto, Port: port}
	return s.process.PassNow(c.Encode(), fd)
}

// Serve answers a process until the channel ends, which is io.EOF, or the process sends
// what none of ours sends, which is ipc.ErrMalformed.
func (s *Server) Serve(control int) error {
	buf := make([]byte, ipc.MaxRecord)
	p := limiter.Pace{Rate: pace}
	if s.setErr != nil {
		return s.setErr
	}
	if err := s.set.Add(control); err != nil {
		return err
	}
	defer s.set.Remove(control)
	s.attend()
	defer s.leave()
	for {
		noted, err := s.settled(control)
		if err != nil {
			return err
		}
		p.Take(noted, time.Now())
		n, fd, err := ipc.ReceiveNow(control, buf)
		if err == unix.EAGAIN {
			if err := s.await(); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return ended(err)
		}
		if fd >= 0 {
			unix.Close(fd)
		}
		p.Take(1, time.Now())
		kind, err := ipc.FromNames.Check(buf[:n], fd >= 0, ipc.Running)
		more := 0
		if err == nil {
			more, err = s.record(control, kind, buf[:n])
		}
		if err != nil {
			return ended(err)
		}
		if more > 0 {
			p.Take(more, time.Now())
		}
	}
}

// record handles a message, and returns what it counts for besides one.
func (s *Server) record(control int, kind ipc.Kind, rec []byte) (more int, err error) {
	switch kind {
	case ipc.NamesKindDial:
		more = len(rec)/ipc.DialSize - 1
		for ; len(rec) > 0 && err == nil; rec = rec[ipc.DialSize:] {
			err = s.dial(control, rec[:ipc.DialSize])
		}
		return more, err
	case ipc.NamesKindNamed:
		answer, more, err := s.hear(rec)
		if err == nil {
			err = ipc.Send(control, answer.Encode(), -1)
		}
		return more, err
	case ipc.NamesKindRefused:
		return 0, s.refused(rec)
	case ipc.NamesKindClosed:
		var c ipc.Closed
		if err = c.Decode(rec); err == nil && s.Closed != nil {
			s.Closed(c.Port)
		}
		return 0, err
	case ipc.NamesKindCounted:
		var c ipc.Counted
		if err = c.Decode(rec); err == nil {
			s.counted.add(&c)
		}
		return 0, err
	}
	if s.Other != nil {
		return 0, s.Other(kind, rec)
	}
	return 0, fmt.Errorf("%w: nobody takes kind %#x", ipc.ErrMalformed, uint16(kind))
}

// dial passes on a socket to one of the resolvers.
func (s *Server) dial(control int, rec []byte) error {
	var d ipc.Dial
	if err := d.Decode(rec); err != nil {
		return err
	}
	s.mu.Lock()
	count, all := s.toldOf, s.Resolvers
	s.mu.Unlock()
	if d.Resolver >= max(count, 1) {
		return fmt.Errorf("%w: resolver %d of %d", ipc.ErrMalformed, d.Resolver, count)
	}
	u := ipc.Upstream{Seq: d.Seq, Resolver: d.Resolver, Proto: d.Proto}
	fd, e := -1, unix.EDESTADDRREQ // where there is none at all
	if int(d.Resolver) < len(all) {
		fd, e = s.Sockets.Upstream(d.Proto, all[d.Resolver])
	}
	u.Errno = uint16(e)
	err := ipc.Send(control, u.Encode(), fd)
	if fd >= 0 {
		sock.Close(fd)
	}
	return err
}

// hear handles a Named, and returns the answer, and what it counts for besides one.
func (s *Server) hear(rec []byte) (answer *ipc.Granted, more int, err error) {
	var r ipc.Named
	if err := r.Decode(rec); err != nil {
		return nil, 0, err
	}
	t, err := toldBy(&r)
	if err != nil {
		return nil, 0, err
	}
	g := s.grant(&r, &t)
	return &g, len(t.addrs) / 4, nil
}

// told is what a process says of a name.
type told struct {
	name    domain.Name
	aliases []domain.Name
	addrs   []netip.Addr
}

func toldBy(n *ipc.Named) (t told, err error) {
	if t.name, err = canonical(&n.Name); err != nil {
		return t, err
	}
	t.aliases = make([]domain.Name, n.Aliases)
	for i := range t.aliases {
		if t.aliases[i], err = canonical(&n.Alias[i]); err != nil {
			return t, err
		}
	}
	t.addrs = make([]netip.Addr, n.Count)
	for i := range t.addrs {
		t.addrs[i] = netip.AddrFrom16(n.Addr[i]).Unmap()
	}
	return t, nil
}

// grant has the rules judge the addresses that a name is said to have, and returns the
// answer.
func (s *Server) grant(n *ipc.Named, t *told) ipc.Granted {
	g := ipc.Granted{Seq: n.Seq}
	g.Mask = s.Rules.Grant(t.name, t.aliases, t.addrs, time.Now().Add(time.Duration(n.TTL)*time.Second))
	if s.Audit != nil && s.learns(t.name, t.aliases...) != audit.Refused {
		g.Mask = 1<<len(t.addrs) - 1 // where the guest may connect is decided then
		s.Audit.Named(string(t.name), t.addrs)
	}
	if s.Audit == nil && (s.Lasting == nil || s.Lasting()) {
		for i, a := range t.addrs {
			if g.Mask>>i&1 != 0 {
				g.Around[i] = s.Rules.Around(a)
			}
		}
	}
	s.Logger.Debug("name resolved", "name", string(t.name), "type", typeName(n.Type), "addresses", len(t.addrs), "granted", ones(g.Mask))
	return g
}

// learns is what the rules say of a name, with --audit: refused is what a rule by name
// refuses.
func (s *Server) learns(name domain.Name, aliases ...domain.Name) string {
	rules := s.Rules.Names()
	switch v := rules.Judge(name, aliases...); {
	case v.Allowed:
		return audit.Allowed
	case v.Rule >= 0:
		return audit.Refused
	}
	return audit.Denied
}

// canonical is a name that is written as package domain writes it, or no process of ours
// has written it.
func canonical(n *ipc.Name) (domain.Name, error) {
	name, err := domain.Parse(n.String())
	if err != nil || string(name) != n.String() {
		return "", fmt.Errorf("%w: %q is no name", ipc.ErrMalformed, n.String())
	}
	return name, nil
}
