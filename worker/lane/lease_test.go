// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/link"
	"aldente/worker/packet"
)

// plugged is a link that notes what becomes of its carrier, and when.
type plugged struct {
	link.Link
	l    *Lane
	seen []int64 // times, in milliseconds: when it went, came, went, ...
	on   bool
}

func (p *plugged) SetCarrier(on bool) {
	if on != p.on {
		p.on, p.seen = on, append(p.seen, p.l.now/1e6)
	}
}

// leaseLane is a lane with a link that can be taken from its guest.
func leaseLane(t *testing.T, flags uint64) (*Lane, *plugged) {
	t.Helper()
	ours, theirs, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(theirs)
		unix.Close(ours)
	})
	send(t, ours, config(flags), -1)
	send(t, ours, ipc.Empty(ipc.KindStart), -1)
	l, err := New(theirs)
	if err != nil {
		t.Fatal(err)
	}
	p := &plugged{Link: link.NewTap(-1, 0), l: l, on: true}
	l.link, l.now = p, 0
	return l, p
}

// until has time pass, and timers expire.
func (l *Lane) until(ms int64) {
	for l.now < ms*1e6 {
		l.now += 10e6
		l.wheel.Advance(l.now, l.fire)
	}
}

func v4(a, b, c, d byte) packet.Addr { return packet.AddrFrom4([4]byte{a, b, c, d}) }

// TestLeaseChanges: a guest whose lease has changed sees its link go and come back, once
// for all that changes together and not too often; any other guest does not.
func TestLeaseChanges(t *testing.T) {
	guest6, new6 := packet.Addr{0: 0x20, 1: 1, 15: 2}, packet.Addr{0: 0x20, 1: 2, 15: 2}
	const six = ipc.FlagIPv6 | ipc.FlagDHCPv6 | ipc.FlagRA | ipc.FlagNDP
	address := func(c *ipc.Config) { c.Former4[0], c.Addr4 = guest4, v4(192, 0, 2, 77) }
	resolver := func(c *ipc.Config) { c.DNS4[0], c.NDNS4 = v4(192, 0, 2, 53), 1 }
	router := func(c *ipc.Config) { c.Our4 = v4(192, 0, 2, 254) }
	address6 := func(c *ipc.Config) { c.Former6[0], c.Addr6 = guest6, new6 }
	keep := func(change func(*ipc.Config)) func(*ipc.Config) {
		return func(c *ipc.Config) { change(c); c.Kept4, c.Kept6 = 1, 1 }
	}
	both := func(a, b func(*ipc.Config)) func(*ipc.Config) { return func(c *ipc.Config) { a(c); b(c) } }
	for _, tt := range []struct {
		name            string
		flags           uint64
		leased, leased6 bool
		change          func(*ipc.Config)
		want            bool
	}{
		{"address", ipc.FlagDHCP, true, false, address, true},
		{"resolver", ipc.FlagDHCP, true, false, resolver, true},
		{"router", ipc.FlagDHCP, true, false, router, true},
		{"search list", ipc.FlagDHCP, true, false, func(c *ipc.Config) { c.Search[0], c.NSearch = ipc.Name{Len: 1}, 1 }, true},
		{"nothing that is leased", ipc.FlagDHCP, true, false, func(c *ipc.Config) { c.MapGuestAddr4 = v4(192, 0, 2, 9) }, false},
		{"no lease was taken", ipc.FlagDHCP, false, false, address, false},
		{"no DHCP", 0, true, false, address, false},
		{"an address that is kept", ipc.FlagDHCP, true, false, keep(address), false},
		{"an address that is kept, and another resolver", ipc.FlagDHCP, true, false, keep(both(address, resolver)), true},
		{"no network", ipc.FlagDHCP, true, false, both(resolver, func(c *ipc.Config) { c.Former4[0], c.Addr4 = guest4, v4(169, 254, 2, 1) }), false},
		{"IPv6 address", six, false, true, address6, true},
		{"IPv6 address, no lease", six, false, false, address6, false},
		{"IPv6 address that is kept", six, false, true, keep(address6), false},
		{"IPv6 resolver, which is advertised", six, false, true, func(c *ipc.Config) { c.DNS6[0], c.NDNS6 = new6, 1 }, false},
		{"IPv6 resolver, which is not", six &^ ipc.FlagRA, false, true, func(c *ipc.Config) { c.DNS6[0], c.NDNS6 = new6, 1 }, true},
		{"no way out by IPv6", six, false, true, func(c *ipc.Config) { address6(c); c.Flags |= ipc.FlagNoRouter6 }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, p := leaseLane(t, tt.flags)
			l.guest.Addr6 = guest6
			if tt.leased {
				l.leased4(guest4)
			}
			if tt.leased6 {
				l.leased6(guest6)
			}
			c := l.guest.Config
			tt.change(&c)
			l.record(c.Encode(), -1)
			if l.err != nil {
				t.Fatal(l.err)
			}
			l.until(20_000)
			if got := len(p.seen) == 2 && p.seen[0] == 0 && p.seen[1] >= 1000 && p.seen[1] < 1500 && p.on; got != tt.want || !tt.want && p.seen != nil {
				t.Errorf("the carrier has changed at %v ms", p.seen)
			}
		})
	}
}

