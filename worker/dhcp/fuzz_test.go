// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"bytes"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"aldente/fuzz"
	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// takeGuest makes a guest of some configuration; names are as they come.
func takeGuest(s *fuzz.Source) *flow.Guest {
	g := guest()
	off := s.Byte()
	if off&1 != 0 {
		g.Flags &^= ipc.FlagDHCP
	}
	if off&2 != 0 {
		g.Our4 = mapped(otherIP) // not on the guest's subnet
	}
	if off&4 != 0 {
		g.Hostname.Len, g.FQDN.Len = 0, 0
	}
	if off&8 != 0 {
		g.Addr4 = [16]byte{}
	}
	g.MTU = s.Uint16()
	g.Prefix4 = s.Byte() % (ipc.MaxPrefix4 + 1)
	g.NDNS4 = s.Byte() % (ipc.MaxDNS + 1)
	if off&0x10 != 0 {
		setName(&g.FQDN, string(s.Block()))
	}
	g.NSearch = s.Byte() % (ipc.MaxSearch + 1)
	for i := range int(g.NSearch) {
		setName(&g.Search[i], string(s.Block()))
	}
	if off&0x20 != 0 { // it had another address before
		g.Former4[1], g.Kept4 = mapped(otherIP), off>>6&1<<1
	}
	return g
}

// plain is a configuration with three search domains, for seeds.
var plain = []byte{0, 5, 0xdc, 24, 2, 3, 6, 'a', 'b', 'c', '.', 'd', 'e', 8, 'x', '.', 'a', 'b', 'c', '.', 'd', 'e',
	10, 'y', '.', 'x', '.', 'a', 'b', 'c', '.', 'd', 'e'}

// build is a message with options wherever they may be.
func build(t testing.TB, options, file, sname []byte) []byte {
	b := query(t, 0).ToBytes()[:fixedSize+cookieSize]
	copy(b[fileStart:fixedSize], file)
	copy(b[snameStart:fileStart], sname)
	return append(b, options...)
}

