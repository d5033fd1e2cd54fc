// SPDX-License-Identifier: Apache-2.0

package dhcpv6

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	dhcp "github.com/insomniacslk/dhcp/dhcpv6"

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
		g.Flags &^= ipc.FlagDHCPv6
	}
	if off&2 != 0 {
		g.Addr6 = [16]byte{}
	}
	if off&4 != 0 {
		g.FQDN.Len = 0
	}
	if off&8 != 0 {
		g.OurLL6 = [16]byte{}
	}
	g.MTU = s.Uint16()
	g.NDNS6 = s.Byte() % (ipc.MaxDNS + 1)
	if off&0x10 != 0 {
		setName(&g.FQDN, string(s.Block()))
	}
	g.NSearch = s.Byte() % (ipc.MaxSearch + 1)
	for i := range int(g.NSearch) {
		setName(&g.Search[i], string(s.Block()))
	}
	return g
}

// plain is a configuration with two search domains, for seeds.
var plain = []byte{0, 5, 0xdc, 2, 2, 6, 'a', 'b', 'c', '.', 'd', 'e', 8, 'x', '.', 'a', 'b', 'c', '.', 'd', 'e'}

// Bits of the first byte of an input.
const (
	fuzzTLV     = 1 // put the lengths of options right
	fuzzInner   = 2 // those inside identity associations too
	fuzzServer  = 4 // put our identifier where the server's is
	fuzzUnicast = 8 // to our own address
)

