// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
	"aldente/ipc"
)

// captures are those that clients look at while they go on. The worker writes them to
// pipes, of which the clients have the other ends. The pipes are made here, so that no
// client has a descriptor that it shares with the worker, by which it could have its
// writes wait. Nothing is read here of what goes through them.
type captures struct {
	send func(rec []byte, fd int) error // to the worker

	mu    sync.Mutex
	going int
	last  uint32 // identifier
}

// Capture begins a capture for a client.
func (l *liveStatus) Capture(spec *api.CaptureSpec) (pipe int, end func(), err error) {
	if l.cfg.SpliceOnly {
		return -1, nil, errors.New("there is no link to the guest that could be captured (--splice-only)")
	}
	return l.captures.begin(spec, l.plan.Told().Interface)
}

// begin begins one, of the interface that has a name. It returns the end of the pipe to
// read from, which is the caller's, and what ends the capture: the worker then writes
// what it has left, and closes its own end.
func (c *captures) begin(spec *api.CaptureSpec, name string) (pipe int, end func(), err error) {
	rec, err := captureRecord(spec, name)
	if err != nil {
		return -1, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.going == ipc.MaxLive {
		return -1, nil, fmt.Errorf("%d captures are going on, which is as many as there may be (end one)", ipc.MaxLive)
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return -1, nil, fmt.Errorf("pipe: %w", err)
	}
	if c.last++; c.last == 0 {
		c.last = 1
	}
	rec.ID = c.last
	err = c.send(rec.Encode(), p[1])
	unix.Close(p[1])
	if err != nil {
		unix.Close(p[0])
		return -1, nil, fmt.Errorf("there is no worker at the moment (try again): %w", err)
	}
	c.going++
	return p[0], sync.OnceFunc(func() { c.end(rec.ID) }), nil
}

func (c *captures) end(id uint32) {
	// Without a worker there is no capture either.
	_ = c.send((&ipc.Live{ID: id, Flags: ipc.LiveEnd}).Encode(), -1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.going--
}

// captureProtocols are the protocols that clients may name.
var captureProtocols = map[string]uint8{"": 0, "tcp": ipc.ProtoTCP, "udp": ipc.ProtoUDP, "icmp": ipc.ProtoICMP, "arp": ipc.LiveARP}

// captureRecord is what the worker is told of what a client wants.
func captureRecord(spec *api.CaptureSpec, name string) (*ipc.Live, error) {
	rec := &ipc.Live{Port: spec.Port, Snap: spec.Snap}
	var ok bool
	if rec.Proto, ok = captureProtocols[spec.Protocol]; !ok {
		return nil, fmt.Errorf("no protocol that can be captured: %.20q (give tcp, udp, icmp or arp)", spec.Protocol)
	}
	if rec.Port != 0 && rec.Proto != 0 && rec.Proto != ipc.ProtoTCP && rec.Proto != ipc.ProtoUDP {
		return nil, fmt.Errorf("%s has no ports", spec.Protocol)
	}
	if spec.Snap > math.MaxInt32 {
		return nil, fmt.Errorf("no frame has %d bytes", spec.Snap)
	}
	if spec.Address != "" {
		a, err := netip.ParseAddr(spec.Address)
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("no address: %.60q", spec.Address)
		}
		if rec.Addr = a.As16(); a.Unmap().IsUnspecified() {
			return nil, fmt.Errorf("nobody has the address %v", a)
		}
	}
	if spec.Drops {
		rec.Flags = ipc.LiveDrops
	}
	// Not the interface's own name where that cannot be one: of a virtual machine it is
	// not known.
	if name == "" || len(name) >= len(rec.Name) {
		name = "guest"
	}
	copy(rec.Name[:], name)
	return rec, nil
}
