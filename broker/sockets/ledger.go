// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"bytes"
	"fmt"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/budget"
	"aldente/broker/limiter"
)

// ledger is the budget of one instance, and what the kernel knows about it.
//
// Sockets are passed to a worker whose word counts for nothing, so whether one is
// still open has to come from elsewhere. A file stays in an epoll until its last
// descriptor is closed, whoever holds that: an epoll that nobody ever waits for
// lists exactly the sockets that live, in /proc/self/fdinfo.
type ledger struct {
	mu     sync.Mutex
	budget *budget.Budget
	limits budget.Limits

	alive   int // epoll of all datagram sockets
	info    int // its entry in fdinfo
	inUse   [2]int
	buf     []byte
	waiting underWay

	standing *standing // nil: what was opened need not be remembered
	judge    func(*stood) (refused bool)

	refused [budget.Kinds]limiter.Bucket // lines of the log on what was over budget
}

// Open files that show the host's UDP sockets, one for each family.
var inUsePaths = [2]string{"/proc/net/sockstat", "/proc/net/sockstat6"}

// newLedger opens what it needs, which a confined process could not. What cannot
// be opened leaves the part unwatched that it is for, and is returned.
func newLedger(l budget.Limits, h budget.Host) (*ledger, error) {
	g := &ledger{limits: l, alive: -1, info: -1, inUse: [2]int{-1, -1}}
	for k := range g.refused {
		g.refused[k].Rate = limiter.Rate{PerSecond: 1, Burst: 1}
	}
	g.budget = budget.New(l, h, g)
	g.waiting.init()
	var err error
	if g.alive, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		g.alive = -1
		return g, fmt.Errorf("epoll: %w", err)
	}
	path := fmt.Sprintf("/proc/self/fdinfo/%d", g.alive)
	if g.info, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		g.info = -1
		return g, fmt.Errorf("%s: %w", path, err)
	}
	for i, p := range inUsePaths {
		if g.inUse[i], err = unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			g.inUse[i] = -1 // a kernel without the family has none of its sockets
		}
	}
	return g, nil
}

func (g *ledger) close() {
	g.waiting.endAll()
	for _, fd := range []int{g.alive, g.info, g.inUse[0], g.inUse[1]} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// may tells whether a socket may be opened, and if not, why.
func (g *ledger) may(k budget.Kind) budget.Reason {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.budget.May(k, time.Now())
}

// opened notes a datagram socket before it is passed on. It reports false if it
// cannot be watched, and must not be.
func (g *ledger) opened(k budget.Kind, fd int, flow stood) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.listed(k, fd, flow) {
		return false
	}
	g.budget.Opened(k)
	return true
}

// listed has the kernel list a socket for as long as somebody holds it, and remembers
// its flow. It reports false if that cannot be. The caller holds g.mu.
func (g *ledger) listed(k budget.Kind, fd int, flow stood) bool {
	if g.alive >= 0 {
		// For nothing but to be listed: a socket that reports once and was not
		// asked is quiet for ever.
		e := unix.EpollEvent{Events: unix.EPOLLONESHOT, Fd: int32(k)}
		if flow.To.IsValid() {
			e.Pad = int32(g.standing.add(flow))
		}
		if unix.EpollCtl(g.alive, unix.EPOLL_CTL_ADD, fd, &e) != nil {
			return false
		}
	}
	if g.standing != nil && len(g.standing.flows) >= g.standing.prune {
		g.living()
	}
	return true
}

// Open implements budget.Kernel.
func (g *ledger) Open() (n [budget.Kinds]int, ok bool) {
	if g.info < 0 {
		return n, false
	}
	b, ok := g.read(g.info)
	if !ok {
		return n, false
	}
	return countEntries(b), true
}

// read returns all of a file of /proc, from its beginning.
func (g *ledger) read(fd int) ([]byte, bool) {
	if g.buf == nil {
		g.buf = make([]byte, 64<<10)
	}
	for n := 0; ; {
		k, err := unix.Pread(fd, g.buf[n:], int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, false
		case k == 0:
			return g.buf[:n], true
		default:
			if n += k; n == len(g.buf) {
				g.buf = append(g.buf, make([]byte, len(g.buf))...)
			}
		}
	}
}

// countEntries counts the lines of an epoll's fdinfo by kind.
func countEntries(b []byte) (n [budget.Kinds]int) {
	eachEntry(b, func(k budget.Kind, _ uint32) { n[k]++ })
	return n
}

