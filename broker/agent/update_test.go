// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/nettest"
	"aldente/ipc"
)

// network is what a guest's network looks like: its addresses and routes, sorted.
func (g *guest) network(t *testing.T, name string) []string {
	t.Helper()
	all := g.addresses(t, name)
	for _, args := range []string{"-4 route", "-6 route"} {
		for line := range strings.Lines(g.ip(t, args)) {
			if !strings.HasPrefix(line, "fe80::/64") { // comes with the link
				all = append(all, strings.Join(strings.Fields(line), " "))
			}
		}
	}
	slices.Sort(all)
	return all
}

// updates hands the agent's channel over, until the end of the test.
func (g *guest) updates(t *testing.T) *Sockets {
	t.Cleanup(func() { _ = unix.Shutdown(g.channel, unix.SHUT_RDWR) }) // which Sockets has, too
	return g.Sockets(func(error) {})
}

// TestUpdate: a network that was changed is the one that would have been made anew. The
// agent is confined meanwhile.
func TestUpdate(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "d0")
	nettest.IP(t, "addr add 192.0.2.2/24 dev d0", "addr add 192.0.2.3/24 dev d0", "route add default via 192.0.2.1",
		"addr add 2001:db8::2/64 dev d0 nodad", "-6 route add default via fe80::1 dev d0")
	g := newGuest(t)
	g.Follows()
	g.Confine(false)
	s := copyOf(discover(t))
	g.setup(t, s)
	sockets := g.updates(t)
	for _, tt := range []struct{ name, change string }{
		{"nothing", ""},
		{"one more address", "addr add 198.51.100.2/25 dev d0; addr add 2001:db8:2::2/64 dev d0 nodad"},
		{"the first address goes", "addr del 192.0.2.2/24 dev d0; addr replace 192.0.2.3/24 dev d0; route replace default via 192.0.2.1"},
		{"another gateway", "route replace default via 192.0.2.77; -6 route replace default via fe80::77 dev d0"},
		{"the same route with other attributes", "route replace default via 192.0.2.77 mtu 1300; -6 route replace default via fe80::77 dev d0 mtu 1300"},
		{"a route by a route", "route add 203.0.113.1 dev d0; route add 10.0.0.0/8 via 203.0.113.1"},
		{"a path with two ways", "route replace 10.0.0.0/8 nexthop via 192.0.2.8 dev d0 nexthop via 192.0.2.9 dev d0"},
		{"IPv6 goes", "-6 addr flush dev d0"},
		{"no default route", "route del default"},
		{"all goes", "addr flush dev d0"},
		{"and comes again", "addr add 192.0.2.2/24 dev d0; route add default via 192.0.2.1; addr add 2001:db8::2/64 dev d0 nodad; -6 route replace default via fe80::1 dev d0"},
	} {
		for line := range strings.SplitSeq(tt.change, ";") {
			if line != "" {
				nettest.IP(t, line)
			}
		}
		next := copyOf(discover(t))
		next.Name = s.Name
		warnings, err := sockets.Update(&s, &next)
		if err != nil || len(warnings) > 0 {
			t.Fatalf("%s: %v, %q", tt.name, err, warnings)
		}
		if s.Same(&next) != (tt.change == "") {
			t.Errorf("%s: the same as before: %t", tt.name, s.Same(&next))
		}
		s = next
		other := newGuest(t)
		other.setup(t, next)
		if got, want := g.network(t, s.Name), other.network(t, s.Name); !slices.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// TestUpdateKept: an address that is kept for what there is, is none for new connections.
func TestUpdateKept(t *testing.T) {
	nettest.Host(t)
	g := newGuest(t)
	g.Follows()
	g.Confine(false)
	a := netip.MustParsePrefix
	was := Setup{Name: "tap0", Configure: true, V4: Family{Address: a("192.0.2.2/24"), Gateway: a("192.0.2.1/32").Addr()},
		V6: Family{Address: a("2001:db8::2/64"), Gateway: a("fe80::1/128").Addr()}}
	g.setup(t, was)
	is := Setup{Name: "tap0", Configure: true,
		V4: Family{Address: a("10.0.0.2/24"), Gateway: a("10.0.0.1/32").Addr(), Kept: []netip.Addr{a("192.0.2.2/32").Addr()}},
		V6: Family{Address: a("2001:db8:1::2/64"), Gateway: a("fe80::2/128").Addr(), Kept: []netip.Addr{a("2001:db8::2/128").Addr()}}}
	if w, err := g.updates(t).Update(&was, &is); err != nil || len(w) > 0 {
		t.Fatal(w, err)
	}
	want := []string{"10.0.0.2/24", "192.0.2.2/32", "2001:db8:1::2/64", "2001:db8::2/128"}
	got := g.addresses(t, "tap0")
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for to, from := range map[string]string{"198.51.100.1": "src 10.0.0.2", "2001:db8:9::1": "src 2001:db8:1::2"} {
		if got := g.ip(t, "route get "+to); !strings.Contains(got, from) {
			t.Errorf("to %s: %s, want %s", to, got, from)
		}
	}
}

// TestUpdateByGuest: what the guest's root has changed meanwhile is no error.
func TestUpdateByGuest(t *testing.T) {
	nettest.Host(t)
	g := newGuest(t)
	g.Follows()
	g.Confine(false)
	a := netip.MustParsePrefix
	was := Setup{Name: "tap0", Configure: true, V4: Family{Address: a("192.0.2.2/24"), Gateway: a("192.0.2.1/32").Addr()}}
	g.setup(t, was)
	sockets := g.updates(t)
	g.ip(t, "addr flush dev tap0")
	g.ip(t, "addr add 10.0.0.2/24 dev tap0")
	is := Setup{Name: "tap0", Configure: true, V4: Family{Address: a("10.0.0.2/24"), Gateway: a("10.0.0.1/32").Addr()}}
	if w, err := sockets.Update(&was, &is); err != nil || len(w) > 0 {
		t.Errorf("%q, %v", w, err)
	}
	if got := g.ip(t, "route"); !strings.Contains(got, "default via 10.0.0.1") {
		t.Error(got)
	}
	g.ip(t, "link del tap0")
	if w, err := sockets.Update(&is, &was); err != nil || len(w) == 0 {
		t.Errorf("without the interface: %q, %v", w, err)
	}
}

// TestUpdateRefused: an agent that was not told to keep what an update takes ends over
// one, as over a removal in a set-up, and whoever asks hears of it.
func TestUpdateRefused(t *testing.T) {
	remove := (&ipc.AgentChange{ID: 1, Type: ipc.AgentNoRoute, Body: make([]byte, unix.SizeofRtMsg)}).Encode()
	for name, records := range map[string][][]byte{
		"not kept":  {(&ipc.AgentUpdate{ID: 1}).Encode()},
		"in set-up": {(&ipc.AgentSetup{ID: 1, Name: [16]byte{'t'}}).Encode(), remove},
	} {
		l := newLoop(t)
		for _, r := range records {
			if err := ipc.Send(l.channel, r, -1); err != nil {
				t.Fatal(err)
			}
		}
		err := <-l.ended
		if !errors.Is(err, ipc.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		l.ended <- err // for who cleans up
	}
}

// deaf is the broker's side of an agent that reads nothing until the test does, on its end
// of the channel.
func deaf(t *testing.T) (s *Sockets, its int) {
	t.Helper()
	g := newGuest(t) // for a process; its channel is not used
	ours, its, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	s = (&Client{process: g.process, channel: ours}).Sockets(func(err error) { ended <- err })
	t.Cleanup(func() {
		_ = unix.Shutdown(its, unix.SHUT_RDWR)
		if err := <-ended; errors.Is(err, ipc.ErrMalformed) {
			t.Error(err)
		}
		unix.Close(its)
		unix.Close(ours)
	})
	return s, its
}

// TestUpdateUnread: an agent that does not read what it is told keeps nobody who wants
// sockets, and is told of nothing else in the midst of it.
func TestUpdateUnread(t *testing.T) {
	s, its := deaf(t)
	s.updateTime = 50 * time.Millisecond
	was, is := Setup{Configure: true}, Setup{Configure: true}
	for n := range 4000 { // more than the channel has room for
		is.V4.Routes = append(is.V4.Routes, linkRoute(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})))
	}
	opened := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 2 {
			if _, err := s.Update(&was, &is); !errors.Is(err, ErrSlow) {
				t.Errorf("unread: %v", err)
			}
		}
		s.Open(ipc.AgentOpen{Proto: ipc.ProtoTCP}, func(_ int, err error) { opened <- err })
		s.Take(ipc.ProtoUDP, true)
		s.StartScan()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		_ = unix.Shutdown(its, unix.SHUT_RDWR)
		t.Fatal("whoever wants a socket waits for an agent that does not read")
	}
	b := make([]byte, ipc.MaxRecord)
	for seen := map[ipc.Kind]int{}; seen[ipc.AgentKindScan] == 0 || seen[ipc.AgentKindOpen] == 0; {
		n, _, err := ipc.Receive(its, b, 0)
		if err != nil {
			t.Fatal(err)
		}
		kind, err := ipc.ToAgent.Check(b[:n], false, ipc.Running)
		if err != nil {
			t.Fatal(err)
		}
		if seen[kind]++; kind == ipc.AgentKindUpdate && seen[kind] > 1 {
			t.Fatal("told of an update in the midst of another")
		}
		var o ipc.AgentOpen
		if kind == ipc.AgentKindOpen && seen[kind] == 1 {
			if err := o.Decode(b[:ipc.AgentOpenSize]); err != nil {
				t.Fatal(err)
			}
			if err := ipc.Send(its, (&ipc.AgentOpened{ID: o.ID, Errno: uint16(unix.EMFILE)}).Encode(), -1); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := <-opened; !errors.Is(err, unix.EMFILE) {
		t.Errorf("a socket that was asked for meanwhile: %v", err)
	}
}

// TestUpdateLate: an agent that has done what it was told when nobody waits for that any
// more is no worse than others, and is told of what comes then.
func TestUpdateLate(t *testing.T) {
	s, its := deaf(t)
	was, is := Setup{Configure: true}, Setup{Configure: true}
	is.V4.Gateway = netip.MustParseAddr("192.0.2.1")
	b := make([]byte, ipc.MaxRecord)
	take := func(want ipc.Kind) []byte {
		t.Helper()
		n, _, err := ipc.Receive(its, b, 0)
		if err != nil {
			t.Fatal(err)
		}
		if kind, err := ipc.ToAgent.Check(b[:n], false, ipc.Running); err != nil || kind != want {
			t.Fatalf("kind %#x, %v; want %#x", kind, err, want)
		}
		return b[:n]
	}
	told := func() (u ipc.AgentUpdate) {
		t.Helper()
		if err := u.Decode(take(ipc.AgentKindUpdate)); err != nil {
			t.Fatal(err)
		}
		take(ipc.AgentKindChange)
		take(ipc.AgentKindCommit)
		return u
	}
	s.updateTime = time.Millisecond
	if _, err := s.Update(&was, &is); !errors.Is(err, ErrSlow) {
		t.Fatalf("late: %v", err)
	}
	first := told()
	if _, err := s.Update(&was, &is); !errors.Is(err, ErrSlow) {
		t.Fatalf("before the first has ended: %v", err)
	}
	if err := ipc.Send(its, (&ipc.AgentDone{ID: first.ID}).Encode(), -1); err != nil {
		t.Fatal(err)
	}
	s.updateTime = time.Minute
	done := make(chan error, 1)
	go func() {
		for {
			_, err := s.Update(&was, &is)
			if errors.Is(err, ErrSlow) { // its end has not been read yet
				time.Sleep(time.Millisecond)
				continue
			}
			done <- err
			return
		}
	}()
	next := told()
	if err := ipc.Send(its, (&ipc.AgentDone{ID: next.ID}).Encode(), -1); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