// FuzzDHCPv6 feeds any message to any configuration. The type of the answer is
// what a plain reading of RFC 8415 wants; the answer is one that
// insomniacslk/dhcp reads, in a frame that the link carries, with what is
// configured, and without an allocation.
func FuzzDHCPv6(f *testing.F) {
	for _, frame := range fuzz.Captured("dhclient6") {
		if m := fuzz.Datagram(frame, 547); m != nil {
			fuzz.Add(f, slices.Concat([]byte{fuzz.CountAllocations}, plain, m))
		}
	}
	long := &dhcp.DUIDEN{EnterpriseNumber: 1, EnterpriseIdentifier: make([]byte, 124)}
	messages := [][]byte{
		query(f, dhcp.MessageTypeSolicit, client(), na(1), pd(2), ta(3)).ToBytes(),
		query(f, dhcp.MessageTypeSolicit, client(), generic(14), na(1)).ToBytes(),
		query(f, dhcp.MessageTypeSolicit, client(), generic(14)).ToBytes(),
		query(f, dhcp.MessageTypeRequest, client(), server(), na(1, guestIP), na(2, otherIP)).ToBytes(),
		query(f, dhcp.MessageTypeRequest, client(), server(), ta(1, addr("2001:db8:9::1")), pd(9)).ToBytes(),
		query(f, dhcp.MessageTypeRequest, client(), dhcp.OptServerID(otherID), na(1)).ToBytes(),
		query(f, dhcp.MessageTypeRenew, client(), server(), na(1, otherIP, guestIP), ta(4), pd(5), generic(39, 1)).ToBytes(),
		query(f, dhcp.MessageTypeRebind, client(), na(1, otherIP), na(2), generic(6, 0, 39)).ToBytes(),
		query(f, dhcp.MessageTypeConfirm, client(), na(1, otherIP)).ToBytes(),
		query(f, dhcp.MessageTypeConfirm, client(), na(1, addr("2001:db8:9::1")), na(2, guestIP)).ToBytes(),
		query(f, dhcp.MessageTypeConfirm, client()).ToBytes(),
		query(f, dhcp.MessageTypeRelease, client(), server(), na(1), ta(2), pd(3)).ToBytes(),
		query(f, dhcp.MessageTypeDecline, client(), server(), na(1, guestIP)).ToBytes(),
		query(f, dhcp.MessageTypeInformationRequest).ToBytes(),
		query(f, dhcp.MessageTypeInformationRequest, na(1)).ToBytes(),
		query(f, dhcp.MessageTypeSolicit, dhcp.OptClientID(long), na(1)).ToBytes(),
		query(f, dhcp.MessageTypeReply, client()).ToBytes(),
		query(f, dhcp.MessageTypeSolicit, client(), client()).ToBytes(),
		query(f, dhcp.MessageTypeRequest, client(), server(), server()).ToBytes(),
		query(f, dhcp.MessageTypeSolicit, generic(1, 0, 1)).ToBytes(),
		query(f, dhcp.MessageTypeSolicit, client(), generic(39)).ToBytes(),
		query(f, dhcp.MessageTypeSolicit, client(), generic(6, 1)).ToBytes(),
		query(f, dhcp.MessageTypeSolicit, client(), generic(3, 1)).ToBytes(),
		query(f, dhcp.MessageTypeSolicit, client(), generic(4, 1)).ToBytes(),
		query(f, dhcp.MessageTypeSolicit, client(), generic(4, 1, 2, 3, 4, 0, 5, 0, 1, 0)).ToBytes(),
		{1}, append(query(f, dhcp.MessageTypeSolicit, client()).ToBytes(), 0, 3, 9, 9, 0),
	}
	many := query(f, dhcp.MessageTypeRenew, client(), server())
	for i := range byte(60) {
		many.AddOption(na(i, otherIP))
	}
	messages = append(messages, many.ToBytes())
	for _, m := range messages {
		fuzz.Add(f, slices.Concat([]byte{fuzz.CountAllocations}, plain, m))
		fuzz.Add(f, slices.Concat([]byte{fuzzUnicast}, plain, m))
		fuzz.Add(f, slices.Concat([]byte{fuzzTLV | fuzzServer, 2, 4, 0, 0, 0}, m))
	}
	label := strings.Repeat(strings.Repeat("a", 49)+".", 5)
	config := []byte{0x10, 2, 100, 0, 6, 'a', '.', 'b', '.', 'c', '.', 6}
	for _, n := range []string{label, "b", label, label, label[1:], label[1:]} {
		config = append(append(config, byte(len(n))), n...)
	}
	fuzz.Add(f, slices.Concat([]byte{0}, config, messages[6]))
	// Identifiers of all lengths, so that some answers are full to the last byte.
	for n := range 44 {
		id := &dhcp.DUIDEN{EnterpriseNumber: 1, EnterpriseIdentifier: make([]byte, n)}
		m := query(f, dhcp.MessageTypeRenew, dhcp.OptClientID(id), server())
		for i := range byte(90) {
			m.AddOption(na(i))
		}
		fuzz.Add(f, slices.Concat([]byte{0}, plain, m.ToBytes()))
	}
	for off := range byte(4) {
		fuzz.Add(f, slices.Concat([]byte{0, 1 << off}, plain[1:], messages[0]))
		fuzz.Add(f, slices.Concat([]byte{0, 1 << off}, plain[1:], messages[8]))
		fuzz.Add(f, slices.Concat([]byte{0, 0x10, 5, 0, 2, 3, 'a', '.', '.', 0}, messages[6]))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &fuzz.Source{B: b}
		mode := s.Byte()
		g := takeGuest(s)
		message := bytes.Clone(s.Take(4000))
		repairMessage(g, message, mode)
		dst := servers
		if mode&fuzzUnicast != 0 {
			dst = ourLL
		}
		var p packet.Packet
		var u packet.UDP
		if p.Decode(frame(guestLL, dst, message)) != nil || u.Decode(p.Payload()) != nil {
			t.Fatal("the frame cannot be read")
		}
		before := *g
		out := bytes.Repeat([]byte{0xee}, MaxFrame)
		n := Handle(g, &p, &u, out)
		if *g != before {
			t.Fatal("the guest's record was changed")
		}
		if fuzz.CountsAllocations(mode) {
			if fuzz.Allocates(func() { Handle(g, &p, &u, out) }) {
				t.Fatal("allocates")
			}
		}
		m := plainly(message)
		want := uint8(0)
		if m != nil && g.Flags&ipc.FlagDHCPv6 != 0 && g.OurLL6 != [16]byte{} {
			want = m.expected(g, dst == servers)
		}
		if (n != 0) != (want != 0) || n != 0 && out[headers] != want {
			t.Fatalf("answer of %d bytes %x, expected type %d\n%x", n, out[:n], want, message)
		}
		if n != 0 {
			checkReply(t, g, m, out[:n])
		}
	})
}

