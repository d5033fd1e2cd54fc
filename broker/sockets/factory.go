// SPDX-License-Identifier: Apache-2.0

// Package sockets is the broker's socket factory: one checked request in, one
// connected descriptor out. It alone knows what an address of the guest means
// on the host, and it alone decides whether to connect there; the worker that
// asks is treated as its guest's.
package sockets

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/audit"
	"aldente/broker/egress"
	"aldente/broker/flowlog"
	"aldente/broker/inet"
	"aldente/broker/ingress"
	"aldente/broker/limiter"
	"aldente/broker/service"
	"aldente/broker/wait"
	"aldente/ipc"
)

// Egress decides whether the guest may have a socket to the host's world, see
// egress.RuleSet.
type Egress interface {
	Judge(egress.Flow) egress.Verdict                     // allowed or not, and by which rule
	Explain(egress.Flow) (egress.Verdict, []egress.Asked) // the same, with all rules that were asked
	List() []egress.Listed                                // all rules
}

// Config is what the factory needs to know.
type Config struct {
	Logger *slog.Logger // required
	Egress Egress       // nil: everything is allowed
	Flows  *flowlog.Log // nil: not asked for
	Audit  *audit.Log   // that allows what rules for any refuse, and records all; nil: not asked for
	// Redirects say where the guest's flows go instead of where it wants, before the
	// egress rules judge; nil: none do.
	Redirects *egress.Redirects
	// Ingress says who may connect to the guest by listeners of the host's; nil: everybody.
	Ingress *ingress.RuleSet
	// Local tells whether what a socket sends would stay on the host; nil: that is not
	// known.
	Local func(egress.Flow) bool

	V4, V6 Family // IPv4 and IPv6

	// Via is the proxy that connections of the guest's go by; nil: none. It needs SetNames.
	Via *Via

	Multicast Multicast // what the guest may have of groups

	// VerifySNI has flows to these ports looked at that a rule by name allows, see
	// SetNames; nil: none.
	VerifySNI []PortRange

	// Client tells whether a UDP socket of the host at peer is connected to local;
	// nil: that cannot be known.
	Client func(peer, local netip.AddrPort) bool
	// ClientPorts are those that the kernel gives sockets which choose none.
	ClientPorts PortRange

	// Resolvers are those that the guest asks for names, by its own names for them. What
	// it sends to their port 53 goes to aldente-names, and to no resolver.
	Resolvers []netip.Addr

	Namespace      Namespace // see SetNamespace
	NamespaceScope uint32    // see SetNamespace
	MaxListeners   int       // zero: as many as there are descriptors

	LoToLo      bool // the bypass may lead to the namespace's loopback
	NoLoopback6 bool // the host has no ::1: for the bypass 127.0.0.1 stands for it
}

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last uint16 }

// Family holds what depends on the address family.
type Family struct {
	Enabled         bool       // the guest has the family
	Source          netip.Addr // source of connections, zero: the kernel's choice
	Interface       string     // bind sockets to it, empty: the kernel's choice
	Scope           uint32     // interface index for link-local destinations
	DNSForward      netip.Addr // the guest's name for DNSHost, on ports 53 and 853
	DNSHost         netip.Addr // the resolver that DNSForward stands for, on the host
	DNSHostScope    uint32     // interface index that a link-local DNSHost is on, zero: as others
	MapHostLoopback netip.Addr // the guest's name for the host's loopback
	MapGuestAddr    netip.Addr // the guest's name for GuestAddr on the host
	GuestAddr       netip.Addr // the address that guest and host have in common
	Broadcast       netip.Addr // everybody on the network that both are on; zero: there is no such address
	Freebind        bool       // sockets may have a source that the host does not have (IP_FREEBIND)

	// Virtual is the guest's network, if nothing is there but what has a meaning above: what
	// the host has by such an address, the guest cannot name. Zero: it is the host's, too.
	Virtual netip.Prefix
}

// Factory serves one worker after the other.
type Factory struct {
	now atomic.Pointer[Config] // see SetNetwork
	// OnInflight answers a front end of vhost-user in the worker's place. Where there
	// can be none, it is nil: a worker that asks is not ours any more.
	OnInflight func(*ipc.Inflight)
	// Names passes on the sockets of questions to Config.Resolvers. Where there are none,
	// it is nil.
	Names Names
	given []service.Socket // see UsePassed
	// OnEvent is called for the worker's events.
	OnEvent func(code uint32)
	// OnFigures takes a message of the worker's with figures, which is of this kind.
	// Its error is the worker's end, as is any such message where nobody takes it.
	OnFigures func(kind ipc.Kind, msg []byte) error

	confined atomic.Bool // see Confined

	mu        sync.Mutex
	listeners map[uint32]Listener
	nextID    uint32

	refusals refusals
	hits     hits
	ledger   *ledger // nil: no budget
	ports    *udpPorts
	gate     *gate // nil: the worker accepts all
	stages   stages

	set    wait.Set // what Serve waits for: a worker's channel, and underWay.ep
	setErr error    // it could not be made

	rechecks  atomic.Uint32  // how often flows were judged anew, or begun to be
	pairLines limiter.Bucket // of the log on questions that nobody answers
}

