// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"net/netip"
	"slices"
	"testing"
)

// hits are those of all rules, by text; the same text twice is told apart.
func hits(e *RuleSet) map[string]uint64 {
	all := map[string]uint64{}
	for _, r := range e.List() {
		for _, known := all[r.Text]; known; _, known = all[r.Text] {
			r.Text += "'"
		}
		all[r.Text] = r.Hits
	}
	return all
}

// TestHits: the rule that decides counts, once, and no other; a resolver's pin and what
// no rule fits count too. Who only asks counts nothing.
func TestHits(t *testing.T) {
	e := must(t, "", "+tcp:192.0.2.1:80", "-private", "-private", "+any:853", "-any")
	e.Pin(netip.MustParseAddr("10.0.0.53"))
	for _, tt := range []struct {
		proto uint8
		dst   string
		rule  string
	}{
		{protoTCP, "192.0.2.1:80", "--allow tcp:192.0.2.1:80"},
		{protoUDP, "192.0.2.1:80", "--deny any"},
		{protoTCP, "10.0.0.53:80", "--deny private"},
		{protoUDP, "10.0.0.53:53", "--allow 10.0.0.53:53"},
		{protoUDP, "10.0.0.53:853", "--allow any:853"}, // names a port
		{protoICMP, "10.0.0.53:0", "--deny private"},
		{protoTCP, "[64:ff9b::10.0.0.1]:853", "--deny private"}, // what it may become
		{protoTCP, "[2001:db8::1]:853", "--allow any:853"},
	} {
		f := Flow{Proto: tt.proto, To: netip.MustParseAddrPort(tt.dst)}
		before := hits(e)
		v := e.Judge(f)
		if got := hits(e); got[tt.rule] != before[tt.rule] {
			t.Errorf("%s: to ask counts", tt.dst)
		}
		v.Count()
		for text, n := range hits(e) {
			if grown := n - before[text]; (grown == 1) != (text == tt.rule) || grown > 1 {
				t.Errorf("%d to %s: %s has grown by %d", tt.proto, tt.dst, text, grown)
			}
		}
	}
	e = must(t, "", "-private")
	v := e.Judge(Flow{Proto: protoTCP, To: netip.MustParseAddrPort("192.0.2.1:80")})
	if v.Count(); hits(e)["--allow any"] != 1 || hits(e)["--deny private"] != 0 {
		t.Errorf("what no rule fits: %v", hits(e))
	}
	if v := (Verdict{Allowed: true}); v.Count() {
		t.Error("a verdict of nobody's counts")
	}
}

// TestHitsStay: a rule that stays where others are replaced keeps what it has counted,
// wherever it stands, and one that comes back begins anew.
func TestHitsStay(t *testing.T) {
	e := must(t, "", "+tcp:192.0.2.1:80", "-private")
	ask := func(dst string) {
		v := e.Judge(Flow{Proto: protoTCP, To: netip.MustParseAddrPort(dst)})
		v.Count()
	}
	replace := func(rules ...Rule) {
		if err := e.Replace(rules); err != nil {
			t.Fatal(err)
		}
	}
	ask("192.0.2.1:80")
	ask("10.0.0.1:80")
	ask("10.0.0.2:80")
	replace(Rule{Dest: "host"}, Rule{Dest: "private"})
	ask("10.0.0.1:80")
	if got := hits(e); got["--deny private"] != 3 || got["--deny host"] != 0 {
		t.Errorf("%v", got)
	}
	replace(Rule{Allow: true, Dest: "tcp:192.0.2.1:80"}, Rule{Dest: "private"}, Rule{Dest: "private"})
	if got := hits(e); got["--deny private"] != 3 || got["--deny private'"] != 0 || got["--allow tcp:192.0.2.1:80"] != 0 {
		t.Errorf("%v", got)
	}
	if e.Replace([]Rule{{Dest: "nobody"}}) == nil || hits(e)["--deny private"] != 3 {
		t.Error("rules that cannot be parsed take the counters away")
	}
}

// TestList: all rules in the order in which they are asked, and who has said them.
func TestList(t *testing.T) {
	e, err := New([]Rule{{Allow: true, Dest: "10.0.0.1"}, {Dest: "host", Source: ByDefault}, {Dest: "any", Note: "why"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // as both families of a guest may have one
		e.Pin(netip.MustParseAddr("::1"))
	}
	const pinned = "forwarded resolver, before sets and networks without ports"
	want := []Listed{
		{Text: "--allow 10.0.0.1", Source: ByOption}, {Text: "--deny host", Source: ByDefault}, {Text: "--deny any", Source: ByOption, Note: "why"},
		{Text: "--allow [::1]:53", Source: BuiltIn, Note: pinned}, {Text: "--allow [::1]:853", Source: BuiltIn, Note: pinned},
		{Text: "--allow any", Source: BuiltIn, Note: "what no rule fits"},
	}
	if got := e.List(); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestExplain: each rule that was asked, with the reason, up to the one that decides;
// what an address may become is asked about as well.
func TestExplain(t *testing.T) {
	e := must(t, "", "+udp:any", "+tcp:any:80-90", "+192.0.2.1", "-any:443", "-private")
	e.Pin(netip.MustParseAddr("10.0.0.53"))
	const wide = "does not count for the forwarded resolver: it names neither 10.0.0.53 nor ports"
	for _, tt := range []struct {
		proto   uint8
		dst     string
		allowed bool
		want    []string
	}{
		{protoTCP, "10.0.0.1:443", false, []string{"0 is for another protocol", "1 is for other ports", "2 is for other addresses", "3 fits, and denies"}},
		{protoTCP, "10.0.0.1:80", true, []string{"0 is for another protocol", "1 fits, and allows"}},
		{protoICMP, "198.51.100.1:0", true, []string{"0 is for another protocol", "1 is for another protocol", "2 is for other addresses",
			"3 has ports, and echo has none", "4 is for other addresses"}},
		{protoUDP, "10.0.0.53:53", true, []string{"0 " + wide, "1 is for another protocol", "2 is for other addresses", "3 is for other ports", "4 " + wide}},
		{protoTCP, "[64:ff9b::10.0.0.1]:22", false, []string{
			"0 is for another protocol", "1 is for other ports", "2 is for other addresses", "3 is for other ports", "4 is for other addresses",
			"0 is for another protocol", "1 is for other ports", "2 is for other addresses", "3 is for other ports", "4 fits, and denies"}},
	} {
		f := Flow{Proto: tt.proto, To: netip.MustParseAddrPort(tt.dst)}
		v, asked := e.Explain(f)
		var got []string
		for _, a := range asked {
			got = append(got, string(rune('0'+a.Index))+" "+a.Result)
			if a.Text != e.List()[a.Index].Text {
				t.Errorf("%s: rule %d is not %s", tt.dst, a.Index, a.Text)
			}
		}
		if v.Allowed != tt.allowed || v != e.Judge(f) || !slices.Equal(got, tt.want) {
			t.Errorf("%d to %s: %v, %q; want %v, %q", tt.proto, tt.dst, v.Allowed, got, tt.allowed, tt.want)
		}
		if last := asked[len(asked)-1]; !v.Allowed && (!last.Fits || last.Text != v.Rule) {
			t.Errorf("%s: it is not the last that decides: %+v", tt.dst, last)
		}
	}
	if _, asked := e.Explain(Flow{Proto: protoTCP, To: netip.MustParseAddrPort("[64:ff9b::10.0.0.1]:22")}); asked[9].To != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("asked about %v", asked[9].To)
	}
}
