// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// groups are those of a family for the tests.
type groups struct {
	name          string
	mdns, ssdp    netip.AddrPort
	host, remote  netip.Addr // zero: link-local addresses
	level, ttlOpt int
}

var groupFamilies = []groups{
	{"IPv4", netip.MustParseAddrPort("224.0.0.251:5353"), netip.MustParseAddrPort("239.255.255.250:1900"),
		netip.MustParseAddr(netlab.Host4), netip.MustParseAddr("192.0.2.9"), unix.IPPROTO_IP, unix.IP_RECVTTL},
	{"IPv6", netip.MustParseAddrPort("[ff02::fb]:5353"), netip.MustParseAddrPort("[ff02::c]:1900"),
		netip.Addr{}, netip.Addr{}, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT},
}

// talker is a socket as programs have that speak to groups.
type talker struct {
	t     *testing.T
	fd    int
	index int
}

// talk makes one in a namespace, on an interface: bound to a port, zero for any, and a
// member of a group, if that is one.
func talk(t *testing.T, n *netlab.NS, iface string, g *groups, port uint16, join netip.Addr, ttl int) *talker {
	t.Helper()
	k := &talker{t: t, fd: -1}
	v4, loop := g.level == unix.IPPROTO_IP, 0
	if n.Name == "host" {
		loop = 1 // so that others of the host hear it, us among them
	}
	err := n.Do(func() error {
		i, err := net.InterfaceByName(iface)
		if err != nil {
			return err
		}
		k.index = i.Index
		domain, any := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(port)})
		if v4 {
			domain, any = unix.AF_INET, &unix.SockaddrInet4{Port: int(port)}
		}
		if k.fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		set := func(level, name, v int) { err = errors.Join(err, unix.SetsockoptInt(k.fd, level, name, v)) }
		set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		set(unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
		set(g.level, g.ttlOpt, 1)
		if v4 {
			set(unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, ttl)
			set(unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, loop)
			err = errors.Join(err, unix.SetsockoptIPMreqn(k.fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(k.index)}))
			if join.IsValid() {
				err = errors.Join(err, unix.SetsockoptIPMreqn(k.fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: join.As4(), Ifindex: int32(k.index)}))
			}
		} else {
			set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
			set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, ttl)
			set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, loop)
			set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, k.index)
			if join.IsValid() {
				err = errors.Join(err, unix.SetsockoptIPv6Mreq(k.fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: join.As16(), Interface: uint32(k.index)}))
			}
		}
		return errors.Join(err, unix.Bind(k.fd, any))
	})
	if err != nil {
		t.Fatalf("%s, %s: %v", n.Name, g.name, err)
	}
	t.Cleanup(k.close)
	return k
}

func (k *talker) close() {
	if k.fd >= 0 {
		unix.Close(k.fd)
	}
	k.fd = -1
}

// say sends something.
func (k *talker) say(to netip.AddrPort, what string) {
	k.t.Helper()
	sa := unix.Sockaddr(&unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port()), ZoneId: uint32(k.index)})
	if to.Addr().Is4() {
		sa = &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	} else if !to.Addr().IsLinkLocalUnicast() && !to.Addr().IsLinkLocalMulticast() {
		sa.(*unix.SockaddrInet6).ZoneId = 0
	}
	if err := unix.Sendto(k.fd, []byte(what), 0, sa); err != nil {
		k.t.Errorf("to %v: %v", to, err)
	}
}

// word is what a talker has heard.
type word struct {
	what string
	from netip.AddrPort
	ttl  int
}