// New makes a factory.
func New(cfg Config) *Factory {
	f := &Factory{
		listeners: map[uint32]Listener{}, ports: newUDPPorts(cfg.MaxListeners),
		refusals: refusals{lines: limiter.Bucket{Rate: refusalLines}},
		stages:   stages{lines: limiter.Bucket{Rate: stageLines}, proxyLines: limiter.Bucket{Rate: proxyLines}},

		pairLines: limiter.Bucket{Rate: pairLines},
	}
	f.now.Store(&cfg)
	f.setErr = f.set.Open() // now: the runtime's poller begins before the process is confined, and later there may be no descriptor left
	if cfg.Ingress != nil {
		f.gate = newGate()
	}
	return f
}

// Close gives back what New has opened, when nobody serves any more.
func (f *Factory) Close() { f.set.Close() }

// KnowPorts lets the factory find out whose ports are, for those that flows of the
// guest share, and for errors. It must be called before lock-down.
func (f *Factory) KnowPorts() (err error) {
	f.ports.kernel, err = openLister()
	return err
}

// cfg is the configuration in force. What is decided together has to ask one of them.
func (f *Factory) cfg() *Config { return f.now.Load() }

// SetNetwork puts what to says of the host's network into force, for what is opened from
// now on: addresses, interfaces, resolvers. The rest stays. It is for one goroutine, once
// the first worker is served.
func (f *Factory) SetNetwork(to *Config) {
	c := *f.cfg()
	c.V4, c.V6, c.Resolvers, c.NoLoopback6 = to.V4, to.V6, to.Resolvers, to.NoLoopback6
	f.now.Store(&c)
}

// SetNamespace tells who opens sockets in the guest's namespace, and the index of
// the interface there that link-local addresses are on. It must be called before
// the first worker is served.
func (f *Factory) SetNamespace(n Namespace, scope uint32) {
	f.cfg().Namespace, f.cfg().NamespaceScope = n, scope
}

// Serve answers the worker's requests until the channel ends, which is
// io.EOF, or the worker sends what no worker of ours sends, which is
// ipc.ErrMalformed.
func (f *Factory) Serve(control int) error {
	buf := make([]byte, ipc.MaxRecord) // all that may come in one message
	var replies ipc.Replies
	s := &served{fd: control, set: &f.set, ep: -1}
	defer f.workerGone()
	defer s.end() // first: what is answered later is no flow of a worker's
	pace := paced()
	if f.setErr != nil {
		return f.setErr
	}
	if err := f.set.Add(control); err != nil {
		return err
	}
	defer f.set.Remove(control)
	for {
		if err := f.await(s); err != nil {
			return err
		}
		n, fd, err := ipc.ReceiveNow(control, buf)
		if err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return err
		}
		pace.Take(weight(buf[:n]), time.Now())
		if fd >= 0 {
			unix.Close(fd)
		}
		kind, err := ipc.FromWorker.Check(buf[:n], fd >= 0, ipc.Running)
		if err == nil {
			err = f.message(kind, buf[:n], &replies, s)
		}
		if err != nil {
			replies.Send(control)
			return err
		}
		if err := replies.Send(control); err != nil {
			if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
				return io.EOF
			}
			return fmt.Errorf("answers: %w", err)
		}
		if s.refusals > 0 {
			pace.Take(s.refusals*refusalRecords, time.Now())
			s.refusals = 0
		}
	}
}

// message handles one message: an event, or an array of requests.
func (f *Factory) message(kind ipc.Kind, b []byte, replies *ipc.Replies, s *served) error {
	switch kind {
	case ipc.KindEvent:
		var e ipc.Event
		if err := e.Decode(b); err != nil {
			return err
		}
		if f.OnEvent != nil {
			f.OnEvent(e.Code)
		}
		return nil
	case ipc.KindInflight:
		var r ipc.Inflight
		if err := r.Decode(b); err != nil {
			return err
		}
		if f.OnInflight == nil {
			return fmt.Errorf("%w: memory for what is in flight, without vhost-user", ipc.ErrMalformed)
		}
		f.OnInflight(&r)
		return nil
	case ipc.KindAccepted, ipc.KindEnded:
		return f.flowNews(kind, b)
	case ipc.KindFlow, ipc.KindFigures, ipc.KindAnswered:
		if f.OnFigures != nil {
			return f.OnFigures(kind, b)
		}
		return fmt.Errorf("%w: figures that nobody has asked for", ipc.ErrMalformed)
	case ipc.KindOpen:
	default:
		return fmt.Errorf("%w: nobody takes kind %#x", ipc.ErrMalformed, uint16(kind))
	}
	for ; len(b) > 0; b = b[ipc.OpenSize:] {
		var r ipc.Open
		if err := r.Decode(b[:ipc.OpenSize]); err != nil {
			return err
		}
		o, to, err := f.open(&r, s)
		if err != nil {
			return err
		}
		if o.later {
			continue
		}
		if o.fd < 0 && !o.wait {
			s.refusals++
		}
		if o.answers > 0 {
			replies.Add(&ipc.Opened{Token: r.Token, Flags: ipc.OpenedLate | ipc.OpenedAnswers, LocalPort: o.localPort}, o.answers)
		}
		answer := o.record(r.Token, r.Proto, to)
		replies.Add(&answer, o.fd)
		if o.kept {
			replies.Keep()
		}
	}
	return nil
}

