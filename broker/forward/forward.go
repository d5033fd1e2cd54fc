// SPDX-License-Identifier: Apache-2.0

// Package forward keeps the listeners for the rules of -t, -u, -T and -U, on the
// host for the guest and in the namespace for the host, and tells the worker of
// them.
package forward

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/broker/plan"
	"aldente/broker/ports"
	"aldente/broker/sockets"
	"aldente/ipc"
)

// direction is which way a rule forwards.
type direction int

const (
	inbound  direction = iota // -t, -u: from the host to the guest
	outbound                  // -T, -U: from the namespace's loopback to the host's
)

// Factory opens and holds sockets on the host, see sockets.Factory.
type Factory interface {
	Listen(sockets.Listener) (sockets.Listener, error) // opens a listener and keeps it
	Bind(sockets.Listener) (sockets.Listener, error)   // opens one that Adopt is to keep
	Adopt(sockets.Listener) sockets.Listener           // keeps one, and gives it an identifier
	Revive(sockets.Listener) (sockets.Listener, error) // has one listen again that a worker has shut down

	Strayed(l *sockets.Listener) (string, bool)        // whether one is bound to an interface of another name, which is empty if that has gone
	Rebind(sockets.Listener) (sockets.Listener, error) // binds one anew, to the interface that has the name now

	Beside(l sockets.Listener, going []sockets.Listener) (sockets.Listener, error) // is Bind on a port of listeners that are to go
	Retarget(id uint32, l sockets.Listener) sockets.Listener                       // gives one the guest's side of another
	Unlisten(id uint32) (sockets.Listener, bool)                                   // closes one

	Dropped(id uint32) uint64                     // packets that the kernel has dropped at one
	Listeners() []sockets.Listener                // all that are kept
	Room(more int) error                          // why there may not be as many and one besides, nil: there may
	Explain(l *sockets.Listener, err error) error // says in the error who has the port
	Shut()                                        // ends all of TCP, whoever else holds them
}

// Namespace opens sockets in the guest's namespace and lists what is bound there,
// see agent.Sockets.
type Namespace interface {
	Open(want ipc.AgentOpen, done func(fd int, err error)) // calls done, now or later, with a socket or why there is none
	StartScan()                                            // begins to list what is bound now
	Bound(tcp, udp *ports.Set) error                       // what was found last, once that has ended, and has changes told
	Changed(func())                                        // says whom they are told
}

// Worker hears of listeners that come and go, see supervise.Supervisor.
type Worker interface {
	Send(record []byte, fd int) error // with a descriptor, or -1
	Stop()                            // ends the worker and waits until it is gone
}

// Forwarder is all that listens.
type Forwarder struct {
	plan      *plan.Plan
	factory   Factory
	log       *slog.Logger
	firstOpen uint16 // the first port that everybody may bind on the host

	change sync.Mutex    // held while rules or their listeners change
	rules  [2][]*rule    // in force, by direction, in the order in which they are shown
	auto   *autoForward  // nil: no rule can ask for it
	period time.Duration // see scanPeriod

	mu        sync.Mutex // guards the factory's listeners against those who tell the worker of them
	up        bool       // the worker has what the factory has, and hears of changes
	worker    Worker
	lost      map[uint32]bool // listeners that could not be revived, by identifier
	away      map[uint32]bool // those whose interface is not there
	regaining bool            // somebody goes on trying

	ns   Namespace
	left ports.Set // UDP ports of the namespace that a listener has left, perhaps not its flows
}

// rule is one in force.
type rule struct {
	cli.Rule
	dir  direction
	ids  []uint32            // its listeners; none with "auto"
	open map[uint16][]uint32 // with "auto": its listeners by port
}

func newRule(r *cli.Rule, d direction) *rule {
	n := &rule{Rule: *r, dir: d}
	if r.Auto {
		n.open = make(map[uint16][]uint32)
	}
	return n
}

// listeners are the identifiers of all that the rule has.
func (r *rule) listeners() []uint32 {
	all := slices.Clone(r.ids)
	for _, ids := range r.open {
		all = append(all, ids...)
	}
	return all
}

// New makes a forwarder that listens nowhere yet. firstOpen is the first port that
// everybody may bind on the host.
func New(p *plan.Plan, f Factory, firstOpen uint16, log *slog.Logger) *Forwarder {
	n := &Forwarder{plan: p, factory: f, firstOpen: firstOpen, log: log, period: scanPeriod, lost: map[uint32]bool{}, away: map[uint32]bool{}}
	for d, rules := range [...][]*cli.Rule{inbound: p.Inbound, outbound: p.Outbound} {
		for _, r := range rules {
			n.rules[d] = append(n.rules[d], newRule(r, direction(d)))
		}
	}
	return n
}

// SetWorker says who is told of changes. It must be called before the worker starts.
func (f *Forwarder) SetWorker(w Worker) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.worker = w
}