// FuzzDHCP feeds any message to any configuration; with bits of the first byte,
// its fixed part or its options have been put right. The type of the answer is
// what RFC 2131 wants for the message as insomniacslk/dhcp reads it; the answer
// is one that it reads, in a frame that the link and the client take, with
// options that say what is configured, and without an allocation.
func FuzzDHCP(f *testing.F) {
	for _, frame := range fuzz.Captured("udhcpc", "dhclient4") {
		if m := fuzz.Datagram(frame, 67); m != nil {
			fuzz.Add(f, slices.Concat([]byte{fuzz.CountAllocations}, plain, m))
		}
	}
	requested := dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(otherIP))
	all := []byte{1, 3, 6, 12, 15, 26, 51, 54, 81, 119, 121, 200}
	messages := [][]byte{
		query(f, 1).ToBytes(), query(f, 1, raw(80), dhcpv4.WithBroadcast(true)).ToBytes(), query(f, 0).ToBytes(),
		query(f, 3, dhcpv4.WithClientIP(guestIP)).ToBytes(), query(f, 3, requested).ToBytes(), query(f, 3).ToBytes(),
		query(f, 3, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ourIP))).ToBytes(),
		query(f, 3, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(otherIP)), requested).ToBytes(),
		query(f, 3, dhcpv4.WithClientIP(otherIP)).ToBytes(), query(f, 4).ToBytes(),
		query(f, 8, raw(57, 5, 220), raw(55, all...), raw(81, 1, 0, 0), raw(61, 1, 2, 3)).ToBytes(),
		query(f, 8, dhcpv4.WithClientIP(otherIP), raw(81, 4, 0, 0, 0)).ToBytes(),
		build(f, []byte{52, 1, 3, 53, 1, 3, 50, 1, 192, 255}, []byte{50, 2, 0, 2, 255}, []byte{50, 1, 2, 255}),
		build(f, []byte{52, 1, 4, 255}, nil, nil), build(f, []byte{53, 200, 1}, nil, nil), build(f, []byte{53}, nil, nil), build(f, []byte{53, 0, 255}, nil, nil), build(f, []byte{50, 3, 1, 2, 3, 255}, nil, nil),
		build(f, []byte{54, 3, 1, 2, 3}, nil, nil), build(f, []byte{53, 1, 1, 57, 1, 1}, nil, nil), build(f, []byte{53, 1, 1, 52, 1, 2}, nil, []byte{9}),
		query(f, 0).ToBytes()[:236], append(query(f, 0).ToBytes()[:236], make([]byte, 64)...),
	}
	messages = append(messages, query(f, 3, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IP{10, 0, 2, 2}))).ToBytes())
	relayed := query(f, 1).ToBytes()
	relayed[24] = 1
	noMAC := query(f, 1).ToBytes()
	clear(noMAC[28:34])
	messages = append(messages, relayed, noMAC)
	for _, m := range messages {
		fuzz.Add(f, slices.Concat([]byte{fuzz.CountAllocations}, plain, m))
		fuzz.Add(f, slices.Concat([]byte{8, 2, 0, 0, 0, 0, 0}, m))
	}
	long := strings.Repeat(strings.Repeat("a", 49)+".", 5)
	for _, names := range [][]string{{long, "b." + long, "c", long[1:], "d", "e"}, {"a..b", ".", "", "a.", strings.Repeat("x", 64)}} {
		config := []byte{0x10, 2, 100, 0, 1, byte(len(long))}
		config = append(append(config, long...), byte(len(names)))
		for _, n := range names {
			config = append(append(config, byte(len(n))), n...)
		}
		fuzz.Add(f, slices.Concat([]byte{0}, config, query(f, 1, raw(55, 119), raw(57, 255, 255)).ToBytes()))
		fuzz.Add(f, slices.Concat([]byte{0}, config, query(f, 1, raw(81, 5, 0, 0)).ToBytes()))
	}
	// Identifiers of all lengths, so that some answers are full to the last byte.
	full := []byte{0, 0, 0, 24, 2, 6}
	for c := range byte(6) {
		full = append(append(full, 40), bytes.Repeat([]byte{'a' + c}, 40)...)
	}
	for n := range 60 {
		fuzz.Add(f, slices.Concat([]byte{0}, full, query(f, 1, raw(57, 2, 88), raw(61, make([]byte, 20+n)...)).ToBytes()))
	}
	for off := range byte(4) {
		fuzz.Add(f, slices.Concat([]byte{0}, []byte{1 << off}, plain[1:], query(f, 1).ToBytes()))
	}
	for _, m := range [][]byte{query(f, 3, requested).ToBytes(), query(f, 3, dhcpv4.WithClientIP(otherIP)).ToBytes(), query(f, 1, requested).ToBytes()} {
		fuzz.Add(f, slices.Concat([]byte{fuzz.CountAllocations, 0x20}, plain[1:], m))
		fuzz.Add(f, slices.Concat([]byte{fuzz.CountAllocations, 0x60}, plain[1:], m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &fuzz.Source{B: b}
		repair := s.Byte()
		g := takeGuest(s)
		message := bytes.Clone(s.Take(4000))
		repairMessage(message, repair)
		var p packet.Packet
		var u packet.UDP
		src := net.IPv4zero
		if repair&8 != 0 {
			src = guestIP
		}
		if p.Decode(frame(t, src, net.IPv4bcast, message)) != nil || u.Decode(p.Payload()) != nil {
			t.Fatal("the frame cannot be read")
		}
		before := *g
		out := bytes.Repeat([]byte{0xee}, MaxFrame)
		n := Handle(g, &p, &u, out)
		if *g != before {
			t.Fatal("the guest's record was changed")
		}
		if fuzz.CountsAllocations(repair) {
			if fuzz.Allocates(func() { Handle(g, &p, &u, out) }) {
				t.Fatal("allocates")
			}
		}
		q, readable := oracle(message)
		if readable {
			if want, sure := expected(g, q); sure && (n != 0) != (want != noAnswer) {
				t.Fatalf("answer of %d bytes to %v, expected type %d", n, q.Summary(), want)
			}
		}
		if n != 0 {
			checkReply(t, g, message, q, out[:n])
		}
	})
}

