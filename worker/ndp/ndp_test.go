// SPDX-License-Identifier: Apache-2.0

package ndp

import (
	"bytes"
	"net"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

func TestNeighbour(t *testing.T) {
	const r, s, o = 0x80, 0x40, 0x20
	for _, tc := range []struct {
		name  string
		frame []byte
		flags uint8 // 0: no answer
	}{
		{"router", solicit(t, guestLL, ourLL, 255, slla()), r | s | o},
		{"router, global", solicit(t, guestIP, addr("2001:db8:0:1::1"), 255, slla()), r | s | o},
		{"resolver", solicit(t, guestLL, addr("fd00::53"), 255, slla()), r | s | o},
		{"remote host", solicit(t, guestIP, remote, 255, slla()), r | s},
		{"without option", solicit(t, guestIP, remote, 255), r | s},
		{"duplicate address detection", solicit(t, packet.Addr{}, remote, 255), 0},
		{"duplicate address detection of ours", solicit(t, packet.Addr{}, ourLL, 255), 0},
		{"assigned address", solicit(t, guestLL, guestIP, 255, slla()), 0},
		{"guest's own link-local", solicit(t, guestLL, guestLL, 255, slla()), 0},
		{"guest's SLAAC address", solicit(t, guestLL, addr("2001:db8:0:1:5054:ff:fe12:3456"), 255), 0},
		{"multicast target", solicit(t, guestLL, addr("ff02::1"), 255), 0},
		{"loopback target", solicit(t, guestLL, addr("::1"), 255), 0},
		{"mapped target", solicit(t, guestLL, addr("::ffff:192.0.2.1"), 255), 0},
		{"no target", solicit(t, guestLL, packet.Addr{}, 255), 0},
		{"multicast source", solicit(t, addr("ff02::1"), ourLL, 255), 0},
		{"hop limit 254", solicit(t, guestLL, ourLL, 254, slla()), 0},
		{"hop limit 1", solicit(t, guestLL, ourLL, 1, slla()), 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reply := handle(t, guest(), tc.frame)
			if tc.flags == 0 {
				if len(reply) != 0 {
					t.Fatalf("answered: %x", reply)
				}
				return
			}
			eth, ip, p := parse(t, reply)
			na := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
			if na.Flags != tc.flags || !bytes.Equal(na.TargetAddress, tc.frame[62:78]) {
				t.Errorf("flags %#x of %v", na.Flags, na.TargetAddress)
			}
			if len(na.Options) != 1 || na.Options[0].Type != layers.ICMPv6OptTargetAddress ||
				!bytes.Equal(na.Options[0].Data, ourMAC[:]) {
				t.Errorf("options %v", na.Options)
			}
			if !bytes.Equal(eth.DstMAC, guestMAC[:]) || !bytes.Equal(eth.SrcMAC, ourMAC[:]) ||
				!bytes.Equal(ip.DstIP, tc.frame[22:38]) || !bytes.Equal(ip.SrcIP, ourLL[:]) {
				t.Errorf("from %v %v to %v %v", eth.SrcMAC, ip.SrcIP, eth.DstMAC, ip.DstIP)
			}
		})
	}
}

// Each row breaks one rule of RFC 4861 section 6.1.1 or 7.1.1, or of RFC 6980.
func TestMalformed(t *testing.T) {
	ns := solicit(t, guestLL, ourLL, 255, slla())
	rs := routerSolicit(t, guestLL, 255, slla())
	for _, tc := range []struct {
		name string
		make func() []byte
	}{
		{"checksum of NS", func() []byte { return flip(ns, 57) }},
		{"checksum of RS", func() []byte { return flip(rs, 57) }},
		{"code of NS", func() []byte { return resum(flip(ns, 55)) }},
		{"code of RS", func() []byte { return resum(flip(rs, 55)) }},
		{"short NS", func() []byte { return cut(ns, 54+23) }},
		{"NS of four bytes", func() []byte { return cut(ns, 54+4) }},
		{"short RS", func() []byte { return cut(rs, 54+7) }},
		{"NS option of length zero", func() []byte { return set(ns, 79, 0) }},
		{"RS option of length zero", func() []byte { return set(rs, 63, 0) }},
		{"NS option beyond the end", func() []byte { return set(ns, 79, 2) }},
		{"RS option beyond the end", func() []byte { return set(rs, 63, 255) }},
		{"NS option of one byte", func() []byte { return cut(ns, 79) }},
		{"RS without source, with MAC address", func() []byte { return routerSolicit(t, packet.Addr{}, 255, slla()) }},
		{"RS with hop limit 64", func() []byte { return routerSolicit(t, guestLL, 64, slla()) }},
		{"RA", func() []byte { return resum(set(rs, 54, 134)) }},
		{"NA", func() []byte { return resum(set(ns, 54, 136)) }},
		{"redirect", func() []byte { return resum(set(ns, 54, 137)) }},
		{"echo request", func() []byte { return resum(set(ns, 54, 128)) }},
		{"fragment header", func() []byte { return fragment(ns) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if r := handle(t, guest(), tc.make()); len(r) != 0 {
				t.Errorf("answered: %x", r)
			}
		})
	}
	for _, frame := range [][]byte{ns, rs, resum(ns), cut(ns, len(ns))} {
		if len(handle(t, guest(), frame)) == 0 {
			t.Errorf("the frame before it was broken gets no answer: %x", frame)
		}
	}
}

