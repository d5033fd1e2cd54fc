// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"bytes"
	"net"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// What each message in each of the client's states gets, RFC 2131 section 4.3.
func TestReplyType(t *testing.T) {
	requested := func(ip net.IP) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip)) }
	server := func(ip net.IP) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip)) }
	const (
		discover = dhcpv4.MessageTypeDiscover
		request  = dhcpv4.MessageTypeRequest
		none     = dhcpv4.MessageTypeNone
		offer    = dhcpv4.MessageTypeOffer
		ack      = dhcpv4.MessageTypeAck
		nak      = dhcpv4.MessageTypeNak
	)
	for _, tc := range []struct {
		name string
		kind dhcpv4.MessageType
		mods []dhcpv4.Modifier
		want dhcpv4.MessageType
	}{
		{"discover", discover, nil, offer},
		{"discover, rapid commit", discover, []dhcpv4.Modifier{raw(80)}, ack},
		{"discover, another address wished for", discover, []dhcpv4.Modifier{requested(otherIP)}, offer},
		{"selecting", request, []dhcpv4.Modifier{server(ourIP), requested(guestIP)}, ack},
		{"selecting, another address", request, []dhcpv4.Modifier{server(ourIP), requested(otherIP)}, nak},
		{"selecting, address left out", request, []dhcpv4.Modifier{server(ourIP)}, ack},
		{"selecting another server", request, []dhcpv4.Modifier{server(otherIP), requested(otherIP)}, none},
		{"selecting another server, our address", request, []dhcpv4.Modifier{server(otherIP), requested(guestIP)}, none},
		{"init-reboot", request, []dhcpv4.Modifier{requested(guestIP)}, ack},
		{"init-reboot, another address", request, []dhcpv4.Modifier{requested(otherIP)}, nak},
		{"renewing", request, []dhcpv4.Modifier{dhcpv4.WithClientIP(guestIP)}, ack},
		{"renewing another address", request, []dhcpv4.Modifier{dhcpv4.WithClientIP(otherIP)}, none},
		{"request for nothing", request, nil, none},
		{"decline", dhcpv4.MessageTypeDecline, []dhcpv4.Modifier{server(ourIP), requested(guestIP)}, none},
		{"release", dhcpv4.MessageTypeRelease, []dhcpv4.Modifier{server(ourIP), dhcpv4.WithClientIP(guestIP)}, none},
		{"inform", dhcpv4.MessageTypeInform, []dhcpv4.Modifier{dhcpv4.WithClientIP(otherIP)}, ack},
		{"offer", offer, nil, none},
		{"ack", ack, nil, none},
		{"nak", nak, nil, none},
		{"unknown type", 200, nil, none},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q := query(t, tc.kind, append(tc.mods, raw(61, 1, 2, 3))...)
			b := exchange(t, guest(), q.ToBytes())
			if tc.want == none {
				if len(b) != 0 {
					t.Fatalf("answered: %v", read(t, b).Summary())
				}
				return
			}
			a := read(t, b)
			want := packet.Addr{}
			if tc.want == ack && tc.kind != dhcpv4.MessageTypeInform {
				want = mapped(guestIP)
			}
			if got := Assigned(b); got != want {
				t.Errorf("assigns %v", got)
			}
			if a.MessageType() != tc.want || a.TransactionID != q.TransactionID {
				t.Fatalf("%v", a.Summary())
			}
			if !a.ServerIdentifier().Equal(ourIP) || !bytes.Equal(a.Options.Get(dhcpv4.OptionClientIdentifier), []byte{1, 2, 3}) {
				t.Errorf("server %v, client %x", a.ServerIdentifier(), a.Options.Get(dhcpv4.OptionClientIdentifier))
			}
			leases := tc.want != nak && tc.kind != dhcpv4.MessageTypeInform
			if got := a.YourIPAddr.Equal(guestIP); got != leases {
				t.Errorf("yiaddr %v", a.YourIPAddr)
			}
			if got := a.IPAddressLeaseTime(0) == (1<<32-1)*1e9; got != leases || a.Options.Has(dhcpv4.OptionIPAddressLeaseTime) != leases {
				t.Errorf("lease %v", a.IPAddressLeaseTime(0))
			}
			if got := a.Options.Has(dhcpv4.GenericOptionCode(80)); got != (tc.kind == discover && tc.want == ack) {
				t.Errorf("rapid commit: %v", got)
			}
			if tc.want == nak && (len(a.Options.Get(dhcpv4.OptionSubnetMask)) != 0 || a.Message() == "") {
				t.Errorf("refused with %v", a.Summary())
			}
		})
	}
}