// An instance may be started in place of one that was killed, or whose namespace
// was removed, as "podman restart" does. The new one may be faster than the old
// one's end. Ports are free a moment later then, on a busy machine some tenths
// of a second.
const (
	handOverTries = 50
	handOverPause = 10 * time.Millisecond
)

// Listen opens the listening sockets that -t and -u ask for.
func (f *Forwarder) Listen() error {
	f.change.Lock()
	defer f.change.Unlock()
	for _, r := range f.rules[inbound] {
		err := f.listenHost(r, f.factory.Listen, func(l sockets.Listener) { r.ids = append(r.ids, l.ID) })
		if err != nil {
			return err
		}
	}
	return nil
}

// listenHost opens the listeners of an inbound rule, of those with "auto" none.
func (f *Forwarder) listenHost(r *rule, listen func(sockets.Listener) (sockets.Listener, error), opened func(sockets.Listener)) error {
	if r.Auto {
		return nil
	}
	var o outcome
	for p := range r.Len() {
		want := f.plan.HostListener(&r.Rule, r.First+uint16(p))
		l, err := listen(want)
		for tries := 0; !r.Weak && errors.Is(err, unix.EADDRINUSE) && tries < handOverTries; tries++ {
			time.Sleep(handOverPause)
			l, err = listen(want)
		}
		if !r.Weak {
			err = f.factory.Explain(&want, err)
		}
		if err == nil {
			opened(l)
		}
		if o.note(err); err != nil && (!r.Weak || errors.Is(err, unix.EMFILE)) {
			break
		}
	}
	return o.judge(&r.Rule, f.log)
}

// outcome counts how many of a rule's ports could be bound.
type outcome struct {
	bound, failed int
	err           error // the first
}

func (o *outcome) note(err error) {
	if err == nil {
		o.bound++
		return
	}
	if o.failed == 0 {
		o.err = err
	}
	o.failed++
}

// judge makes an error of it. A weak rule does with what it gets, unless that
// is nothing, or with what descriptors there are.
func (o *outcome) judge(r *cli.Rule, log *slog.Logger) error {
	switch {
	case o.failed == 0:
		return nil
	case r.Weak && errors.Is(o.err, unix.EMFILE):
		log.Warn("not all ports are forwarded", "rule", r.String(), "error", o.err)
		return nil
	case r.Weak && o.bound > 0:
		return nil
	case r.Weak:
		return fmt.Errorf("no port could be bound for rule %s: %w", r, o.err)
	}
	return fmt.Errorf("%w, for rule %s", o.err, r)
}

// Enter starts what is forwarded by way of the guest's namespace, once that is set
// up: listeners of -T and -U, and the automatic ones as far as there is something
// to forward already.
func (f *Forwarder) Enter(ns Namespace) error {
	f.change.Lock()
	defer f.change.Unlock()
	f.ns = ns
	for _, r := range f.rules[outbound] {
		if r.Auto {
			continue
		}
		o := f.listenNamespace(&r.Rule, portsOf(&r.Rule), 0, func(_ uint16, ls []sockets.Listener) {
			for _, l := range ls {
				r.ids = append(r.ids, f.add(l).ID)
			}
		})
		if err := o.judge(&r.Rule, f.log); err != nil {
			return err
		}
	}
	if err := f.prepareAuto(); err != nil {
		return err
	}
	f.follow()
	return nil
}

// portsOf lists the ports that a rule listens on.
func portsOf(r *cli.Rule) []uint16 {
	ports := make([]uint16, r.Len())
	for p := range ports {
		ports[p] = r.First + uint16(p)
	}
	return ports
}

// askAhead is how many listeners are asked of the agent at a time.
const askAhead = 256

// listenNamespace opens listeners for ports of a rule in the namespace, and passes
// on those of each port. More are open and not adopted yet.
func (f *Forwarder) listenNamespace(r *cli.Rule, ports []uint16, more int, opened func(port uint16, ls []sockets.Listener)) outcome {
	var o outcome
	var mu sync.Mutex
	for some := range slices.Chunk(ports, askAhead) {
		if err := f.factory.Room(more); err != nil {
			o.note(err)
			break
		}
		var wg sync.WaitGroup
		wg.Add(len(some))
		for _, port := range some {
			f.openNamespace(r, port, func(fds []int, err error) {
				defer wg.Done()
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					err = fmt.Errorf("cannot listen in the namespace on port %d: %w", port, err)
				}
				o.note(err)
				var ls []sockets.Listener
				for _, fd := range fds {
					ls = append(ls, f.plan.NamespaceListener(r, port, fd))
				}
				if ls != nil {
					opened(port, ls)
				}
			})
		}
		wg.Wait()
	}
	return o
}

