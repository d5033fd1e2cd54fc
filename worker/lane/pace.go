// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"syscall"

	"aldente/worker/flow"
	"aldente/worker/icmp"
	"aldente/worker/tcp"
	"aldente/worker/udp"
)

// A limit on bytes a second is kept to in both directions by what a translator is told
// of its surroundings, so that none of them knows of it. To the guest: the link takes
// no more for now, so sockets are not read, and their peers slow down. From the guest:
// the sockets of TCP take no more for now, so windows close; datagrams are lost, as on
// a link of that rate. Frames are read from the guest all the while: what acknowledges
// or asks is not behind what is held up.

const (
	// paceTime is how much at once may go of what comes in so long a time, in
	// nanoseconds; paceLeast is what may go in any case, a full packet.
	paceTime  = int64(20_000_000)
	paceLeast = 64 << 10
	// paceDebt is how long datagrams may go though there is nothing left, in
	// nanoseconds: connections that have much to say are not to shut them out.
	paceDebt = int64(50_000_000)
	// maxPaced bounds the connections that wait for the limit, with those that have ended
	// meanwhile.
	maxPaced = 2 * maxTCP
)

// bucket holds what may go in one direction.
type bucket struct {
	rate, burst, left int64 // bytes: a second, at once, now
	last              int64 // nanoseconds, when left was counted
}

// refill counts what has come since it was last counted.
func (b *bucket) refill(now int64) {
	if more := int64(float64(now-b.last) / 1e9 * float64(b.rate)); more > 0 {
		b.left = min(b.left+more, b.burst)
		b.last = now
	}
}

// due is when there is something left again.
func (b *bucket) due() int64 {
	return b.last + int64(float64(1-min(b.left, 0))/float64(b.rate)*1e9) + 1
}

// pace is a limit on bytes a second. Nil: there is none.
type pace struct {
	down, up bucket
	held     bool     // somebody was told that the link takes no more
	waiting  []uint64 // tokens of connections whose sockets take no more, a ring
	first, n int
	turn     int // which translator goes on first
	cut      [][]byte
}

func newPace(rate uint64, now int64) *pace {
	if rate == 0 {
		return nil
	}
	r := int64(min(rate, 1<<40))
	burst := max(r/1_000_000_000*paceTime+r%1_000_000_000*paceTime/1_000_000_000, paceLeast)
	b := bucket{rate: r, burst: burst, left: burst, last: now}
	return &pace{down: b, up: b, waiting: make([]uint64, maxPaced), cut: make([][]byte, 0, 1024)}
}

// sent notes what the guest was sent.
func (p *pace) sent(n int) {
	if p != nil {
		p.down.left -= int64(n)
	}
}

// maySend tells whether the guest may be sent something now.
func (p *pace) maySend(now int64) bool {
	if p == nil {
		return true
	}
	p.down.refill(now)
	if p.down.left > 0 {
		return true
	}
	p.held = true
	return false
}

// hold is tcp.Held: whether the limit holds what goes to a socket, which goes on in its
// turn then.
func (p *pace) hold(token uint64) bool {
	if p.up.left > 0 || p.n == len(p.waiting) {
		return false
	}
	p.waiting[(p.first+p.n)%len(p.waiting)] = token
	p.n++
	return true
}

// awaitPace plans when those go on who wait for the limits on bytes and on new flows.
func (l *Lane) awaitPace() {
	var at int64
	if p := l.pace; p != nil {
		if p.held {
			at = p.down.due()
		}
		if p.n > 0 && (at == 0 || p.up.due() < at) {
			at = p.up.due()
		}
	}
	if due := l.guest.Accept.Due(); due != 0 {
		l.acceptDue = due
	}
	if l.acceptDue != 0 && (at == 0 || l.acceptDue < at) {
		at = l.acceptDue
	}
	if at != 0 {
		l.wheel.Set(l.timer+timerPace, max(at, l.now+1))
	}
}