// hear waits for something that begins with a word, and skips what does not.
func (k *talker) hear(begins string, within time.Duration) (w word, ok bool) {
	b, oob := make([]byte, 2048), make([]byte, 256)
	for end := time.Now().Add(within); time.Now().Before(end); {
		fds := []unix.PollFd{{Fd: int32(k.fd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, int(time.Until(end).Milliseconds())+1); n == 0 {
			return w, false
		}
		n, on, _, from, err := unix.Recvmsg(k.fd, b, oob, unix.MSG_DONTWAIT)
		if err != nil || !strings.HasPrefix(string(b[:n]), begins) {
			continue
		}
		w.what = string(b[:n])
		switch a := from.(type) {
		case *unix.SockaddrInet4:
			w.from = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
		case *unix.SockaddrInet6:
			w.from = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
		}
		if all, err := unix.ParseSocketControlMessage(oob[:on]); err == nil && len(all) > 0 {
			w.ttl = int(all[0].Data[0])
		}
		return w, true
	}
	return w, false
}

// heard is hear for what has to come: tried again by whoever says it, since the host may
// still be about to join.
func (k *talker) heard(begins string, say func()) word {
	k.t.Helper()
	for range 10 {
		say()
		if w, ok := k.hear(begins, 500*time.Millisecond); ok {
			return w
		}
	}
	k.t.Errorf("%q is not heard", begins)
	return word{}
}

func (k *talker) silent(begins string, within time.Duration) {
	k.t.Helper()
	if w, ok := k.hear(begins, within); ok {
		k.t.Errorf("heard %q from %v", w.what, w.from)
	}
}

// TestMulticastDNS: a questioner in the guest finds a responder on the host's network, and
// the other way round, by the group alone, as mDNS has it; and one that has no port of
// its own gets its answer by itself. Nobody hears his own words.
func TestMulticastDNS(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("--multicast", "mdns")
	for _, f := range groupFamilies {
		t.Run(f.name, func(t *testing.T) {
			remote := talk(t, lab.Remote, "r0", &f, 5353, f.mdns.Addr(), 255)
			host := talk(t, lab.Host, "h0", &f, 5353, f.mdns.Addr(), 255) // a service of the host's own
			guest := talk(t, g.NS, g.Interface(), &f, 5353, f.mdns.Addr(), 255)

			asked := remote.heard("guest asks", func() { guest.say(f.mdns, "guest asks") })
			if asked.ttl != 255 || asked.from.Port() != 5353 || f.host.IsValid() && asked.from.Addr() != f.host {
				t.Errorf("asked by %v, TTL %d", asked.from, asked.ttl)
			}
			if _, ok := host.hear("guest asks", 3*time.Second); !ok {
				t.Error("the host's own services do not hear the guest")
			}
			answer := guest.heard("remote answers", func() { remote.say(f.mdns, "remote answers") })
			if answer.from.Port() != 5353 || f.remote.IsValid() && answer.from.Addr() != f.remote {
				t.Errorf("answered by %v", answer.from)
			}
			guest.heard("host answers", func() { host.say(f.mdns, "host answers") })

			guest.heard("remote asks", func() { remote.say(f.mdns, "remote asks") })
			remote.heard("guest answers", func() { guest.say(f.mdns, "guest answers") })
			guest.silent("guest", 300*time.Millisecond)

			// Legacy unicast, RFC 6762 section 6.7.
			once := talk(t, g.NS, g.Interface(), &f, 0, netip.Addr{}, 255)
			asked = remote.heard("once", func() { once.say(f.mdns, "once") })
			if asked.from.Port() == 5353 {
				t.Errorf("asked by %v", asked.from)
			}
			once.heard("once more", func() { remote.say(asked.from, "once more") })
		})
	}
}

// TestFollowGroups: when the host's network is another, the guest's words to a group leave
// there, and it hears the group there, without having joined anew; at home neither.
func TestFollowGroups(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	vpn := netlab.NewNS(t, "vpn")
	g := lab.Guest("--multicast", "mdns")
	netlab.Veth(lab.Host, "v0", vpn, "v1", 1500)
	vpn.IP("addr add 203.0.113.1/24 dev v1", "addr add fe80::9/64 dev v1 nodad")
	var guest, home, away [2]*talker
	for i := range groupFamilies {
		f := &groupFamilies[i]
		guest[i], home[i] = talk(t, g.NS, g.Interface(), f, 5353, f.mdns.Addr(), 255), talk(t, lab.Remote, "r0", f, 5353, f.mdns.Addr(), 255)
		away[i] = talk(t, vpn, "v1", f, 5353, f.mdns.Addr(), 255)
		home[i].heard("guest asks", func() { guest[i].say(f.mdns, "guest asks") })
		guest[i].heard("home asks", func() { home[i].say(f.mdns, "home asks") })
	}
	lab.Host.IP("route add default via 192.0.2.1 metric 600", "route del default via 192.0.2.1 metric 0",
		"addr add 203.0.113.2/24 dev v0", "route add default via 203.0.113.1 metric 50",
		"addr add 2001:db8:9::2/64 dev v0 nodad", "-6 route add default via fe80::9 dev v0 metric 50")
	comesTrue(t, "the guest has the new default routes", func() bool {
		return ipSays(g.NS, "default via 203.0.113.1", "route") && ipSays(g.NS, "default via fe80::9", "-6", "route")
	})
	for i := range groupFamilies {
		f := &groupFamilies[i]
		away[i].heard("guest is away", func() { guest[i].say(f.mdns, "guest is away") })
		home[i].silent("guest is away", 300*time.Millisecond)
		guest[i].heard("away asks", func() { away[i].say(f.mdns, "away asks") })
		home[i].say(f.mdns, "home asks once more")
		guest[i].silent("home asks once more", 300*time.Millisecond)
	}
}

// TestSSDP: a search of the guest's is answered to itself, with the TTL that it had on its
// way, and a search on the host's network finds the guest.
func TestSSDP(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("--multicast", "ssdp,239.7.7.7:7777", "--no-map-gw") // one of the remote's addresses is the gateway's
	for _, f := range groupFamilies {
		t.Run(f.name, func(t *testing.T) {
			server := talk(t, lab.Remote, "r0", &f, 1900, f.ssdp.Addr(), 2)
			client := talk(t, g.NS, g.Interface(), &f, 0, netip.Addr{}, 2)
			asked := server.heard("M-SEARCH", func() { client.say(f.ssdp, "M-SEARCH * HTTP/1.1") })
			if asked.ttl != 2 {
				t.Errorf("TTL %d", asked.ttl)
			}
			// By another socket, as some do: from another port.
			other := talk(t, lab.Remote, "r0", &f, 0, netip.Addr{}, 2)
			answer := client.heard("HTTP/1.1 200", func() { other.say(asked.from, "HTTP/1.1 200 OK") })
			client.heard("HTTP/1.1 201", func() { server.say(asked.from, "HTTP/1.1 201 OK") })
			// What the guest says to who has answered is a flow like any other.
			other.heard("thanks", func() { client.say(answer.from, "thanks") })

			seeker := talk(t, lab.Remote, "r0", &f, 0, netip.Addr{}, 2)
			device := talk(t, g.NS, g.Interface(), &f, 1900, f.ssdp.Addr(), 2)
			sought := device.heard("M-SEARCH 2", func() { seeker.say(f.ssdp, "M-SEARCH 2") })
			found := seeker.heard("HTTP/1.1 202", func() { device.say(sought.from, "HTTP/1.1 202 OK") })
			if found.from.Port() != 1900 {
				t.Errorf("the guest answers from port %d", found.from.Port())
			}
			// The host is a member as long as the guest is one.
			file, group := "/proc/net/igmp6", "ff02000000000000000000000000000c"
			if f.level == unix.IPPROTO_IP {
				a := f.ssdp.Addr().As4()
				file, group = "/proc/net/igmp", fmt.Sprintf("%08X", binary.NativeEndian.Uint32(a[:]))
			}
			if !strings.Contains(lab.Host.Read(file), group) {
				t.Error("the host is no member")
			}
			device.close()
			if !eventually(20*time.Second, func() bool { return !strings.Contains(lab.Host.Read(file), group) }) {
				t.Error("the host is a member for ever")
			}
		})
	}
}

// TestMulticastPolicy: what does not leave, and what does not come.
func TestMulticastPolicy(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	f := &groupFamilies[0]
	other := netip.MustParseAddrPort("239.1.2.3:5000")
	for _, tt := range []struct {
		name         string
		args         []string
		leaves, come bool
	}{
		{"default", nil, true, false},
		{"send", []string{"--multicast", "send"}, true, false},
		{"none", []string{"--multicast", "none"}, false, false},
		{"another group", []string{"--multicast", "mdns"}, true, false},
		{"this group", []string{"--multicast", "239.1.2.3:5000"}, true, true},
		{"refused by the rules", []string{"--multicast", "239.1.2.3:5000", "--deny", "239.0.0.0/8"}, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := lab.For(t)
			g := lab.Guest(tt.args...)
			remote := talk(t, lab.Remote, "r0", f, other.Port(), other.Addr(), 1)
			guest := talk(t, g.NS, g.Interface(), f, other.Port(), other.Addr(), 1)
			if tt.leaves {
				remote.heard("up", func() { guest.say(other, "up") })
			} else {
				guest.say(other, "up")
				remote.silent("up", 500*time.Millisecond)
			}
			if tt.come {
				guest.heard("down", func() { remote.say(other, "down") })
			} else {
				remote.say(other, "down")
				guest.silent("down", 500*time.Millisecond)
			}
		})
	}
	// Where the guest is not to reach the host, the host does not hear it by a group either.
	for i := range groupFamilies {
		f := &groupFamilies[i]
		for _, denied := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, the host is denied: %t", f.name, denied), func(t *testing.T) {
				lab := lab.For(t)
				args := []string{"--multicast", "send"}
				if denied {
					args = append(args, "--deny", "host")
				}
				g := lab.Guest(args...)
				remote := talk(t, lab.Remote, "r0", f, f.ssdp.Port(), f.ssdp.Addr(), 1)
				host := talk(t, lab.Host, "h0", f, f.ssdp.Port(), f.ssdp.Addr(), 1)
				guest := talk(t, g.NS, g.Interface(), f, 0, netip.Addr{}, 1)
				remote.heard("up", func() { guest.say(f.ssdp, "up") })
				if _, ok := host.hear("up", time.Second); ok == denied {
					t.Errorf("the host hears: %t", ok)
				}
			})
		}
	}
	t.Run("aldente", func(t *testing.T) {
		lab := lab.For(t)
		g := lab.GuestWith(netlab.GuestSpec{Binary: aldente(), Args: []string{"--config-net"}})
		remote := talk(t, lab.Remote, "r0", f, other.Port(), other.Addr(), 1)
		guest := talk(t, g.NS, g.Interface(), f, 0, netip.Addr{}, 1)
		guest.say(other, "up")
		remote.silent("up", 500*time.Millisecond)
	})
}

