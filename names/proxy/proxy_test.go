// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"encoding/base64"
	"net/netip"
	"strings"
	"testing"

	"aldente/fuzz"
	"aldente/ipc"
)

var (
	v4     = Target{Addr: netip.MustParseAddrPort("192.0.2.1:443")}
	v6     = Target{Addr: netip.MustParseAddrPort("[2001:db8::1]:80")}
	byName = Target{Addr: netip.MustParseAddrPort("192.0.2.1:443"), Name: "example.org"}
	socks5 = Config{What: ipc.ProxySOCKS5}
	user5  = Config{What: ipc.ProxySOCKS5, User: []byte("me"), Secret: []byte("pw")}
	plain  = Config{What: ipc.ProxyHTTP}
	basic  = Config{What: ipc.ProxyHTTP, User: []byte("me"), Secret: []byte("p:w")}
)

// talk has a client hear what a proxy says, in pieces, and returns what it has said, how
// much it has read, and how that ended.
func talk(t testing.TB, c *Config, to Target, said []byte, piece int) (out []byte, read int, result uint8, code uint16) {
	p := New(c, to)
	for {
		for len(p.Out()) > 0 {
			n := min(len(p.Out()), piece)
			out = append(out, p.Out()[:n]...)
			p.Wrote(n)
		}
		if result, code = p.Result(); result != 0 {
			if p.Want() != 0 || len(p.Out()) != 0 {
				t.Fatalf("%d bytes more are wanted behind the end, %d to be written", p.Want(), len(p.Out()))
			}
			return out, read, result, code
		}
		n := min(p.Want(), piece, len(said)-read)
		if p.Want() <= 0 {
			t.Fatal("nothing is wanted, and nothing known")
		}
		if n == 0 {
			p.End()
			continue
		}
		p.Read(bytes.Clone(said[read : read+n]))
		read += n
	}
}

