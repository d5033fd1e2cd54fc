// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"net/netip"
	"strings"
	"testing"
)

func mustRedirects(t *testing.T, all ...string) *Redirects {
	t.Helper()
	var parsed []Redirect
	for _, s := range all {
		r, err := ParseRedirect(s)
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		parsed = append(parsed, r)
	}
	return NewRedirects(parsed)
}

// TestRedirect: which flows a redirect is for, and where it has them go.
func TestRedirect(t *testing.T) {
	for _, tt := range []struct{ redirects, flow, want string }{
		{"192.0.2.7=198.51.100.8", "tcp 192.0.2.7:80", "198.51.100.8:80"},
		{"192.0.2.7=198.51.100.8", "udp 192.0.2.7:53", "198.51.100.8:53"},
		{"192.0.2.7=198.51.100.8", "icmp 192.0.2.7:0", ""},
		{"192.0.2.7=198.51.100.8", "tcp 192.0.2.8:80", ""},
		{"192.0.2.7=198.51.100.8:8080", "tcp 192.0.2.7:80", "198.51.100.8:8080"},
		{"tcp:192.0.2.7:80=127.0.0.1:8080", "tcp 192.0.2.7:80", "127.0.0.1:8080"},
		{"tcp:192.0.2.7:80=127.0.0.1:8080", "udp 192.0.2.7:80", ""},
		{"tcp:192.0.2.7:80=127.0.0.1:8080", "tcp 192.0.2.7:81", ""},
		{"192.0.2.0/24:80-90=127.0.0.1", "udp 192.0.2.200:90", "127.0.0.1:90"},
		{"192.0.2.0/24:80-90=127.0.0.1", "udp 192.0.2.200:91", ""},
		{"udp:any:53=[::1]:5353", "udp 8.8.8.8:53", "[::1]:5353"},
		{"udp:any:53=[::1]:5353", "udp [2001:db8::53]:53", "[::1]:5353"},
		{"[2001:db8::7]:443=[2001:db8::8]:8443", "tcp [2001:db8::7]:443", "[2001:db8::8]:8443"},
		{"2001:db8::7=192.0.2.1", "tcp [2001:db8::7]:443", "192.0.2.1:443"},
		{"[2001:db8::]/32:443=2001:db8::8", "tcp [2001:db8:1::7]:443", "[2001:db8::8]:443"},
		{"::ffff:192.0.2.7=::ffff:192.0.2.8", "tcp 192.0.2.7:1", "192.0.2.8:1"},
		{"192.0.2.7:80=198.51.100.1 192.0.2.0/24=198.51.100.2", "tcp 192.0.2.7:80", "198.51.100.1:80"}, // the first
		{"192.0.2.7:80=198.51.100.1 192.0.2.0/24=198.51.100.2", "tcp 192.0.2.7:81", "198.51.100.2:81"},
		{"192.0.2.0/24=198.51.100.2 192.0.2.7:80=198.51.100.1", "tcp 192.0.2.7:80", "198.51.100.2:80"},
	} {
		name, to, _ := strings.Cut(tt.flow, " ")
		dst := netip.MustParseAddrPort(to)
		got := ""
		if r := mustRedirects(t, strings.Fields(tt.redirects)...).Find(map[string]uint8{"tcp": protoTCP, "udp": protoUDP, "icmp": protoICMP}[name], dst); r != nil {
			got = r.To(dst.Port()).String()
		}
		if got != tt.want {
			t.Errorf("%s: %s leads to %q, want %q", tt.redirects, tt.flow, got, tt.want)
		}
	}
	if NewRedirects(nil).Find(protoTCP, netip.MustParseAddrPort("192.0.2.7:80")) != nil {
		t.Error("a redirect out of nothing")
	}
}