// open handles one request: what is decided, and no more. It returns where the
// socket leads too, or was to lead. An error is the worker's end.
func (f *Factory) open(r *ipc.Open, s *served) (o outcome, to netip.AddrPort, err error) {
	q := request{
		proto: r.Proto, token: r.Token, splice: r.Flags&ipc.OpenBypass != 0, member: r.Flags&ipc.OpenMember != 0,
		src: netip.AddrPortFrom(netip.AddrFrom16(r.Src).Unmap(), r.SrcPort),
		dst: netip.AddrPortFrom(netip.AddrFrom16(r.Dst).Unmap(), r.DstPort), scope: r.Scope,
	}
	if r.Listener != 0 {
		var ok bool
		if q.listener, ok = f.listener(r.Listener); !ok {
			return nothing(unix.EINVAL), to, nil // gone since
		}
	}
	before := f.rechecks.Load()
	d := f.decideSettled(&q, s)
	if !q.member {
		f.hits.count(&q, &d)
		f.record(&q, &d)
	}
	switch {
	case d.refused != 0:
		o = f.refused(&q, &d)
	case d.via != nil, f.looksAt(&q, &d):
		o, err = f.openStaged(&q, &d, s)
	case f.ledger == nil || d.namespace:
		o, err = f.carryOut(&q, &d, s)
	default:
		o, err = f.openWithin(&q, &d, s)
	}
	if o.fd >= 0 && f.rechecks.Load() != before {
		o = f.decidedAgain(&q, &d, o)
	}
	if !q.member {
		f.tellFlow(&q, &d, &o)
	}
	return o, d.to, err
}

// carryOut opens the socket that was decided on.
func (f *Factory) carryOut(q *request, d *decision, s *served) (outcome, error) {
	switch {
	case q.member:
		return f.openMember(d), nil
	case d.group:
		return f.openGroup(d), nil
	case q.splice && d.namespace:
		return f.openNamespace(q, d, s)
	case q.splice:
		return f.openHost(q.proto, d), nil
	case d.namespace:
		return f.openNamespaceReply(q, d, s)
	case q.listener.ID != 0:
		return f.openReply(q, d), nil
	case d.names:
		return f.openNames(q.proto), nil
	}
	return f.openOut(q.proto, d), nil
}

// refused is the outcome of what decide has refused, and has the log say it if the
// egress rules did.
func (f *Factory) refused(q *request, d *decision) outcome {
	o := nothing(d.refused)
	if d.byRules {
		o.prohibited = true
		f.refusals.note(f.cfg().Logger, q.proto, d.to, &d.verdict)
	}
	return o
}

// record notes where the guest connects, for --audit.
func (f *Factory) record(q *request, d *decision) {
	if f.cfg().Audit == nil || q.listener.ID != 0 || d.names || d.refused != 0 && !d.byRules {
		return
	}
	a := audit.Flow{Protocol: protoName(q.proto), To: netip.AddrPortFrom(d.to.Addr().WithZone(""), d.to.Port()), Name: string(d.verdict.Name), Rule: d.verdict.Rule, Verdict: audit.Allowed}
	switch {
	case d.unproxied != "":
		a.Verdict = audit.Refused
	case d.lifted:
		a.Verdict = audit.Denied
	case d.byRules:
		flow := judgedAs(q, d)
		flow.Lifted = true
		a.Verdict, a.Rule = audit.Refused, f.cfg().Egress.Judge(flow).Rule
	}
	f.cfg().Audit.Note(&a)
}

// openOut opens a flow's socket to where the guest wants it.
func (f *Factory) openOut(proto uint8, d *decision) outcome {
	switch proto {
	case ipc.ProtoTCP:
		if d.via != nil {
			to := f.cfg().toProxy()
			d = &to
		}
		c := inet.Connect{Path: d.inet(), Source: d.Source, To: d.to, Peeks: true}
		return made(c.Dial(), 0)
	case ipc.ProtoUDP:
		return f.flowSocket(&d.path, d.from, d.to, true)
	}
	p := inet.Ping{Path: d.inet(), From: d.from, To: d.to.Addr()}
	r := p.Dial()
	return made(r, inet.LocalPort(r.FD))
}

func protoName(p uint8) string {
	switch p {
	case ipc.ProtoTCP:
		return "tcp"
	case ipc.ProtoUDP:
		return "udp"
	}
	return "icmp"
}
