// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// rulesOf reads "+SRC" and "-SRC".
func rulesOf(s string) (rules []Rule) {
	for _, w := range strings.Fields(s) {
		rules = append(rules, Rule{Allow: w[0] == '+', Source: w[1:]})
	}
	return rules
}

// packet is what a program sees of a peer.
type packet struct {
	header [40]byte
	index  uint32
}

func packetOf(p Peer) (k packet) {
	if k.index = 2; p.Host {
		k.index = loopbackIndex
	}
	if p.Addr.Is4() {
		k.header[0] = 0x45
		copy(k.header[12:], p.Addr.AsSlice())
	} else {
		k.header[0] = 0x60
		copy(k.header[8:], p.Addr.AsSlice())
	}
	return k
}

// run is classic BPF as the kernel's documentation has it (networking/filter.rst). What
// no program of ours may do is an error.
func run(program []unix.SockFilter, k *packet) (uint32, error) {
	var a uint32
	var mem [16]uint32
	for at := 0; at < len(program); at++ {
		switch i := program[at]; i.Code {
		case loadWord:
			if i.K == interfaces {
				a = k.index
				break
			}
			if i.K < netOffset || i.K-netOffset > 36 {
				return 0, fmt.Errorf("%d: loads from %#x", at, i.K)
			}
			a = binary.BigEndian.Uint32(k.header[i.K-netOffset:])
		case loadByte:
			a = uint32(k.header[i.K-netOffset])
		case loadSaved:
			a = mem[i.K]
		case save:
			mem[i.K] = a
		case and:
			a &= i.K
		case shift:
			a >>= i.K
		case jump:
			at += int(i.K)
		case equal:
			if a == i.K {
				at += int(i.Jt)
			} else {
				at += int(i.Jf)
			}
		case verdict:
			return i.K, nil
		default:
			return 0, fmt.Errorf("%d: code %#x", at, i.Code)
		}
	}
	return 0, fmt.Errorf("no verdict")
}

// agree compares a program with the rules that it is made of.
func agree(t *testing.T, s *RuleSet, p Peer) bool {
	t.Helper()
	allowed := s.Allowed(p)
	program := s.Program(p.Proto, p.Port)
	if program == nil {
		if !allowed {
			t.Fatalf("%+v: no program, and refused", p)
		}
		return allowed
	}
	k := packetOf(p)
	kept, err := run(program, &k)
	if err != nil {
		t.Fatalf("%+v: %v", p, err)
	}
	if kept != keep && kept != drop || (kept == keep) != allowed {
		t.Fatalf("%+v: the program keeps %#x, the rules allow: %v", p, kept, allowed)
	}
	return allowed
}

// TestIngress: the first rule that fits counts, by source, protocol and port of the
// guest; the program says the same.
func TestIngress(t *testing.T) {
	for _, tt := range []struct{ rules, peer, want string }{
		{"", "tcp 80 192.0.2.1", "+"},
		{"-any", "tcp 80 192.0.2.1", "-"},
		{"-any", "udp 80 2001:db8::1", "-"},
		{"+192.0.2.0/24:8080 -any", "tcp 8080 192.0.2.77", "+"},
		{"+192.0.2.0/24:8080 -any", "udp 8080 192.0.2.77", "+"},
		{"+192.0.2.0/24:8080 -any", "tcp 8081 192.0.2.77", "-"},
		{"+192.0.2.0/24:8080 -any", "tcp 8080 192.0.3.77", "-"},
		{"+192.0.2.0/24:8080 -any", "tcp 8080 2001:db8::1", "-"},
		{"-192.0.2.0/24", "tcp 8080 198.51.100.1", "+"}, // what none fits
		{"-192.0.2.7 +192.0.2.0/24 -any", "tcp 1 192.0.2.7", "-"},
		{"-192.0.2.7 +192.0.2.0/24 -any", "tcp 1 192.0.2.8", "+"},
		{"+192.0.2.0/24 -192.0.2.7", "tcp 1 192.0.2.7", "+"},
		{"-udp:any", "tcp 1 192.0.2.7", "+"},
		{"-udp:any", "udp 1 192.0.2.7", "-"},
		{"+tcp:any:80-90 -any", "tcp 90 192.0.2.7", "+"},
		{"+tcp:any:80-90 -any", "tcp 91 192.0.2.7", "-"},
		{"+private -any", "tcp 1 10.255.255.255", "+"},
		{"+private -any", "tcp 1 11.0.0.0", "-"},
		{"+private -any", "tcp 1 172.31.255.255", "+"},
		{"+private -any", "tcp 1 172.32.0.0", "-"},
		{"+private -any", "tcp 1 fdff::1", "+"},
		{"+private -any", "tcp 1 fe80::1", "-"},
		{"+link-local -any", "tcp 1 fe80::1", "+"},
		{"+[2001:db8::]/33:443 -any", "tcp 443 2001:db8:7fff::1", "+"},
		{"+[2001:db8::]/33:443 -any", "tcp 443 2001:db8:8000::1", "-"},
		{"+2001:db8::7 -any", "tcp 443 2001:db8::7", "+"},
		{"+2001:db8::7 -any", "tcp 443 2001:db8::8", "-"},
		{"+::ffff:192.0.2.7 -any", "tcp 443 192.0.2.7", "+"},
		{"+host -any", "tcp 443 192.0.2.7", "-"},
		{"+host -any", "tcp 443 192.0.2.7 host", "+"},
		{"+host -any", "udp 443 2001:db8::7 host", "+"},
		{"-host", "tcp 443 127.0.0.1 host", "-"},
		{"-host", "tcp 443 127.0.0.1", "+"}, // an address is no proof
		{"+0.0.0.0/0 -any", "tcp 443 192.0.2.7", "+"},
		{"+0.0.0.0/0 -any", "tcp 443 2001:db8::7", "-"},
	} {
		s, err := New(rulesOf(tt.rules))
		if err != nil {
			t.Fatalf("%s: %v", tt.rules, err)
		}
		f := strings.Fields(tt.peer)
		p := Peer{Proto: map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}[f[0]], Addr: netip.MustParseAddr(f[2]), Host: len(f) > 3}
		_, _ = fmt.Sscan(f[1], &p.Port)
		if agree(t, s, p) != (tt.want == "+") {
			t.Errorf("%s: %s, want %s", tt.rules, tt.peer, tt.want)
		}
	}
}

