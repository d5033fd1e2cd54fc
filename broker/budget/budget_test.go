// SPDX-License-Identifier: Apache-2.0

package budget

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"aldente/broker/limiter"
)

// kernel is a scripted kernel.
type kernel struct {
	open   [Kinds]int
	ports  int
	silent bool // knows nothing
	asked  int
	looked int
}

func (k *kernel) Open() ([Kinds]int, bool) {
	k.asked++
	return k.open, !k.silent
}

func (k *kernel) PortsInUse() (int, bool) {
	k.looked++
	return k.ports, !k.silent
}

var host = Host{Descriptors: 20000, Ephemeral: 28232}

func at(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }

// open opens n sockets of a kind, all at one time, and returns how many it got.
func open(b *Budget, k *kernel, kind Kind, n int, now time.Time) (got int, last Reason) {
	for range n {
		if last = b.May(kind, now); last != Granted {
			return got, last
		}
		b.Opened(kind)
		if k != nil {
			k.open[kind]++
			k.ports++
		}
		got++
	}
	return got, Granted
}

func TestUDPLimit(t *testing.T) {
	for _, kind := range []Kind{UDP, Echo} {
		l := Defaults(host)
		l.UDP, l.Echo = 600, 600
		k := &kernel{}
		b := New(l, host, k)
		got, why := open(b, k, kind, 5000, at(0))
		if got != 600 || why != TooMany {
			t.Fatalf("%v: %d opened, then %v", kind, got, why)
		}
		// Nobody believes that a socket was closed, but the kernel.
		if _, why := open(b, k, kind, 1, at(1)); why != TooMany {
			t.Errorf("%v: one more without one less: %v", kind, why)
		}
		k.open[kind] -= 100
		if got, why := open(b, k, kind, 200, at(200)); got != 100 || why != TooMany {
			t.Errorf("%v: %d opened after 100 were closed, then %v", kind, got, why)
		}
		if u := b.Usage()[kind]; u.Most != 600 || u.Opened != 700 || u.Refused != 3 || u.Limit != 600 {
			t.Errorf("%v: usage %+v", kind, u)
		}
	}
}

// TestRecountRarely: a worker that closes nothing does not make the broker count
// again and again, and one that does close is not held up.
func TestRecountRarely(t *testing.T) {
	l := Defaults(host)
	k := &kernel{}
	b := New(l, host, k)
	open(b, k, UDP, l.UDP, at(0))
	k.asked = 0
	for ms := range 1000 {
		b.May(UDP, at(ms))
	}
	if k.asked > 11 {
		t.Errorf("counted %d times in a second for a worker that closes nothing", k.asked)
	}
	// An honest worker lets go of the least recently used before it asks.
	k = &kernel{}
	b = New(l, host, k)
	for i := range 20 * l.UDP {
		if k.open[UDP] == l.WorkerUDP() {
			k.open[UDP]--
			k.ports--
		}
		if _, why := open(b, k, UDP, 1, at(i)); why != Granted {
			t.Fatalf("flow %d of a worker that keeps to its limit: %v", i, why)
		}
	}
	if most := 20 * l.UDP / (l.UDP / 8) * 11 / 10; k.asked > most {
		t.Errorf("counted %d times, %d are enough", k.asked, most)
	}
}

func TestKernelSilent(t *testing.T) {
	l := Defaults(host)
	k := &kernel{silent: true, ports: 1 << 20}
	b := New(l, host, k)
	if got, why := open(b, nil, UDP, 2*l.UDP, at(0)); got != l.UDP || why != TooMany {
		t.Errorf("%d opened, then %v", got, why)
	}
	b.Gone()
	if got, _ := open(b, nil, UDP, 100, at(1000)); got != 100 {
		t.Errorf("%d opened for a new worker", got)
	}
}

// TestHostShort: beyond what is enough for anybody, a guest takes no more ports
// when others have left few.
func TestHostShort(t *testing.T) {
	k := &kernel{ports: host.Ephemeral * 4 / 5}
	b := New(Defaults(host), host, k)
	if got, why := open(b, k, UDP, 5000, at(0)); got != fewPorts || why != HostShort {
		t.Errorf("%d opened, then %v", got, why)
	}
	for range 1000 {
		b.May(UDP, at(1))
	}
	if k.looked > 2 {
		t.Errorf("looked at the host %d times within a millisecond", k.looked)
	}
	k.ports = host.Ephemeral / 2
	if got, why := open(b, k, UDP, 500, at(100)); got != 500 {
		t.Errorf("%d opened once others let go, then %v", got, why)
	}
	// What it holds itself may be what is gone.
	k.ports = host.Ephemeral
	k.open[UDP] = 10
	if got, _ := open(b, k, UDP, 500, at(300)); got != 500 {
		t.Errorf("%d opened by a guest that holds few", got)
	}
}

