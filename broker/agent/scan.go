// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/ports"
	"aldente/broker/wait"
	"aldente/ipc"
)

// The agent lists the ports that are bound in its namespace. So the broker reads
// no netlink messages there, which others than the kernel might have sent. It
// reads records, from which no more follows than that some ports are bound.

// scan is what the agent knows of the one under way, or of the last.
type scan struct {
	on    bool // one is under way
	id    uint32
	owed  bool // it is not answered
	waits bool // and is not, as long as nothing differs from what was said last
	found bound
	said  *bound // nil: nothing yet

	timer   wait.Timer // of the next look, while one waits
	watched bool       // the loop waits for it
}

// bound is what a scan finds.
type bound struct {
	tcp, udp ports.Set
	errno    uint16 // or why it finds nothing
}

// ScanPeriod is how often is looked at what is bound: the kernel tells nobody of a socket
// that is. Each look wakes a thread, of the broker or of the agent. In a second there are
// no more of these together than where one process looks at both sides once.
const ScanPeriod = 1250 * time.Millisecond

// openScanner opens what scans take, as the broker has asked for with the set-up:
// nothing of the kind can be opened later.
func (s *server) openScanner() (err error) {
	if s.setup.Flags&ipc.AgentSetupScan == 0 || s.scanner != nil {
		return nil
	}
	if err = s.scan.timer.Open(); err == nil {
		s.scanner, err = ports.Open()
	}
	if err != nil {
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
	if s.scanner == nil {
		return fmt.Errorf("%w: scan %d out of place", ipc.ErrMalformed, r.ID)
	}
	s.scan.id, s.scan.owed, s.scan.waits = r.ID, true, r.Wait == ipc.ScanChange
	s.look()
	return nil
}

// look begins to list what is bound.
func (s *server) look() {
	s.scan.on, s.scan.found = true, bound{}
	s.scanner.Begin(&s.scan.found.tcp, &s.scan.found.udp)
}

// tick looks again, if it is time and somebody wants to know.
func (s *server) tick() {
	if s.scan.watched && s.set.Ready(s.scan.timer.FD()) && s.scan.timer.Take() && s.scan.owed {
		s.look()
	}
}

// goOn takes the next piece of the scan under way. At its end it is answered, or looked
// again later.
func (s *server) goOn() error {
	done, err := s.scanner.Step()
	if err == nil && !done {
		return nil
	}
	c := &s.scan
	c.on = false
	if err != nil {
		if c.found = (bound{errno: errno(err)}); c.found.errno == 0 {
			c.found.errno = uint16(unix.EPROTO) // it has no number
		}
	}
	if c.waits && c.said != nil && *c.said == c.found {
		return s.lookLater()
	}
	if c.said == nil {
		c.said = new(bound)
	}
	*c.said, c.owed = c.found, false
	if err := c.timer.Stop(); err != nil {
		return err
	}
	return s.sendPorts()
}

// lookLater has the loop woken for the next look.
func (s *server) lookLater() error {
	c := &s.scan
	if !c.watched {
		if err := s.set.Add(c.timer.FD()); err != nil {
			return err
		}
		c.watched = true
	}
	return c.timer.Start(ScanPeriod)
}

// sendPorts sends what a scan has found.
func (s *server) sendPorts() error {
	r := ipc.AgentPorts{ID: s.scan.id, Errno: s.scan.found.errno}
	for _, p := range []struct {
		proto uint8
		set   *ports.Set
	}{{ipc.ProtoTCP, &s.scan.found.tcp}, {ipc.ProtoUDP, &s.scan.found.udp}} {
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

// scanning is the broker's side of scans.
type scanning struct {
	id    uint32 // of the last
	open  bool   // it is not answered
	waits bool   // and need not be: it waits for a change
	sent  uint32 // the last that the agent was told of
	done  uint32 // the last that it has answered

	at    uint32 // whose answer is on its way, 0: none's
	next  int    // the lowest word that may still come of it
	comes bound

	found   bound // what was answered last
	known   bool  // there is such an answer
	ended   chan error
	changed func() // nil: nobody wants to know
}

// ask begins a scan, in place of the one that is open.
func (c *scanning) ask(waits bool) {
	c.id++
	c.open, c.waits = true, waits
	if !waits {
		c.ended = make(chan error, 1)
	}
}

// StartScan asks the agent which ports are bound in the namespace now, unless it was
// asked and has not answered yet. Nothing is told of changes until Bound is called again
// after it has returned what was found.
func (s *Sockets) StartScan() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scanNow()
}

func (s *Sockets) scanNow() {
	if c := &s.scanning; s.err == nil && (!c.open || c.waits) {
		c.ask(false)
		s.sendScan()
	}
}

// sendScan asks for the scan, once there is room.
func (s *Sockets) sendScan() {
	c := &s.scanning
	if !c.open || c.sent == c.id {
		return
	}
	r := ipc.AgentScan{ID: c.id}
	if c.waits {
		r.Wait = ipc.ScanChange
	}
	if ipc.SendNow(s.client.channel, r.Encode(), -1) == unix.EAGAIN {
		s.sendLater()
		return
	}
	c.sent = c.id
}

// Bound adds to tcp and udp the ports that are bound in the namespace: of TCP
// sockets that listen, and of UDP sockets that are bound and not connected. At first,
// and after StartScan, it waits for the agent. If that takes too long it is an error, and
// the next call waits for the same answer. Otherwise it returns what is known, and sees to
// it that the agent looks each ScanPeriod, and tells what has changed: then Changed is
// called. It is for use by one goroutine at a time, after a set-up with Scans.
func (s *Sockets) Bound(tcp, udp *ports.Set) error {
	c := &s.scanning
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if !c.known {
		s.scanNow()
	}
	switch {
	case !c.open:
		c.ask(true)
		s.sendScan()
	case !c.waits:
		if err := s.awaitScan(c.ended); err != nil {
			return err
		}
	}
	if c.found.errno != 0 {
		return errnoError(c.found.errno)
	}
	tcp.Merge(&c.found.tcp)
	udp.Merge(&c.found.udp)
	return nil
}

// awaitScan waits for the end of the scan under way, and gives mu away meanwhile.
func (s *Sockets) awaitScan(ended chan error) error {
	s.mu.Unlock()
	defer s.mu.Lock()
	late := time.NewTimer(s.patience)
	defer late.Stop()
	select {
	case err := <-ended:
		return err
	case <-late.C:
		return ErrSlow
	}
}

// Changed says what is called when Bound would return something else. It must not wait.
func (s *Sockets) Changed(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scanning.changed = f
}

// takePorts takes ports that the agent has found.
func (s *Sockets) takePorts(b []byte) error {
	var r ipc.AgentPorts
	if err := r.Decode(b); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &s.scanning
	if c.at == 0 && r.ID > c.done && r.ID <= c.sent {
		c.at, c.next, c.comes = r.ID, 0, bound{}
	}
	if c.at == 0 || r.ID != c.at || r.N > 0 && int(r.Words[0]) < c.next {
		return fmt.Errorf("%w: ports of scan %d", ipc.ErrMalformed, r.ID)
	}
	for i, w := range r.Words[:r.N] {
		set := &c.comes.tcp
		if c.next = int(w) + 1; int(w) >= len(set) {
			set = &c.comes.udp
		}
		set[int(w)%len(set)] = r.Bits[i]
	}
	if r.Last != 0 {
		c.comes.errno = r.Errno
		c.end()
	}
	return nil
}

// end notes what the agent has found.
func (c *scanning) end() {
	c.found, c.known, c.done, c.at = c.comes, true, c.at, 0
	if c.done != c.id { // of one that another has taken the place of
		return
	}
	c.open = false
	switch {
	case !c.waits:
		c.ended <- nil
	case c.changed != nil:
		c.changed()
	}
}

// fail ends the scan under way, if there is one.
func (c *scanning) fail(err error) {
	if c.open && !c.waits {
		c.ended <- err
	}
	c.open = false
}