func repairMessage(g *flow.Guest, b []byte, mode byte) {
	tlv := fuzz.TLV{Head: 4, LenAt: 2, Wide: true}
	if len(b) < 4 || mode&(fuzzTLV|fuzzInner|fuzzServer) == 0 {
		return
	}
	fuzz.FixTLV(b[4:], tlv)
	for o := (options{rest: b[4:]}); o.next(); {
		if duid := serverDUID(g); mode&fuzzServer != 0 && o.code == 2 {
			copy(o.value, duid[:])
		}
		if size := map[uint16]int{3: 12, 4: 4, 25: 12}[o.code]; mode&fuzzInner != 0 && size != 0 && len(o.value) > size {
			fuzz.FixTLV(o.value[size:], tlv)
		}
	}
}

// tlv is one option as it is read plainly.
type tlv struct {
	code  int
	value []byte
	inner []tlv
}

// split reads options; false if they do not fill b.
func split(b []byte) (all []tlv, ok bool) {
	for len(b) >= 4 {
		n := int(binary.BigEndian.Uint16(b[2:]))
		if 4+n > len(b) {
			return nil, false
		}
		all = append(all, tlv{code: int(binary.BigEndian.Uint16(b)), value: b[4 : 4+n]})
		b = b[4+n:]
	}
	return all, len(b) == 0
}

// message is a client's message as it is read plainly.
type message struct {
	kind           byte
	options        []tlv
	client, server []byte
}

// plainly reads a message as RFC 8415 has it, and the limits that section 11.1
// sets; nil if it is malformed.
func plainly(b []byte) *message {
	if len(b) < 4 {
		return nil
	}
	all, ok := split(b[4:])
	m := &message{kind: b[0], options: all}
	for i := range all {
		o := &all[i]
		switch n := len(o.value); o.code {
		case 1, 2:
			id := map[int]*[]byte{1: &m.client, 2: &m.server}[o.code]
			ok = ok && *id == nil && n >= 3 && n <= 130
			*id = o.value
		case 3, 25, 4:
			size := map[int]int{3: 12, 25: 12, 4: 4}[o.code]
			if n < size {
				return nil
			}
			inner, fine := split(o.value[size:])
			for _, a := range inner {
				fine = fine && (a.code != 5 || len(a.value) >= 24)
			}
			o.inner = inner
			ok = ok && fine
		case 39:
			ok = ok && n > 0
		case 6:
			ok = ok && n%2 == 0
		}
	}
	if !ok {
		return nil
	}
	return m
}

func (m *message) count(codes ...int) (n int) {
	for _, o := range m.options {
		if slices.Contains(codes, o.code) {
			n++
		}
	}
	return n
}

// expected is the type of the answer that sections 16 and 18.3 want; 0 for none.
func (m *message) expected(g *flow.Guest, multicast bool) uint8 {
	duid := serverDUID(g)
	named, ours := m.server != nil, bytes.Equal(m.server, duid[:])
	switch m.kind {
	case 1, 4, 6:
		if m.client == nil || named || !multicast {
			return 0
		}
	case 3, 5, 8, 9:
		if m.client == nil || !ours {
			return 0
		}
	case 11:
		if named && !ours || m.count(3, 4, 25) > 0 || !multicast {
			return 0
		}
	default:
		return 0
	}
	addresses := 0
	for _, o := range m.options {
		for _, a := range o.inner {
			if a.code == 5 {
				addresses++
			}
		}
	}
	has := g.Addr6 != [16]byte{}
	switch {
	case m.kind == 4 && (addresses == 0 || !has):
		return 0
	case m.kind == 1 && (m.count(14) == 0 || m.count(3) == 0 || !has):
		return 2
	}
	return 7
}

