// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/egress"
	"aldente/broker/hostnet/nettest"
)

// flowTo is a UDP flow to an address.
func flowTo(a string) egress.Flow {
	return egress.Flow{Proto: unix.IPPROTO_UDP, To: netip.AddrPortFrom(netip.MustParseAddr(a), heard)}
}

// heard is the port that a service of the test's host listens on.
const heard = 4000

func TestLocal(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "v0")
	nettest.IP(t, "addr add 10.1.0.5/24 dev v0", "addr add fd01::5/64 dev v0 nodad", "addr add fe80::5/64 dev v0 nodad",
		"route add local 198.51.100.0/24 dev lo", "-6 route add local 2001:db8:5::/64 dev lo",
		"route add default via 10.1.0.1", "route add blackhole 192.0.2.0/24", "route add prohibit 192.0.3.0/24")
	l := localOf(t, "v0")
	settle(t, l, "fd01::5", "fe80::5")
	check := func(want bool, addrs ...string) {
		t.Helper()
		for _, a := range addrs {
			if got := l.Has(flowTo(a)); got != want {
				t.Errorf("%s: %v, want %v", a, got, want)
			}
		}
	}
	check(true, "127.0.0.1", "127.9.8.7", "::1", "10.1.0.5", "fd01::5", "fe80::5",
		"198.51.100.77", "2001:db8:5::77", "10.1.0.255", "192.0.2.1", "192.0.3.1")
	check(false, "10.1.0.6", "fd01::6", "fe80::6", "203.0.113.1", "2001:db8:9::1")

	nettest.IP(t, "addr add 10.1.0.6/24 dev v0", "addr add fd01::6/64 dev v0 nodad")
	settle(t, l, "fd01::6")
	check(true, "10.1.0.6", "fd01::6")
}

// settle waits for addresses of ours: the kernel makes them usable a moment after
// they were given.
func settle(t *testing.T, l *Local, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		for start := time.Now(); !l.Has(flowTo(a)); time.Sleep(time.Millisecond) {
			if time.Since(start) > 10*time.Second {
				t.Fatalf("%s is not the host's", a)
			}
		}
	}
}

func localOf(t *testing.T, device string) *Local {
	t.Helper()
	link, err := net.InterfaceByName(device)
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLocal(link.Index)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestLocalRouteTypes sends a datagram by each type of route that the kernel has,
// in a namespace that forwards. Where a service of the host hears it, the address
// is the host's, and so is every other that no plain route leads to.
func TestLocalRouteTypes(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "v0")
	for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0); err != nil {
			t.Skip("needs forwarding in the namespace:", err)
		}
	}
	nettest.IP(t, "addr add 10.1.0.5/24 dev v0", "addr add fd70::5/64 dev v0 nodad", "addr add fe80::5/64 dev v0 nodad",
		"neigh add 10.1.0.1 lladdr 02:00:00:00:00:01 dev v0", "-6 neigh add fd70::1 lladdr 02:00:00:00:00:01 dev v0")
	// By address: what the route to it is, and whether the address is the host's.
	// Of every type there is one, whatever the kernel makes of it.
	want := map[string]bool{
		"127.0.0.1": true, "127.1.2.3": true, "::1": true,
		"10.1.0.5": true, "fd70::5": true, "fe80::5": true, // local
		"10.1.0.255": true,                                      // broadcast
		"fd70::":     true,                                      // anycast, of the subnet's routers
		"fe80::":     true,                                      // the same, of the link
		"10.1.0.1":   false, "fd70::1": false, "fe80::1": false, // on the link
		"203.0.113.1": false, "2001:db8:ff::1": false, // no route at all
	}
	for i, typ := range []string{"unicast", "local", "broadcast", "anycast", "multicast", "throw", "unreachable", "prohibit", "blackhole", "nat"} {
		via4, via6 := " dev v0", " dev v0"
		switch typ {
		case "unicast":
			via4, via6 = " via 10.1.0.1", " via fd70::1"
		case "local":
			via4, via6 = " dev lo", " dev lo"
		case "throw", "unreachable", "prohibit", "blackhole":
			via4, via6 = "", ""
		}
		n := string(rune('0' + i))
		host := typ != "unicast" && typ != "throw" && typ != "unreachable"
		for a, cmd := range map[string]string{
			"198.51.10" + n + ".9":  "route add " + typ + " 198.51.10" + n + ".0/24" + via4,
			"2001:db8:" + n + "::9": "-6 route add " + typ + " 2001:db8:" + n + "::/48" + via6,
		} {
			if tryIP(cmd) {
				want[a] = host
			} else if typ != "nat" && typ != "broadcast" && typ != "multicast" && typ != "anycast" {
				t.Errorf("ip %s: refused", cmd)
			}
		}
	}
	// A route of type unicast that leads to lo leads nowhere but to the host.
	if tryIP("route add 192.0.2.0/24 dev lo") {
		want["192.0.2.9"] = true
	}
	l := localOf(t, "v0")
	settle(t, l, "fd70::5", "fe80::5", "fd70::", "fe80::")
	service := hear(t)
	types := map[string]bool{}
	for a, host := range want {
		got := l.Has(flowTo(a))
		if got != host {
			t.Errorf("%s: the host's: %v, want %v", a, got, host)
		}
		reached := reaches(t, service, a, l.scope)
		if reached && !got {
			t.Errorf("%s: a service of the host hears it, and it is not the host's", a)
		}
		types[a] = reached
	}
	for _, a := range []string{"127.0.0.1", "::1", "10.1.0.5", "fd70::5", "fd70::", "198.51.101.9", "2001:db8:1::9"} {
		if !types[a] {
			t.Errorf("%s: no service heard it: the test tests nothing", a)
		}
	}
}

