// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"aldente/bench/bed"
	"aldente/test/netlab"
	"aldente/test/stream/standin"
)

const remoteAddr = "192.0.2.9:9000"

// wmem is a setting of net.ipv4.tcp_wmem of host and remote, which are those
// that send into sockets of the translator's connections.
type wmem struct{ name, value string }

var wmems = []wmem{
	{"default", "4096 16384 4194304"},       // the kernel's own
	{"from 4 MiB", "4096 4194304 67108864"}, // sockets start with a large buffer
}

var mtus = []int{1500, 65520}

// row is one line of the table.
type row struct {
	wmem wmem
	mtu  int
	kind kind
}

func (r row) String() string {
	return fmt.Sprintf("tcp_wmem %s, MTU %d, %s", r.wmem.name, r.mtu, r.kind)
}

// kind is what is measured: bulk from the guest or to it, or round trips.
type kind string

const (
	up            kind = "up"
	down          kind = "down"
	roundTripsTCP kind = "TCP round trips"
	roundTripsUDP kind = "UDP round trips"
)

// network is that of round trips, or empty.
func (k kind) network() string {
	return map[kind]string{roundTripsTCP: "tcp4", roundTripsUDP: "udp4"}[k]
}

// result is one measurement: Gbit/s of payload; for each GiB, processor
// seconds of the translator and of all processes on the way; TCP segments that
// guest or remote sent twice.
type result struct {
	gbit, cpu, all float64
	again          int64
}

// stage is a translator at work, with a guest behind it.
type stage struct {
	guest  *netlab.NS
	joins  int // process id of the stand-in
	proc   *netlab.Proc
	remote *netlab.NS
}

// setUp starts the translator, the guest's namespace and the stand-in.
func setUp(o options, lab *netlab.Lab, c contestant, w wmem, mtu int) *stage {
	tb := lab.TB
	lab.Host.Sysctl("net/ipv4/tcp_wmem", w.value)
	lab.Remote.Sysctl("net/ipv4/tcp_wmem", w.value)
	dir, err := os.MkdirTemp(netlab.Stage(), "sock")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		tb.Fatalf("%v", err)
	}
	socket := filepath.Join(dir, "s")
	s := &stage{guest: netlab.NewNS(tb, "guest"), remote: lab.Remote}
	s.proc = c.start(c, lab.Host, socket, mtu)
	err = s.guest.Do(func() error {
		in, err := c.join(o, socket, mtu)
		if err == nil {
			tb.Cleanup(in.Kill)
			s.joins = in.PID()
		}
		return err
	})
	if err != nil {
		tb.Fatalf("%v", err)
	}
	// A plain tap does not slow its sender down: with a short queue, its own
	// drops would be measured.
	s.guest.IP(fmt.Sprintf("link set %s mtu %d txqueuelen 32768 up", standin.Interface, mtu),
		"addr add "+c.addr+" dev "+standin.Interface, "route add default via "+c.router)
	return s
}

// bulk moves data over one TCP connection for span, after a quarter of it for
// warming up.
func (s *stage) bulk(down bool, span time.Duration) (r result, err error) {
	ln := s.remote.Listen("tcp4", remoteAddr)
	defer ln.Close()
	near, err := s.guest.DialError("tcp4", remoteAddr, 5*time.Second)
	if err != nil {
		return r, err
	}
	_ = ln.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
	far, err := ln.Accept()
	if err != nil {
		near.Close()
		return r, err
	}
	from, to := near, far
	if down {
		from, to = far, near
	}
	var b bed.Bulk
	defer b.Stop()
	if err := b.Flow(from, to); err != nil {
		return r, err
	}
	b.Start()
	time.Sleep(span / 4)
	bytes, cpu, rest, again, start := b.Received.Load(), s.cpu(), s.rest(), s.again(), time.Now()
	time.Sleep(span)
	bytes, cpu, rest, again = b.Received.Load()-bytes, s.cpu()-cpu, s.rest()-rest, s.again()-again
	seconds := time.Since(start).Seconds()
	if bytes == 0 {
		return r, fmt.Errorf("nothing moved")
	}
	gib := float64(bytes) / (1 << 30)
	return result{float64(bytes) * 8 / 1e9 / seconds, cpu.Seconds() / gib, (cpu + rest).Seconds() / gib, again}, nil
}

// roundTrips sends a byte and waits for one to come back, over and over, and
// returns how often that went in a second.
func (s *stage) roundTrips(network string, span time.Duration) (float64, error) {
	if network == "tcp4" {
		ln := s.remote.Listen(network, remoteAddr)
		defer ln.Close()
		go netlab.Echo(ln)
	} else {
		u := s.remote.ListenUDP(network, remoteAddr)
		defer u.Close()
		go netlab.EchoUDP(u)
	}
	c, err := s.guest.DialError(network, remoteAddr, 5*time.Second)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2*span + 5*time.Second))
	var n int
	var b [1]byte
	begin := time.Now().Add(span / 4)
	for now := time.Now(); now.Before(begin.Add(span)); now = time.Now() {
		if _, err := c.Write(b[:]); err != nil {
			return 0, err
		}
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return 0, err
		}
		if now.After(begin) {
			n++
		}
	}
	return float64(n) / span.Seconds(), nil
}

// cpu is the processor time of the translator.
func (s *stage) cpu() (sum time.Duration) {
	for _, p := range netlab.Children(s.proc.PID) {
		sum += netlab.CPU(p)
	}
	return sum
}

// rest is that of the stand-in, and of guest and remote, which are this
// process.
func (s *stage) rest() time.Duration { return netlab.CPU(s.joins) + netlab.CPU(os.Getpid()) }

func (s *stage) again() int64 {
	return s.guest.Counters()["TcpRetransSegs"] + s.remote.Counters()["TcpRetransSegs"]
}
