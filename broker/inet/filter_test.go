// SPDX-License-Identifier: Apache-2.0

package inet

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/nettest"
	"aldente/broker/ingress"
	"aldente/ipc"
)

// program is that of rules, "+SRC" and "-SRC", for any port.
func program(t *testing.T, rules ...ingress.Rule) Filter {
	t.Helper()
	s, err := ingress.New(rules)
	if err != nil {
		t.Fatal(err)
	}
	return s.Program(ipc.ProtoUDP, 1)
}

// calls tells whether a peer with the source address is heard by a socket.
func calls(t *testing.T, fd int, from, to netip.Addr) bool {
	t.Helper()
	domain := unix.AF_INET6
	if from.Is4() {
		domain = unix.AF_INET
	}
	c, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c)
	if err := unix.Bind(c, sockaddr(netip.AddrPortFrom(from, 0), 0)); err != nil {
		t.Fatal(from, err)
	}
	if err := unix.Connect(c, sockaddr(netip.AddrPortFrom(to, LocalPort(fd)), 0)); err != nil && err != unix.EINPROGRESS {
		t.Fatal(from, to, err)
	}
	_, _ = unix.Write(c, []byte("?"))
	// On loopback all of that has been delivered when the call returns.
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, 200); err != nil || n == 0 {
		return false
	}
	_, _, err = unix.Recvfrom(fd, make([]byte, 10), 0)
	return err == nil
}

// TestFilter: a UDP listener hears those whom its filter lets, by both families of a
// socket for both, and from the moment on in which it is bound.
func TestFilter(t *testing.T) {
	nettest.Host(t)
	nettest.IP(t, "addr add 2001:db8::1/128 dev lo nodad", "addr add 2001:db8::2/128 dev lo nodad", "addr add 192.0.2.1/32 dev lo", "addr add 192.0.2.2/32 dev lo")
	time.Sleep(10 * time.Millisecond)
	rules := []ingress.Rule{{Allow: true, Source: "192.0.2.1"}, {Allow: true, Source: "2001:db8::1"}, {Source: "any"}}
	for name, at := range map[string]Listener{
		"both":   {At: netip.AddrPortFrom(netip.IPv6Unspecified(), 0), Dual: true},
		"IPv4":   {At: netip.AddrPortFrom(netip.IPv4Unspecified(), 0)},
		"IPv6":   {At: netip.AddrPortFrom(netip.IPv6Unspecified(), 0)},
		"device": {At: netip.AddrPortFrom(netip.IPv6Unspecified(), 0), Dual: true, Path: Path{Device: "lo"}},
	} {
		at.Filter = program(t, rules...)
		fd, err := at.ListenUDP()
		if err != nil {
			t.Fatal(name, err)
		}
		try := func(want ...bool) {
			t.Helper()
			for i, ends := range [][2]string{{"192.0.2.1", "192.0.2.2"}, {"192.0.2.2", "192.0.2.1"}, {"2001:db8::1", "2001:db8::2"}, {"2001:db8::2", "2001:db8::1"}} {
				from, to := netip.MustParseAddr(ends[0]), netip.MustParseAddr(ends[1])
				if from.Is4() && at.At.Addr().Is6() && !at.Dual || from.Is6() && at.At.Addr().Is4() {
					continue
				}
				if got := calls(t, fd, from, to); got != want[i] {
					t.Errorf("%s: from %v: %v, want %v", name, from, got, want[i])
				}
			}
		}
		try(true, false, true, false)
		if Dropped(fd) == 0 {
			t.Errorf("%s: nothing counted as dropped", name)
		}
		if err := Refilter(fd, program(t, ingress.Rule{Source: "192.0.2.1"})); err != nil {
			t.Fatal(err)
		}
		try(false, true, true, true)
		if err := Refilter(fd, nil); err != nil {
			t.Fatal(err)
		}
		if err := Refilter(fd, nil); err != nil {
			t.Errorf("none, twice: %v", err)
		}
		try(true, true, true, true)
		if err := Refilter(fd, program(t, ingress.Rule{Source: "host"})); err != nil {
			t.Fatal(err)
		}
		try(false, false, false, false)
		unix.Close(fd)
	}
}

// TestFilterTooLong: where the kernel has no room for a program, there is no listener
// that hears everybody.
func TestFilterTooLong(t *testing.T) {
	nettest.Host(t)
	long := make(Filter, unix.BPF_MAXINSNS+1)
	for i := range long {
		long[i] = Nothing[0]
	}
	at := Listener{At: netip.AddrPortFrom(loopback4, 0), Filter: long}
	if fd, err := at.ListenUDP(); !errors.Is(err, unix.EINVAL) || fd >= 0 {
		t.Errorf("%d, %v", fd, err)
	}
	at.Filter = nil
	fd, err := at.ListenUDP()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := Refilter(fd, long); !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v", err)
	}
	if calls(t, fd, loopback4, loopback4) {
		t.Error("it hears everybody")
	}
}

// TestFilterBeforeConnect: a socket beside a listener hears no more than that until it
// is connected, and its peer then, whoever that is.
func TestFilterBeforeConnect(t *testing.T) {
	nettest.Host(t)
	for _, peer := range loopbacks {
		flow := Flow{From: netip.AddrPortFrom(Any(peer), 0), To: netip.AddrPortFrom(peer, 9), Sharing: SharedAndOpen, Filter: program(t, ingress.Rule{Source: "host"})}
		r := flow.Bind()
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		if calls(t, r.FD, peer, peer) {
			t.Errorf("%v: heard before it is connected", peer)
		}
		c, err := unix.Socket(map[bool]int{true: unix.AF_INET, false: unix.AF_INET6}[peer.Is4()], unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c)
		if err := unix.Bind(c, sockaddr(netip.AddrPortFrom(peer, 0), 0)); err != nil {
			t.Fatal(err)
		}
		flow.To = netip.AddrPortFrom(peer, LocalPort(c))
		port := LocalPort(r.FD)
		if r = flow.ConnectBy(r.FD); r.Err != nil {
			t.Fatal(r.Err)
		}
		if err := unix.Sendto(c, []byte("?"), 0, sockaddr(netip.AddrPortFrom(peer, port), 0)); err != nil {
			t.Fatal(err)
		}
		if n, _, err := unix.Recvfrom(r.FD, make([]byte, 10), 0); n != 1 || err != nil {
			t.Errorf("%v: not heard once it is connected: %d, %v", peer, n, err)
		}
		unix.Close(r.FD)
	}
}
