// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"container/list"
	"math"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/ipc/domain"
)

// Rules judge names: *domain.Rules does, as the broker has them.
type Rules interface {
	// Judge tells whether a name may be resolved, if it is another name for aliases.
	Judge(name domain.Name, aliases ...domain.Name) domain.Verdict
	// Fitting tells which rules are for it.
	Fitting(name domain.Name, aliases ...domain.Name) string
}

// Why a name is told to the broker. Numbers are those of ipc.Refused.
type Why uint8

// Reasons.
const (
	ByRule    Why = 1 + iota // a rule by name denies it
	ByDefault                // no rule by name fits, and others are not looked up
	ByAlias                  // it leads to a name that is denied
	ByAddress                // none of its addresses is granted
	ByType                   // questions of its type are not passed on
	Allowed                  // Config.Audit
)

// Config is what stays for the life of an engine.
type Config struct {
	// Resolvers is how many there are, one to MaxResolvers. They are asked in their order.
	Resolvers int
	// NXDOMAIN: names that are refused do not exist, rather than being refused.
	NXDOMAIN bool
	// Search are the domains that the guest is told to search. What is refused below
	// one of them does not exist, so that resolvers go on with the next.
	Search []domain.Name
	// PlainHellos: what a client needs to encrypt the name in its hello is cut out
	// of answers.
	PlainHellos bool
	// Audit: no name is refused, and each is told of.
	Audit bool
	// Clients is how many clients of UDP there may be, if not MaxUDP: each takes a
	// descriptor.
	Clients int
	// Random fills a slice with what nobody can guess.
	Random func([]byte)
}

// Host is what the engine has done by others. None of it may call the engine.
type Host interface {
	// Send sends to a client: a datagram, or a piece of its stream. False: there is
	// no room, or no client any more; the engine closes it.
	Send(client uint32, message []byte) bool
	// Close closes a client. The engine has forgotten it.
	Close(client uint32)
	// Pause says that nothing is to be read from a client of TCP for now, or that
	// it is again.
	Pause(client uint32, paused bool)
	// Dial has a socket made that is connected to a resolver. Upstream answers.
	Dial(socket uint32, resolver uint8, tcp bool)
	// Ask sends to a resolver: a datagram, or the beginning of the stream. False: it
	// could not be sent whole.
	Ask(socket uint32, message []byte) bool
	// Drop closes a socket, or has it closed once it comes. The engine has forgotten
	// it.
	Drop(socket uint32)
	// Named tells the broker what a name is about to stand for. Granted answers. What
	// it points to is valid for the call only.
	Named(*Named)
	// Note is Named of what a client is told at once. The broker looks for it before it
	// decides on a connection, and need not know of it before: it is not woken. False:
	// there is no room for it.
	Note(*Named) bool
	// Refused tells the broker of a name, some times a second at most.
	Refused(name domain.Name, typ uint16, why Why)
}

// Named says which addresses an answer holds that a client waits for.
type Named struct {
	Seq     uint32        // comes back with what is granted
	TTL     uint32        // in seconds, as the client will be told
	Type    uint16        // of the question: A, AAAA, HTTPS, SVCB
	Name    domain.Name   // that was asked for
	Aliases []domain.Name // what the name is another name for, at most MaxAliases
	Addrs   []netip.Addr  // at most MaxAddresses, each once
}

// Figures are what an engine has counted.
type Figures struct {
	Questions  uint64 // of clients, readable
	Malformed  uint64 // of clients, answered with an error or not at all
	Refused    uint64 // by the rules
	Cached     uint64 // answered from the cache
	Merged     uint64 // joined another that was under way
	Overload   uint64 // not answered, since there were too many
	Asked      uint64 // messages to resolvers
	TimedOut   uint64 // messages to resolvers without an answer in time
	Lies       uint64 // messages of resolvers that were no answer to what was asked
	Repeated   uint64 // answers of resolvers that had come before
	Failed     uint64 // questions that no resolver has answered
	Cut        uint64 // addresses that were not granted
	Evicted    uint64 // clients that made room for others
	Unreported uint64 // names that the broker was not told of, since there were too many
}

// Engine answers a guest's questions. It makes no system call and starts
// nothing: sockets, clock and chance are others'. One goroutine uses it at a time.
type Engine struct {
	cfg   Config
	host  Host
	rules Rules

	clients  map[uint32]*client
	udp, tcp list.List // of *client; who has been silent for longest is at the back
	waiting  int       // clients' questions that wait

	questions map[key]*question
	named     map[uint32]*question // those that wait for the broker
	seq       uint32               // of the last Named

	resolvers []resolver
	sockets   map[uint32]*socket
	lastSock  uint32

	cache    cache
	given    given
	around   around
	reported reported
	next     int64 // no deadline is before it
	figures  Figures
}

// New returns an engine that refuses all names until SetRules.
func New(cfg Config, host Host) *Engine {
	if cfg.Clients <= 0 || cfg.Clients > MaxUDP {
		cfg.Clients = MaxUDP
	}
	e := &Engine{
		cfg: cfg, host: host, rules: &domain.Rules{},
		clients: make(map[uint32]*client), questions: make(map[key]*question), named: make(map[uint32]*question),
		resolvers: make([]resolver, min(max(cfg.Resolvers, 1), MaxResolvers)), sockets: make(map[uint32]*socket),
		next: math.MaxInt64,
	}
	e.cache.init()
	e.around.told = make(map[uint32]told)
	e.given.init()
	return e
}

// SetRules has other rules judge from now on. What is under way and what is kept is
// judged again before a client is told of it.
func (e *Engine) SetRules(r Rules) {
	e.rules = r
	e.around.forget()
}

// Start asks for the first sockets, so that the first question need not wait for one.
func (e *Engine) Start(now int64) { e.keepReady(0, 0, now) }

// Figures returns what has been counted.
func (e *Engine) Figures() Figures { return e.figures }

// Held returns how many questions are under way, clients there are, and answers are
// kept, with the bytes of the latter.
func (e *Engine) Held() (questions, clients, entries, bytes int) {
	return len(e.questions), len(e.clients), len(e.cache.entries), e.cache.bytes
}

// Deadline is when Tick is due, math.MaxInt64 if it is not.
func (e *Engine) Deadline() int64 { return e.next }

// arm sees to it that Tick is called at t.
func (e *Engine) arm(t int64) { e.next = min(e.next, t) }

// Tick does what is due.
func (e *Engine) Tick(now int64) {
	e.next = math.MaxInt64
	for _, q := range e.questions {
		if q.until <= now {
			e.late(q, now)
		} else {
			e.arm(q.until)
		}
	}
	e.idle(&e.udp, now, udpIdle)
	e.idle(&e.tcp, now, tcpIdle)
	e.dropOld(now)
	e.overdue(now)
}

// late ends the waiting of a question: the next resolver is asked, or the client is
// told that it failed.
func (e *Engine) late(q *question, now int64) {
	if q.answer != nil {
		delete(e.named, q.seq)
		e.fail(q, now)
		return
	}
	e.figures.TimedOut++
	e.resolvers[q.resolver].hangs(now)
	e.again(q, now)
}

// reported bounds how many names the broker is told of in a second.
type reported struct {
	until int64
	left  int
}

// report tells the broker of a name, unless it has been told of so many.
func (e *Engine) report(name domain.Name, typ dnsmessage.Type, why Why, now int64) {
	r := &e.reported
	if now >= r.until {
		r.until, r.left = now+second, maxReported
	}
	if name == "" || r.left == 0 {
		e.figures.Unreported++
		return
	}
	r.left--
	e.host.Refused(name, uint16(typ), why)
}
