// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// serve has the world's resolvers answer with what a function makes of a question.
func (w *world) serve(f func(m *dnsmessage.Message)) {
	w.resolve = func(_ *resolverSocket, q dnsmessage.Message) [][]byte {
		m := &dnsmessage.Message{Header: q.Header, Questions: q.Questions}
		m.Response = true
		f(m)
		b, err := m.Pack()
		if err != nil {
			w.t.Fatal(err)
		}
		return [][]byte{b}
	}
}

// TestExtraRecords: what an answer holds besides what was asked for is left out.
func TestExtraRecords(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 1}, "a.test")
	w.serve(func(m *dnsmessage.Message) {
		other := resource("a.test.", 60, a4("203.0.113.1"))
		other.Header.Class = dnsmessage.ClassCHAOS
		m.Answers = []dnsmessage.Resource{
			resource("bank.test.", 60, a4("203.0.113.2")), // another name
			resource("A.test.", 60, cname("B.test.")),
			resource("c.test.", 60, a4("203.0.113.3")), // of a chain that is none of this one's
			resource("x.test.", 60, cname("a.test.")),
			resource("a.test.", 60, a4("203.0.113.4")), // beside a CNAME
			other,
			resource("b.TEST.", 60, a4("192.0.2.1")),
			resource("b.test.", 60, a6("2001:db8::66")), // another type
			resource("b.test.", 60, &dnsmessage.UnknownResource{Type: typeDNAME, Data: []byte{0}}),
			resource("b.test.", 60, &dnsmessage.UnknownResource{Type: 46, Data: make([]byte, 40)}),
			resource("sub.b.test.", 60, a4("203.0.113.5")),
			resource("b.test.", 60, a4("192.0.2.1")), // twice
		}
		m.Authorities = []dnsmessage.Resource{
			resource("test.", 60, &dnsmessage.NSResource{NS: dnsmessage.MustNewName("ns.test.")}),
			resource("ns.test.", 60, a4("203.0.113.6")),
		}
		m.Additionals = []dnsmessage.Resource{resource("ns.test.", 60, a4("203.0.113.7")), resource("a.test.", 60, a4("203.0.113.8"))}
	})
	m := w.ask("a.test.", tA)
	w.expect(m, noError, "192.0.2.1")
	if len(m.Answers) != 2 || len(m.Authorities)+len(m.Additionals) != 0 {
		t.Errorf("answer %v", m.GoString())
	}
	if len(w.told) != 1 || len(w.told[0].Addrs) != 1 {
		t.Errorf("named %v", w.told)
	}
}