func TestDestination(t *testing.T) {
	own := guestMAC.String()
	const all = "ff:ff:ff:ff:ff:ff"
	flag := dhcpv4.WithBroadcast(true)
	client := dhcpv4.WithClientIP
	other := dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(otherIP))
	for _, tc := range []struct {
		name     string
		src      net.IP
		q        *dhcpv4.DHCPv4
		mac, dst string
		ciaddr   string
	}{
		{"discover", net.IPv4zero, query(t, 1), own, "192.0.2.2", "0.0.0.0"},
		{"discover, broadcast flag", net.IPv4zero, query(t, 1, flag), all, "255.255.255.255", "0.0.0.0"},
		{"renew", guestIP, query(t, 3, client(guestIP)), own, "192.0.2.2", "192.0.2.2"},
		{"renew, broadcast flag", guestIP, query(t, 3, client(guestIP), flag), own, "192.0.2.2", "192.0.2.2"},
		{"refusal", net.IPv4zero, query(t, 3, other), all, "255.255.255.255", "0.0.0.0"},
		{"inform", otherIP, query(t, 8, client(otherIP)), own, "198.51.100.9", "198.51.100.9"},
		{"inform without ciaddr", otherIP, query(t, 8), own, "198.51.100.9", "0.0.0.0"},
		{"inform without any", net.IPv4zero, query(t, 8), all, "255.255.255.255", "0.0.0.0"},
		{"inform from a multicast address", otherIP, query(t, 8, client(net.IP{224, 0, 0, 1})), own, "198.51.100.9", "224.0.0.1"},
		{"BOOTP", net.IPv4zero, query(t, 0), own, "192.0.2.2", "0.0.0.0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := read(t, deliver(t, guest(), frame(t, tc.src, net.IPv4bcast, tc.q.ToBytes())))
			if a.eth.DstMAC.String() != tc.mac || a.eth.SrcMAC.String() != "9a:55:9a:55:9a:55" || a.ip.DstIP.String() != tc.dst {
				t.Errorf("to %v %v", a.eth.DstMAC, a.ip.DstIP)
			}
			if a.ClientIPAddr.String() != tc.ciaddr || a.IsBroadcast() != tc.q.IsBroadcast() || !a.GatewayIPAddr.Equal(net.IPv4zero) {
				t.Errorf("%v", a.Summary())
			}
		})
	}
}

func TestOff(t *testing.T) {
	q := query(t, dhcpv4.MessageTypeDiscover).ToBytes()
	for name, change := range map[string]func(*flow.Guest){
		"no DHCP":        func(g *flow.Guest) { g.Flags &^= ipc.FlagDHCP },
		"no IPv4":        func(g *flow.Guest) { g.Flags &^= ipc.FlagIPv4 },
		"no address":     func(g *flow.Guest) { g.Addr4 = [16]byte{} },
		"0.0.0.0":        func(g *flow.Guest) { g.Addr4 = mapped(net.IPv4zero) },
		"no own address": func(g *flow.Guest) { g.Our4 = [16]byte{} },
	} {
		g := guest()
		change(g)
		if b := exchange(t, g, q); len(b) != 0 {
			t.Errorf("%s: answered", name)
		}
	}
	var p packet.Packet
	var u packet.UDP
	if p.Decode(frame(t, net.IPv4zero, net.IPv4bcast, q)) != nil || u.Decode(p.Payload()) != nil {
		t.Fatal("not decoded")
	}
	out := make([]byte, MaxFrame)
	if Handle(guest(), &p, &u, out[:MaxFrame-1]) != 0 {
		t.Error("wrote to a buffer that is too small")
	}
	if u.DstPort = 68; Handle(guest(), &p, &u, out) != 0 {
		t.Error("answered what came to port 68")
	}
}

