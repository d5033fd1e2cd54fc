// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/ports"
	"aldente/ipc"
)

// The agent lists the ports that are bound in its namespace. So the broker reads
// no netlink messages there, which others than the kernel might have sent. It
// reads records, from which no more follows than that some ports are bound.

// scan is the one under way in the agent, if there is one.
type scan struct {
	on       bool
	id       uint32
	tcp, udp ports.Set
}

// openScanner opens what scans take, as the broker has asked for with the set-up:
// nothing of the kind can be opened later.
func (s *server) openScanner() (err error) {
	if s.setup.Flags&ipc.AgentSetupScan == 0 || s.scanner != nil {
		return nil
	}
	if s.scanner, err = ports.Open(); err != nil {
		return &failure{"cannot list the ports that are bound in the namespace", err}
	}
	return nil
}

// startScan begins a scan. The loop goes on with it, a piece at a time, between
// requests: they do not wait for the end of a long one.
func (s *server) startScan(b []byte) error {
	var r ipc.AgentScan
	if err := r.Decode(b); err != nil {
		return err
	}
	if s.scanner == nil || s.scan.on {
		return fmt.Errorf("%w: scan %d out of place", ipc.ErrMalformed, r.ID)
	}
	s.scan = scan{on: true, id: r.ID}
	s.scanner.Begin(&s.scan.tcp, &s.scan.udp)
	return nil
}

// goOn takes the next piece of the scan under way, and answers at its end.
func (s *server) goOn() error {
	done, err := s.scanner.Step()
	if err == nil && !done {
		return nil
	}
	s.scan.on = false
	if err == nil {
		return s.sendPorts()
	}
	r := ipc.AgentPorts{ID: s.scan.id, Last: 1, Errno: errno(err)}
	if r.Errno == 0 {
		r.Errno = uint16(unix.EPROTO) // it has no number
	}
	return ipc.Send(s.channel, r.Encode(), -1)
}

// sendPorts sends what a scan has found.
func (s *server) sendPorts() error {
	r := ipc.AgentPorts{ID: s.scan.id}
	for _, p := range []struct {
		proto uint8
		set   *ports.Set
	}{{ipc.ProtoTCP, &s.scan.tcp}, {ipc.ProtoUDP, &s.scan.udp}} {
		for i, bits := range p.set {
			if bits == 0 {
				continue
			}
			if r.N == ipc.MaxPortWords {
				if err := ipc.Send(s.channel, r.Encode(), -1); err != nil {
					return err
				}
				r = ipc.AgentPorts{ID: s.scan.id}
			}
			r.Words[r.N], r.Bits[r.N] = ipc.WordOf(p.proto, i), bits
			r.N++
		}
	}
	r.Last = 1
	return ipc.Send(s.channel, r.Encode(), -1)
}

// Scans has the agent keep, at the end of the next set-up, what Sockets.Bound
// takes.
func (c *Client) Scans() { c.flags |= ipc.AgentSetupScan }

// scanTime is how long Sockets.Bound waits. Nothing else waits with it.
const scanTime = 5 * time.Second

// ErrSlow is the error of Sockets.Bound and Sockets.Update for an agent that does not
// answer. It may later.
var ErrSlow = errors.New("the agent in the namespace does not answer")

// scanning is the broker's side of a scan. There is one at a time.
type scanning struct {
	id       uint32
	open     bool       // the agent has not ended it
	asked    bool       // it was told of it
	fetched  bool       // Bound has taken the result, or none was asked for
	next     int        // the lowest word that may still come
	tcp, udp ports.Set  // what has come
	ended    chan error // one, at its end
}

// StartScan asks the agent which ports are bound in the namespace, unless it was
// asked and Bound has not taken the answer yet.
func (s *Sockets) StartScan() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := &s.scanning; s.err == nil && c.fetched {
		s.id++
		*c = scanning{id: s.id, open: true, ended: c.ended}
		s.sendScan()
	}
}

// sendScan asks for the scan, once there is room.
func (s *Sockets) sendScan() {
	c := &s.scanning
	if !c.open || c.asked {
		return
	}
	if c.asked = ipc.SendNow(s.client.channel, (&ipc.AgentScan{ID: c.id}).Encode(), -1) != unix.EAGAIN; !c.asked {
		s.sendLater()
	}
}

// Bound adds to tcp and udp the ports that are bound in the namespace: of TCP
// sockets that listen, and of UDP sockets that are bound and not connected. If
// that takes the agent too long it is an error, and the next call waits for the
// same answer. It is for use by one goroutine, after a set-up with Scans.
func (s *Sockets) Bound(tcp, udp *ports.Set) error {
	s.StartScan()
	c := &s.scanning
	s.mu.Lock()
	fetched, err := c.fetched, s.err
	s.mu.Unlock()
	if fetched {
		return err
	}
	late := time.NewTimer(s.patience)
	defer late.Stop()
	select {
	case err := <-c.ended:
		c.fetched = true
		if err == nil {
			tcp.Merge(&c.tcp)
			udp.Merge(&c.udp)
		}
		return err
	case <-late.C:
		return ErrSlow
	}
}

// found takes ports that the agent has found.
func (s *Sockets) found(b []byte) error {
	var r ipc.AgentPorts
	if err := r.Decode(b); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &s.scanning
	if !c.open || r.ID != c.id || r.N > 0 && int(r.Words[0]) < c.next {
		return fmt.Errorf("%w: ports of scan %d", ipc.ErrMalformed, r.ID)
	}
	for i, w := range r.Words[:r.N] {
		set := &c.tcp
		if c.next = int(w) + 1; int(w) >= len(set) {
			set = &c.udp
		}
		set[int(w)%len(set)] = r.Bits[i]
	}
	if r.Last != 0 {
		s.endScan(errnoError(r.Errno))
	}
	return nil
}

// endScan ends the scan under way, if there is one.
func (s *Sockets) endScan(err error) {
	if c := &s.scanning; c.open {
		c.open = false
		c.ended <- err
	}
}