// TestBroadcast: what the guest sends to everybody on its network reaches the host's, where
// that is asked for, but for DHCP, and answers come back.
func TestBroadcast(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	f := &groupFamilies[0]
	for _, allowed := range []bool{true, false} {
		t.Run(fmt.Sprint(allowed), func(t *testing.T) {
			lab := lab.For(t)
			what := "send"
			if allowed {
				what = "broadcast"
			}
			g := lab.Guest("--multicast", what, "--no-dhcp")
			remote := talk(t, lab.Remote, "r0", f, 5000, netip.Addr{}, 1)
			server := talk(t, lab.Remote, "r0", f, 67, netip.Addr{}, 1)
			for _, to := range []string{"255.255.255.255", "192.0.2.255"} {
				everybody := netip.AddrPortFrom(netip.MustParseAddr(to), 5000)
				guest := talk(t, g.NS, g.Interface(), f, 0, netip.Addr{}, 1)
				if !allowed {
					guest.say(everybody, "up")
					continue
				}
				asked := remote.heard("up", func() { guest.say(everybody, "up") })
				guest.heard("down", func() { remote.say(asked.from, "down") })
				guest.say(netip.AddrPortFrom(everybody.Addr(), 67), "discover")
			}
			if !allowed {
				remote.silent("up", 500*time.Millisecond)
			}
			server.silent("discover", 300*time.Millisecond)
		})
	}
}

