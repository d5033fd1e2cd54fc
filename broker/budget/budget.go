// SPDX-License-Identifier: Apache-2.0

package budget

import (
	"time"

	"aldente/broker/limiter"
)

// Kind is what a socket is counted as.
type Kind uint8

// Kinds. TCP connections are counted while they are under way; how many there
// are the kernel bounds, by the worker's limit on descriptors.
const (
	TCP      Kind = iota // under way
	UDP                  // of a port of its own
	Reply                // of a UDP listener's port
	Echo                 // of ICMP and ICMPv6
	Upstream             // to resolvers, of aldente-names and not of the worker's
	Conn                 // TCP connections that are there, and with them all flows; see Limits.Conns
	Kinds                // how many there are
)

func (k Kind) String() string {
	return [Kinds]string{"TCP connections", "UDP ports", "peers of UDP listeners", "echo flows", "sockets to resolvers", "flows"}[k]
}

// Reason says which limit was met.
type Reason uint8

// Reasons to refuse.
const (
	Granted   Reason = iota
	TooMany          // there are as many as there may be
	TooFast          // there were too many in too short a time
	HostShort        // the host itself has few ports left
	ManyFlows        // there are as many flows of all kinds as there may be
	Paced            // flows of all kinds begin faster than they may
	Reasons          // how many there are
)

// A recount looks at every socket that there is. One that found much to be gone
// was worth it; after one that did not, the next has to wait.
const recountPause = 100 * time.Millisecond

// fewPorts is how many ports an instance may have without a look at how many
// the others have.
const fewPorts = 1024

// lookPause is how long an answer about the host's ports is good for.
const lookPause = 20 * time.Millisecond

// Kernel is what a budget asks about. Both may fail, and then say nothing: counts
// stay as they are.
type Kernel interface {
	// Open counts the sockets of each kind that were noted by Opened and that
	// somebody still holds.
	Open() (n [Kinds]int, ok bool)
	// PortsInUse is how many UDP sockets there are on the host, anybody's.
	PortsInUse() (n int, ok bool)
}

// Budget is what one instance has left. It is not safe for use by several
// goroutines at a time.
type Budget struct {
	limits    Limits
	ephemeral int
	kernel    Kernel

	held     [Kinds]int // at least as many as there are
	counted  time.Time  // last recount
	fruitful bool       // it was worth it
	looked   time.Time  // at the host's ports
	crowded  bool

	rates [Kinds]limiter.Bucket
	fresh limiter.Bucket // of all flows
	usage [Kinds]Usage
}

// Usage is how a kind of socket was used so far.
type Usage struct {
	Limit   int             // at a time
	Held    int             // as last known; sockets that were closed since may be among them
	Most    int             // most at a time
	Opened  uint64          // in all
	Refused uint64          // for want of budget
	By      [Reasons]uint64 // Refused, by reason
	Ended   uint64          // connections under way that made room for others
}

// New makes a budget.
func New(l Limits, h Host, k Kernel) *Budget {
	b := &Budget{limits: l, ephemeral: h.Ephemeral, kernel: k}
	none := limiter.Rate{PerSecond: Unlimited, Burst: Unlimited}
	b.rates = [Kinds]limiter.Bucket{TCP: {Rate: l.NewTCP}, UDP: {Rate: l.NewUDP}, Reply: {Rate: none}, Echo: {Rate: l.NewUDP}, Upstream: {Rate: l.NewUDP}}
	b.usage[TCP].Limit = l.HalfOpen
	b.usage[UDP].Limit = l.UDP
	b.usage[Reply].Limit = l.Replies
	b.usage[Echo].Limit = l.Echo
	b.usage[Upstream].Limit = mostNames
	b.usage[Conn].Limit = l.Conns
	b.fresh.Rate = l.NewConns
	return b
}

// Limits returns the limits in force.
func (b *Budget) Limits() Limits { return b.limits }

// Usage returns how each kind was used.
func (b *Budget) Usage() [Kinds]Usage {
	u := b.usage
	for k := range u {
		u[k].Held = b.held[k]
	}
	u[Conn].Held = b.flows()
	return u
}

// May tells whether one more socket of a kind may be opened now.
func (b *Budget) May(k Kind, now time.Time) Reason {
	r := b.may(k, now)
	if r == ManyFlows || r == Paced {
		b.usage[Conn].Refused++
		b.usage[Conn].By[r]++
	}
	if r != Granted {
		b.usage[k].Refused++
		b.usage[k].By[r]++
	}
	return r
}

// Would is May for somebody who only wants to know.
func (b *Budget) Would(k Kind, now time.Time) Reason { return b.may(k, now) }