// TestLeaseChangesOften: of many changes a guest sees few.
func TestLeaseChangesOften(t *testing.T) {
	l, p := leaseLane(t, ipc.FlagDHCP)
	l.leased4(guest4)
	change := func(n byte) {
		c := l.guest.Config
		c.DNS4[0], c.NDNS4 = v4(192, 0, 2, n), 1
		l.record(c.Encode(), -1)
	}
	at := l.guest.Addr4
	for n := range byte(100) {
		change(n)
		l.until(int64(n+1) * 100)
		if p.on {
			l.leased4(at) // it asks, and is told
		}
	}
	l.until(30_000)
	if len(p.seen) > 6 || !p.on {
		t.Errorf("%d changes in 10 s, and the carrier at %v ms", 100, p.seen)
	}
	for i := 2; i < len(p.seen); i += 2 {
		if p.seen[i]-p.seen[i-1] < carrierRest/1e6 {
			t.Errorf("away again after %d ms", p.seen[i]-p.seen[i-1])
		}
	}

	// Who does not look at his link is left alone; also where he asks a minute later.
	p.seen = nil
	for n := range byte(10) {
		change(n)
		l.until(30_000 + int64(n+1)*60_000)
		l.leased4(at)
	}
	if len(p.seen) != 2*carrierMisses {
		t.Errorf("nobody asks, and the carrier at %v ms", p.seen)
	}
}

// TestWithdrawn: what the guest was told of for ever it is told to forget, in all the
// advertisements that tell of the change, and not for ever.
func TestWithdrawn(t *testing.T) {
	l, _ := leaseLane(t, ipc.FlagIPv6|ipc.FlagRA)
	l.guest.OurLL6 = packet.Addr{0: 0xfe, 1: 0x80, 15: 1}
	resolver := func(n byte) [16]byte { return [16]byte{0: 0x20, 1: 1, 15: n} }
	told := func(ms int64, resolvers ...byte) {
		t.Helper()
		c := l.guest.Config
		c.DNS6, c.NDNS6 = [ipc.MaxDNS][16]byte{}, uint8(len(resolvers))
		for i, n := range resolvers {
			c.DNS6[i] = resolver(n)
		}
		l.record(c.Encode(), -1)
		l.until(l.now/1e6 + ms)
	}
	want := func(what string, resolvers ...byte) {
		t.Helper()
		var got []byte
		w := &l.guest.Withdrawn
		for _, a := range w.DNS6[:w.NDNS6] {
			got = append(got, a[15])
		}
		if !slices.Equal(got, resolvers) {
			t.Errorf("%s: %d are withdrawn, want %d", what, got, resolvers)
		}
	}
	told(10_000, 1, 2)
	want("at first")
	told(100, 2, 3)
	want("one goes", 1)
	told(100, 4)
	want("two more go", 2, 3, 1)
	told(100, 1)
	want("one comes back", 4, 2, 3)
	l.until(l.now/1e6 + 5_000)
	want("advertised twice", 4, 2, 3)
	l.until(l.now/1e6 + 5_000)
	want("advertised three times")
}