// TestAnswers: what proxies answer, in pieces of any size, and what is said to them.
// Nothing is read behind the answer.
func TestAnswers(t *testing.T) {
	userpass := "\x05\x02\x02\x00\x01\x02me\x02pw"
	get := func(host, more string) string {
		return "CONNECT " + host + " HTTP/1.1\r\nHost: " + host + "\r\n" + more + "\r\n"
	}
	long := "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", maxHeader)
	for name, c := range map[string]struct {
		config *Config
		to     Target
		said   string // by the proxy
		out    string // by us; empty: of no concern
		result uint8
		code   uint16
	}{
		"socks, IPv4":           {&socks5, v4, "\x05\x00\x05\x00\x00\x01abcdef", "\x05\x01\x00\x05\x01\x00\x01\xc0\x00\x02\x01\x01\xbb", ipc.RelayDone, 0},
		"socks, IPv6":           {&socks5, v6, "\x05\x00\x05\x00\x00\x040123456789abcdefgh", "\x05\x01\x00\x05\x01\x00\x04\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\x00\x50", ipc.RelayDone, 0},
		"socks, name":           {&socks5, byName, "\x05\x00\x05\x00\x00\x03\x03abcde", "\x05\x01\x00\x05\x01\x00\x03\x0bexample.org\x01\xbb", ipc.RelayDone, 0},
		"socks, no name":        {&socks5, v4, "\x05\x00\x05\x00\x00\x03\x00de", "", ipc.RelayDone, 0},
		"socks, user":           {&user5, v4, "\x05\x02\x01\x00\x05\x00\x00\x01abcdef", userpass + "\x05\x01\x00\x01\xc0\x00\x02\x01\x01\xbb", ipc.RelayDone, 0},
		"socks, user not asked": {&user5, v4, "\x05\x00\x05\x00\x00\x01abcdef", "", ipc.RelayDone, 0},
		"socks, wrong user":     {&user5, v4, "\x05\x02\x01\x01", userpass, ipc.RelayAuth, 1},
		"socks, user's version": {&user5, v4, "\x05\x02\x05\x00", "", ipc.RelayGarbage, 0},
		"socks, no method":      {&socks5, v4, "\x05\xff", "", ipc.RelayAuth, 255},
		"socks, user unwanted":  {&socks5, v4, "\x05\x02", "", ipc.RelayGarbage, 0},
		"socks 4":               {&socks5, v4, "\x00\x5a", "", ipc.RelayGarbage, 0},
		"socks, version":        {&socks5, v4, "\x05\x00\x04\x00\x00\x01", "", ipc.RelayGarbage, 0},
		"socks, address":        {&socks5, v4, "\x05\x00\x05\x00\x00\x02", "", ipc.RelayGarbage, 0},
		"socks, code 9":         {&socks5, v4, "\x05\x00\x05\x09\x00\x01", "", ipc.RelayGarbage, 9},
		"socks, 1":              {&socks5, v4, "\x05\x00\x05\x01\x00\x01", "", ipc.RelayFailed, 1},
		"socks, 2":              {&socks5, v4, "\x05\x00\x05\x02\x00\x01", "", ipc.RelayDenied, 2},
		"socks, 3":              {&socks5, v4, "\x05\x00\x05\x03\x00\x01", "", ipc.RelayNetwork, 3},
		"socks, 4":              {&socks5, v4, "\x05\x00\x05\x04\x00\x01", "", ipc.RelayHost, 4},
		"socks, 5":              {&socks5, v4, "\x05\x00\x05\x05\x00\x01", "", ipc.RelayRefused, 5},
		"socks, 6":              {&socks5, v4, "\x05\x00\x05\x06\x00\x01", "", ipc.RelayTimeout, 6},
		"socks, 7":              {&socks5, v4, "\x05\x00\x05\x07\x00\x01", "", ipc.RelayUnsupported, 7},
		"socks, 8":              {&socks5, v4, "\x05\x00\x05\x08\x00\x01", "", ipc.RelayUnsupported, 8},
		"http, IPv4":            {&plain, v4, "HTTP/1.1 200 Connection established\r\n\r\n", get("192.0.2.1:443", ""), ipc.RelayDone, 200},
		"http, IPv6":            {&plain, v6, "HTTP/1.0 200\n\n", get("[2001:db8::1]:80", ""), ipc.RelayDone, 200},
		"http, name":            {&plain, byName, "HTTP/1.1 299 \r\nA: b\r\nContent-Length: 7\r\n\r\n", get("example.org:443", ""), ipc.RelayDone, 299},
		"http, user": {&basic, v4, "HTTP/1.1 200 OK\r\n\r\n",
			get("192.0.2.1:443", "Proxy-Authorization: Basic "+base64.StdEncoding.EncodeToString([]byte("me:p:w"))+"\r\n"), ipc.RelayDone, 200},
		"http, interim":    {&plain, v4, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "", ipc.RelayDone, 200},
		"http, other":      {&plain, v4, "HTTP/1.1 101 Switching\r\n\r\n", "", ipc.RelayGarbage, 101},
		"http, 400":        {&plain, v4, "HTTP/1.1 400 Bad\r\n\r\n", "", ipc.RelayFailed, 400},
		"http, 401":        {&plain, v4, "HTTP/1.1 401 Who\r\n\r\n", "", ipc.RelayAuth, 401},
		"http, 403":        {&plain, v4, "HTTP/1.1 403 No\r\n\r\n", "", ipc.RelayDenied, 403},
		"http, 405":        {&plain, v4, "HTTP/1.1 405 No\r\n\r\n", "", ipc.RelayUnsupported, 405},
		"http, 407":        {&plain, v4, "HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\n\r\n", "", ipc.RelayAuth, 407},
		"http, 502":        {&plain, v4, "HTTP/1.1 502 Bad\r\n\r\n", "", ipc.RelayHost, 502},
		"http, 503":        {&plain, v4, "HTTP/1.1 503 No\r\n\r\n", "", ipc.RelayFailed, 503},
		"http, 504":        {&plain, v4, "HTTP/1.1 504 Late\r\n\r\n", "", ipc.RelayTimeout, 504},
		"http, 301":        {&plain, v4, "HTTP/1.1 301 There\r\n\r\n", "", ipc.RelayFailed, 301},
		"http, 2000":       {&plain, v4, "HTTP/1.1 2000", "", ipc.RelayGarbage, 200},
		"http, 099":        {&plain, v4, "HTTP/1.1 099", "", ipc.RelayGarbage, 99},
		"http/2":           {&plain, v4, "HTTP/2", "", ipc.RelayGarbage, 0},
		"http, no version": {&plain, v4, "HTTP/1.x", "", ipc.RelayGarbage, 0},
		"http, CR alone":   {&plain, v4, "HTTP/1.1 200 OK\r\rA", "", ipc.RelayGarbage, 200},
		"http, control":    {&plain, v4, "HTTP/1.1 200 OK\r\nA: \x00", "", ipc.RelayGarbage, 200},
		"http, DEL":        {&plain, v4, "HTTP/1.1 200 O\x7f", "", ipc.RelayGarbage, 200},
		"http, too long":   {&plain, v4, long[:maxHeader+1], "", ipc.RelayGarbage, 200},
		"http, SSH":        {&plain, v4, "S", "", ipc.RelayGarbage, 0},
		"http, no end":     {&plain, v4, "HTTP/1.1 200 OK\r\n", "", ipc.RelayClosed, 0},
		"socks, no end":    {&socks5, v4, "\x05\x00\x05\x00\x00", "", ipc.RelayClosed, 0},
		"nothing at all":   {&user5, v4, "", "\x05\x02\x02\x00", ipc.RelayClosed, 0},
	} {
		for piece := 1; piece <= min(len(c.said)+1, 64); piece++ {
			out, read, result, code := talk(t, c.config, c.to, append([]byte(c.said), "SSH-2.0-early"...)[:len(c.said)+map[bool]int{true: 0, false: 13}[c.result == ipc.RelayClosed]], piece)
			if result != c.result || code != c.code || c.out != "" && string(out) != c.out {
				t.Errorf("%s, in pieces of %d: %s, code %d, said %q", name, piece, ipc.RelayText(result), code, out)
			}
			// A wrong beginning ends it wherever that is found, but never beyond it.
			if read > len(c.said) && c.result != ipc.RelayGarbage || c.result == ipc.RelayDone && read != len(c.said) {
				t.Errorf("%s, in pieces of %d: %d bytes of %d are read", name, piece, read, len(c.said))
			}
		}
	}
}