// TestLocalRules asks as the socket would: rules of the host may look at any of
// what it has.
func TestLocalRules(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "v0")
	nettest.Veth(t, "v1")
	nettest.IP(t, "addr add 10.1.0.5/24 dev v0", "addr add 10.2.0.5/24 dev v1", "addr add fd70::5/64 dev v0 nodad",
		"addr add fd71::5/64 dev v1 nodad", "route add default via 10.1.0.1", "-6 route add default via fd70::1",
		"route add local default dev lo table 7", "-6 route add local default dev lo table 7",
		"rule add ipproto tcp dport 81 lookup 7", "-6 rule add ipproto tcp dport 81 lookup 7",
		"rule add ipproto udp sport 82 lookup 7", "-6 rule add ipproto udp sport 82 lookup 7",
		"rule add from 10.2.0.5 lookup 7", "-6 rule add from fd71::5 lookup 7",
		"rule add oif v1 prohibit", "-6 rule add oif v1 prohibit",
		"rule add ipproto icmp lookup 7", "-6 rule add ipproto ipv6-icmp lookup 7")
	l := localOf(t, "v0")
	settle(t, l, "fd70::5", "fd71::5")
	for _, v := range []struct{ to, from, other string }{{"192.0.2.9", "10.1.0.5", "10.2.0.5"}, {"2001:db8::9", "fd70::5", "fd71::5"}} {
		flow := func(proto uint8, from string, sport, dport uint16, device string) egress.Flow {
			return egress.Flow{Proto: proto, To: netip.AddrPortFrom(netip.MustParseAddr(v.to), dport),
				From: netip.AddrPortFrom(netip.MustParseAddr(from), sport), Device: device}
		}
		for _, tt := range []struct {
			name string
			f    egress.Flow
			want bool
		}{
			{"plain", flow(unix.IPPROTO_TCP, v.from, 0, 80, ""), false},
			{"by destination's port", flow(unix.IPPROTO_TCP, v.from, 0, 81, ""), true},
			{"by protocol", flow(unix.IPPROTO_UDP, v.from, 0, 81, ""), false},
			{"by source's port", flow(unix.IPPROTO_UDP, v.from, 82, 80, ""), true},
			{"by source", flow(unix.IPPROTO_UDP, v.other, 0, 80, ""), true},
			// By an interface, IPv4 takes what it finds no route to for a neighbour.
			{"by interface", flow(unix.IPPROTO_UDP, v.from, 0, 80, "v1"), v.to != "192.0.2.9"},
			{"by another interface", flow(unix.IPPROTO_UDP, v.from, 0, 80, "v0"), false},
			{"by no interface", flow(unix.IPPROTO_UDP, v.from, 0, 80, "v9"), false},
			{"echo", flow(unix.IPPROTO_ICMP, v.from, 0, 0, ""), true},
		} {
			if got := l.Has(tt.f); got != tt.want {
				t.Errorf("%s, %s: %v, want %v", v.to, tt.name, got, tt.want)
			}
		}
	}
	// An interface may come back as another, and the host is the host by any.
	f := flowTo("2001:db8::9")
	f.Device = "v1"
	nettest.IP(t, "link del v1")
	if l.Has(f) {
		t.Error("an interface that is gone is taken for the host")
	}
	nettest.Veth(t, "v1")
	nettest.IP(t, "addr add 10.2.0.6/24 dev v1", "addr add fd71::6/64 dev v1 nodad")
	settle(t, l, "fd71::6")
	if !l.Has(f) {
		t.Error("the rule of an interface is lost when that comes back")
	}
	f = flowTo("10.2.0.6")
	f.Device = "v0"
	if !l.Has(f) {
		t.Error("an address of the host is not the host's by another interface")
	}
}

func tryIP(line string) bool {
	return nettest.Try("ip", line) == nil
}

// hear opens a service of the host on both families.
func hear(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
			unix.Bind(fd, &unix.SockaddrInet6{Port: heard}))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// reaches tells whether the service hears what an ordinary socket sends.
func reaches(t *testing.T, service int, to string, scope uint32) bool {
	t.Helper()
	a := netip.MustParseAddr(to)
	domain, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: heard, Addr: a.As16(), ZoneId: scope})
	if a.Is4() {
		domain, sa = unix.AF_INET, &unix.SockaddrInet4{Port: heard, Addr: a.As4()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if unix.Connect(fd, sa) != nil {
		return false
	}
	mark := []byte(to + time.Now().String())
	if _, err := unix.Write(fd, mark); err != nil {
		return false
	}
	b := make([]byte, 256)
	for {
		n, err := unix.Read(service, b)
		if err != nil {
			return false
		}
		if string(b[:n]) == string(mark) {
			return true
		}
	}
}

func BenchmarkLocal(b *testing.B) {
	l, err := NewLocal(0)
	if err != nil {
		b.Fatal(err)
	}
	f := flowTo("127.0.0.1")
	for b.Loop() {
		l.Has(f)
	}
}
