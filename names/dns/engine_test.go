// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/ipc/domain"
)

const (
	tA     = dnsmessage.TypeA
	tAAAA  = dnsmessage.TypeAAAA
	tTXT   = dnsmessage.TypeTXT
	tHTTPS = dnsmessage.TypeHTTPS
	tPTR   = dnsmessage.TypePTR
)

// TestAnswers: what is allowed is asked for and answered, by UDP and TCP, with a chain of
// names; the broker knows of it before.
func TestAnswers(t *testing.T) {
	for _, tcp := range []bool{false, true} {
		w := newWorld(t, Config{Resolvers: 1}, "www.example.test", "*.sub.test")
		w.add("www.example.test.", 300, cname("a.cdn.test."))
		w.add("a.cdn.test.", 200, cname("b.cdn.test."))
		w.add("b.cdn.test.", 100, a4("192.0.2.1"))
		w.add("b.cdn.test.", 100, a4("192.0.2.2"))
		w.add("deep.er.sub.test.", 60, a6("2001:db8::1"))
		m := w.unpack(w.exchange(message("wWw.Example.test.", tA), tcp))
		w.expect(m, noError, "192.0.2.1 192.0.2.2")
		if m.ID != 0x1234 || !m.Response || !m.RecursionAvailable || m.Authoritative || m.AuthenticData || len(m.Answers) != 4 ||
			m.Questions[0].Name.String() != "wWw.Example.test." || m.Answers[0].Header.Name.String() != "wWw.Example.test." {
			t.Errorf("answer %v", m.GoString())
		}
		for i, owner := range []string{"wWw.Example.test.", "a.cdn.test.", "b.cdn.test.", "b.cdn.test."} {
			if h := m.Answers[i].Header; h.Name.String() != owner || h.TTL != 100 {
				t.Errorf("record %d of %v lasts %d", i, h.Name, h.TTL)
			}
		}
		w.expect(w.ask("deep.er.sub.test.", tAAAA), noError, "2001:db8::1")
		first := w.told[0]
		if first.Name != "www.example.test" || first.TTL != 100 || first.Type != uint16(tA) ||
			!slices.Equal(first.Aliases, []domain.Name{"a.cdn.test", "b.cdn.test"}) || len(first.Addrs) != 2 {
			t.Errorf("named %v", first)
		}
		if len(w.told) != 2 {
			t.Errorf("%d names told", len(w.told))
		}
	}
}

// TestRefusedNeverAsked: names that are refused are not asked upstream, in whatever way
// they are asked for; and nothing else is.
func TestRefusedNeverAsked(t *testing.T) {
	for _, rcode := range []dnsmessage.RCode{refused, nxDomain} {
		w := newWorld(t, Config{Resolvers: 2, NXDOMAIN: rcode == nxDomain}, "good.test", "*.good.test", "!bad.good.test", "!*.evil.test")
		long := strings.Repeat("a", 63)
		names := []string{
			"evil.test.", "x.evil.test.", "eViL.TeSt.", "notgood.test.", "good.test.evil.", ".", "test.",
			long + "." + long + "." + long + "." + strings.Repeat("b", 61) + ".", "resolver.arpa.", "_dns.resolver.arpa.",
			"with space.good.test.", "null\x00.good.test.", "star*.good.test.", "ünï.good.test.",
		}
		for _, name := range names {
			for _, typ := range []dnsmessage.Type{tA, tAAAA, tTXT, tHTTPS, tPTR, 10, dnsmessage.TypeNS, dnsmessage.TypeSOA, dnsmessage.TypeALL, 65280} {
				want := rcode
				if name == "good.test.evil." {
					want = nxDomain // as a search list makes it
				}
				m := w.ask(name, typ)
				if m.RCode != want || len(m.Answers)+len(m.Authorities)+len(m.Additionals) != 0 || m.Questions[0].Name.String() != name {
					t.Errorf("%q %v: %v", name, typ, m.GoString())
				}
				w.now += second
			}
		}
		if len(w.names) > 0 {
			t.Errorf("asked for %q", w.names)
		}
		w.ask("BAD.good.test.", tA) // the rule that allows stands before
		if !slices.Equal(w.names, []string{"bad.good.test."}) {
			t.Errorf("asked for %q", w.names)
		}
		if f := w.e.Figures(); f.Refused != uint64(10*len(names)) {
			t.Errorf("%d refused", f.Refused)
		}
		if !slices.Contains(w.whys, ByRule) || !slices.Contains(w.whys, ByDefault) {
			t.Errorf("told %v", w.whys)
		}
	}
}

