// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestClients tells those that are connected from all others.
func TestClients(t *testing.T) {
	c, err := OpenClients()
	if err != nil {
		t.Skip(err)
	}
	at := func(pc net.PacketConn) netip.AddrPort {
		a := pc.LocalAddr().(*net.UDPAddr).AddrPort()
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	for _, tt := range []struct{ name, network, addr string }{{"IPv4", "udp4", "127.0.0.1"}, {"IPv6", "udp6", "::1"}} {
		t.Run(tt.name, func(t *testing.T) {
			listen := func() *net.UDPConn {
				pc, err := net.ListenUDP(tt.network, &net.UDPAddr{IP: net.ParseIP(tt.addr)})
				if err != nil {
					t.Skip(err)
				}
				t.Cleanup(func() { pc.Close() })
				return pc
			}
			port, other, service := listen(), listen(), listen()
			client, err := net.DialUDP(tt.network, nil, port.LocalAddr().(*net.UDPAddr))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if !c.Connected(at(client), at(port)) {
				t.Error("a client is none")
			}
			free := at(service)
			for name, ends := range map[string][2]netip.AddrPort{
				"client of another port": {at(client), at(other)}, "service": {at(service), at(port)},
				"the port itself": {at(port), at(port)}, "its client, turned round": {at(port), at(client)},
				"nobody": {netip.AddrPortFrom(free.Addr(), 1), at(port)},
			} {
				if c.Connected(ends[0], ends[1]) {
					t.Errorf("%s: taken for a client", name)
				}
			}
		})
	}
	// A socket of both families is a client by IPv4, too.
	port, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	client := dualClient(t, at(port))
	if client.IsValid() && !c.Connected(client, at(port)) {
		t.Error("a client by a socket of both families is none")
	}
}

// dualClient connects a socket of IPv6 to an address of IPv4.
func dualClient(t *testing.T, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return netip.AddrPort{}
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Connect(fd, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}); err != nil {
		return netip.AddrPort{}
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	a := sa.(*unix.SockaddrInet6)
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
}
