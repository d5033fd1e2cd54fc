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

	"aldente/fuzz"
	"aldente/ipc/domain"
)

var fuzzRules = []string{"a.test", "*.b.test", "!bad.test", "~some.test", "1.2.0.192.in-addr.arpa"}

// mayAsk is a second reading of fuzzRules.
func mayAsk(name string) bool {
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	return name == "a.test" || strings.HasSuffix(name, ".b.test") && len(name) > len(".b.test") || name == "1.2.0.192.in-addr.arpa"
}

// FuzzDNSQuestion feeds any message of a client, by UDP or TCP. It has one answer at
// most, which repeats number and question, says what a plain reading of the message
// wants it to, is no longer than the client takes, and holds nothing that was not
// granted; what is refused is asked of nobody.
func FuzzDNSQuestion(f *testing.F) {
	edns := withEDNS(800, true)
	for _, name := range []string{"a.test.", "x.B.tesT.", "b.test.", "bad.test.", ".", "sp ace.b.test.", "a.test.corp.", "1.2.0.192.in-addr.arpa.", "x.y.z.",
		"1." + strings.Repeat("0.", 23) + "8.b.d.0.1.0.0.2.ip6.arpa.", "256.2.0.192.in-addr.arpa.", "g" + strings.Repeat(".0", 31) + ".ip6.arpa.", "resolver.arpa."} {
		for _, typ := range []dnsmessage.Type{tA, tAAAA, tHTTPS, dnsmessage.TypeSVCB, tTXT, tPTR, dnsmessage.TypeMX, dnsmessage.TypeSRV, dnsmessage.TypeALL} {
			fuzz.Add(f, uint8(typ)&1, message(name, typ))
			fuzz.Add(f, uint8(2), message(name, typ, edns))
		}
	}
	good := message("a.test.", tA, edns)
	for _, change := range [][2]int{{2, 0x80}, {2, 0x10}, {2, 2}, {5, 2}, {7, 1}, {9, 1}, {11, 2}, {3, 0x30}, {len(good) - 5, 1}, {len(good) - 1, 4}, {21, 3}, {len(good) - 12, 3}} {
		b := slices.Clone(good)
		b[change[0]] = byte(change[1])
		fuzz.Add(f, uint8(0), b)
		fuzz.Add(f, uint8(0), b[:len(b)-7])
	}
	for _, typ := range []dnsmessage.Type{dnsmessage.TypeAXFR, typeNAPTR, typeWKS, 41, 200} {
		fuzz.Add(f, uint8(4), message("a.test.", typ))
	}
	fuzz.Add(f, uint8(0), good[:7])
	fuzz.Add(f, uint8(1), make([]byte, 5000))
	f.Fuzz(func(t *testing.T, how uint8, msg []byte) {
		if len(msg) > 65535 {
			return
		}
		tcp := how&1 != 0
		w := newWorld(t, Config{Resolvers: 1, NXDOMAIN: how&4 != 0, Search: []domain.Name{"z"}}, fuzzRules...)
		w.denied = netip.Addr.IsPrivate
		fillZone(w)
		if how&2 != 0 { // something is kept
			w.ask("a.test.", tA)
			w.names = nil
		}
		before := w.e.Figures()
		id := uint32(77)
		c := w.client(id, tcp)
		if tcp {
			for stream := append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...); len(stream) > 0 && !c.closed && !c.paused; {
				n := min(len(stream), 1+int(how)*8)
				w.e.Received(id, stream[:n], w.now)
				stream = stream[n:]
			}
		} else {
			w.send(id, msg)
		}
		w.run()
		w.pass(wholeWait)
		for _, name := range w.names {
			if !mayAsk(name) {
				t.Fatalf("asked for %q", name)
			}
		}
		code, readable := expected(msg, how)
		if len(c.got) > 1 || (len(c.got) == 1) != readable {
			t.Fatalf("%d answers, readable: %v", len(c.got), readable)
		}
		if !readable {
			if w.e.Figures().Malformed == before.Malformed {
				t.Fatal("not counted")
			}
			return
		}
		m := w.unpack(c.got[0])
		if m.ID != binary.BigEndian.Uint16(msg) || !m.Response || m.RCode != code || m.AuthenticData || m.Authoritative {
			t.Fatalf("want %v: %v", code, m.GoString())
		}
		checkAddresses(t, w, &m)
		checkSize(t, msg, c.got[0], tcp)
	})
}