// repairMessage makes a request of a client on Ethernet of the fixed part, or a
// list of options of what follows.
func repairMessage(b []byte, what byte) {
	if what&1 != 0 && len(b) >= fixedSize+cookieSize {
		b[0], b[1], b[2] = 1, 1, 6
		clear(b[24:28])
		b[28] = b[28]&^1 | 2
		copy(b[fixedSize:], magicCookie[:])
	}
	f := fuzz.TLV{Head: 2, LenAt: 1, Single: func(c byte) bool { return c == 0 || c == 255 }}
	if what&2 != 0 && len(b) > fixedSize+cookieSize {
		fuzz.FixTLV(b[fixedSize+cookieSize:], f)
	}
	if what&4 != 0 && len(b) >= fixedSize {
		fuzz.FixTLV(b[fileStart:fixedSize], f)
		fuzz.FixTLV(b[snameStart:fileStart], f)
	}
}

// oracle reads a message that insomniacslk/dhcp can judge: it knows nothing of
// options in the fields for names, and wants an end of the options.
func oracle(message []byte) (*dhcpv4.DHCPv4, bool) {
	m, err := dhcpv4.FromBytes(message)
	if err != nil || m.Options.Has(dhcpv4.OptionOptionOverload) {
		return nil, false
	}
	return m, true
}

const noAnswer = dhcpv4.MessageType(255)

// expected is the answer that RFC 2131 wants; none, if nothing is to be said.
// It is not sure of a message with an option of a wrong length.
func expected(g *flow.Guest, m *dhcpv4.DHCPv4) (kind dhcpv4.MessageType, sure bool) {
	for code, n := range map[dhcpv4.OptionCode]int{dhcpv4.OptionDHCPMessageType: 1, dhcpv4.OptionRequestedIPAddress: 4,
		dhcpv4.OptionServerIdentifier: 4, dhcpv4.OptionMaximumDHCPMessageSize: 2} {
		if m.Options.Has(code) && len(m.Options.Get(code)) != n {
			return noAnswer, false
		}
	}
	mac := m.ClientHWAddr
	if g.Flags&ipc.FlagDHCP == 0 || g.Addr4 == [16]byte{} || m.OpCode != dhcpv4.OpcodeBootRequest || m.HWType != 1 || len(mac) != 6 ||
		mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6)) || !m.GatewayIPAddr.IsUnspecified() {
		return noAnswer, true
	}
	ours := net.IP(g.Our4[12:])
	// What it had before, and whether it may keep it.
	former := g.Former4[1] != [16]byte{} && (m.ClientIPAddr.Equal(otherIP) || m.RequestedIPAddress().Equal(otherIP))
	keeps := former && g.Kept4 != 0
	own := guestIP
	if keeps {
		own = otherIP
	}
	given, server := m.RequestedIPAddress(), m.ServerIdentifier()
	switch {
	case !m.Options.Has(dhcpv4.OptionDHCPMessageType), m.MessageType() == dhcpv4.MessageTypeInform:
		return dhcpv4.MessageTypeAck, m.MessageType() != 0 || !m.Options.Has(dhcpv4.OptionDHCPMessageType)
	case m.MessageType() == dhcpv4.MessageTypeDiscover:
		if m.Options.Has(dhcpv4.GenericOptionCode(80)) {
			return dhcpv4.MessageTypeAck, true
		}
		return dhcpv4.MessageTypeOffer, true
	case m.MessageType() != dhcpv4.MessageTypeRequest, server != nil && !server.Equal(ours):
		return noAnswer, true
	case given == nil && server != nil && m.ClientIPAddr.IsUnspecified():
		return dhcpv4.MessageTypeAck, true
	case given != nil && !given.Equal(own):
		return dhcpv4.MessageTypeNak, true
	case given != nil, m.ClientIPAddr.Equal(own):
		return dhcpv4.MessageTypeAck, true
	case former && !keeps:
		return dhcpv4.MessageTypeNak, true
	}
	return noAnswer, true
}