// TestChains: loops, chains that are too long or lead out of what names there are, in any
// order of records.
func TestChains(t *testing.T) {
	chain := func(n int) (all []dnsmessage.Resource) {
		for i := range n {
			all = append(all, resource(fmt.Sprintf("n%d.test.", i), 60, cname(fmt.Sprintf("n%d.test.", i+1))))
		}
		all = append(all, resource(fmt.Sprintf("n%d.test.", n), 60, a4("192.0.2.1")))
		slices.Reverse(all)
		return all
	}
	many := chain(2)
	for i := range maxCNAMEs {
		many = append(many, resource(fmt.Sprintf("m%d.test.", i), 60, cname("n0.test.")))
	}
	for name, c := range map[string]struct {
		answers []dnsmessage.Resource
		rcode   dnsmessage.RCode
		count   int
	}{
		"of eight":        {chain(MaxAliases), noError, MaxAliases + 1},
		"of nine":         {chain(MaxAliases + 1), servFail, 0},
		"to itself":       {[]dnsmessage.Resource{resource("n0.test.", 60, cname("N0.test."))}, servFail, 0},
		"in a circle":     {[]dnsmessage.Resource{resource("n0.test.", 60, cname("n1.test.")), resource("n1.test.", 60, cname("n0.test."))}, servFail, 0},
		"behind a circle": {[]dnsmessage.Resource{resource("n0.test.", 60, cname("n1.test.")), resource("n1.test.", 60, cname("n2.test.")), resource("n2.test.", 60, cname("n1.test."))}, servFail, 0},
		"to no name":      {[]dnsmessage.Resource{resource("n0.test.", 60, cname("with space.test."))}, servFail, 0},
		"to the root":     {[]dnsmessage.Resource{resource("n0.test.", 60, cname("."))}, servFail, 0},
		"of many":         {many, servFail, 0},
		"to nothing":      {[]dnsmessage.Resource{resource("n0.test.", 60, cname("n1.test."))}, noError, 1},
	} {
		w := newWorld(t, Config{Resolvers: 1}, "n0.test")
		w.serve(func(m *dnsmessage.Message) { m.Answers = c.answers })
		if m := w.ask("n0.test.", tA); m.RCode != c.rcode || len(m.Answers) != c.count {
			t.Errorf("%s: %v with %d records", name, m.RCode, len(m.Answers))
		}
	}
	w := newWorld(t, Config{Resolvers: 1}, "n0.test")
	w.serve(func(m *dnsmessage.Message) { m.Answers = chain(3) })
	m := w.ask("n0.test.", dnsmessage.TypeCNAME) // is not followed
	if len(m.Answers) != 1 || m.Answers[0].Body.(*dnsmessage.CNAMEResource).CNAME.String() != "n1.test." {
		t.Errorf("CNAME: %v", m.GoString())
	}
}

// TestThousandAddresses: no more of them are told than the broker can be asked about.
func TestThousandAddresses(t *testing.T) {
	for _, typ := range []dnsmessage.Type{tA, tAAAA} {
		w := newWorld(t, Config{Resolvers: 1}, "a.test")
		for i := range 1000 {
			if typ == tA {
				w.add("a.test.", 60, a4(fmt.Sprintf("10.1.%d.%d", i/250, i%250)))
			} else {
				w.add("a.test.", 60, a6(fmt.Sprintf("2001:db8::%d:%d", i/250, i%250)))
			}
		}
		w.resolve = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
			if !s.tcp { // it is too long for a datagram
				m := w.reply(q)
				m.Truncated, m.Answers = true, nil
				b, _ := m.Pack()
				return [][]byte{b}
			}
			return [][]byte{w.honest(q)}
		}
		m := w.unpack(w.exchange(message("a.test.", typ), true))
		if len(m.Answers) != MaxAddresses || len(w.told) != 1 || len(w.told[0].Addrs) != MaxAddresses || m.Truncated {
			t.Fatalf("type %v: %d answers, told %v", typ, len(m.Answers), w.told)
		}
		for i, r := range m.Answers {
			var got netip.Addr
			switch a := r.Body.(type) {
			case *dnsmessage.AResource:
				got = netip.AddrFrom4(a.A)
			case *dnsmessage.AAAAResource:
				got = netip.AddrFrom16(a.AAAA)
			}
			if want := w.told[0].Addrs[i]; got != want {
				t.Errorf("address %d is %v, not %v", i, got, want)
			}
		}
	}
}

// TestTTL: lives are those of the shortest record, within bounds; they go on in the cache.
func TestTTL(t *testing.T) {
	for _, c := range []struct{ chain, addr, want uint32 }{
		{0, 0, minTTL}, {60, 0, minTTL}, {1 << 31, 100, minTTL}, {100, 1<<32 - 1, minTTL}, {100, 200, 100}, {200, 100, 100},
		{1<<31 - 1, 86400, maxTTL},
	} {
		w := newWorld(t, Config{Resolvers: 1}, "a.test")
		w.add("a.test.", c.chain, cname("b.test."))
		w.add("b.test.", c.addr, a4("192.0.2.1"))
		for _, past := range []uint32{0, 1, c.want - 2} {
			w.pass(int64(past) * second)
			for _, r := range w.ask("a.test.", tA).Answers {
				if r.Header.TTL != c.want-past {
					t.Errorf("%v: %d after %d s", c, r.Header.TTL, past)
				}
			}
			if got := w.told[len(w.told)-1].TTL; got != c.want-past {
				t.Errorf("%v: the broker is told %d after %d s", c, got, past)
			}
			w.now -= int64(past) * second
		}
		w.now += int64(c.want) * second
		w.ask("a.test.", tA)
		if w.asked != 2 {
			t.Errorf("%v: asked %d times", c, w.asked)
		}
	}
}