// TestRedirectErrors: what is none, with a hint at what would be.
func TestRedirectErrors(t *testing.T) {
	for s, want := range map[string]string{
		"": "FROM=TO is needed", "192.0.2.7": "FROM=TO is needed", "=192.0.2.7": "FROM=TO is needed", "192.0.2.7=": "FROM=TO is needed",
		"icmp:192.0.2.7=192.0.2.8": "echo is not redirected", "example.org=192.0.2.8": "neither an address", "host=192.0.2.8": "neither an address",
		"192.0.2.7/24=192.0.2.8": "meant 192.0.2.0/24?", "192.0.2.7:0=192.0.2.8": "not a port", "192.0.2.7:9-8=192.0.2.8": "not a port",
		"127.0.0.1=192.0.2.8": "-T and -U", "127.0.0.0/8=192.0.2.8": "-T and -U", "::1=192.0.2.8": "-T and -U",
		"224.0.0.1=192.0.2.8": "no address of one host", "ff00::/8=::1": "no address of one host", "0.0.0.0=192.0.2.8": "no address of one host",
		"255.255.255.255=192.0.2.8": "no address of one host", "fe80::1%eth0=::1": "neither an address",
		"192.0.2.7=example.org": "no ADDR[:PORT]", "192.0.2.7=192.0.2.8:0": "nothing has port 0", "192.0.2.7=192.0.2.8:1-2": "no ADDR[:PORT]",
		"192.0.2.7=192.0.2.0/24": "no ADDR[:PORT]", "192.0.2.7=224.0.0.1": "no address of one host", "192.0.2.7=::": "no address of one host",
		"tcp:192.0.2.7:=192.0.2.8:80": "no port behind", "any:=192.0.2.8": "no port behind", "192.0.2.7=[::1:443": "one bracket", "[::2=::1": "one bracket",
		"192.0.2.7=192.0.2.8:":   "no ADDR[:PORT]",
		"192.0.2.7=fe80::1%eth0": "a zone means nothing", "192.0.2.7=1=2": "no ADDR[:PORT]",
	} {
		if _, err := ParseRedirect(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", s, err, want)
		}
	}
}

// TestRedirectAllows: whoever redirects to a place allows that, and no more.
func TestRedirectAllows(t *testing.T) {
	for s, want := range map[string]string{
		"tcp:192.0.2.7:80=127.0.0.1:8080": "tcp:[127.0.0.1]:8080",
		"192.0.2.7:80-81=::1":             "tcp:[::1]:80-81 udp:[::1]:80-81",
		"udp:192.0.2.7=127.0.0.1":         "udp:[127.0.0.1]",
	} {
		var got []string
		r := &(*mustRedirects(t, s).all.Load())[0]
		for _, rule := range r.Allowed() {
			if !rule.Allow || rule.Note != "by --redirect "+s {
				t.Errorf("%s: %+v", s, rule)
			}
			got = append(got, rule.Dest)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s allows %q, want %q", s, got, want)
		}
		if _, err := New(r.Allowed(), nil); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}

// TestRedirectsReplaced: one that stays keeps what it has counted.
func TestRedirectsReplaced(t *testing.T) {
	r := mustRedirects(t, "192.0.2.7=192.0.2.8", "192.0.2.9=192.0.2.8")
	for range 3 {
		r.Find(protoTCP, netip.MustParseAddrPort("192.0.2.9:1")).Count()
	}
	r.Replace(*mustRedirects(t, "192.0.2.9=192.0.2.8", "192.0.2.7=192.0.2.10").all.Load())
	l := r.List()
	if len(l) != 2 || l[0].Text != "--redirect 192.0.2.9=192.0.2.8" || l[0].Hits != 3 || l[1].Hits != 0 {
		t.Errorf("%+v", l)
	}
}

// FuzzRedirect: whatever is parsed leads where its text says, and what it allows are
// rules.
func FuzzRedirect(f *testing.F) {
	for _, s := range []string{"192.0.2.7=198.51.100.8", "tcp:192.0.2.7:80=127.0.0.1:8080", "udp:any:53=[::1]:5353",
		"[2001:db8::]/32:443=2001:db8::8", "192.0.2.0/24:80-90=127.0.0.1", "::ffff:192.0.2.7=::ffff:192.0.2.8", "=", "a=b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRedirect(s)
		if err != nil {
			return
		}
		port := max(r.first, 1)
		for _, p := range r.from {
			if p != p.Masked() || p.Addr().Is4In6() {
				t.Fatalf("%q is from %v", s, p)
			}
			to := NewRedirects([]Redirect{r}).Find(max(r.proto, protoTCP), netip.AddrPortFrom(p.Addr(), port))
			if to == nil || to.To(port).Addr() != r.to || to.To(port).Port() == 0 {
				t.Fatalf("%q does not fit %v", s, p)
			}
		}
		if r.to.IsMulticast() || r.to.IsUnspecified() || r.to.Is4In6() || r.to.Zone() != "" {
			t.Fatalf("%q leads to %v", s, r.to)
		}
		if _, err := New(r.Allowed(), nil); err != nil {
			t.Fatalf("%q allows what is no rule: %v", s, err)
		}
	})
}