func (b *Budget) may(k Kind, now time.Time) Reason {
	if k != Upstream {
		if !b.fresh.Ready(now) {
			return Paced
		}
		if limit := b.usage[Conn].Limit; limit != Unlimited && b.flows() >= limit && !b.recount(Conn, now) {
			return ManyFlows
		}
	}
	return b.mayOf(k, now)
}

// flows are those of all kinds.
func (b *Budget) flows() int { return b.held[UDP] + b.held[Reply] + b.held[Echo] + b.held[Conn] }

// Counts tells whether connections of TCP have to be among the sockets that Kernel
// counts.
func (b *Budget) Counts() bool { return b.usage[Conn].Limit != Unlimited }

func (b *Budget) mayOf(k Kind, now time.Time) Reason {
	if !b.rates[k].Ready(now) {
		return TooFast
	}
	if k == TCP {
		return Granted // what is too much ends, the oldest first
	}
	if limit := b.usage[k].Limit; limit != Unlimited && b.held[k] >= limit && !b.recount(k, now) {
		return TooMany
	}
	if k == UDP && b.limits.UDP != Unlimited && b.held[UDP] >= fewPorts && b.hostShort(now) {
		return HostShort
	}
	return Granted
}

// recount asks the kernel what is left, and tells whether there is room for one
// more of a kind.
func (b *Budget) recount(k Kind, now time.Time) bool {
	if !b.fruitful && !b.counted.IsZero() && now.Sub(b.counted) < recountPause {
		return false
	}
	b.counted = now
	n, ok := b.kernel.Open()
	if !ok {
		b.fruitful = false
		return false
	}
	n[TCP] = b.held[TCP]
	b.held = n
	limit := b.usage[k].Limit
	left := n[k]
	if k == Conn {
		left = b.flows()
	}
	b.fruitful = left <= limit-limit/16
	return left < limit
}

// hostShort tells whether less than a quarter of the host's ports is free. What
// this instance holds is counted anew first: it may be what has become free.
func (b *Budget) hostShort(now time.Time) bool {
	if b.looked.IsZero() || now.Sub(b.looked) >= lookPause {
		b.looked = now
		n, ok := b.kernel.PortsInUse()
		b.crowded = ok && n > b.ephemeral-b.ephemeral/4
		if b.crowded {
			b.recount(UDP, now)
		}
	}
	return b.crowded && b.held[UDP] >= fewPorts
}

// Opened notes a socket that was opened, after May.
func (b *Budget) Opened(k Kind) {
	b.usage[k].Opened++
	if k != Upstream {
		b.fresh.Spend()
		defer b.noteFlows()
	}
	if k == TCP {
		if b.Counts() {
			b.held[Conn]++
		}
		return // see Waits
	}
	b.rates[k].Spend()
	b.add(k)
}

// noteFlows notes how many flows there are.
func (b *Budget) noteFlows() {
	u := &b.usage[Conn]
	u.Opened++
	u.Most = max(u.Most, b.flows())
}

// Waits notes a connection that is under way: not yet there, and not refused.
// It reports whether the oldest one has to end first.
func (b *Budget) Waits() (endOldest bool) {
	b.rates[TCP].Spend()
	b.add(TCP)
	return b.held[TCP] > b.limits.HalfOpen
}

func (b *Budget) add(k Kind) {
	b.held[k]++
	b.usage[k].Most = max(b.usage[k].Most, b.held[k])
}

// Answered notes that a connection under way was answered by its peer, one way
// or the other: it takes nobody's room any more.
func (b *Budget) Answered() {
	b.held[TCP]--
	b.rates[TCP].Refund()
}

// Ended notes that a connection under way ended without answer.
func (b *Budget) Ended(forRoom bool) {
	b.held[TCP]--
	if forRoom {
		b.usage[TCP].Ended++
	}
}

// Gone notes that the worker is gone, and all it held with it.
func (b *Budget) Gone() {
	b.held = [Kinds]int{Upstream: b.held[Upstream]}
	b.counted, b.fruitful = time.Time{}, false
}

// NamesGone notes that names is gone, and all it held with it.
func (b *Budget) NamesGone() {
	b.held[Upstream] = 0
	b.counted, b.fruitful = time.Time{}, false
}

// WorkerUDP is how many UDP flows an honest worker is to keep. It then lets go
// of the least recently used by itself, and the broker need not count the
// sockets anew for each. Zero: as many as fit into its table.
func (l *Limits) WorkerUDP() int {
	if l.UDP == Unlimited {
		return 0
	}
	return max(l.UDP-l.UDP/8, 1)
}
