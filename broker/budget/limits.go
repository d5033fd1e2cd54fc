// SPDX-License-Identifier: Apache-2.0

// Package budget decides how much of its host one guest may use: sockets, ports,
// connections under way, and how many new ones in a second. It is told what
// happens, and asks the kernel through a function; it makes no system call.
//
// The worker that asks for sockets also closes them, and nobody else sees it. So
// nothing here believes a worker: what is still open is counted anew from the
// kernel's own list when a limit is reached.
package budget

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"aldente/broker/limiter"
)

// Unlimited is the value of a limit that was lifted.
const Unlimited = -1

// Limits are those of one instance. Each is above zero, or Unlimited.
type Limits struct {
	Sockets  int          // descriptors that the worker may hold, listeners included
	UDP      int          // ports of the host for the guest's UDP flows
	Echo     int          // ping sockets
	Replies  int          // sockets that answer from a port of -u
	HalfOpen int          // TCP connections under way at a time
	NewTCP   limiter.Rate // TCP connections that are not there at once; those that succeed do not count
	NewUDP   limiter.Rate // UDP flows
	Conns    int          // flows of all kinds at a time
	NewConns limiter.Rate // flows of all kinds, each way
	Bytes    int          // a second by the guest's link, each way
}

// Host is what the defaults depend on.
type Host struct {
	Descriptors int // hard limit on open files
	Ephemeral   int // ports that the host gives out by itself, net.ipv4.ip_local_port_range
	Conntrack   int // connections that the host's firewall keeps track of, zero: it does not
}

// Sizes that defaults are made of.
const (
	// mostSockets is what an honest worker's tables come to, and its listeners.
	mostSockets = 6 << 16
	// sharesOfPorts has four guests at their worst leave a fifth of the ports.
	sharesOfPorts = 5
	// enoughPorts lets a resolver in the guest ask 4,000 questions at a time.
	enoughPorts = 4608
	// mostHalfOpen is for more connections at a time than a build or a browser
	// starts. The broker holds a descriptor for each.
	mostHalfOpen = 1024
	// mostEcho and mostReplies are the sizes of the worker's tables.
	mostEcho    = 1024
	mostReplies = 16 << 10
	// mostNames is what names has questions under way, and sockets ready for the next.
	mostNames = 384

	// leastConns is a default that is not below what ordinary guests do.
	leastConns = 4096

	burstTCP = 2000
	burstUDP = 8000
	// A firewall remembers a connection without answer for 120 s, and a datagram
	// without answer for 30 s. A guest at its worst fills about an eighth of it.
	shareTCP = 1200
	shareUDP = 240
	// A firewall remembers connections that were answered for as long as they live. One
	// guest is to leave half of its table.
	shareConns = 2
)

// Defaults returns limits that ordinary use does not meet, and with which a few
// guests at their worst leave a host what it needs.
func Defaults(h Host) Limits {
	l := Limits{
		Sockets:  min(h.Descriptors, mostSockets),
		UDP:      max(h.Ephemeral/sharesOfPorts, min(enoughPorts, h.Ephemeral/2), 16),
		Echo:     mostEcho,
		Replies:  mostReplies,
		HalfOpen: max(min(mostHalfOpen, h.Descriptors/4), 16),
		NewTCP:   limiter.Rate{PerSecond: 1000, Burst: burstTCP},
		NewUDP:   limiter.Rate{PerSecond: 4000, Burst: burstUDP},
		Conns:    Unlimited,
		NewConns: limiter.Rate{PerSecond: Unlimited, Burst: Unlimited},
		Bytes:    Unlimited,
	}
	if h.Conntrack > 0 {
		l.NewTCP.PerSecond = min(max(h.Conntrack/shareTCP, 100), l.NewTCP.PerSecond)
		l.NewUDP.PerSecond = min(max(h.Conntrack/shareUDP, 500), l.NewUDP.PerSecond)
		// Each flow has a socket of the worker's: where there may be no more of those, to
		// count flows as well would only cost each connection a system call.
		if conns := max(h.Conntrack/shareConns, leastConns); conns < l.Sockets {
			l.Conns = conns
		}
	}
	return l
}

// Change is what was asked for by hand: for each name, a number of at least one,
// or Unlimited.
type Change map[string]int