// TestFourGuests: four guests at their worst leave a fifth of the host's ports.
func TestFourGuests(t *testing.T) {
	k := &kernel{}
	for range 4 {
		open(New(Defaults(host), host, k), k, UDP, 1<<16, at(0))
	}
	if left := host.Ephemeral - k.ports; left < host.Ephemeral/5 {
		t.Errorf("%d of %d ports left", left, host.Ephemeral)
	}
	// Any number of them leaves some.
	for range 20 {
		open(New(Defaults(host), host, &kernel{ports: k.ports}), nil, UDP, 1<<16, at(0))
	}
}

func TestRates(t *testing.T) {
	l := Defaults(host)
	l.NewUDP = limiter.Rate{PerSecond: 100, Burst: 50}
	l.NewTCP = limiter.Rate{PerSecond: 10, Burst: 20}
	k := &kernel{}
	b := New(l, host, k)
	if got, why := open(b, k, UDP, 80, at(0)); got != 50 || why != TooFast {
		t.Errorf("burst of %d, then %v", got, why)
	}
	if got, _ := open(b, k, UDP, 80, at(100)); got != 10 {
		t.Errorf("%d in a tenth of a second", got)
	}
	if got, _ := open(b, k, UDP, 80, at(50)); got != 0 {
		t.Errorf("%d by a clock that goes back", got)
	}
	// Connections that are there at once cost nothing, however many.
	if got, why := open(b, nil, TCP, 10000, at(0)); got != 10000 {
		t.Errorf("%d complete connections, then %v", got, why)
	}
	under := 0
	for b.May(TCP, at(0)) == Granted {
		b.Opened(TCP)
		b.Waits()
		under++
	}
	if under != 20 {
		t.Errorf("%d under way", under)
	}
	// Those that were answered are given back, those that were not are not.
	for range 10 {
		b.Answered()
		b.Ended(false)
	}
	under = 0
	for b.May(TCP, at(0)) == Granted {
		b.Waits()
		under++
	}
	if under != 10 {
		t.Errorf("%d more under way after 10 answers", under)
	}
}

// TestOrdinaryUse: nothing of what ordinary guests do meets a default, on hosts of
// any kind.
func TestOrdinaryUse(t *testing.T) {
	for _, h := range []Host{host, {Descriptors: 1 << 20, Ephemeral: 28232, Conntrack: 262144}, {Descriptors: 4096, Ephemeral: 28232, Conntrack: 65536},
		{Descriptors: 20000, Ephemeral: 16384}} {
		k := &kernel{}
		b := New(Defaults(h), h, k)
		// A resolver's 4,000 questions from 4,000 ports, within what its worker keeps.
		l := b.Limits()
		if got, why := open(b, k, UDP, 4000, at(0)); got != 4000 || l.WorkerUDP() < 4000 {
			t.Errorf("%+v: %d questions, then %v; a worker keeps %d", h, got, why, l.WorkerUDP())
		}
		// A build's 500 connections far away, a browser's 200, iperf3 -P 128.
		for i := range 828 {
			if why := b.May(TCP, at(i/100)); why != Granted {
				t.Fatalf("%+v: connection %d: %v", h, i, why)
			}
			b.Opened(TCP)
			if b.Waits() && h.Descriptors >= 4096 {
				t.Fatalf("%+v: connection %d ends another", h, i)
			}
		}
	}
}

func TestHalfOpenFull(t *testing.T) {
	l := Defaults(host)
	l.HalfOpen = 3
	b := New(l, host, &kernel{})
	for i := range 3 {
		if b.Waits() {
			t.Fatalf("connection %d ends another", i)
		}
	}
	if !b.Waits() {
		t.Fatal("the fourth ends none")
	}
	b.Ended(true)
	if u := b.Usage()[TCP]; u.Held != 3 || u.Ended != 1 || u.Most != 4 {
		t.Errorf("usage %+v", u)
	}
}

// TestModel: whatever happens, what the kernel holds stays within the limit, and
// what is granted is refused to nobody who is far from it.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := Defaults(host)
		l.UDP = rapid.IntRange(1, 64).Draw(t, "limit")
		l.NewUDP = limiter.Rate{PerSecond: Unlimited, Burst: Unlimited}
		k := &kernel{}
		b := New(l, host, k)
		ms := 0
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			ms += rapid.IntRange(0, 150).Draw(t, "ms")
			if k.open[UDP] > 0 && rapid.Bool().Draw(t, "close") {
				k.open[UDP] -= rapid.IntRange(1, k.open[UDP]).Draw(t, "closed")
				continue
			}
			k.silent = rapid.IntRange(0, 9).Draw(t, "silent") == 0
			why := b.May(UDP, at(ms))
			if why == Granted {
				b.Opened(UDP)
				k.open[UDP]++
			}
			if k.open[UDP] > l.UDP {
				t.Fatalf("%d of %d", k.open[UDP], l.UDP)
			}
			if !k.silent && why != Granted && k.open[UDP] < l.UDP && b.May(UDP, at(ms+1000)) != Granted {
				t.Fatalf("refused with %d of %d", k.open[UDP], l.UDP)
			}
		}
	})
}
