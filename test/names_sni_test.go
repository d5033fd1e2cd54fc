// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"aldente/names/hello/hellotest"
	"aldente/test/netlab"
)

// rawPort is where the remote of sniLab answers whatever comes with its hash.
const rawPort = "8443"

// sniRules let the guest reach one name, whose address others have, too.
var sniRules = []string{"--config-net", "--allow", "pypi.test:443", "--allow", "pypi.test:" + rawPort, "--deny", "any", "--verify-sni=443," + rawPort}

// sniLab is namesLab with servers of TLS on named4 and named6.
func sniLab(t *testing.T) *netlab.Lab {
	t.Helper()
	lab := netlab.New(t, netlab.Options{})
	lab.Remote.IP("addr add "+named4+"/32 dev lo", "addr add "+named6+"/128 dev lo nodad")
	z := netlab.NewZone()
	z.Set("pypi.test", 60, named4, named6)
	for _, at := range []string{"192.0.2.9:53", "[2001:db8:1::9]:53"} {
		z.Serve(lab.Remote, at)
	}
	config := serverConfig(t)
	go http.Serve(tls.NewListener(lab.Remote.Listen("tcp", "[::]:443"), config), http.HandlerFunc(serveSNI))
	raw := lab.Remote.Listen("tcp", "[::]:"+rawPort)
	go func() {
		for {
			c, err := raw.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "welcome\n")
				h := sha256.New()
				n, err := io.Copy(h, c)
				fmt.Fprintf(c, "%d %x %v\n", n, h.Sum(nil), err)
			}()
		}
	}()
	// Each datagram is answered by what it is.
	for _, addr := range []string{named4, named6} {
		u := lab.Remote.ListenUDP("udp", net.JoinHostPort(addr, "443"))
		go func() {
			b := make([]byte, 1<<16)
			for {
				n, from, err := u.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				u.WriteToUDPAddrPort(fmt.Appendf(nil, "%x", sha256.Sum256(b[:n])), from)
			}
		}()
	}
	return lab
}

// serveSNI says which name was asked for, gives bulk, or says what of it has come.
func serveSNI(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPut:
		h := sha256.New()
		n, _ := io.Copy(h, r.Body)
		fmt.Fprintf(w, "%d %x\n", n, h.Sum(nil))
	case strings.HasPrefix(r.URL.Path, "/bulk/"):
		var n int64
		fmt.Sscan(r.URL.Path[len("/bulk/"):], &n)
		io.CopyN(w, &pattern{}, n)
	default:
		fmt.Fprintln(w, "served", r.TLS.ServerName, r.Context().Value(http.LocalAddrContextKey))
	}
}

// pattern is bytes that do not repeat soon.
type pattern struct{ at uint64 }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(p.at ^ p.at>>8 ^ p.at>>17)
		p.at++
	}
	return len(b), nil
}

func serverConfig(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"pypi.test", "other.test"}}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}
}

// resolved has a guest ask for the one name that it may reach.
func resolved(t *testing.T, g *netlab.Guest) {
	t.Helper()
	for typ, want := range map[string]string{"A": named4, "AAAA": named6} {
		if got := askIn(g, "+notcp", "pypi.test", typ, "192.0.2.9"); got != want {
			t.Fatalf("%s of pypi.test: %q\n%s", typ, got, g.Proc.Output())
		}
	}
}

// sniGuest is a guest under sniRules that knows where its name leads.
func sniGuest(t *testing.T, lab *netlab.Lab, args ...string) *netlab.Guest {
	t.Helper()
	g := lab.For(t).GuestWith(netlab.GuestSpec{Args: append(args, sniRules...), Resolv: "nameserver 192.0.2.9\n", User: netlab.Nobody})
	resolved(t, g)
	return g
}