// checkReply verifies a reply; q is the request if the oracle could read it.
func checkReply(t *testing.T, g *flow.Guest, message []byte, q *dhcpv4.DHCPv4, frame []byte) {
	t.Helper()
	if err := fuzz.CheckFrame(frame); err != nil {
		t.Fatalf("%v\n%x", err, frame)
	}
	reply := fuzz.Datagram(frame, 67)
	if reply[0] != 2 || !bytes.Equal(reply[4:8], message[4:8]) || !bytes.Equal(reply[28:34], message[28:34]) || len(reply) < minMessage {
		t.Fatalf("%x answers %x", reply, message)
	}
	if len(frame) > max(min(g.LinkMTU(), 1500), minMessage+28)+packet.EthernetLen {
		t.Fatalf("frame of %d bytes at MTU %d", len(frame), g.MTU)
	}
	cookie := bytes.HasPrefix(message[fixedSize:], magicCookie[:])
	if !cookie {
		if !bytes.Equal(reply[fixedSize:], make([]byte, len(reply)-fixedSize)) {
			t.Fatalf("options for a client without: %x", reply[fixedSize:])
		}
		return
	}
	a, err := dhcpv4.FromBytes(reply)
	if err != nil {
		t.Fatalf("%v in %x", err, reply)
	}
	checkOptions(t, g, a)
	if q == nil {
		return
	}
	if want, sure := expected(g, q); sure && (a.MessageType() != want && q.Options.Has(dhcpv4.OptionDHCPMessageType)) {
		t.Fatalf("answer %v to %v, want %v", a.MessageType(), q.Summary(), want)
	}
	limit := 576
	if v := q.Options.Get(dhcpv4.OptionMaximumDHCPMessageSize); len(v) == 2 {
		limit = max(limit, int(v[0])<<8|int(v[1]))
	}
	if len(reply)+28 > max(limit, minMessage+28) {
		t.Fatalf("message of %d bytes for a client that takes %d", len(reply), limit)
	}
	if id := q.Options.Get(dhcpv4.OptionClientIdentifier); len(id) > 0 && len(id) <= 255 && a.MessageType() != 0 &&
		!bytes.Equal(a.Options.Get(dhcpv4.OptionClientIdentifier), id) && len(reply)+len(id)+2 < min(limit, g.LinkMTU(), 1500)-28 {
		t.Fatalf("client identifier %x", a.Options.Get(dhcpv4.OptionClientIdentifier))
	}
}

// checkOptions compares options with the configuration.
func checkOptions(t *testing.T, g *flow.Guest, a *dhcpv4.DHCPv4) {
	t.Helper()
	if v := a.Options.Get(dhcpv4.OptionDomainNameServer); v != nil && len(v) != 4*int(g.NDNS4) {
		t.Fatalf("resolvers %x", v)
	}
	if v := a.SubnetMask(); v != nil {
		if ones, bits := v.Size(); bits != 32 || ones != int(g.Prefix4) {
			t.Fatalf("mask %v for /%d", v, g.Prefix4)
		}
	}
	if v := a.Options.Get(dhcpv4.OptionInterfaceMTU); v != nil && (g.MTU < 68 || int(v[0])<<8|int(v[1]) != int(g.MTU)) {
		t.Fatalf("MTU %x, configured %d", v, g.MTU)
	}
	if a.Options.Has(dhcpv4.OptionHostName) && a.HostName() != g.Hostname.String() {
		t.Fatalf("host name %q", a.HostName())
	}
	v := a.Options.Get(dhcpv4.OptionDNSDomainSearchList)
	if v == nil {
		return
	}
	names := decodeNames(t, v)
	var want []string
	for i := range int(g.NSearch) {
		if n := strings.TrimSuffix(g.Search[i].String(), "."); validName(n) {
			want = append(want, n)
		}
	}
	if len(names) > len(want) || !slices.Equal(names, want[:len(names)]) || len(names) == 0 {
		t.Fatalf("search list %q of %q", names, want)
	}
}

// validName is RFC 1035 section 2.3.4.
func validName(n string) bool {
	for label := range strings.SplitSeq(n, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
	}
	return len(n) <= 253
}

// decodeNames reads names with pointers, which have to lead backwards, RFC 1035
// section 4.1.4.
func decodeNames(t *testing.T, b []byte) (names []string) {
	t.Helper()
	for at := 0; at < len(b); {
		var labels []string
		next := -1 // where the next name starts, once a pointer was followed
		for i := at; ; {
			n := int(b[i])
			if n == 0 {
				if next < 0 {
					next = i + 1
				}
				break
			}
			if n >= 0xc0 {
				to := n&0x3f<<8 | int(b[i+1])
				if next < 0 {
					next = i + 2
				}
				if to >= i {
					t.Fatalf("pointer at %d to %d in %x", i, to, b)
				}
				i = to
				continue
			}
			if n > 63 {
				t.Fatalf("label of %d bytes in %x", n, b)
			}
			labels = append(labels, string(b[i+1:i+1+n]))
			i += 1 + n
		}
		names = append(names, strings.Join(labels, "."))
		at = next
	}
	return names
}