// TestCutAnywhere: an answer that ends at any byte leads to none.
func TestCutAnywhere(t *testing.T) {
	for _, c := range []struct {
		config *Config
		said   string
	}{
		{&user5, "\x05\x02\x01\x00\x05\x00\x00\x03\x03abcde"},
		{&basic, "HTTP/1.1 103 Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nVia: x\r\n\r\n"},
	} {
		for cut := range c.said {
			if _, read, result, _ := talk(t, c.config, v6, []byte(c.said[:cut]), 5); result != ipc.RelayClosed || read != cut {
				t.Errorf("%q: %s", c.said[:cut], ipc.RelayText(result))
			}
		}
	}
}

// TestWiped: what was written is zero, and so is what was not after Wipe.
func TestWiped(t *testing.T) {
	for _, c := range []*Config{&user5, &basic} {
		p := New(c, v4)
		if c == &user5 {
			p.Wrote(len(p.Out()))
			p.Read([]byte{5, 2})
		}
		all := p.Out()
		p.Wrote(4)
		if p.Wipe(); len(all) < 7 || bytes.Count(all, []byte{0}) != len(all) {
			t.Errorf("%q is left", all)
		}
	}
}

// answerLen is how long a proxy's answer is that is a good one, read plainly.
func answerLen(said []byte, what uint8) (n int) {
	if what == ipc.ProxySOCKS5 {
		n = 2
		if said[1] == methodUser {
			n += 2
		}
		switch said[n+3] {
		case atypIPv4:
			return n + 4 + 4 + 2
		case atypIPv6:
			return n + 4 + 16 + 2
		}
		return n + 4 + 1 + int(said[n+4]) + 2
	}
	for interim := true; interim; {
		interim = said[n+9] == '1'
		for { // lines, up to an empty one
			line := bytes.IndexByte(said[n:], '\n')
			n += line + 1
			if line == 0 || line == 1 && said[n-2] == '\r' {
				break
			}
		}
	}
	return n
}