// checkReply verifies a reply to a message that is not malformed.
func checkReply(t *testing.T, g *flow.Guest, m *message, frame []byte) {
	t.Helper()
	if err := fuzz.CheckFrame(frame); err != nil {
		t.Fatalf("%v\n%x", err, frame)
	}
	if limit := min(max(g.LinkMTU(), 1280), 1500) + packet.EthernetLen; len(frame) > limit {
		t.Fatalf("frame of %d bytes, at most %d", len(frame), limit)
	}
	reply := fuzz.Datagram(frame, 547)
	all, ok := split(reply[4:])
	duid := serverDUID(g)
	if !ok || !bytes.Equal(all[0].value, duid[:]) || m.client != nil && (all[1].code != 1 || !bytes.Equal(all[1].value, m.client)) {
		t.Fatalf("%x", reply)
	}
	leases, last := 0, -1
	for _, o := range all {
		switch o.code {
		case 3, 4, 25:
			last = checkIA(t, m, &o, last)
			if inner, _ := split(o.value[min(12, len(o.value)):]); o.code == 3 && len(inner) > 0 && inner[0].code == 5 {
				leases++
				if !bytes.Equal(inner[0].value[:16], g.Addr6[:]) || binary.BigEndian.Uint32(inner[0].value[20:]) != forever {
					t.Fatalf("lease %x", inner[0].value)
				}
			}
		case 23:
			if len(o.value) != 16*int(g.NDNS6) {
				t.Fatalf("resolvers %x", o.value)
			}
		case 24:
			checkSearch(t, g, o.value)
		case 39:
			if name := decodeNames(t, o.value[1:]); len(name) != 1 || name[0] != strings.TrimSuffix(g.FQDN.String(), ".") {
				t.Fatalf("name %q", name)
			}
		}
	}
	if leases > 1 {
		t.Fatalf("%d leases of one address: %x", leases, reply)
	}
	// The oracle reads DUIDs and names too; what it cannot read of the request it
	// cannot read of the reply.
	if m.client == nil || isDUID(m.client) {
		if _, err := dhcp.MessageFromBytes(reply); err != nil && !strings.Contains(err.Error(), "rfc1035") {
			t.Fatalf("%v in %x", err, reply)
		}
	}
}

func isDUID(b []byte) bool {
	_, err := dhcp.DUIDFromBytes(b)
	return err == nil
}

// checkIA finds the association that is answered, behind the one answered last.
func checkIA(t *testing.T, m *message, o *tlv, last int) int {
	t.Helper()
	for i, asked := range m.options {
		if i > last && asked.code == o.code && bytes.Equal(asked.value[:4], o.value[:4]) {
			return i
		}
	}
	t.Fatalf("association %d %x was not asked for, or out of turn", o.code, o.value)
	return 0
}

func checkSearch(t *testing.T, g *flow.Guest, b []byte) {
	t.Helper()
	var want []string
	for i := range int(g.NSearch) {
		n := strings.TrimSuffix(g.Search[i].String(), ".")
		ok := len(n) <= 253
		for label := range strings.SplitSeq(n, ".") {
			ok = ok && label != "" && len(label) <= 63
		}
		if ok {
			want = append(want, n)
		}
	}
	names := decodeNames(t, b)
	for _, n := range names {
		i := slices.Index(want, n)
		if i < 0 {
			t.Fatalf("search list %q of %q", names, want)
		}
		want = want[i+1:]
	}
	if len(names) == 0 {
		t.Fatal("an empty search list")
	}
}

// decodeNames reads names that fill b, RFC 1035 section 3.1.
func decodeNames(t *testing.T, b []byte) (names []string) {
	t.Helper()
	var labels []string
	for len(b) > 0 {
		n := int(b[0])
		if n > 63 || n+1 > len(b) {
			t.Fatalf("label of %d bytes in %x", n, b)
		}
		if n == 0 {
			names, labels = append(names, strings.Join(labels, ".")), nil
		} else {
			labels = append(labels, string(b[1:1+n]))
		}
		b = b[1+n:]
	}
	if labels != nil {
		t.Fatalf("the last name does not end: %q", labels)
	}
	return names
}