// TestProgramOfOthers: a port that no rule says anything of has no program.
func TestProgramOfOthers(t *testing.T) {
	s, err := New(rulesOf("+tcp:192.0.2.7:80 -tcp:any:80"))
	if err != nil {
		t.Fatal(err)
	}
	if s.Program(unix.IPPROTO_TCP, 80) == nil || s.Program(unix.IPPROTO_TCP, 81) != nil || s.Program(unix.IPPROTO_UDP, 80) != nil {
		t.Error("a program for another port, or none for its own")
	}
	var none *RuleSet
	if none.Program(unix.IPPROTO_TCP, 80) != nil || !none.Allowed(Peer{}) || none.Any() || none.List() != nil {
		t.Error("rules out of nothing")
	}
}

// TestProgramLength: as many of the longest rules as there may be go into a program.
func TestProgramLength(t *testing.T) {
	for _, longest := range []string{"+private", "+fd00::1"} {
		s, err := New(rulesOf(strings.Repeat(longest+" ", MaxRules)))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(s.Program(unix.IPPROTO_TCP, 80)); n > unix.BPF_MAXINSNS {
			t.Errorf("%d instructions of %s", n, longest)
		}
	}
	if _, err := New(rulesOf(strings.Repeat("+any ", MaxRules+1))); err == nil {
		t.Error("more than may be")
	}
}

func TestIngressErrors(t *testing.T) {
	for s, want := range map[string]string{
		"": "no source", "tcp:": "no source", "icmp:any": "icmp is not forwarded", "metadata": "nor one of any, host, link-local, private",
		"example.org": "nor one of", "192.0.2.1/24": "meant 192.0.2.0/24?", "any:0": "not a port", "any:2-1": "not a port",
		"127.0.0.1": `the set "host"`, "::1": `the set "host"`, "fe80::1%eth0": "neither an address",
		"any:": "no port behind", "udp:192.0.2.0/24:": "no port behind", "[2001:db8::1": "one bracket", "2001:db8::1]:80": "one bracket",
	} {
		_, err := New([]Rule{{Allow: true, Source: s}})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "--allow-in "+s+": ") {
			t.Errorf("%q: %v, want %q", s, err, want)
		}
	}
	s, _ := New(rulesOf("-any"))
	one, err := New([]Rule{{Source: "192.0.2.1", At: "a:1"}})
	if err != nil {
		t.Fatal(err)
	}
	one.Admit(Peer{Addr: netip.MustParseAddr("192.0.2.1")})
	if err := one.Replace([]Rule{{Source: "any"}, {Source: "192.0.2.1", At: "a:2"}}); err != nil {
		t.Fatal(err)
	}
	if l := one.List()[1]; l.Hits != 1 || l.Source != "file" || !strings.HasPrefix(l.Note, "a:2: ") {
		t.Errorf("in another line: %+v", l)
	}
	if err := s.Replace([]Rule{{Source: "x"}}); err == nil || s.Allowed(Peer{Addr: netip.MustParseAddr("192.0.2.1")}) {
		t.Error("rules that cannot be parsed have replaced others")
	}
	if l := s.List(); len(l) != 1 || l[0].Text != "--deny-in any" {
		t.Errorf("%+v", l)
	}
}

// FuzzIngress: a program says what its rules say, for each peer.
func FuzzIngress(f *testing.F) {
	for _, s := range []string{"+192.0.2.0/24:8080 -any", "-host +private -any:1-1024", "+[2001:db8::]/33:443 -tcp:2001:db8::/32", "-udp:fe80::/10 +link-local", "+192.0.2.0/31 +2001:db8::/63 -any", "+10.0.0.0/8 -172.16.0.0/12 +any"} {
		for _, a := range []string{"192.0.2.7", "10.1.2.3", "2001:db8::1", "fe80::1", "0.0.0.0"} {
			f.Add(s, netip.MustParseAddr(a).AsSlice(), uint16(443), true)
			f.Add(s, netip.MustParseAddr(a).AsSlice(), uint16(443), false)
		}
	}
	f.Fuzz(func(t *testing.T, text string, addr []byte, port uint16, odd bool) {
		for _, w := range strings.Fields(text) {
			if w[0] != '+' && w[0] != '-' {
				return
			}
		}
		a, ok := netip.AddrFromSlice(addr)
		s, err := New(rulesOf(text))
		if err != nil || !ok {
			return
		}
		peers := []netip.Addr{a.Unmap()}
		for _, r := range *s.rules.Load() { // and its neighbours
			for _, x := range r.Prefixes {
				peers = append(peers, x.Addr(), x.Addr().Prev(), x.Addr().Next())
			}
		}
		for _, p := range peers {
			if p.IsValid() && !p.Is4In6() {
				for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
					agree(t, s, Peer{Proto: proto, Port: port, Addr: p, Host: odd})
				}
			}
		}
	})
}
