// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"aldente/fuzz"
)

// FuzzEgress reads any rules, separated by semicolons, and asks about any
// destination. Rules that are accepted mean what a second reading of the grammar
// says, by package net's own prefixes; a mapped address is the IPv4 address, and
// one that translators or tunnels make IPv4 of is both; a rule more at the end never changes what
// one before it has decided.
func FuzzEgress(f *testing.F) {
	ask := func(proto byte, addr string, port uint16, pin byte, rules string) []byte {
		a := netip.MustParseAddr(addr).As16()
		b := append([]byte{0, proto, byte(port >> 8), byte(port), pin}, a[:]...)
		return append(b, rules...)
	}
	for _, b := range [][]byte{
		ask(0, "2001:db8::1", 85, 0, "+tcp:[2001:db8::]/32:80-90;-any"), ask(1, "127.0.0.1", 53, 1, "-host;-metadata;+any"),
		ask(1, "127.0.0.1", 53, 1, "-127.0.0.1"), ask(2, "10.1.2.3", 0, 0, "-icmp:private"), ask(3, "fe80::1", 0, 0, "-link-local"),
		ask(0, "64:ff9b::a01:203", 80, 0, "+64:ff9b::/96;-private"), ask(0, "::ffff:10.1.2.3", 80, 0, "-10.0.0.0/8:80"),
		ask(0, "64:ff9b:1:a01:2:300::", 80, 0, "-private"), ask(0, "64:ff9b:1:ff:a:102:300:0", 80, 0, "-private"), ask(0, "64:ff9b:1::a01:203", 80, 0, "-private"),
		ask(1, "64:ff9b:1:a:1:203::", 80, 0, "-private"), ask(0, "2002:a01:203::1", 80, 0, "-private"), ask(0, "::a01:203", 80, 0, "-private"), ask(0, "::ffff:0:a01:203", 80, 0, "-private"),
		ask(0, "2001:0:a01:203::1", 80, 0, "-private"), ask(0, "2001::f5fe:fdfc", 80, 0, "-private"), ask(0, "2001:db8::200:5efe:a01:203", 80, 0, "-private"),
		ask(0, "2001:db8:64:a:1:203::", 80, 0, "-private"), ask(0, "2001:db8:64::a01:203", 80, 0, "-private"), ask(0, "64:ff9b:1:c6:3364:a00::", 80, 0, "-private"),
		ask(1, "127.0.0.1", 53, 1, "-127.0.0.1/32"), ask(1, "127.0.0.1", 53, 1, "-udp:any:53"), ask(1, "127.0.0.1", 53, 1, "-any;-any:53-54"),
		ask(0, "169.254.170.23", 80, 0, "-metadata"), ask(0, "fd20:ce::254", 80, 0, "-metadata"), ask(0, "::1", 80, 0, "+[::1];-host"),
		ask(0, "192.0.2.5", 80, 0, "-host:1-65535"), ask(0, "::1", 80, 0, "-[::1];-[::1]:80;-::1/128"), ask(1, "10.1.2.3", 853, 1, "-udp:any"),
		ask(0, "192.0.2.1", 1, 0, "-;-tcp:;-any:x;-icmp:any:7;-fe80::1%eth0;-::ffff:0:0/90;-192.0.2.0/33;-sctp:any"),
		ask(0, "192.0.2.1", 1, 0, "+pypi.test:443;+*.pypi.test;-ADS.test.;-tcp:registry.:5000;-registry;-a..b;-*foo;-a.*.b;-any:;-pypi.test:;-[192.0.2.1]:;-[::1;-::1];-10.0.0;-*.0;-xn--a.test;-https://a.test"),
		ask(1, "127.0.0.1", 53, 1, "+pypi.test:443;-any"),
		ask(0, "192.0.2.1", 1, 0, "-[192.0.2.1];-::ffff:192.0.2.0/120;+192.0.2.1:5-4;+192.0.2.1:0"),
	} {
		fuzz.Add(f, b)
		b = slices.Concat(b[:21], fuzz.Unspell(string(b[21:])))
		b[0] = 1
		fuzz.Add(f, b)
	}
	words := fuzz.Words("cli")
	own := []netip.Addr{netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("fe80::5%eth0"), netip.MustParseAddr("::ffff:192.0.2.6")}
	local := netip.MustParseAddr("192.0.2.7")
	resolver := netip.MustParseAddr("127.0.0.1")
	translator := netip.MustParsePrefix("2001:db8:64::/56")
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &fuzz.Source{B: b}
		mode := s.Byte()
		proto := []uint8{protoTCP, protoUDP, protoICMP, protoICMPv6}[s.Byte()%4]
		port, pin := s.Uint16(), s.Byte()&1 != 0
		var raw [16]byte
		s.Fill(raw[:])
		text := string(s.Take(1024))
		if mode&1 != 0 {
			text = fuzz.Spell([]byte(text), words)
		}
		if proto == protoICMP || proto == protoICMPv6 {
			port = 0
		}
		var rules []Rule
		var want []reading
		for one := range strings.SplitSeq(text, ";") {
			r := Rule{Allow: strings.HasPrefix(one, "+"), Dest: strings.TrimLeft(one, "+-")}
			_, err := New([]Rule{r}, own)
			q, ok := read(r.Dest)
			if ok != (err == nil) {
				t.Fatalf("%q: %v, a second reading: %v", r.Dest, err, ok)
			}
			if ok {
				q.allow = r.Allow
				rules, want = append(rules, r), append(want, q)
			}
		}
		e, err := New(rules, own)
		if err != nil || len(e.Rules()) != len(rules) {
			t.Fatalf("%v, rules %q of %+v", err, e.Rules(), rules)
		}
		e.SetLocal(func(f Flow) bool { return f.To.Addr() == local })
		e.SetNAT64([]netip.Prefix{translator})
		if pin {
			e.Pin(resolver)
		}
		dst := netip.AddrPortFrom(netip.AddrFrom16(raw).Unmap(), port)
		got := e.Allowed(proto, dst)
		if again := e.Allowed(proto, netip.AddrPortFrom(netip.AddrFrom16(dst.Addr().As16()), port)); again != got {
			t.Fatalf("%v: %v, in mapped form %v", dst, got, again)
		}
		if v, asked := e.Explain(Flow{Proto: proto, To: dst}); v.Allowed != got || !got && (len(asked) == 0 || !asked[len(asked)-1].Fits || asked[len(asked)-1].Text != v.Rule) {
			t.Fatalf("%v: %v, explained as %+v by %+v", dst, got, v, asked)
		}
		ours := allowed(want, pin, proto, dst)
		for _, v4 := range standsFor(net.IP(raw[:])) {
			ours = ours && allowed(want, pin, proto, netip.AddrPortFrom(v4, port))
		}
		if got != ours {
			t.Fatalf("%v by %d: %v, a second reading: %v\n%q, pinned %v", dst, proto, got, ours, text, pin)
		}
	})
}