// TestMulticastLoop: where nobody else of the host has the port, the guest does not hear
// itself by the socket for answers either, and hears others once.
func TestMulticastLoop(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("--multicast", "mdns", "--no-map-gw", "-u", "auto")
	for _, f := range groupFamilies {
		t.Run(f.name, func(t *testing.T) {
			remote := talk(t, lab.Remote, "r0", &f, 5353, f.mdns.Addr(), 255)
			guest := talk(t, g.NS, g.Interface(), &f, 5353, f.mdns.Addr(), 255)
			once := talk(t, g.NS, g.Interface(), &f, 0, netip.Addr{}, 255)
			guest.heard("first", func() { remote.say(f.mdns, "first") })
			remote.heard("guest", func() { guest.say(f.mdns, "guest") })
			remote.heard("another", func() { once.say(f.mdns, "another") })
			remote.say(f.mdns, "remote")
			for n := 0; ; n++ {
				w, ok := guest.hear("", 500*time.Millisecond)
				if !ok {
					if n == 0 {
						t.Error("nothing is heard")
					}
					break
				}
				if w.what != "remote" && w.what != "first" || n > 0 && w.what == "remote" {
					t.Errorf("heard %q from %v", w.what, w.from)
				}
			}
			once.silent("", 300*time.Millisecond)
			// A unicast answer comes from the port that mDNS knows, too.
			asker := talk(t, lab.Remote, "r0", &f, 0, netip.Addr{}, 255)
			asked := guest.heard("asker", func() { asker.say(f.mdns, "asker") })
			if w := asker.heard("for you", func() { guest.say(asked.from, "for you") }); w.from.Port() != 5353 {
				t.Errorf("answered from port %d", w.from.Port())
			}
		})
	}
}

// TestHostileGroups: a captured worker hears what was named, and nothing else, and what it
// gets can send nowhere.
func TestHostileGroups(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	const deaf = "opened 224.0.0.251, written: destination address required"
	for what, words := range map[string]map[string]string{
		"mdns": {"member=udp,224.0.0.251,5353": deaf, "member=udp,224.0.0.251,53": "EACCES", "member=udp,224.0.0.252,5353": "EACCES",
			"member=udp,192.0.2.2,5353": "EACCES", "member=udp,ff02::c,5353": "EACCES", "open=tcp,224.0.0.251,5353": "EACCES",
			"open=udp,255.255.255.255,9": "EACCES", "open=udp,ff01::1,9": "EACCES"},
		"none": {"member=udp,224.0.0.251,5353": "EACCES", "open=udp,224.0.0.251,5353": "EACCES", "open=udp,ff02::fb,5353": "EACCES"},
	} {
		t.Run(what, func(t *testing.T) {
			script := ""
			for w := range words {
				script += " " + w
			}
			g := hostileGuest(t, lab, script[1:], "--multicast", what)
			for w, want := range words {
				if got := told(t, g, w); got != want {
					t.Errorf("%s: %s, want %s", w, got, want)
				}
			}
		})
	}
}