// TestTypesNotAsked: questions that are not about records, or whose records nobody can
// pass on.
func TestTypesNotAsked(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 1}, "any")
	for typ, want := range map[dnsmessage.Type]dnsmessage.RCode{
		dnsmessage.TypeAXFR: refused, typeIXFR: refused, 0: notImp, 41: notImp, 249: notImp, 250: notImp, 253: notImp, 254: notImp, 128: notImp,
		typeWKS: notImp, typeDNAME: notImp, typeA6: notImp, 3: notImp, 4: notImp, 17: notImp, 24: notImp, 30: notImp,
	} {
		if m := w.ask("a.test.", typ); m.RCode != want || len(m.Answers) > 0 {
			t.Errorf("type %d: %v", typ, m.RCode)
		}
	}
	for _, class := range []dnsmessage.Class{dnsmessage.ClassCHAOS, dnsmessage.ClassANY, 0, 254} {
		msg := message("version.bind.", tTXT, func(m *dnsmessage.Message) { m.Questions[0].Class = class })
		if m := w.unpack(w.exchange(msg, false)); m.RCode != refused || m.Questions[0].Class != class {
			t.Errorf("class %d: %v", class, m.RCode)
		}
	}
	m := w.ask("a.test.", dnsmessage.TypeALL)
	if len(m.Answers) != 1 || m.Answers[0].Header.Type != typeHINFO || m.RCode != noError {
		t.Errorf("ANY: %v", m.GoString())
	}
	if len(w.names) > 0 {
		t.Errorf("asked for %q", w.names)
	}
}

// TestQuestionsMalformed: what has no answer, and what errors there are.
func TestQuestionsMalformed(t *testing.T) {
	good := message("a.test.", tA)
	opt := message("a.test.", tA, withEDNS(1232, false))
	change := func(b []byte, at int, v byte) []byte { b = slices.Clone(b); b[at] = v; return b }
	for name, c := range map[string]struct {
		msg  []byte
		want int // the code; below zero: no answer
	}{
		"empty":             {nil, -1},
		"half a header":     {good[:11], -1},
		"an answer":         {change(good, 2, 0x81), -1},
		"status":            {change(good, 2, 2<<3), int(notImp)},
		"notify":            {change(good, 2, 4<<3|1), int(notImp)},
		"update":            {change(good, 2, 5<<3), int(notImp)},
		"truncated":         {change(good, 2, 3), int(formErr)},
		"no question":       {counts(good[:12], 0), int(formErr)},
		"two questions":     {append(counts(good, 2), good[12:]...), int(formErr)},
		"missing question":  {good[:12], int(formErr)},
		"half a question":   {good[:len(good)-1], int(formErr)},
		"an answer in it":   {counts(good, 1, 1), int(formErr)},
		"an authority":      {counts(good, 1, 0, 1), int(formErr)},
		"two additionals":   {append(counts(opt, 1, 0, 0, 2), opt[len(opt)-11:]...), int(formErr)},
		"no OPT":            {counts(good, 1, 0, 0, 1), int(formErr)},
		"half an OPT":       {opt[:len(opt)-1], int(formErr)},
		"long OPT":          {change(opt, len(opt)-1, 1), int(formErr)},
		"OPT with a name":   {append(opt[:len(opt)-11:len(opt)-11], append([]byte{1, 'a'}, opt[len(opt)-11:]...)...), int(formErr)},
		"signed":            {append(counts(good, 1, 0, 0, 1), 0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 0), int(formErr)},
		"version 1":         {change(opt, len(opt)-5, 1), int(noError)}, // and in the OPT record BADVERS
		"loop":              {append(counts(good[:12], 1), 0xc0, 12, 0, 1, 0, 1), int(formErr)},
		"reserved label":    {append(counts(good[:12], 1), 0x80, 12, 0, 1, 0, 1), int(formErr)},
		"dot in a label":    {append(counts(good[:12], 1), 3, 'a', '.', 'b', 0, 0, 1, 0, 1), int(formErr)},
		"label beyond":      {append(counts(good[:12], 1), 60, 'a', 0, 0, 1, 0, 1), int(formErr)},
		"too long a name":   {append(append(counts(good[:12], 1), []byte(strings.Repeat("\x01a", 128))...), 0, 0, 1, 0, 1), int(formErr)},
		"something behind":  {append(slices.Clone(good), 1, 2, 3), int(noError)},
		"longer than it is": {append(slices.Clone(good), make([]byte, MaxQuestion)...), -1},
	} {
		w := newWorld(t, Config{Resolvers: 1}, "a.test")
		w.add("a.test.", 60, a4("192.0.2.1"))
		client := w.client(1, false)
		w.send(1, c.msg)
		w.run()
		switch {
		case c.want < 0 && len(client.got) > 0:
			t.Errorf("%s: answer % x", name, client.got[0])
		case c.want < 0:
		case len(client.got) != 1 || int(client.got[0][3]&15) != c.want || client.got[0][2]&0x80 == 0:
			t.Errorf("%s: answers % x", name, client.got)
		case c.want == int(formErr) != (w.e.Figures().Malformed == 1):
			t.Errorf("%s: not counted", name)
		case name == "version 1":
			m := w.unpack(client.got[0])
			if h := m.Additionals[0].Header; h.ExtendedRCode(m.RCode) != rcodeBADVER || len(m.Answers) > 0 {
				t.Errorf("%s: %v", name, m.GoString())
			}
		}
	}
}