// reading is a rule as read a second time.
type reading struct {
	allow       bool
	proto       string
	nets        []*net.IPNet
	one         bool
	first, last int
	name        bool // of which nobody has asked: it fits nothing, and no pin counts beside it
}

// nameText is a rule's name in docs/egress.md, but for its length.
var nameText = regexp.MustCompile(`^(\*\.)?([\w-]{1,63}\.)*[\w-]{1,63}\.?$`)

// isName reads a name, or "*." and a name.
func isName(s string) bool {
	bare := strings.TrimSuffix(s, ".")
	labels := strings.Split(bare, ".")
	return nameText.MatchString(s) && strings.Contains(s, ".") && len(bare) <= 253 && !digitsOnly(labels[len(labels)-1])
}

func digitsOnly(s string) bool { return strings.Trim(s, "0123456789") == "" }

// read follows the grammar of docs/egress.md with package net.
func read(s string) (r reading, ok bool) {
	for _, p := range []string{"tcp", "udp", "icmp"} {
		if strings.HasPrefix(s, p+":") {
			r.proto, s = p, s[len(p)+1:]
			break
		}
	}
	r.first, r.last = -1, -1
	dest := s
	if i := strings.LastIndex(s, ":"); i >= 0 && (strings.Count(s, ":") == 1 || s[0] == '[' && strings.Contains(s[:i], "]")) {
		dest = s[:i]
		a, b, ranged := strings.Cut(s[i+1:], "-")
		if !ranged {
			b = a
		}
		if !digits(a) || !digits(b) || r.proto == "icmp" {
			return r, false
		}
		r.first, _ = strconv.Atoi(a)
		r.last, _ = strconv.Atoi(b)
		if r.first < 1 || r.last > 65535 || r.last < r.first {
			return r, false
		}
	}
	if s == "" || strings.HasPrefix(dest, "[") != strings.Contains(dest, "]") {
		return r, false
	}
	named := map[string]string{
		"any": "0.0.0.0/0 ::/0", "host": "127.0.0.0/8 ::1/128 0.0.0.0/8 ::/128 192.0.2.5/32 192.0.2.6/32 192.0.2.7/32 fe80::5/128",
		"link-local": "169.254.0.0/16 fe80::/10", "private": "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 fc00::/7",
		"metadata": "169.254.169.254/32 169.254.170.2/32 169.254.170.23/32 100.100.100.200/32 192.0.0.192/32 168.63.129.16/32 " +
			"fd00:ec2::254/128 fd00:ec2::23/128 fd20:ce::254/128",
	}
	if set, found := named[dest]; found {
		for p := range strings.FieldsSeq(set) {
			_, n, _ := net.ParseCIDR(p)
			r.nets = append(r.nets, n)
		}
		return r, true
	}
	if !r.address(dest) {
		r.name = isName(dest)
		return r, r.name
	}
	return r, true
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == "" && len(strings.TrimLeft(s, "0")) < 7
}