// eachEntry reads an epoll's fdinfo, proc_pid_fdinfo(5). What the entries carry is,
// in hexadecimal, the kind of socket, and before that the number that its flow has
// in standing, if it has one:
//
//	tfd:        5 events: 40000018 data:        700000001  pos:0 ino:2d151d sdev:9
func eachEntry(b []byte, each func(k budget.Kind, id uint32)) {
	for len(b) > 0 {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte("\n"))
		_, data, ok := bytes.Cut(line, []byte(" data:"))
		if !ok || !bytes.HasPrefix(line, []byte("tfd:")) {
			continue
		}
		data = bytes.TrimLeft(data, " ")
		end := bytes.IndexByte(data, ' ')
		if end < 0 {
			continue
		}
		v, err := strconv.ParseUint(string(data[:end]), 16, 64)
		if k := uint32(v); err == nil && k < uint32(budget.Kinds) {
			each(budget.Kind(k), uint32(v>>32))
		}
	}
}

// PortsInUse implements budget.Kernel.
func (g *ledger) PortsInUse() (n int, ok bool) {
	for i, fd := range g.inUse {
		if fd < 0 {
			continue
		}
		b, read := g.read(fd)
		if !read {
			return 0, false
		}
		k, found := udpInUse(b, [2]string{"UDP:", "UDP6:"}[i])
		if !found {
			return 0, false
		}
		n, ok = n+k, true
	}
	return n, ok
}

// udpInUse finds "UDP: inuse N" in sockstat, or "UDP6: inuse N" in sockstat6.
func udpInUse(b []byte, name string) (n int, ok bool) {
	for len(b) > 0 {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte("\n"))
		f := bytes.Fields(line)
		if len(f) >= 3 && string(f[0]) == name && string(f[1]) == "inuse" {
			_, err := fmt.Sscan(string(f[2]), &n)
			return n, err == nil
		}
	}
	return 0, false
}

// connecting takes note of a TCP socket whose connect was started. Until its
// connect has ended, we keep a copy. What a worker closes meanwhile goes on, for
// the host's firewall at least, and what it never closes can be ended.
//
// Where the egress rules may be changed, what is connected is remembered, too. That
// costs a system call for each connection.
//
// Where somebody here waits for the end of the connect, the socket is theirs then, and
// not the worker's.
func (g *ledger) connecting(o outcome, flow stood, then func(fd int)) outcome {
	g.mu.Lock()
	defer g.mu.Unlock()
	// Conn: those that are there count as flows, see budget.Counts.
	all, remembered := g.standing != nil && g.standing.all, flow
	if !all {
		remembered = stood{}
	}
	if (all || g.budget.Counts()) && !g.listed(budget.Conn, o.fd, remembered) && all {
		unix.Close(o.fd)
		return nothing(unix.ENOMEM)
	}
	g.budget.Opened(budget.TCP)
	if !o.inProgress {
		return o
	}
	switch connectState(o.fd) {
	case unix.BPF_TCP_SYN_SENT:
	case unix.BPF_TCP_ESTABLISHED:
		// Near hosts answer before connect(2) returns. The worker need not
		// wait for what has happened.
		o.inProgress = false
		return o
	default:
		return o // refused at once
	}
	if g.budget.Waits() {
		g.sweep()
		if g.waiting.n >= g.limits.HalfOpen {
			g.waiting.endOldest()
			g.budget.Ended(true)
		}
	}
	if o.kept = g.waiting.add(o.fd, flow, then); !o.kept {
		g.budget.Ended(false)
	}
	return o
}

// swept lets go of connections that are not under way any more, when all answers
// are sent.
func (g *ledger) swept() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sweep()
	g.waiting.closeDone()
}

// settle tells those who have waited for the end of a connect. It is for the goroutine
// that serves the worker.
func (g *ledger) settle() {
	for len(g.waiting.ended) > 0 {
		e := g.waiting.ended[0]
		g.waiting.ended = g.waiting.ended[1:]
		e.then(e.fd)
	}
}

func (g *ledger) sweep() {
	g.waiting.sweep(func(s *waitingSlot, answered bool) {
		if answered && g.judge != nil && time.Since(s.since) > promptly && g.judge(&s.flow) {
			// The peer that has answered is the host, since a moment ago.
			disconnect(s.fd)
		}
		if answered {
			g.budget.Answered()
		} else {
			g.budget.Ended(false)
		}
	})
}

// gone notes that the worker is gone.
func (g *ledger) gone() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting.endAll()
	g.budget.Gone()
	if g.standing != nil {
		clear(g.standing.flows)
	}
}

func (g *ledger) usage() [budget.Kinds]budget.Usage {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.budget.Usage()
}