// expected is the code of the answer to a message, as a plain reading of it wants it,
// and whether there is one.
func expected(msg []byte, how uint8) (code dnsmessage.RCode, answered bool) {
	if len(msg) < 12 || len(msg) > MaxQuestion || msg[2]&0x80 != 0 {
		return 0, false
	}
	if msg[2]>>3&15 != 0 {
		return notImp, true
	}
	if msg[2]&2 != 0 || msg[10] != 0 || msg[11] > 1 || string(msg[4:10]) != "\x00\x01\x00\x00\x00\x00" {
		return formErr, true
	}
	// Messages with something behind them are whole.
	var p dnsmessage.Parser
	if _, err := p.Start(msg); err != nil {
		return formErr, true
	}
	q, err := p.Question()
	if err != nil {
		return formErr, true
	}
	if msg[11] == 1 {
		h, ok := optHeader(&p)
		if !ok {
			return formErr, true
		}
		if h.TTL>>16&0xff != 0 {
			return noError, true // BADVERS: the rest of the code is in the OPT record
		}
	}
	switch {
	case q.Class != 1, q.Type == 251, q.Type == 252:
		return refused, true
	case q.Type == 0, q.Type == 41, q.Type >= 128 && q.Type < 255,
		slices.Contains([]dnsmessage.Type{3, 4, 7, 8, 9, 11, 14, 17, 18, 21, 24, 26, 30, 38, 39}, q.Type):
		return notImp, true
	}
	name := strings.ToLower(q.Name.String())
	plain, err := domain.Parse(name)
	switch {
	case err == nil && mayAsk(name):
		if q.Type == 255 || name == "a.test." || name == "x.b.test." || name == "1.2.0.192.in-addr.arpa." {
			return noError, true
		}
		return nxDomain, true
	case err == nil && how&4 == 0 && how&2 != 0 && q.Type == tPTR && plain == "1.2.0.192.in-addr.arpa":
		return noError, true
	case how&4 != 0:
		return nxDomain, true
	}
	if searched(string(plain)) {
		return nxDomain, true
	}
	return refused, true
}

// optHeader is the header of an OPT record that is the first of a message's additional
// ones. What its options say is nobody's concern.
func optHeader(p *dnsmessage.Parser) (h dnsmessage.ResourceHeader, ok bool) {
	_, _, _ = p.SkipAllQuestions(), p.SkipAllAnswers(), p.SkipAllAuthorities()
	h, err := p.AdditionalHeader()
	return h, err == nil && h.Type == 41 && h.Name.String() == "." && p.SkipAdditional() == nil
}

// searched is a second reading of what looks as if a resolver had made it by its search
// list.
func searched(name string) bool {
	if name == "z" || strings.HasSuffix(name, ".z") {
		return true
	}
	labels := strings.Split(name, ".")
	for n := 1; n <= maxSearched && n < len(labels); n++ {
		if mayAsk(strings.Join(labels[:len(labels)-n], ".")) {
			return true
		}
	}
	return false
}

// fillZone has names of all kinds in the world.
func fillZone(w *world) {
	for i := range 40 {
		w.add("a.test.", 60, a4(fmt.Sprintf("192.0.2.%d", i)))
		w.add("a.test.", 60, a6(fmt.Sprintf("2001:db8::%x", i)))
	}
	w.add("a.test.", 60, a4("10.0.0.1"))
	w.add("a.test.", 60, https(1, ".", hint("192.0.2.1", "10.0.0.1"), hint("fd00::1")))
	w.add("a.test.", 60, https(2, ".", mandatory(4), hint("10.0.0.1")))
	w.add("a.test.", 60, &dnsmessage.TXTResource{TXT: []string{strings.Repeat("x", 250), strings.Repeat("y", 250)}})
	w.add("a.test.", 60, &dnsmessage.MXResource{MX: dnsmessage.MustNewName("mail.test.")})
	w.add("x.b.test.", 60, cname("a.test."))
	w.add("1.2.0.192.in-addr.arpa.", 60, &dnsmessage.PTRResource{PTR: dnsmessage.MustNewName("a.test.")})
	w.soas["test."] = resource("test.", 60, &dnsmessage.SOAResource{NS: dnsmessage.MustNewName("."), MBox: dnsmessage.MustNewName("."), MinTTL: 60})
}