// TestNegative: what does not exist is kept as long as its zone says, within bounds, and
// not at all if no zone says so.
func TestNegative(t *testing.T) {
	soa := func(name string, ttl, least uint32) dnsmessage.Resource {
		return resource(name, ttl, &dnsmessage.SOAResource{
			NS: dnsmessage.MustNewName("ns.test."), MBox: dnsmessage.MustNewName("admin.test."), Serial: 7, Refresh: 1, Retry: 2, Expire: 3, MinTTL: least,
		})
	}
	for name, c := range map[string]struct {
		rcode dnsmessage.RCode
		soa   []dnsmessage.Resource
		want  uint32 // zero: not kept
	}{
		"no such name":         {nxDomain, []dnsmessage.Resource{soa("test.", 100, 50)}, 50},
		"no such records":      {noError, []dnsmessage.Resource{soa("TEST.", 50, 100)}, 50},
		"for long":             {nxDomain, []dnsmessage.Resource{soa(".", 86400, 86400)}, maxNegative},
		"for no time":          {nxDomain, []dnsmessage.Resource{soa("a.test.", 0, 0)}, minTTL},
		"without SOA":          {nxDomain, nil, 0},
		"of another zone":      {noError, []dnsmessage.Resource{soa("b.test.", 100, 100), soa("x.a.test.", 100, 100)}, 0},
		"behind other records": {noError, []dnsmessage.Resource{resource("test.", 1, a4("203.0.113.1")), soa("test.", 100, 100)}, 100},
	} {
		w := newWorld(t, Config{Resolvers: 1}, "a.test")
		w.serve(func(m *dnsmessage.Message) { m.RCode, m.Authorities = c.rcode, c.soa })
		for i := range 2 {
			m := w.ask("a.test.", tA)
			if m.RCode != c.rcode || len(m.Answers) > 0 || len(addrs(&m)) > 0 || len(m.Authorities) != int(min(c.want, 1)) {
				t.Errorf("%s: %v", name, m.GoString())
			}
			if c.want > 0 && m.Authorities[0].Header.TTL != c.want {
				t.Errorf("%s: for %d s", name, m.Authorities[0].Header.TTL)
			}
			if want := 1 + i*int(1-min(c.want, 1)); w.asked != want {
				t.Errorf("%s: asked %d times", name, w.asked)
			}
		}
		w.pass(int64(max(c.want, 1)) * second)
		if w.ask("a.test.", tA); c.want > 0 && w.asked != 2 {
			t.Errorf("%s: asked %d times later on", name, w.asked)
		}
	}
	// A name that does not exist, by another name.
	w := newWorld(t, Config{Resolvers: 1}, "a.test")
	w.serve(func(m *dnsmessage.Message) {
		m.RCode, m.Answers = nxDomain, []dnsmessage.Resource{resource("a.test.", 60, cname("b.other."))}
		m.Authorities = []dnsmessage.Resource{soa("other.", 100, 100)}
	})
	if m := w.ask("a.test.", tA); m.RCode != nxDomain || len(m.Answers) != 1 || len(m.Authorities) != 1 || m.Answers[0].Header.TTL != 60 {
		t.Errorf("by another name: %v", m.GoString())
	}
}