// TestVerifySNI: of two names on one address the guest reaches the one that the rules
// allow, by IPv4 and IPv6, with programs as they are; the other is reset, and the log says
// which it was, as is a hello without a name.
func TestVerifySNI(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "curl", "openssl", "dig")
	lab := sniLab(t)
	g := sniGuest(t, lab)
	for _, addr := range []string{named4, named6} {
		at := net.JoinHostPort(addr, "443")
		bracketed := strings.TrimSuffix(at, ":443")
		if code, out := g.Run("curl", "-sSk", "-m", "20", "--resolve", "pypi.test:443:"+bracketed, "https://pypi.test/"); code != 0 || out != "served pypi.test "+at+"\n" {
			t.Errorf("%s: %d, %s\n%s", addr, code, out, g.Proc.Output())
		}
		if code, out := g.Run("curl", "-sSk", "-m", "20", "--resolve", "other.test:443:"+bracketed, "https://other.test/"); code != 35 && code != 56 {
			t.Errorf("%s by another name: %d, %s", addr, code, out)
		}
		if code, out := g.Run("openssl", "s_client", "-connect", at, "-noservername"); code == 0 || strings.Contains(out, "BEGIN CERTIFICATE") {
			t.Errorf("%s without a name: %d, %s", addr, code, out)
		}
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			if code, out := g.Run("openssl", "s_client", "-connect", at, "-servername", "PyPI.test", version); code != 0 || !strings.Contains(out, "BEGIN CERTIFICATE") {
				t.Errorf("%s, openssl %s: %d, %s", addr, version, code, out)
			}
		}
		// A hello in several records; one that the server wants another for, which comes
		// when nobody looks any more; names that no server has.
		var protocols []string
		for i := range 150 {
			protocols = append(protocols, fmt.Sprint("protocol-", i))
		}
		for what, c := range map[string]struct {
			args []string
			ok   bool
		}{
			"in records":       {[]string{"-servername", "pypi.test", "-max_send_frag", "512", "-alpn", strings.Join(protocols, ",")}, true},
			"asked again":      {[]string{"-servername", "pypi.test", "-tls1_3", "-groups", "ffdhe2048:X25519"}, true},
			"a dot behind it":  {[]string{"-servername", "pypi.test."}, false},
			"an address":       {[]string{"-servername", named4}, false},
			"an IPv6 address":  {[]string{"-servername", named6}, false},
			"an allowed part":  {[]string{"-servername", "pypi.test.other.test"}, false},
			"below an allowed": {[]string{"-servername", "x.pypi.test"}, false},
		} {
			code, out := g.Run(append([]string{"openssl", "s_client", "-connect", at}, c.args...)...)
			if got := code == 0 && strings.Contains(out, "BEGIN CERTIFICATE"); got != c.ok {
				t.Errorf("%s, %s: %d, %s", addr, what, code, out)
			}
		}
	}
	lines := g.Proc.Output()
	for _, want := range []string{"refused for its client hello", "hello=other.test", "name=pypi.test", "reason=\"another name\"", "reason=\"no server name\"",
		"to=" + named4 + ":443", "to=[" + named6 + "]:443"} {
		if !strings.Contains(lines, want) {
			t.Errorf("the log does not say %s:\n%s", want, lines)
		}
	}
}

// TestVerifySNIBulk: 100 MiB each way arrive as they were sent.
func TestVerifySNIBulk(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab := sniLab(t)
	g := sniGuest(t, lab)
	const size = 100 << 20
	h := sha256.New()
	io.CopyN(h, &pattern{}, size)
	want := fmt.Sprintf("%d %x\n", size, h.Sum(nil))
	for _, addr := range []string{named4, named6} {
		client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
			DialContext: func(context.Context, string, string) (net.Conn, error) {
				return g.DialError("tcp", net.JoinHostPort(addr, "443"), 10*time.Second)
			},
		}}
		got := sha256.New()
		r, err := client.Get(fmt.Sprintf("https://pypi.test/bulk/%d", size))
		if err != nil {
			t.Fatalf("%s: %v\n%s", addr, err, g.Proc.Output())
		}
		n, err := io.Copy(got, r.Body)
		r.Body.Close()
		if s := fmt.Sprintf("%d %x\n", n, got.Sum(nil)); s != want || err != nil {
			t.Errorf("%s: %s, %v", addr, s, err)
		}
		put, _ := http.NewRequest(http.MethodPut, "https://pypi.test/", io.LimitReader(&pattern{}, size))
		if r, err = client.Do(put); err != nil {
			t.Fatalf("%s: %v", addr, err)
		}
		b, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if string(b) != want {
			t.Errorf("%s: the server has %s", addr, b)
		}
		client.CloseIdleConnections()
	}
}

// slowConn writes a byte at a time.
type slowConn struct{ net.Conn }

func (c slowConn) Write(b []byte) (int, error) {
	for i := range b {
		if _, err := c.Conn.Write(b[i : i+1]); err != nil {
			return i, err
		}
		time.Sleep(time.Millisecond)
	}
	return len(b), nil
}

// firstFlight is what a client sends first.
func firstFlight(name string) []byte {
	return hellotest.Hello(&tls.Config{ServerName: name, InsecureSkipVerify: true})
}

