// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/agent"
	"aldente/broker/cli"
	"aldente/broker/sockets"
	"aldente/ipc"
)

// direction is which way a rule forwards.
type direction int

const (
	inbound  direction = iota // -t, -u: from the host to the guest
	outbound                  // -T, -U: from the namespace's loopback to the host's
)

// forwarding is all that listens: on the host for the guest, and in the
// namespace for the host.
type forwarding struct {
	mu sync.Mutex // guards the factory's listeners against those who tell the worker of them
	up bool       // the worker has what the factory has, and hears of changes

	ns   *agent.Sockets
	auto *autoForward // nil: no rule asks for it
}

// Whoever starts an instance in place of one that was killed, or whose namespace
// was removed as "podman restart" does, may be faster than the old one's end: its
// ports are free a moment later, on a busy machine some tenths of a second.
const (
	handOverTries = 50
	handOverPause = 10 * time.Millisecond
)

// listen opens the listening sockets that -t and -u ask for.
func (in *instance) listen() error {
	for _, r := range in.plan.Inbound {
		if r.Auto {
			continue
		}
		var o outcome
		for p := range r.Len() {
			l := in.plan.HostListener(r, r.First+uint16(p))
			_, err := in.factory.Listen(l)
			for tries := 0; !r.Weak && errors.Is(err, unix.EADDRINUSE) && tries < handOverTries; tries++ {
				time.Sleep(handOverPause)
				_, err = in.factory.Listen(l)
			}
			if !r.Weak {
				err = in.factory.Explain(&l, err)
			}
			if o.note(err); err != nil && (!r.Weak || errors.Is(err, unix.EMFILE)) {
				break
			}
		}
		if err := o.judge(r, in.log); err != nil {
			return err
		}
	}
	return nil
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
		log.Warn(fmt.Sprintf("not all ports are forwarded for rule %s: %v", r, o.err))
		return nil
	case r.Weak && o.bound > 0:
		return nil
	case r.Weak:
		return fmt.Errorf("no port could be bound for rule %s: %w", r, o.err)
	}
	return fmt.Errorf("%w, for rule %s", o.err, r)
}

// enterForwarding starts what is forwarded by way of the agent, once it has set
// the namespace up: listeners of -T and -U, and the automatic ones as far as
// there is something to forward already. link is the tap's index there.
func (in *instance) enterForwarding(link int) error {
	f := &in.forward
	f.ns = in.agent.Sockets(func(err error) {
		in.log.Error("the agent has ended: nothing is opened in the namespace any more", "error", err)
	})
	in.factory.SetNamespace(f.ns, uint32(link))
	for _, r := range in.plan.Outbound {
		if r.Auto {
			continue
		}
		ports := make([]uint16, r.Len())
		for p := range ports {
			ports[p] = r.First + uint16(p)
		}
		o := in.listenNamespace(r, ports, func(uint16, sockets.Listener) {})
		if err := o.judge(r, in.log); err != nil {
			return err
		}
	}
	return in.startAuto()
}

// askAhead is how many listeners are asked of the agent at a time.
const askAhead = 256

// listenNamespace opens listeners for ports of a rule in the namespace, and
// passes each on.
func (in *instance) listenNamespace(r *cli.Rule, ports []uint16, opened func(port uint16, l sockets.Listener)) outcome {
	var o outcome
	var mu sync.Mutex
	for some := range slices.Chunk(ports, askAhead) {
		if err := in.factory.Room(); err != nil {
			o.note(err)
			break
		}
		var wg sync.WaitGroup
		wg.Add(len(some))
		for _, port := range some {
			in.openNamespace(r, port, func(fds []int, err error) {
				defer wg.Done()
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					err = fmt.Errorf("cannot listen in the namespace on port %d: %w", port, err)
				}
				o.note(err)
				for _, fd := range fds {
					opened(port, in.add(in.plan.NamespaceListener(r, port, fd)))
				}
			})
		}
		wg.Wait()
	}
	return o
}

// openNamespace asks the agent for the listener of one port, and where the kernel
// refuses that for those on the loopback addresses.
func (in *instance) openNamespace(r *cli.Rule, port uint16, done func(fds []int, err error)) {
	in.forward.ns.Open(in.plan.NamespaceSocket(r, port), func(fd int, err error) {
		switch {
		case err == nil:
			done([]int{fd}, nil)
		case errors.Is(err, unix.EPERM):
			in.openAll(in.plan.LoopbackSockets(r, port), nil, done)
		default:
			done(nil, err)
		}
	})
}

// openAll opens one socket after the other, all or none.
func (in *instance) openAll(want []ipc.AgentOpen, fds []int, done func([]int, error)) {
	if len(want) == 0 {
		done(fds, nil)
		return
	}
	in.forward.ns.Open(want[0], func(fd int, err error) {
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			done(nil, err)
			return
		}
		in.openAll(want[1:], append(fds, fd), done)
	})
}

// add makes a socket a listener, of which the running worker hears.
func (in *instance) add(l sockets.Listener) sockets.Listener {
	f := &in.forward
	f.mu.Lock()
	defer f.mu.Unlock()
	l = in.factory.Adopt(l)
	if f.up {
		rec := l.Record()
		// Without a worker, the next one is told.
		_ = in.worker.Send(rec.Encode(ipc.KindListener), l.FD)
	}
	return l
}

// drop closes a listener; connections that came by it stay.
func (in *instance) drop(l *sockets.Listener) {
	f := &in.forward
	f.mu.Lock()
	defer f.mu.Unlock()
	in.factory.Unlisten(l.ID)
	if f.up {
		rec := l.Record()
		_ = in.worker.Send(rec.Encode(ipc.KindUnlisten), -1)
	}
}

// sendListeners tells a new worker of all listeners. From then on it hears of
// changes.
func (in *instance) sendListeners(control int) error {
	f := &in.forward
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range in.factory.Listeners() {
		l, err := in.factory.Revive(l)
		if err != nil {
			in.log.Warn("a port is not forwarded any more", "port", l.Port, "error", err)
			continue
		}
		rec := l.Record()
		if err := ipc.Send(control, rec.Encode(ipc.KindListener), l.FD); err != nil {
			return err
		}
	}
	f.up = true
	return nil
}

// workerGone notes that nobody is there to be told of changes.
func (in *instance) workerGone() {
	in.forward.mu.Lock()
	in.forward.up = false
	in.forward.mu.Unlock()
}

// release lets go of all ports, so that the next instance can have them at once.
// A UDP socket hears as long as anybody holds it: these end with the worker.
func (in *instance) release() {
	in.factory.Shut()
	if slices.ContainsFunc(in.factory.Listeners(), func(l sockets.Listener) bool { return l.Proto == ipc.ProtoUDP }) {
		in.worker.Stop()
	}
}