// paced has those go on who have waited. Who comes first changes, so that none takes
// all that there is each time.
func (l *Lane) paced() {
	if l.acceptDue != 0 && l.now >= l.acceptDue {
		l.acceptDue = 0
		l.table.freed()
	}
	p := l.pace
	if p == nil {
		return
	}
	p.down.refill(l.now)
	p.up.refill(l.now)
	if p.held && p.down.left > 0 {
		p.held = false
		p.turn++
		l.table.resumeFrom(p.turn)
	}
	for k := p.n; k > 0 && p.up.left > 0; k-- {
		token := p.waiting[p.first]
		p.first = (p.first + 1) % len(p.waiting)
		p.n--
		l.tcp.Ready(token, flow.Released)
	}
}

// streams is what TCP has for surroundings.
func (l *Lane) streams() tcp.Env {
	if l.pace == nil {
		return l
	}
	return &pacedStreams{l}
}

// datagramEnv is what UDP and echo have.
func (l *Lane) datagramEnv() interface {
	udp.Env
	icmp.Env
} {
	if l.pace == nil {
		return l
	}
	return &pacedDatagrams{l}
}

// pacedStreams are sockets of TCP that take so many bytes a second, all together.
type pacedStreams struct{ *Lane }

// Write implements flow.Writer.
func (s *pacedStreams) Write(fd int32, b []byte) (int, syscall.Errno) {
	left := s.left()
	if left == 0 {
		return 0, syscall.EAGAIN
	}
	n, e := s.Lane.Write(fd, b[:min(int64(len(b)), left)])
	s.pace.up.left -= int64(max(n, 0))
	return n, e
}

// left is how many bytes may go now.
func (s *pacedStreams) left() int64 {
	s.pace.up.refill(s.now)
	return max(s.pace.up.left, 0)
}

// Writev implements flow.GatherWriter.
func (s *pacedStreams) Writev(fd int32, bufs [][]byte) (int, syscall.Errno) {
	left := s.left()
	if left == 0 {
		return 0, syscall.EAGAIN
	}
	cut := s.pace.cut[:0]
	for _, b := range bufs {
		if left == 0 || len(cut) == cap(cut) {
			break
		}
		b = b[:min(int64(len(b)), left)]
		cut, left = append(cut, b), left-int64(len(b))
	}
	n, e := s.Lane.Writev(fd, cut)
	s.pace.up.left -= int64(max(n, 0))
	return n, e
}

// pacedDatagrams are sockets for datagrams that take so many bytes a second, all
// together; what is too much is lost.
type pacedDatagrams struct{ *Lane }

func (d *pacedDatagrams) may() bool {
	up := &d.pace.up
	up.refill(d.now)
	return up.left > -max(up.rate/1_000*(paceDebt/1_000_000), paceLeast)
}

// Write implements flow.Writer.
func (d *pacedDatagrams) Write(fd int32, b []byte) (int, syscall.Errno) {
	if !d.may() {
		return 0, syscall.EAGAIN
	}
	n, e := d.Lane.Write(fd, b)
	d.pace.up.left -= int64(max(n, 0))
	return n, e
}

// Copy implements udp.Copier.
func (l *Lane) Copy(fd int32, b []byte) (int, syscall.Errno) { return l.Write(fd, b) }

// Copyv implements tcp.Env.
func (l *Lane) Copyv(fd int32, bufs [][]byte) (int, syscall.Errno) { return l.Writev(fd, bufs) }

// Wrote implements udp.Copier and tcp.Env.
func (l *Lane) Wrote(n int) {
	if l.pace != nil {
		l.pace.up.left -= int64(n)
	}
}

// Writev implements flow.GatherWriter.
func (d *pacedDatagrams) Writev(fd int32, bufs [][]byte) (int, syscall.Errno) {
	if !d.may() {
		return 0, syscall.EAGAIN
	}
	n, e := d.Lane.Writev(fd, bufs)
	d.pace.up.left -= int64(max(n, 0))
	return n, e
}