// address reads ADDR or ADDR/LEN, the address in brackets or not.
func (r *reading) address(dest string) bool {
	dest = strings.TrimSuffix(strings.TrimPrefix(dest, "["), "]")
	text, bits, prefix := strings.Cut(strings.Replace(dest, "]/", "/", 1), "/")
	if !prefix {
		text = dest
	}
	ip := net.ParseIP(text)
	if ip == nil || strings.Contains(text, "%") {
		return false
	}
	v4 := ip.To4()
	size := 128
	if v4 != nil {
		ip, size = v4, 32
	}
	n := size
	if prefix {
		if !digits(bits) || len(bits) > 1 && bits[0] == '0' {
			return false
		}
		n, _ = strconv.Atoi(bits)
		if v4 != nil && strings.Contains(text, ":") {
			n -= 96
		}
		if n < 0 || n > size {
			return false
		}
	}
	_, whole, err := net.ParseCIDR(fmt.Sprintf("%v/%d", ip, n))
	if err != nil || !whole.IP.Equal(ip) {
		return false
	}
	r.nets, r.one = []*net.IPNet{whole}, n == size
	return true
}

func (r *reading) matches(proto uint8, dst netip.AddrPort) bool {
	name := map[uint8]string{protoTCP: "tcp", protoUDP: "udp", protoICMP: "icmp", protoICMPv6: "icmp"}[proto]
	port := int(dst.Port())
	if r.proto != "" && r.proto != name || r.first >= 0 && (name == "icmp" || port < r.first || port > r.last) {
		return false
	}
	for _, n := range r.nets {
		if v4 := n.IP.To4() != nil && len(n.Mask) == 4; v4 == dst.Addr().Is4() && n.Contains(dst.Addr().AsSlice()) {
			return true
		}
	}
	return false
}

// allowed is the first rule that matches, or yes. For a pinned resolver only those
// rules count that name its very address, or a port.
func allowed(rules []reading, pin bool, proto uint8, dst netip.AddrPort) bool {
	port := dst.Port()
	pin = pin && !slices.ContainsFunc(rules, func(r reading) bool { return r.name }) && dst.Addr() == netip.MustParseAddr("127.0.0.1") && (port == 53 || port == 853) && proto != protoICMP && proto != protoICMPv6
	for i := range rules {
		if r := &rules[i]; r.matches(proto, dst) && (!pin || r.one || r.first > 0) {
			return r.allow
		}
	}
	return true
}

// standsFor reads an IPv6 address as text, in the words of docs/egress.md.
func standsFor(ip net.IP) (all []netip.Addr) {
	if ip.To4() != nil {
		return nil
	}
	hex := fmt.Sprintf("%x", []byte(ip))
	add := func(digits string) {
		n, _ := strconv.ParseUint(digits, 16, 32)
		all = append(all, netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}))
	}
	zeros := func(n int) string { return strings.Repeat("0", n) }
	switch {
	case strings.HasPrefix(hex, "20010db8006400"): // 56 bits, the translator that the user names
		add(hex[14:16] + hex[18:24])
		return all
	case strings.HasPrefix(hex, "0064ff9b"+zeros(16)), strings.HasPrefix(hex, zeros(16)+"ffff0000"):
		add(hex[24:])
	case strings.HasPrefix(hex, "0064ff9b0001"):
		for _, digits := range []string{hex[12:16] + hex[18:22], hex[14:16] + hex[18:24], hex[18:26], hex[24:]} {
			if digits[:2] != "00" {
				add(digits)
			}
		}
	case strings.HasPrefix(hex, zeros(24)) && hex[24:] != zeros(8) && hex[24:] != zeros(7)+"1":
		add(hex[24:])
	case strings.HasPrefix(hex, "2002"):
		add(hex[4:12])
	case strings.HasPrefix(hex, "20010000"):
		add(hex[8:16])
		n, _ := strconv.ParseUint(hex[24:], 16, 32)
		add(fmt.Sprintf("%08x", ^uint32(n)))
	}
	if hex[16:24] == "00005efe" || hex[16:24] == "02005efe" {
		add(hex[24:])
	}
	return all
}