// checkAddresses checks that all addresses of an answer were granted for its question.
func checkAddresses(t *testing.T, w *world, m *dnsmessage.Message) {
	t.Helper()
	for _, a := range addrs(m) {
		name := strings.TrimSuffix(strings.ToLower(m.Questions[0].Name.String()), ".")
		if !slices.ContainsFunc(w.told, func(n Named) bool {
			return string(n.Name) == name && n.Type == uint16(m.Questions[0].Type) && slices.Contains(n.Addrs, a)
		}) || w.denied != nil && w.denied(a) {
			t.Fatalf("%v, which nobody has granted: %v", a, m.GoString())
		}
	}
}

// checkSize checks the length of an answer against what the client takes.
func checkSize(t *testing.T, msg, answer []byte, tcp bool) {
	t.Helper()
	most := 512
	var p dnsmessage.Parser
	if _, err := p.Start(msg); err == nil {
		if h, ok := optHeader(&p); ok {
			most = min(max(int(h.Class), 512), 1232)
		}
	}
	if !tcp && len(answer) > most {
		t.Fatalf("%d bytes, the client takes %d", len(answer), most)
	}
}

// asks is what FuzzDNSAnswer asks.
var asks = []dnsmessage.Question{
	{Name: dnsmessage.MustNewName("a.test."), Type: tA}, {Name: dnsmessage.MustNewName("a.test."), Type: tAAAA},
	{Name: dnsmessage.MustNewName("a.test."), Type: tHTTPS}, {Name: dnsmessage.MustNewName("a.test."), Type: dnsmessage.TypeSVCB},
	{Name: dnsmessage.MustNewName("a.test."), Type: tTXT}, {Name: dnsmessage.MustNewName("a.test."), Type: dnsmessage.TypeCNAME},
	{Name: dnsmessage.MustNewName("a.test."), Type: dnsmessage.TypeMX}, {Name: dnsmessage.MustNewName("a.test."), Type: dnsmessage.TypeSOA},
	{Name: dnsmessage.MustNewName("a.test."), Type: dnsmessage.TypeNS}, {Name: dnsmessage.MustNewName("a.test."), Type: dnsmessage.TypeSRV},
	{Name: dnsmessage.MustNewName("a.test."), Type: tPTR}, {Name: dnsmessage.MustNewName("a.test."), Type: 65280},
	{Name: dnsmessage.MustNewName("a.test."), Type: typeNAPTR}, {Name: dnsmessage.MustNewName("a.test."), Type: typeKX},
}

// Bits of how FuzzDNSAnswer answers.
const (
	rightID = 1 << iota
	rightName
	byTCP
	plainHellos
	inPieces
	rightOnly = rightID | rightName
)