// Each row breaks a good message.
func TestMalformed(t *testing.T) {
	good := query(t, dhcpv4.MessageTypeDiscover).ToBytes()
	with := func(at int, v ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], v)
		return b
	}
	options := func(v ...byte) []byte { return append(bytes.Clone(good[:240]), v...) }
	for _, tc := range []struct {
		name    string
		message []byte
	}{
		{"empty", nil},
		{"cut in the fixed part", good[:235]},
		{"reply", with(0, 2)},
		{"no Ethernet", with(1, 6)},
		{"MAC address of 16 bytes", with(2, 16)},
		{"MAC address of no bytes", with(2, 0)},
		{"MAC address zero", with(28, 0, 0, 0, 0, 0, 0)},
		{"MAC address of a group", with(28, 1)},
		{"from a relay agent", with(24, 10, 0, 0, 1)},
		{"option without length", options(53)},
		{"option beyond the end", options(53, 2, 1)},
		{"second option beyond the end", options(53, 1, 1, 61, 255, 0)},
		{"type of no bytes", options(53, 0)},
		{"type of two bytes", options(53, 2, 1, 1)},
		{"two types", options(53, 1, 1, 53, 1, 3)},
		{"type zero", options(53, 1, 0)},
		{"requested address of three bytes", options(53, 1, 3, 50, 3, 1, 2, 3)},
		{"requested address of five bytes", options(53, 1, 3, 50, 5, 1, 2, 3, 4, 5)},
		{"server of no bytes", options(53, 1, 3, 54, 0)},
		{"maximum size of one byte", options(53, 1, 1, 57, 1, 2)},
		{"overload zero", options(53, 1, 1, 52, 1, 0)},
		{"overload four", options(53, 1, 1, 52, 1, 4)},
		{"overload of two bytes", options(53, 1, 1, 52, 2, 1, 1)},
		{"broken options in file", append(with(108, 53, 255)[:240], 53, 1, 1, 52, 1, 1)},
		{"broken options in sname", append(with(44, 53, 64)[:240], 53, 1, 1, 52, 1, 2)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if b := exchange(t, guest(), tc.message); len(b) != 0 {
				t.Errorf("answered: %v", read(t, b).Summary())
			}
		})
	}
	for _, m := range [][]byte{good, with(44, 0), options(53, 1, 1), options(0, 0, 53, 1, 1, 255, 61, 255)} {
		if read(t, exchange(t, guest(), m)).MessageType() != dhcpv4.MessageTypeOffer {
			t.Errorf("no offer to %x", m)
		}
	}
}