// Destination options before the message are no reason not to answer.
func TestExtensionHeader(t *testing.T) {
	ns := solicit(t, guestLL, ourLL, 255, slla())
	f := append(bytes.Clone(ns[:54]), 58, 0, 1, 4, 0, 0, 0, 0)
	f = append(f, ns[54:]...)
	f[20] = 60
	f[19] += 8
	if len(handle(t, guest(), f)) == 0 {
		t.Error("no answer")
	}
}

func flip(frame []byte, at int) []byte {
	f := bytes.Clone(frame)
	f[at] ^= 1
	return f
}

func set(frame []byte, at int, v byte) []byte {
	f := bytes.Clone(frame)
	f[at] = v
	return resum(f)
}

func cut(frame []byte, n int) []byte {
	f := bytes.Clone(frame[:n])
	f[18], f[19] = 0, uint8(n-54)
	return resum(f)
}

// resum puts a right checksum in, so that a row fails for its own reason.
func resum(frame []byte) []byte {
	f := bytes.Clone(frame)
	if len(f) < 58 {
		return f
	}
	f[56], f[57] = 0, 0
	ip := &layers.IPv6{SrcIP: net.IP(f[22:38]), DstIP: net.IP(f[38:54])}
	b := f[54:]
	if len(b)%2 != 0 {
		b = append(bytes.Clone(b), 0)
	}
	s := ^uint16(sum(ip, b) - uint32(len(b)-len(f[54:]))) // padding is not in the length
	f[56], f[57] = uint8(s>>8), uint8(s)
	return f
}

// fragment puts the message behind a fragment header that holds all of it.
func fragment(frame []byte) []byte {
	f := append(bytes.Clone(frame[:54]), 58, 0, 0, 0, 0, 0, 0, 1)
	f = append(f, frame[54:]...)
	f[20] = 44
	f[19] += 8
	return f
}

func TestSolicit(t *testing.T) {
	out := bytes.Repeat([]byte{0xee}, MaxFrame)
	eth, ip, p := parse(t, out[:Solicit(guest(), out)])
	ns := p.Layer(layers.LayerTypeICMPv6NeighborSolicitation).(*layers.ICMPv6NeighborSolicitation)
	if !bytes.Equal(ns.TargetAddress, guestIP[:]) || len(ns.Options) != 1 ||
		ns.Options[0].Type != layers.ICMPv6OptSourceAddress || !bytes.Equal(ns.Options[0].Data, ourMAC[:]) {
		t.Errorf("target %v, options %v", ns.TargetAddress, ns.Options)
	}
	if ip.DstIP.String() != "ff02::1:ff00:5" || eth.DstMAC.String() != "33:33:ff:00:00:05" || !bytes.Equal(ip.SrcIP, ourLL[:]) {
		t.Errorf("from %v to %v %v", ip.SrcIP, ip.DstIP, eth.DstMAC)
	}
	for name, change := range map[string]func(*flow.Guest){
		"no address":     func(g *flow.Guest) { g.Addr6 = [16]byte{} },
		"no own address": func(g *flow.Guest) { g.OurLL6 = [16]byte{} },
		"no NDP":         func(g *flow.Guest) { g.Flags &^= ipc.FlagNDP },
		"no IPv6":        func(g *flow.Guest) { g.Flags &^= ipc.FlagIPv6 },
	} {
		g := guest()
		change(g)
		if Solicit(g, out) != 0 {
			t.Errorf("%s: wrote a frame", name)
		}
	}
	if Solicit(guest(), out[:MaxFrame-1]) != 0 {
		t.Error("wrote to a buffer that is too small")
	}
}

func TestOff(t *testing.T) {
	ns, rs := solicit(t, guestLL, ourLL, 255), routerSolicit(t, guestLL, 255)
	for _, tc := range []struct {
		flag   uint64
		ns, rs bool
	}{
		{ipc.FlagIPv6, false, false}, {ipc.FlagNDP, false, true}, {ipc.FlagRA, true, false}, {ipc.FlagDHCPv6, true, true},
	} {
		g := guest()
		g.Flags &^= tc.flag
		if ns, rs := len(handle(t, g, ns)) != 0, len(handle(t, g, rs)) != 0; ns != tc.ns || rs != tc.rs {
			t.Errorf("without flag %#x: NS %v, RS %v", tc.flag, ns, rs)
		}
	}
	_, ip, _ := parse(t, handle(t, withoutLL(), solicit(t, guestIP, remote, 255)))
	if !bytes.Equal(ip.SrcIP, remote[:]) {
		t.Errorf("without a link-local address, answered from %v", ip.SrcIP)
	}
}

func TestAllocs(t *testing.T) {
	g := guest()
	ns, rs := solicit(t, guestLL, ourLL, 255, slla()), routerSolicit(t, guestLL, 255, slla())
	out := make([]byte, MaxFrame)
	var p packet.Packet
	n := testing.AllocsPerRun(100, func() {
		if p.Decode(ns) != nil || Handle(g, &p, out) == 0 || p.Decode(rs) != nil || Handle(g, &p, out) == 0 ||
			Advertise(g, out) == 0 || Solicit(g, out) == 0 || Next(g, 1) == 0 {
			t.Fatal("no frame")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