// openNamespace asks the agent for the listener of one port, and where the kernel
// refuses that for those on the loopback addresses.
func (f *Forwarder) openNamespace(r *cli.Rule, port uint16, done func(fds []int, err error)) {
	want := f.plan.NamespaceSocket(r, port)
	beside := uint8(0)
	if r.Proto == ipc.ProtoUDP && f.left.Has(port) {
		beside = ipc.AgentOpenBeside
	}
	want.Flags |= beside
	f.ns.Open(want, func(fd int, err error) {
		switch {
		case err == nil:
			done([]int{fd}, nil)
		case errors.Is(err, unix.EPERM):
			all := f.plan.LoopbackSockets(r, port)
			for i := range all {
				all[i].Flags |= beside
			}
			f.openAll(all, nil, done)
		default:
			done(nil, err)
		}
	})
}

// openAll opens one socket after the other, all or none.
func (f *Forwarder) openAll(want []ipc.AgentOpen, fds []int, done func([]int, error)) {
	if len(want) == 0 {
		done(fds, nil)
		return
	}
	f.ns.Open(want[0], func(fd int, err error) {
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			done(nil, err)
			return
		}
		f.openAll(want[1:], append(fds, fd), done)
	})
}

// add makes a socket a listener, of which the running worker hears.
func (f *Forwarder) add(l sockets.Listener) sockets.Listener {
	f.mu.Lock()
	defer f.mu.Unlock()
	l = f.factory.Adopt(l)
	if f.up && !l.Guarded {
		rec := l.Record()
		// Without a worker, the next one is told.
		_ = f.worker.Send(rec.Encode(ipc.KindListener), l.FD)
	}
	return l
}

// drop closes a listener; connections that came by it stay.
func (f *Forwarder) drop(id uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, ok := f.factory.Unlisten(id)
	if ok && l.Namespace && l.Proto == ipc.ProtoUDP {
		f.left.Add(l.Port)
	}
	if ok && f.up && !l.Guarded {
		rec := l.Record()
		_ = f.worker.Send(rec.Encode(ipc.KindUnlisten), -1)
	}
}

// retarget has what comes by a listener go where another would have it go.
func (f *Forwarder) retarget(id uint32, to sockets.Listener) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.factory.Retarget(id, to)
	if f.up && !l.Guarded {
		rec := l.Record()
		_ = f.worker.Send(rec.Encode(ipc.KindRetarget), -1)
	}
}

// SendListeners tells a new worker of all listeners. From then on it hears of
// changes.
func (f *Forwarder) SendListeners(control int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.factory.Listeners() {
		l, ok := f.revive(l)
		if !ok || l.Guarded {
			continue
		}
		rec := l.Record()
		if err := ipc.Send(control, rec.Encode(ipc.KindListener), l.FD); err != nil {
			return err
		}
	}
	f.up = true
	if len(f.lost) > 0 && !f.regaining {
		f.regaining = true
		go func() {
			for range time.Tick(f.period) {
				if f.regain() {
					return
				}
			}
		}()
	}
	return nil
}

// revive has a listener hear again. The log is told once of one that cannot.
func (f *Forwarder) revive(l sockets.Listener) (sockets.Listener, bool) {
	l, err := f.factory.Revive(l)
	if err == nil {
		if f.lost[l.ID] {
			f.log.Warn("a port is forwarded again", "port", l.Port)
			delete(f.lost, l.ID)
		}
		return l, true
	}
	if !f.lost[l.ID] {
		f.log.Warn("a port is not forwarded any more, until it can be had again", "port", l.Port, "error", err)
		f.lost[l.ID] = true
	}
	return l, false
}

// regain tries to have listeners hear again that could not. It reports true when there
// is none left.
func (f *Forwarder) regain() (all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lost := f.lost
	f.lost = make(map[uint32]bool) // some may have been dropped
	for _, l := range f.factory.Listeners() {
		if !lost[l.ID] {
			continue
		}
		f.lost[l.ID] = true
		if !f.up {
			continue // the next worker is told anyway
		}
		if l, ok := f.revive(l); ok {
			rec := l.Record()
			_ = f.worker.Send(rec.Encode(ipc.KindListener), l.FD)
		}
	}
	f.regaining = len(f.lost) > 0
	return !f.regaining
}

// WorkerGone notes that nobody is there to be told of changes.
func (f *Forwarder) WorkerGone() {
	f.mu.Lock()
	f.up = false
	f.mu.Unlock()
}

// Release lets go of all ports, so that the next instance can have them at once.
// A UDP socket hears as long as anybody holds it: these end with the worker.
func (f *Forwarder) Release() {
	f.mu.Lock()
	f.up = false // nothing is regained any more
	f.mu.Unlock()
	f.factory.Shut()
	if slices.ContainsFunc(f.factory.Listeners(), func(l sockets.Listener) bool { return l.Proto == ipc.ProtoUDP }) {
		f.worker.Stop()
	}
}