// TestOtherTypes: records of all types come as they were, with names written out.
func TestOtherTypes(t *testing.T) {
	name := dnsmessage.MustNewName
	for _, body := range []dnsmessage.ResourceBody{
		&dnsmessage.TXTResource{TXT: []string{"", strings.Repeat("x", 255), "\x00\xff"}},
		&dnsmessage.MXResource{Pref: 10, MX: name("mail.a.test.")},
		&dnsmessage.NSResource{NS: name("ns.a.test.")},
		&dnsmessage.PTRResource{PTR: name("a.test.")},
		&dnsmessage.CNAMEResource{CNAME: name(".")},
		&dnsmessage.SRVResource{Priority: 1, Weight: 2, Port: 3, Target: name("srv.a.test.")},
		&dnsmessage.SOAResource{NS: name("ns.a.test."), MBox: name("box.a.test."), Serial: 1, Refresh: 2, Retry: 3, Expire: 4, MinTTL: 5},
		&dnsmessage.UnknownResource{Type: 10, Data: []byte{}},
		&dnsmessage.UnknownResource{Type: 257, Data: []byte("\x00\x05issueca.test")},
		&dnsmessage.UnknownResource{Type: typeNAPTR, Data: []byte("\x00\x01\x00\x02\x01s\x07SIP+D2U\x00\x04_sip\x04_udp\x01A\x04test\x00")},
		&dnsmessage.UnknownResource{Type: typeKX, Data: []byte("\x00\x0a\x02kx\x01a\x04test\x00")},
		&dnsmessage.UnknownResource{Type: 65399, Data: make([]byte, 700)},
	} {
		w := newWorld(t, Config{Resolvers: 1}, "a.test")
		w.add("a.test.", 60, body)
		typ := typeOf(w.zone["a.test."][0])
		for range 2 {
			m := w.unpack(w.exchange(message("a.test.", typ, withEDNS(1232, false)), false))
			if len(m.Answers) != 1 || m.Answers[0].Body.GoString() != body.GoString() || m.Answers[0].Header.Type != typ || m.Answers[0].Header.TTL != 60 {
				t.Errorf("%v: %v", body.GoString(), m.GoString())
			}
		}
		if w.asked != 1 || len(w.told) != 0 {
			t.Errorf("%v: asked %d times, told %v", typ, w.asked, w.told)
		}
	}
	// As many as there may be.
	w := newWorld(t, Config{Resolvers: 1}, "a.test")
	for i := range maxRecords + 10 {
		w.add("a.test.", 60, &dnsmessage.TXTResource{TXT: []string{fmt.Sprint(i)}})
	}
	if m := w.unpack(w.exchange(message("a.test.", tTXT), true)); len(m.Answers) != maxRecords {
		t.Errorf("%d records", len(m.Answers))
	}
}

// TestNamesInData: of types that are passed on as they are, data with a name in it that is
// compressed or malformed would say something else in our message: the answer is none.
func TestNamesInData(t *testing.T) {
	const naptr = "\x00\x01\x00\x02\x01s\x03SIP\x00"
	long := strings.Repeat("\x3f"+strings.Repeat("a", 63), 3)
	for _, c := range []struct {
		typ  dnsmessage.Type
		data string
		ok   bool
	}{
		{typeKX, "\x00\x01\x00", true}, {typeKX, "\x00\x01\xc0\x0c", false}, {typeKX, "\x00\x01\x01a\xc0\x0c", false}, {typeKX, "\x00\x01", false},
		{typeKX, "", false}, {typeKX, "\x00\x01\x01a", false}, {typeKX, "\x00\x01\x00\x00", false}, {typeKX, "\x00\x01\x40a\x00", false},
		{typeKX, "\x00\x01" + long + "\x3d" + strings.Repeat("a", 61) + "\x00", true}, {typeKX, "\x00\x01" + long + "\x3f" + strings.Repeat("a", 63) + "\x00", false},
		{typeNAPTR, naptr + "\x00", true}, {typeNAPTR, naptr + "\x01a\x00", true}, {typeNAPTR, naptr + "\xc0\x0c", false}, {typeNAPTR, naptr, false},
		{typeNAPTR, "\x00\x01\x00\x02\x01s\x03SIP\xffx\x00", false},
	} {
		w := newWorld(t, Config{Resolvers: 1}, "a.test")
		w.add("a.test.", 60, &dnsmessage.UnknownResource{Type: c.typ, Data: []byte(c.data)})
		if m := w.ask("a.test.", c.typ); (m.RCode == noError && len(m.Answers) == 1) != c.ok || !c.ok && m.RCode != servFail {
			t.Errorf("type %d, %q: %v", c.typ, c.data, m.GoString())
		}
	}
}