// TestEDNS: an OPT record is answered by one, and by none if there was none; the answer
// is as long as the client takes, and says so if it is cut; by TCP it is whole.
func TestEDNS(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 1}, "many.test", "text.test")
	for i := range 60 {
		w.add("many.test.", 60, a4(fmt.Sprintf("192.0.2.%d", i)))
	}
	w.add("text.test.", 60, &dnsmessage.TXTResource{TXT: []string{strings.Repeat("x", 255), strings.Repeat("y", 255), strings.Repeat("z", 255)}})
	for _, c := range []struct {
		size, atMost, least int
		cut                 bool
	}{{0, 512, 400, true}, {100, 512, 400, true}, {800, 800, 700, true}, {1232, 1232, 980, false}, {65535, 1232, 980, false}} {
		msg := message("many.test.", tA)
		if c.size > 0 {
			msg = message("many.test.", tA, withEDNS(c.size, true))
		}
		got := w.exchange(msg, false)
		m := w.unpack(got)
		if len(got) > c.atMost || len(got) < c.least || m.Truncated != c.cut || len(m.Additionals) != min(c.size, 1) || !c.cut && len(m.Answers) != 60 {
			t.Errorf("size %d: %d bytes, %d answers, cut: %v", c.size, len(got), len(m.Answers), m.Truncated)
		}
		if c.size > 0 && (!m.Additionals[0].Header.DNSSECAllowed() || m.Additionals[0].Header.Class != ednsSize) {
			t.Errorf("size %d: %v", c.size, m.Additionals[0].GoString())
		}
		m = w.unpack(w.exchange(msg, true))
		if m.Truncated || len(m.Answers) != 60 {
			t.Errorf("by TCP: %d answers, cut: %v", len(m.Answers), m.Truncated)
		}
	}
	if m := w.ask("text.test.", tTXT); !m.Truncated || len(m.Answers) != 0 {
		t.Errorf("text: %v", m.GoString())
	}
	m := w.unpack(w.exchange(message("nothing.test.", tA, withEDNS(1232, false)), false))
	if o, ok := m.Additionals[0].Body.(*dnsmessage.OPTResource); !ok || len(o.Options) != 1 || o.Options[0].Code != 15 || string(o.Options[0].Data) != "\x00\x0f" {
		t.Errorf("refused without saying by whom: %v", m.GoString())
	}
}

// TestBits: of a client's bits CD, RD and DO are repeated, none passed on.
func TestBits(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 1}, "a.test")
	w.add("a.test.", 60, a4("192.0.2.1"))
	w.resolve = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
		if q.CheckingDisabled || q.AuthenticData || !q.RecursionDesired || len(q.Additionals) != 1 || q.Additionals[0].Header.DNSSECAllowed() {
			t.Errorf("asked %v", q.GoString())
		}
		m := w.reply(q)
		m.AuthenticData, m.CheckingDisabled, m.Authoritative = true, true, true
		b, _ := m.Pack()
		return [][]byte{b}
	}
	m := w.unpack(w.exchange(message("a.test.", tA, withEDNS(1232, true), func(m *dnsmessage.Message) {
		m.CheckingDisabled, m.AuthenticData, m.RecursionDesired = true, true, false
	}), false))
	if !m.CheckingDisabled || m.AuthenticData || m.RecursionDesired || m.Authoritative {
		t.Errorf("answer %v", m.GoString())
	}
}