// TestVerifySNIPieces: a hello that comes a byte at a time, one with more behind it at
// once and the end behind that, and a server that speaks first.
func TestVerifySNIPieces(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab := sniLab(t)
	g := sniGuest(t, lab)
	for _, addr := range []string{named4, named6} {
		c := g.Dial("tcp", net.JoinHostPort(addr, "443"))
		slow := tls.Client(slowConn{c}, &tls.Config{ServerName: "pypi.test", InsecureSkipVerify: true})
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		if err := slow.Handshake(); err != nil {
			t.Errorf("%s, a byte at a time: %v\n%s", addr, err, g.Proc.Output())
		}
		c.Close()
		for _, behind := range []int{0, 1, 20000, 1 << 20} {
			c := g.Dial("tcp", net.JoinHostPort(addr, rawPort)).(*net.TCPConn)
			sent := append(firstFlight("pypi.test"), make([]byte, behind)...)
			io.ReadFull(&pattern{}, sent[len(sent)-behind:])
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			go func() {
				c.Write(sent)
				c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			want := fmt.Sprintf("welcome\n%d %x <nil>\n", len(sent), sha256.Sum256(sent))
			if string(got) != want || err != nil {
				t.Errorf("%s, %d bytes behind: %q, %v, want %q\n%s", addr, behind, got, err, want, g.Proc.Output())
			}
			c.Close()
		}
		// What is no hello, and one for somebody else, in pieces: the server hears nothing.
		for name, b := range map[string][]byte{"HTTP": []byte("GET / HTTP/1.1\r\n\r\n"), "another": firstFlight("other.test")} {
			c := g.Dial("tcp", net.JoinHostPort(addr, rawPort))
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			var err error
			for i := 0; i < len(b) && err == nil; i++ {
				_, err = c.Write(b[i : i+1])
			}
			got, readErr := io.ReadAll(c)
			if err == nil { // else it was told of the reset already
				err = readErr
			}
			if len(got) != 0 || err == nil || !strings.Contains(err.Error(), "reset") {
				t.Errorf("%s, %s: %q, %v", addr, name, got, err)
			}
			c.Close()
		}
	}
}

// TestVerifySNIHonest: where nobody listens, and where nothing leads, the guest hears of
// it as ever.
func TestVerifySNIHonest(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab := sniLab(t)
	lab.Remote.IP("route add unreachable 198.51.100.99/32")
	g := lab.For(t).GuestWith(netlab.GuestSpec{Resolv: "nameserver 192.0.2.9\n", User: netlab.Nobody,
		Args: []string{"--config-net", "--allow", "pypi.test", "--deny", "any", "--verify-sni=1-65535"}})
	resolved(t, g)
	for _, addr := range []string{named4, named6} {
		if c, err := g.DialError("tcp", net.JoinHostPort(addr, "9"), 10*time.Second); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v, %v", addr, c, err)
		}
		u := g.Dial("udp", net.JoinHostPort(addr, "443"))
		_ = u.SetDeadline(time.Now().Add(10 * time.Second))
		u.Write([]byte("no QUIC"))
		if _, err := u.Read(make([]byte, 9)); err == nil {
			t.Errorf("%s: an answer to what is no QUIC", addr)
		}
	}
}

// TestVerifySNIQUIC: first flights of QUIC, of both versions, in as many datagrams as they
// take and in any order, and what follows them: each datagram arrives once. A flight with
// another name does not, and the guest is told.
func TestVerifySNIQUIC(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab := sniLab(t)
	g := sniGuest(t, lab)
	hello := func(name string) []byte {
		return hellotest.Hello(&tls.Config{ServerName: name, MinVersion: tls.VersionTLS13, NextProtos: []string{"h3"}})[5:]
	}
	for _, addr := range []string{named4, named6} {
		for _, version := range []uint32{hellotest.Version1, hellotest.Version2} {
			for _, each := range []int{200, 1100, 2000} {
				c := g.Dial("udp", net.JoinHostPort(addr, "443"))
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				all := hellotest.Flight(version, hello("pypi.test"), each)
				slices.Reverse(all)
				c.Write(nil) // which nobody hears of: to who looks it would be the end
				all = append(all, []byte("early data"), []byte("and more"), nil)
				want := map[string]int{}
				for _, d := range all {
					want[fmt.Sprintf("%x", sha256.Sum256(d))]++
					c.Write(d)
				}
				got := map[string]int{}
				b := make([]byte, 100)
				for range all {
					n, err := c.Read(b)
					if err != nil {
						t.Errorf("%s, version %x, %d bytes each: %v\n%s", addr, version, each, err, g.Proc.Output())
						break
					}
					got[string(b[:n])]++
				}
				if !maps.Equal(got, want) {
					t.Errorf("%s, version %x, %d bytes each: %v, want %v", addr, version, each, got, want)
				}
				_ = c.SetDeadline(time.Now().Add(200 * time.Millisecond))
				if n, err := c.Read(b); err == nil {
					t.Errorf("%s: one more, %q", addr, b[:n])
				}
				c.Close()
			}
			c := g.Dial("udp", net.JoinHostPort(addr, "443"))
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			for _, d := range hellotest.Flight(version, hello("other.test"), 1100) {
				c.Write(d)
			}
			if n, err := c.Read(make([]byte, 100)); err == nil || os.IsTimeout(err) {
				t.Errorf("%s, another name: %d bytes, %v", addr, n, err)
			}
			c.Close()
		}
	}
	if lines := g.Proc.Output(); !strings.Contains(lines, "protocol=udp") || !strings.Contains(lines, "hello=other.test") {
		t.Errorf("log:\n%s", lines)
	}
}