// FuzzDNSAnswer feeds any message of a resolver, put right as far as bits say, to a
// question that waits for it. What the client hears of it is what a second reading
// finds: along the chain of names, of the type asked for, and granted.
func FuzzDNSAnswer(f *testing.F) {
	add := func(which uint8, how uint8, change func(m *dnsmessage.Message)) {
		m := dnsmessage.Message{Header: dnsmessage.Header{Response: true}, Questions: []dnsmessage.Question{asks[which]}}
		m.Questions[0].Class = 1
		change(&m)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		fuzz.Add(f, which, how, uint32(0xfffffff5), b)
	}
	holding := func(all ...dnsmessage.Resource) func(*dnsmessage.Message) {
		return func(m *dnsmessage.Message) { m.Answers = all }
	}
	var long []dnsmessage.Resource
	for i, name := range strings.Split("a b c d e f g h i j k", " ")[:10] {
		long = append(long, resource(name+".test.", 60, cname(string(rune('b'+i))+".test.")))
	}
	soa := resource("test.", 60, &dnsmessage.SOAResource{NS: dnsmessage.MustNewName("ns.test."), MBox: dnsmessage.MustNewName("."), MinTTL: 60})
	services := holding(resource("a.test.", 9, https(1, ".", hint("192.0.2.1", "192.0.2.2"), dnsmessage.SVCParam{Key: 5}, hint("2001:db8::1"))),
		resource("a.test.", 9, https(2, "b.test.", mandatory(4), hint("192.0.2.2"))), resource("a.test.", 9, https(3, ".", dnsmessage.SVCParam{Key: 4})),
		resource("a.test.", 9, https(3, ".", mandatory(5), dnsmessage.SVCParam{Key: 5})), resource("a.test.", 9, https(0, "c.test.")),
		resource("a.test.", 9, https(3, ".", dnsmessage.SVCParam{Key: 0})), resource("a.test.", 9, https(3, "a b.")),
		resource("a.test.", 9, &dnsmessage.UnknownResource{Type: tHTTPS, Data: []byte{1}}))
	for _, how := range []uint8{rightOnly, rightOnly | byTCP | inPieces, 0, rightID, rightName, rightOnly | plainHellos} {
		for which := range asks {
			add(uint8(which), how, holding(
				resource("a.test.", 100, cname("b.test.")), resource("b.test.", 50, cname("c.test.")), resource("c.test.", 70, a4("192.0.2.1")),
				resource("c.test.", 70, a4("192.0.2.2")), resource("c.test.", 70, a6("2001:db8::1")), resource("b.test.", 1, a4("192.0.2.66")),
				resource("c.test.", 70, &dnsmessage.TXTResource{TXT: []string{"x"}}), resource("a.test.", 70, &dnsmessage.MXResource{MX: dnsmessage.MustNewName("m.test.")})))
		}
		add(0, how, holding(resource("a.test.", 1, cname("a.test."))))
		add(0, how, holding(long...))
		add(0, how, holding(resource("a.test.", 1, cname("x y."))))
		add(0, how, func(m *dnsmessage.Message) {
			m.RCode, m.Authorities = nxDomain, []dnsmessage.Resource{resource("x.", 1, a4("192.0.2.9")), soa}
		})
		add(4, how, func(m *dnsmessage.Message) { m.Authorities = []dnsmessage.Resource{soa} })
		add(0, how, func(m *dnsmessage.Message) { m.Truncated = true })
		add(0, how, func(m *dnsmessage.Message) { m.RCode = formErr })
		add(0, how, func(m *dnsmessage.Message) { m.RCode, m.Questions = servFail, nil })
		add(2, how, services)
		add(3, how, func(m *dnsmessage.Message) {
			m.Answers = []dnsmessage.Resource{resource("a.test.", 1, &dnsmessage.SVCBResource{Target: dnsmessage.MustNewName("."), Priority: 1, Params: []dnsmessage.SVCParam{hint("192.0.2.1")}})}
		})
		for which, body := range map[uint8]dnsmessage.ResourceBody{
			6: &dnsmessage.MXResource{MX: dnsmessage.MustNewName("m.test.")}, 7: soa.Body, 8: &dnsmessage.NSResource{NS: dnsmessage.MustNewName("n.test.")},
			9: &dnsmessage.SRVResource{Target: dnsmessage.MustNewName("s.test.")}, 10: &dnsmessage.PTRResource{PTR: dnsmessage.MustNewName("p.test.")},
			11: &dnsmessage.UnknownResource{Type: 65280, Data: []byte("data")},
			12: &dnsmessage.UnknownResource{Type: typeNAPTR, Data: []byte("\x00\x01\x00\x02\x01u\x03sip\x05!a!b!\x01s\x00")},
			13: &dnsmessage.UnknownResource{Type: typeKX, Data: []byte("\x00\x01\xc0\x0c")}, 0: &dnsmessage.UnknownResource{Type: tA, Data: []byte("long data")},
		} {
			add(which, how, holding(resource("A.test.", 5, body)))
		}
	}
	f.Fuzz(func(t *testing.T, which, how uint8, mask uint32, msg []byte) {
		if len(msg) > MaxMessage {
			return
		}
		q := asks[int(which)%len(asks)]
		w := newWorld(t, Config{Resolvers: 1, PlainHellos: how&plainHellos != 0}, "any")
		possible, said := false, msg
		w.denied = func(a netip.Addr) bool { b := a.As16(); return mask>>(b[15]%32)&1 == 0 }
		w.resolve = func(s *resolverSocket, asked dnsmessage.Message) [][]byte {
			if how&byTCP != 0 && !s.tcp {
				return [][]byte{forged(w, asked, func(m *dnsmessage.Message) { m.Truncated = true })}
			}
			said = right(msg, how, &asked) // a name may be compressed to what is put right
			possible = possible || answers(said, &asked)
			return [][]byte{said}
		}
		m := w.ask(q.Name.String(), q.Type)
		checkAddresses(t, w, &m)
		if !possible && m.RCode != servFail {
			t.Fatalf("a stranger is believed: %v", m.GoString())
		}
		var whole dnsmessage.Message
		if m.RCode == servFail || whole.Unpack(said) != nil {
			if m.RCode == servFail && len(m.Answers)+len(m.Authorities) > 0 {
				t.Fatalf("failed, and %v", m.GoString())
			}
			return
		}
		if how&rightOnly == rightOnly && len(msg) >= 12 {
			checkAnswer(t, w, &m, &whole)
		}
	})
}