// service is an HTTPS record.
func https(priority uint16, target string, params ...dnsmessage.SVCParam) *dnsmessage.HTTPSResource {
	return &dnsmessage.HTTPSResource{SVCBResource: dnsmessage.SVCBResource{Priority: priority, Target: dnsmessage.MustNewName(target), Params: params}}
}

func hint(addrs ...string) dnsmessage.SVCParam {
	p := dnsmessage.SVCParam{Key: dnsmessage.SVCParamIPv4Hint}
	for _, s := range addrs {
		a := netip.MustParseAddr(s)
		if a.Is6() {
			p.Key = dnsmessage.SVCParamIPv6Hint
		}
		p.Value = append(p.Value, a.AsSlice()...)
	}
	return p
}

func mandatory(keys ...dnsmessage.SVCParamKey) dnsmessage.SVCParam {
	var v []byte
	for _, k := range keys {
		v = binary.BigEndian.AppendUint16(v, uint16(k))
	}
	return dnsmessage.SVCParam{Key: dnsmessage.SVCParamMandatory, Value: v}
}

// TestServices: hints of HTTPS and SVCB records are addresses as others are.
func TestServices(t *testing.T) {
	alpn := dnsmessage.SVCParam{Key: dnsmessage.SVCParamALPN, Value: []byte("\x02h2")}
	ech := dnsmessage.SVCParam{Key: dnsmessage.SVCParamECH, Value: []byte("secret")}
	odd := dnsmessage.SVCParam{Key: 4711, Value: []byte{1, 2, 3, 4}}
	var many []dnsmessage.SVCParam
	for i := range maxParams + 1 {
		many = append(many, dnsmessage.SVCParam{Key: dnsmessage.SVCParamKey(100 + i)})
	}
	for name, c := range map[string]struct {
		plain    bool
		in, want []*dnsmessage.HTTPSResource
	}{
		"granted": {false,
			[]*dnsmessage.HTTPSResource{https(1, ".", alpn, hint("192.0.2.1", "192.0.2.2"), ech, hint("2001:db8::1"), odd)},
			[]*dnsmessage.HTTPSResource{https(1, ".", alpn, hint("192.0.2.1", "192.0.2.2"), ech, hint("2001:db8::1"), odd)}},
		"some": {false,
			[]*dnsmessage.HTTPSResource{https(1, ".", alpn, hint("192.0.2.1", "10.0.0.1", "192.0.2.2"), hint("fd00::1", "2001:db8::1"))},
			[]*dnsmessage.HTTPSResource{https(1, ".", alpn, hint("192.0.2.1", "192.0.2.2"), hint("2001:db8::1"))}},
		"none": {false,
			[]*dnsmessage.HTTPSResource{https(1, ".", alpn, hint("10.0.0.1"), hint("fd00::1")), https(2, ".", hint("10.0.0.1"))},
			[]*dnsmessage.HTTPSResource{https(1, ".", alpn), https(2, ".")}},
		"mandatory": {false,
			[]*dnsmessage.HTTPSResource{https(1, ".", mandatory(1, 4), alpn, hint("10.0.0.1")), https(2, ".", mandatory(1, 4), alpn, hint("192.0.2.1")), https(3, ".", mandatory(1), alpn)},
			[]*dnsmessage.HTTPSResource{https(2, ".", mandatory(1, 4), alpn, hint("192.0.2.1")), https(3, ".", mandatory(1), alpn)}},
		"alias": {false,
			[]*dnsmessage.HTTPSResource{https(0, "other.test.", hint("192.0.2.1"))},
			[]*dnsmessage.HTTPSResource{https(0, "other.test.")}},
		"plain": {true,
			[]*dnsmessage.HTTPSResource{https(1, "cdn.test.", alpn, ech), https(2, ".", mandatory(5), ech), https(3, ".", mandatory(1), alpn, ech)},
			[]*dnsmessage.HTTPSResource{https(1, "cdn.test.", alpn), https(3, ".", mandatory(1), alpn)}},
		"malformed": {false,
			[]*dnsmessage.HTTPSResource{
				https(1, ".", dnsmessage.SVCParam{Key: 4, Value: make([]byte, 5)}), https(2, ".", dnsmessage.SVCParam{Key: 4}),
				https(3, ".", dnsmessage.SVCParam{Key: 6, Value: make([]byte, 4)}), https(4, ".", dnsmessage.SVCParam{Key: 0, Value: make([]byte, 3)}),
				https(5, ".", dnsmessage.SVCParam{Key: 0}), https(6, "no name.test.", alpn), https(7, ".", many...), https(8, ".", many[1:]...)},
			[]*dnsmessage.HTTPSResource{https(8, ".", many[1:]...)}},
	} {
		w := newWorld(t, Config{Resolvers: 1, PlainHellos: c.plain}, "a.test")
		w.denied = func(a netip.Addr) bool { return a.IsPrivate() }
		for _, r := range c.in {
			w.add("a.test.", 60, r)
		}
		m := w.unpack(w.exchange(message("a.test.", tHTTPS, withEDNS(1232, false)), false))
		if len(m.Answers) != len(c.want) {
			t.Errorf("%s: %v", name, m.GoString())
			continue
		}
		for i, r := range m.Answers {
			if r.Body.GoString() != c.want[i].GoString() {
				t.Errorf("%s: %v, want %v", name, r.Body.GoString(), c.want[i].GoString())
			}
		}
	}
	w := newWorld(t, Config{Resolvers: 1}, "_x.a.test")
	w.add("_x.a.test.", 60, &dnsmessage.SVCBResource{Priority: 1, Target: dnsmessage.MustNewName("cdn.test."), Params: []dnsmessage.SVCParam{hint("192.0.2.1")}})
	m := w.ask("_x.a.test.", dnsmessage.TypeSVCB)
	w.expect(m, noError, "192.0.2.1")
	if len(w.told) != 1 || w.told[0].Type != 64 || !slices.Equal(w.told[0].Addrs, []netip.Addr{netip.MustParseAddr("192.0.2.1")}) || w.told[0].Aliases[0] != "cdn.test" {
		t.Errorf("named %v", w.told)
	}
	// One whose data is no service's is left out, those behind it are not.
	w = newWorld(t, Config{Resolvers: 1}, "a.test")
	w.add("a.test.", 60, &dnsmessage.UnknownResource{Type: tHTTPS, Data: []byte{0, 1, 0, 0, 4, 0, 4, 1}})
	w.add("a.test.", 60, https(1, ".", hint("192.0.2.1")))
	w.expect(w.ask("a.test.", tHTTPS), noError, "192.0.2.1")
	// More names and addresses than there may be.
	w = newWorld(t, Config{Resolvers: 1}, "a.test")
	for i := range MaxAliases + 2 {
		w.add("a.test.", 60, https(uint16(i+1), fmt.Sprintf("n%d.test.", i), hint(manyAddrs(i*10, 10)...)))
	}
	m = w.unpack(w.exchange(message("a.test.", tHTTPS), true))
	if len(m.Answers) != MaxAliases || len(addrs(&m)) != MaxAddresses || len(w.told[0].Addrs) != MaxAddresses {
		t.Errorf("%d records, %d addresses", len(m.Answers), len(addrs(&m)))
	}
}

func manyAddrs(from, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("192.0.2.%d", from+i))
	}
	return all
}