// names of limits, and how each is changed.
var names = map[string]func(*Limits, int){
	"sockets":   func(l *Limits, n int) { l.Sockets = n },
	"udp":       func(l *Limits, n int) { l.UDP = n },
	"icmp":      func(l *Limits, n int) { l.Echo = n },
	"half-open": func(l *Limits, n int) { l.HalfOpen = n },
	"new":       func(l *Limits, n int) { l.NewTCP = rate(n, burstTCP) },
	"new-udp":   func(l *Limits, n int) { l.NewUDP = rate(n, burstUDP) },
	"conns":     func(l *Limits, n int) { l.Conns = n },
	"new-conns": func(l *Limits, n int) { l.NewConns = limiter.Rate{PerSecond: n, Burst: n} },
	"bytes":     func(l *Limits, n int) { l.Bytes = n },
}

// rates are the names whose numbers are per second.
var rates = []string{"new", "new-udp", "new-conns", "bytes"}

// rate allows at once what comes in some seconds, but no more than by default
// and no less than comes in one.
func rate(n, burst int) limiter.Rate {
	if n == Unlimited {
		return limiter.Rate{PerSecond: Unlimited, Burst: Unlimited}
	}
	return limiter.Rate{PerSecond: n, Burst: max(min(8*n, burst), n)}
}

// Names returns the names of all limits, in order.
func Names() []string {
	all := make([]string, 0, len(names))
	for n := range names {
		all = append(all, n)
	}
	slices.Sort(all)
	return all
}

// mostLimit bounds every number: more descriptors the kernel does not give
// (fs.nr_open).
const mostLimit = 1 << 30

// Bounds on bytes a second. With fewer, a packet would take longer than a guest waits.
const (
	leastBytes = 1000
	mostBytes  = 1 << 40
)

// units of bytes.
var units = map[string]int{"k": 1e3, "M": 1e6, "G": 1e9}

// leastSockets is what a worker needs besides its flows, and some of these.
const leastSockets = 128

// Parse adds to c what one --limit says: WHAT=N[,WHAT=N]..., or "none" for no
// limit at all. N may be "none". The last word on a name counts.
func (c Change) Parse(arg string) error {
	if arg == "none" {
		for n := range names {
			c[n] = Unlimited
		}
		return nil
	}
	for word := range strings.SplitSeq(arg, ",") {
		name, value, ok := strings.Cut(word, "=")
		if _, known := names[name]; !ok || !known {
			return fmt.Errorf("%q is not WHAT=N with WHAT one of %s", word, strings.Join(Names(), ", "))
		}
		n, err := number(name, value)
		if err != nil {
			return fmt.Errorf("%s: %w", word, err)
		}
		c[name] = n
	}
	return nil
}

func number(name, value string) (int, error) {
	if value == "none" {
		return Unlimited, nil
	}
	if slices.Contains(rates, name) {
		value = strings.TrimSuffix(value, "/s")
	}
	unit, most := 1, mostLimit
	if name == "bytes" {
		most = mostBytes
		for u, n := range units {
			if bare, ok := strings.CutSuffix(value, u); ok {
				value, unit = bare, n
				break
			}
		}
	}
	n, err := strconv.Atoi(value)
	if err == nil && n <= most/unit {
		n *= unit
	} else if err == nil {
		n = most + 1
	}
	switch {
	case err != nil || value[0] == '+' || n < 1 || n > most:
		return 0, errors.New("a number of at least 1 is needed, or none")
	case name == "sockets" && n < leastSockets:
		return 0, fmt.Errorf("fewer than %d are not enough to run", leastSockets)
	case name == "bytes" && n < leastBytes:
		return 0, fmt.Errorf("fewer than %d a second are not enough for a packet", leastBytes)
	}
	return n, nil
}

// With returns l changed by c. What cannot be lifted beyond what the process
// has, descriptors, stays within it.
func (l Limits) With(c Change, h Host) Limits {
	for name, n := range c {
		names[name](&l, n)
	}
	if l.UDP == Unlimited {
		l.Replies = Unlimited
	}
	if l.Sockets == Unlimited || l.Sockets > h.Descriptors {
		l.Sockets = h.Descriptors
	}
	if most := max(h.Descriptors/2, 1); l.HalfOpen == Unlimited || l.HalfOpen > most {
		l.HalfOpen = most
	}
	return l
}