// answers is a second reading of whether a message may be the answer to a question,
// whatever the case of its name.
func answers(msg []byte, asked *dnsmessage.Message) bool {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || h.ID != asked.ID || !h.Response {
		return false
	}
	q, err := p.Question()
	return err == nil && q.Type == asked.Questions[0].Type && strings.EqualFold(q.Name.String(), asked.Questions[0].Name.String())
}

// right puts a message right as far as bits say.
func right(msg []byte, how uint8, asked *dnsmessage.Message) []byte {
	msg = slices.Clone(msg)
	if how&rightID != 0 && len(msg) >= 12 {
		binary.BigEndian.PutUint16(msg, asked.ID)
		msg[2] |= 0x80
	}
	if how&rightName != 0 && len(msg) >= 12 {
		for i, c := range []byte(asked.Questions[0].Name.String()) {
			if at := 13 + i; at < len(msg) && c != '.' && lower(msg[at]) == lower(c) {
				msg[at] = c
			}
		}
	}
	return msg
}

// checkAnswer compares what a client hears with a second reading of what a resolver has
// said.
func checkAnswer(t *testing.T, w *world, m, whole *dnsmessage.Message) {
	t.Helper()
	names := []string{"a.test."}
	typ := m.Questions[0].Type
	for i := 0; typ != dnsmessage.TypeCNAME && i < len(names); i++ {
		for _, r := range whole.Answers {
			if c, ok := r.Body.(*dnsmessage.CNAMEResource); ok && r.Header.Class == 1 && strings.EqualFold(r.Header.Name.String(), names[i]) {
				names = append(names, c.CNAME.String())
				break
			}
		}
		if len(names) > MaxAliases+1 {
			t.Fatalf("a chain of %q: %v", names, m.GoString())
		}
	}
	for _, r := range m.Answers {
		owner := r.Header.Name.String()
		if r.Header.TTL < 1 || r.Header.TTL > maxTTL || r.Header.Class != 1 || r.Header.Type != typ && r.Header.Type != dnsmessage.TypeCNAME {
			t.Fatalf("record %v", r.GoString())
		}
		if r.Header.Type == typ && !strings.EqualFold(owner, names[len(names)-1]) {
			t.Fatalf("of %s, at the end of %q", owner, names)
		}
		if r.Header.Type == typ && !slices.ContainsFunc(whole.Answers, func(o dnsmessage.Resource) bool {
			return o.Header.Type == typ && strings.EqualFold(o.Header.Name.String(), owner) && alike(&o, &r)
		}) {
			t.Fatalf("%v, of which there is none in %v", r.GoString(), whole.GoString())
		}
	}
	if len(m.Additionals) > 0 || len(m.Authorities) > 1 || len(m.Authorities) == 1 && m.Authorities[0].Header.Type != dnsmessage.TypeSOA {
		t.Fatalf("besides: %v", m.GoString())
	}
	// Addresses that are granted are there.
	if typ == tA || typ == tAAAA {
		want := 0
		var seen []netip.Addr
		for _, n := range w.told[len(w.told)-min(len(w.told), 1):] {
			for _, a := range n.Addrs {
				if !w.denied(a) && !slices.Contains(seen, a) {
					seen = append(seen, a)
					want++
				}
			}
		}
		if got := len(addrs(m)); got != want && !m.Truncated {
			t.Fatalf("%d addresses of %d", got, want)
		}
	}
}

// alike compares the data of two records; of services some may be cut out.
func alike(was, is *dnsmessage.Resource) bool {
	switch is.Header.Type {
	case tHTTPS, dnsmessage.TypeSVCB:
		return true // checkAddresses
	}
	return strings.EqualFold(was.Body.GoString(), is.Body.GoString())
}