// FuzzProxy: whatever a proxy says, in pieces of any size it means the same; no more is
// read than what is its answer, and that is bounded.
func FuzzProxy(f *testing.F) {
	for _, s := range []string{"\x05\x02\x01\x00\x05\x00\x00\x01abcdefSSH", "\x05\x00\x05\x00\x00\x040123456789abcdefghSSH", "\x05\x00\x05\x00\x00\x03\x03abcdeSSH",
		"\x05\x00\x05\x02\x00\x01", "\x05\x00\x05\x09\x00\x01", "\x05\x00\x05\x00\x00\x07", "\x05\xff", "\x05\x07", "\x04\x00", "\x05\x02\x01\x01", "\x05\x02\x00\x01"} {
		for what := range uint8(8) {
			fuzz.Add(f, []byte(s), what, uint8(3))
		}
	}
	for _, s := range []string{"HTTP/1.1 200 OK\r\n\r\nSSH", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 407 Who\r\nA: b\r\n\r\nmore", "HTTP/1.0 503\n\n", "HTTP/1.1 101 X\r\n\r\n",
		"HTTP/1.1 403 No\r\n\r\n", "HTTP/1.1 405 No\r\n\r\n", "HTTP/1.1 502 No\r\n\r\n", "HTTP/1.1 504 No\r\n\r\n", "HTTP/1.1 200 OK\rX", "HTTP/1.1 000 ", "HTTP/3",
		"HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", maxHeader)} {
		fuzz.Add(f, []byte(s), uint8(1), uint8(0))
		fuzz.Add(f, []byte(s), uint8(7), uint8(200))
	}
	f.Fuzz(func(t *testing.T, said []byte, how, size uint8) {
		c, to := Config{What: ipc.ProxySOCKS5}, v4
		if how&1 != 0 {
			c.What = ipc.ProxyHTTP
		}
		if how&2 != 0 {
			c.User, c.Secret = []byte("me"), []byte("pw")
		}
		if how&4 != 0 {
			to = byName
		} else if how&8 != 0 {
			to = v6
		}
		out, read, result, code := talk(t, &c, to, said, int(size)+1)
		whole, all, result2, code2 := talk(t, &c, to, said, 1<<20)
		if read != all && result != ipc.RelayGarbage || result != result2 || code != code2 || !bytes.Equal(out, whole) {
			t.Fatalf("in pieces %s, %d bytes read, as a whole %s, %d", ipc.RelayText(result), read, ipc.RelayText(result2), all)
		}
		if read > maxHeader+1 || result == ipc.RelayDone && c.What == ipc.ProxyHTTP && !bytes.HasSuffix(said[:read], []byte("\n")) {
			t.Fatalf("%d bytes are read", read)
		}
		if result == ipc.RelayDone && read != answerLen(said, c.What) {
			t.Fatalf("%d bytes are read of an answer of %d", read, answerLen(said, c.What))
		}
		if again, n, r, _ := talk(t, &c, to, said[:read], 7); r != result && result != ipc.RelayGarbage || n > read || !bytes.HasPrefix(again, out) && result == ipc.RelayDone {
			t.Fatalf("without what follows: %s", ipc.RelayText(r))
		}
	})
}