// TestSearchLists: what is refused does not exist where resolvers would end their search
// otherwise.
func TestSearchLists(t *testing.T) {
	search := []domain.Name{"corp.test", "b.test"}
	w := newWorld(t, Config{Resolvers: 1, Search: search}, "pypi.test", "*.wide.test", "build.b.test", "!*.pypi.test")
	for name, want := range map[string]dnsmessage.RCode{
		"corp.test.": nxDomain, "build.corp.test.": nxDomain, "x.y.CORP.test.": nxDomain, "other.b.test.": nxDomain,
		"xcorp.test.": refused, "pypi.test.svc.cluster.local.": nxDomain, "a.b.wide.test.local.": nxDomain, "other.test.": refused,
		"pypi.example.": refused, "pypi.": refused, "x.pypi.test.local.": refused, "pypi.test.a.b.c.d.e.f.g.h.i.": refused,
	} {
		if m := w.ask(name, tA); m.RCode != want {
			t.Errorf("%s: %v, want %v", name, m.RCode, want)
		}
	}
	w.add("build.b.test.", 60, a4("192.0.2.1"))
	w.expect(w.ask("build.b.test.", tA), noError, "192.0.2.1")
	if !slices.Equal(w.names, []string{"build.b.test."}) {
		t.Errorf("asked for %q", w.names)
	}
	// With rules that deny only, all that is left of a name is allowed, and says nothing.
	w = newWorld(t, Config{Resolvers: 1}, "!*.ads.test", "any")
	if m := w.ask("x.ads.test.", tA); m.RCode != refused {
		t.Errorf("denied: %v", m.RCode)
	}
}

// TestRulesChange: what is kept, and what is under way, is judged again.
func TestRulesChange(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 1}, "a.test", "t.test", "alias.test")
	w.add("a.test.", 60, a4("192.0.2.1"))
	w.add("t.test.", 60, &dnsmessage.TXTResource{TXT: []string{"x"}})
	w.add("alias.test.", 60, cname("t.test."))
	w.expect(w.ask("a.test.", tA), noError, "192.0.2.1")
	w.resolve = func(s *resolverSocket, q dnsmessage.Message) [][]byte {
		w.e.SetRules(rulesOf(t, "!t.test", "alias.test"))
		return [][]byte{w.honest(q)}
	}
	if m := w.ask("t.test.", tTXT); m.RCode != refused || len(m.Answers) > 0 {
		t.Errorf("under way: %v", m.GoString())
	}
	if m := w.ask("alias.test.", tTXT); m.RCode != refused || len(m.Answers) > 0 || w.whys[len(w.whys)-1] != ByAlias {
		t.Errorf("by another name: %v, %v", m.GoString(), w.whys)
	}
	if m := w.ask("a.test.", tA); m.RCode != refused {
		t.Errorf("kept: %v", m.GoString())
	}
	w.e.SetRules(rulesOf(t, "any"))
	w.expect(w.ask("a.test.", tA), noError, "192.0.2.1")
	if f := w.e.Figures(); f.Cached != 1 {
		t.Errorf("%d from the cache", f.Cached)
	}
}

// TestRulesChangeBefore: what is refused by the time that there is a socket, or that another
// resolver is to be asked, is not asked for.
func TestRulesChangeBefore(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 2}, "a.test")
	w.pass(2 * readyLife)
	c := w.client(1, false)
	w.send(1, message("a.test.", tA))
	w.e.SetRules(rulesOf(t, "b.test"))
	w.run()
	if len(c.got) != 1 || w.unpack(c.got[0]).RCode != refused || w.asked != 0 {
		t.Errorf("%d answers, asked %q", len(c.got), w.names)
	}
	w.resolve = func(*resolverSocket, dnsmessage.Message) [][]byte {
		w.e.SetRules(rulesOf(t, "a.test"))
		return nil
	}
	if m := w.ask("b.test.", tA); m.RCode != refused || w.asked != 1 || len(w.e.questions) != 0 {
		t.Errorf("asked %d times: %v", w.asked, m.RCode)
	}
}

// TestAudit: no name is refused, and each is told of.
func TestAudit(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 1, Audit: true}, "!a.test")
	w.add("a.test.", 60, a4("192.0.2.1"))
	w.expect(w.ask("a.test.", tA), noError, "192.0.2.1")
	if !slices.Equal(w.whys, []Why{Allowed}) {
		t.Errorf("told %v", w.whys)
	}
}