// Options in file and sname count, and parts of an option belong together
// (RFC 3396).
func TestOverloadAndParts(t *testing.T) {
	base := query(t, 0).ToBytes()[:240]
	build := func(options, file, sname []byte) []byte {
		b := append(bytes.Clone(base), options...)
		copy(b[108:], file)
		copy(b[44:], sname)
		return b
	}
	for _, tc := range []struct {
		name    string
		message []byte
		want    dhcpv4.MessageType
	}{
		{"in file", build([]byte{52, 1, 1, 53, 1, 3, 255}, []byte{50, 4, 192, 0, 2, 2, 255}, nil), dhcpv4.MessageTypeAck},
		{"in sname", build([]byte{52, 1, 2, 53, 1, 3, 255}, nil, []byte{50, 4, 198, 51, 100, 9, 255}), dhcpv4.MessageTypeNak},
		{"type in sname", build([]byte{52, 1, 3, 255}, nil, []byte{53, 1, 1, 255}), dhcpv4.MessageTypeOffer},
		{"file is not overloaded", build([]byte{52, 1, 2, 53, 1, 1, 255}, []byte{53, 255}, nil), dhcpv4.MessageTypeOffer},
		{"in parts", build([]byte{53, 1, 3, 50, 1, 192, 50, 2, 0, 2, 50, 0, 50, 1, 2, 255}, nil, nil), dhcpv4.MessageTypeAck},
		{"in parts, options then file then sname", build([]byte{52, 1, 3, 53, 1, 3, 50, 1, 192, 255},
			[]byte{50, 2, 0, 2, 255}, []byte{50, 1, 2, 255}), dhcpv4.MessageTypeAck},
		{"after the end", build([]byte{53, 1, 1, 255, 53, 1, 3}, nil, nil), dhcpv4.MessageTypeOffer},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := read(t, exchange(t, guest(), tc.message)).MessageType(); got != tc.want {
				t.Errorf("%v", got)
			}
		})
	}
}

func TestAllocs(t *testing.T) {
	g := guest()
	out := make([]byte, MaxFrame)
	discover := frame(t, net.IPv4zero, net.IPv4bcast, query(t, dhcpv4.MessageTypeDiscover).ToBytes())
	reboot := frame(t, net.IPv4zero, net.IPv4bcast,
		query(t, dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(otherIP))).ToBytes())
	var p packet.Packet
	var u packet.UDP
	n := testing.AllocsPerRun(100, func() {
		for _, f := range [...][]byte{discover, reboot} {
			if p.Decode(f) != nil || u.Decode(p.Payload()) != nil || Handle(g, &p, &u, out) == 0 {
				t.Fatal("no answer")
			}
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestLease: where the address may change, the lease ends, and is to be renewed long
// before. One that the host has lost is refused, one that the host has still goes on to be
// the guest's: when it is renewed, and after the link was away.
func TestLease(t *testing.T) {
	g := guest()
	g.Lease, g.Renew = 3600, 60
	g.Former4 = [ipc.MaxFormer][16]byte{packet.AddrFrom4([4]byte{192, 0, 2, 77}), packet.AddrFrom4([4]byte{192, 0, 2, 78})}
	g.Kept4 = 1 << 1
	a := read(t, exchange(t, g, query(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(guestIP)).ToBytes()))
	if a.IPAddressLeaseTime(0) != time.Hour || a.IPAddressRenewalTime(0) != time.Minute || a.IPAddressRebindingTime(0) != 3150*time.Second {
		t.Errorf("%v", a.Summary())
	}
	const none, offer, ack, nak = dhcpv4.MessageTypeNone, dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak
	other := net.IP{192, 0, 2, 78}
	for _, tt := range []struct {
		last             byte
		renew, reboot    dhcpv4.MessageType
		offered, renewed net.IP
	}{
		{77, nak, nak, guestIP, nil},
		{78, ack, ack, other, other},
		{79, none, nak, guestIP, nil},
	} {
		a := net.IP{192, 0, 2, tt.last}
		for _, q := range []struct {
			what  string
			m     *dhcpv4.DHCPv4
			want  dhcpv4.MessageType
			given net.IP
		}{
			{"renewing", query(t, dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(a)), tt.renew, tt.renewed},
			{"coming back", query(t, dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(a))), tt.reboot, tt.renewed},
			{"looking for", query(t, dhcpv4.MessageTypeDiscover, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(a))), offer, tt.offered},
		} {
			b := exchange(t, g, q.m.ToBytes())
			got, given := none, net.IP(nil)
			if len(b) > 0 {
				m := read(t, b)
				if got = m.MessageType(); got != nak {
					given = m.YourIPAddr
				}
			}
			if got != q.want || !given.Equal(q.given) {
				t.Errorf("%s %v: %v of %v, want %v of %v", q.what, a, got, given, q.want, q.given)
			}
		}
	}
}