// TestGranted: what the broker does not grant is cut out: one of several addresses, all of
// them, addresses behind a chain; and nothing without a word of the broker's.
func TestGranted(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 1}, "*.test")
	w.denied = func(a netip.Addr) bool { return a.IsPrivate() }
	w.add("mixed.test.", 60, a4("10.0.0.1"))
	w.add("mixed.test.", 60, a4("192.0.2.1"))
	w.add("private.test.", 60, a4("10.0.0.1"))
	w.add("private6.test.", 60, a6("fd00::1"))
	w.add("alias.test.", 60, cname("internal.elsewhere."))
	w.add("internal.elsewhere.", 60, a4("192.168.0.1"))
	w.expect(w.ask("mixed.test.", tA), noError, "192.0.2.1")
	for name, typ := range map[string]dnsmessage.Type{"private.test.": tA, "private6.test.": tAAAA, "alias.test.": tA} {
		m := w.unpack(w.exchange(message(name, typ, withEDNS(1232, false)), false))
		if m.RCode != noError || len(m.Answers) > 0 || len(m.Authorities) > 0 || w.whys[len(w.whys)-1] != ByAddress {
			t.Errorf("%s: %v", name, m.GoString())
		}
		if o := m.Additionals[0].Body.(*dnsmessage.OPTResource); len(o.Options) != 1 {
			t.Errorf("%s: does not say why", name)
		}
	}
	if f := w.e.Figures(); f.Cut != 4 {
		t.Errorf("%d cut", f.Cut)
	}
	w.silent = true
	if m := w.ask("mixed.test.", tA); m.RCode != servFail || len(m.Answers) > 0 {
		t.Errorf("without a word: %v", m.GoString())
	}
	w.e.Granted(w.told[len(w.told)-1].Seq, ^uint64(0), w.around, w.now) // too late
	w.silent = false
	w.expect(w.ask("mixed.test.", tA), noError, "192.0.2.1")
}

// TestPointers: PTR questions for what was given are answered by ourselves.
func TestPointers(t *testing.T) {
	w := newWorld(t, Config{Resolvers: 1}, "a.test", "1.100.51.198.in-addr.arpa")
	w.denied = func(a netip.Addr) bool { return a == netip.MustParseAddr("192.0.2.9") }
	w.add("a.test.", 60, a4("192.0.2.1"))
	w.add("a.test.", 60, a4("192.0.2.9"))
	w.add("a.test.", 60, a6("2001:db8::1"))
	w.add("1.100.51.198.in-addr.arpa.", 60, &dnsmessage.PTRResource{PTR: dnsmessage.MustNewName("other.test.")})
	four, six := "1.2.0.192.in-addr.arpa.", "1."+strings.Repeat("0.", 23)+"8.B.d.0.1.0.0.2.ip6.arpa."
	for _, name := range []string{four, six} {
		if m := w.ask(name, tPTR); m.RCode != refused {
			t.Errorf("%s before it was given: %v", name, m.RCode)
		}
	}
	w.ask("a.test.", tA)
	w.ask("a.test.", tAAAA)
	for _, name := range []string{four, six} {
		m := w.ask(name, tPTR)
		if m.RCode != noError || len(m.Answers) != 1 || m.Answers[0].Body.(*dnsmessage.PTRResource).PTR.String() != "a.test." || m.Answers[0].Header.TTL != 120 {
			t.Errorf("%s: %v", name, m.GoString())
		}
		if m := w.ask(name, tTXT); m.RCode != refused {
			t.Errorf("%s, another type: %v", name, m.RCode)
		}
	}
	for _, name := range []string{
		"9.2.0.192.in-addr.arpa.", "01.2.0.192.in-addr.arpa.", "1.1.2.0.192.in-addr.arpa.", "2.0.192.in-addr.arpa.", "in-addr.arpa.", "256.2.0.192.in-addr.arpa.",
		"x.2.0.192.in-addr.arpa.", six[2:], "10." + six[2:], "g" + six[1:], "ip6.arpa.",
	} {
		if m := w.ask(name, tPTR); m.RCode != refused {
			t.Errorf("%s: %v", name, m.RCode)
		}
	}
	m := w.ask("1.100.51.198.in-addr.arpa.", tPTR) // by rule
	if len(m.Answers) != 1 || m.Answers[0].Body.(*dnsmessage.PTRResource).PTR.String() != "other.test." {
		t.Errorf("by rule: %v", m.GoString())
	}
	if !slices.Equal(w.names, []string{"a.test.", "1.100.51.198.in-addr.arpa."}) {
		t.Errorf("asked for %q", w.names)
	}
	w.pass(121 * second)
	if m := w.ask(four, tPTR); m.RCode != refused {
		t.Errorf("later: %v", m.RCode)
	}
}
