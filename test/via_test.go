// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// Destinations that there are nowhere but behind the proxy, and the secret.
const (
	behind4, behind6 = "203.0.113.77", "2001:db8:77::77"
	viaSecret        = "s3cret-of-the-proxy"
	viaSize          = 10 << 20
)

// Ports behind a proxy, and what it does with them. Those from 9000 it refuses with the
// code that is left.
const (
	viaEcho = 7 + iota
	viaBanner
	viaHang
	viaGarbage
	viaClose
	viaSlow
	viaBulk
)

// viaLab is a lab with a proxy, and the file of its password.
func viaLab(t *testing.T, user string) (*netlab.Lab, *viaProxy, string) {
	t.Helper()
	lab := netlab.New(t, netlab.Options{})
	z := netlab.NewZone()
	z.Set("behind.test", 60, behind4, behind6)
	for _, at := range []string{"192.0.2.9:53", "[2001:db8:1::9]:53"} {
		z.Serve(lab.Remote, at)
	}
	p := &viaProxy{user: user}
	p.listen(lab.Remote, "192.0.2.9", "2001:db8:1::9")
	return lab, p, writeStage(t, viaSecret+"\n")
}

func viaGuest(t *testing.T, lab *netlab.Lab, args ...string) *netlab.Guest {
	t.Helper()
	return lab.For(t).GuestWith(netlab.GuestSpec{Args: append([]string{"--config-net"}, args...), Resolv: "nameserver 192.0.2.9\n", User: netlab.Nobody})
}

// viaURLs are proxies of both kinds, at both addresses.
func viaURLs(user string) (all []string) {
	for _, scheme := range []string{"socks5", "http"} {
		for _, host := range []string{"192.0.2.9", "[2001:db8:1::9]"} {
			all = append(all, scheme+"://"+user+host+":1080")
		}
	}
	return all
}

// viaSays sends text by a connection and returns so many bytes of what comes.
func viaSays(c net.Conn, text string, n int) string {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(c, text)
	b := make([]byte, n)
	n, err := io.ReadFull(c, b)
	if err != nil {
		return fmt.Sprintf("%s (%v)", b[:n], err)
	}
	return string(b)
}

// TestVia: connections go by proxies of both kinds, with a user and without, to IPv4 and
// IPv6; what the server says at once with the proxy's answer arrives whole, as does an
// answer that comes byte by byte.
func TestVia(t *testing.T) {
	needOurs(t)
	for _, user := range []string{"", "me"} {
		lab, p, secret := viaLab(t, user)
		at := ""
		args := []string{}
		if user != "" {
			at, args = user+"@", []string{"--via-secret", secret}
		}
		for _, proxy := range viaURLs(at) {
			t.Run(proxy, func(t *testing.T) {
				g := viaGuest(t, lab, append(args, "--via", proxy)...)
				p.took()
				for _, host := range []string{behind4, behind6} {
					for port, want := range map[int]string{viaEcho: "hello", viaBanner: "SSH-2.0-behind\r\nhello", viaSlow: "hello"} {
						to := net.JoinHostPort(host, fmt.Sprint(port))
						c, err := g.DialError("tcp", to, 20*time.Second)
						if err != nil {
							t.Fatalf("%s: %v\n%s", to, err, g.Proc.Output())
						}
						if got := viaSays(c, "hello", len(want)); got != want {
							t.Errorf("%s: %q, want %q\n%s", to, got, want, g.Proc.Output())
						}
						c.Close()
						if asked := p.took(); !slices.Equal(asked, []string{to}) {
							t.Errorf("%s: the proxy was asked for %q", to, asked)
						}
					}
				}
			})
		}
	}
}

// TestViaBulk: 10 MiB each way at once arrive as they were sent.
func TestViaBulk(t *testing.T) {
	needOurs(t)
	lab, _, secret := viaLab(t, "me")
	want := sha256.New()
	io.CopyN(want, &pattern{}, viaSize)
	for _, proxy := range []string{"socks5://me@192.0.2.9:1080", "http://me@[2001:db8:1::9]:1080"} {
		g := viaGuest(t, lab, "--via-secret", secret, "--via", proxy)
		for _, host := range []string{behind4, behind6} {
			c := g.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(viaBulk)))
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			go io.Copy(c, io.LimitReader(&pattern{}, viaSize))
			got := sha256.New()
			if n, err := io.CopyN(got, c, viaSize); err != nil {
				t.Fatalf("%s by %s: %d bytes, %v\n%s", host, proxy, n, err, g.Proc.Output())
			}
			theirs := make([]byte, sha256.Size)
			if _, err := io.ReadFull(c, theirs); err != nil || !bytes.Equal(theirs, want.Sum(nil)) || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
				t.Errorf("%s by %s: %x there, %x here, want %x, %v", host, proxy, theirs, got.Sum(nil), want.Sum(nil), err)
			}
			c.Close()
		}
	}
}

// TestViaRefused: what the proxy refuses, the guest hears as of a destination that it
// reaches by itself; what is no answer ends the connection. None of it is connected first.
func TestViaRefused(t *testing.T) {
	needOurs(t)
	lab, _, secret := viaLab(t, "me")
	for scheme, codes := range map[string]map[int]error{
		"socks5": {9001: syscall.ECONNREFUSED, 9002: syscall.EHOSTUNREACH, 9003: syscall.ENETUNREACH, 9004: syscall.EHOSTUNREACH, 9005: syscall.ECONNREFUSED,
			9006: syscall.EHOSTUNREACH, 9007: syscall.ENETUNREACH, 9008: syscall.ENETUNREACH, 9077: syscall.ECONNREFUSED},
		"http": {9403: syscall.EHOSTUNREACH, 9407: syscall.EHOSTUNREACH, 9502: syscall.EHOSTUNREACH, 9503: syscall.ECONNREFUSED, 9504: syscall.EHOSTUNREACH,
			9404: syscall.ECONNREFUSED, 9999: syscall.ECONNREFUSED},
	} {
		codes[viaGarbage], codes[viaClose] = syscall.ECONNREFUSED, syscall.ECONNREFUSED
		g := viaGuest(t, lab, "--via-secret", secret, "--via", scheme+"://me@192.0.2.9:1080")
		for port, want := range codes {
			to := net.JoinHostPort(behind4, fmt.Sprint(port))
			if _, err := g.DialError("tcp", to, 20*time.Second); !errors.Is(err, want) {
				t.Errorf("%s, port %d: %v, want %v", scheme, port, err, want)
			}
			if _, err := g.DialError("tcp", net.JoinHostPort(behind6, fmt.Sprint(port)), 20*time.Second); err == nil {
				t.Errorf("%s, port %d by IPv6: connected", scheme, port)
			}
		}
		garbage := 2 // ports, asked by IPv4 and IPv6 each
		if scheme == "socks5" {
			garbage++ // a code that there is not
		}
		want := fmt.Sprintf("%s://me@192.0.2.9:1080: 0 connected, %d refused, %d failed, 0 waiting", scheme, 2*(len(codes)-garbage), 2*garbage)
		if code, out := lab.For(t).Host.Run(filepath.Join(netlab.Stage(), "aldentectl"), "status", "--pid", fmt.Sprint(g.Proc.PID)); !strings.Contains(out, want) {
			t.Errorf("status: %d, no %q in\n%s", code, want, out)
		}
		if code, out := lab.For(t).Host.Run(filepath.Join(netlab.Stage(), "aldentectl"), "metrics", "--pid", fmt.Sprint(g.Proc.PID)); !strings.Contains(out, "# TYPE aldente_proxied_connections counter") {
			t.Errorf("metrics: %d\n%s", code, out)
		}
		if log := viaLog(g, "not connected by the proxy"); !strings.Contains(log, "not connected by the proxy") || strings.Contains(log, viaSecret) {
			t.Errorf("the log:\n%s", log)
		}
	}
}

// TestViaSecret: a wrong password connects nothing, and neither the right one nor the
// wrong one is in any command line, in the log, in the status, or in what is asked for.
func TestViaSecret(t *testing.T) {
	needOurs(t)
	lab, _, secret := viaLab(t, "me")
	const bad = "wr0ng-secret"
	for _, proxy := range []string{"socks5://me@192.0.2.9:1080", "http://me@192.0.2.9:1080"} {
		g := viaGuest(t, lab, "--debug", "--via-secret", writeStage(t, bad), "--via", proxy)
		if _, err := g.DialError("tcp", net.JoinHostPort(behind4, fmt.Sprint(viaEcho)), 20*time.Second); !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("%s with a wrong password: %v", proxy, err)
		}
		if log := viaLog(g, "does not accept user and password"); !strings.Contains(log, "does not accept user and password") || strings.Contains(log, bad) {
			t.Errorf("the log:\n%s", log)
		}
		g = viaGuest(t, lab, "--debug", "--via-secret", secret, "--via", proxy)
		g.Dial("tcp", net.JoinHostPort(behind4, fmt.Sprint(viaEcho))).Close()
		code, status := lab.For(t).Host.Run(filepath.Join(netlab.Stage(), "aldentectl"), "status", "--pid", fmt.Sprint(g.Proc.PID))
		if code != 0 {
			t.Errorf("status: %s", status)
		}
		if strings.Contains(status+g.Proc.Output(), viaSecret) {
			t.Errorf("the secret is shown:\n%s\n%s", status, g.Proc.Output())
		}
		lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil || len(lines) == 0 {
			t.Fatal(err)
		}
		for _, path := range lines {
			for _, file := range []string{path, filepath.Join(filepath.Dir(path), "environ")} {
				if b, _ := os.ReadFile(file); bytes.Contains(b, []byte(viaSecret)) {
					t.Errorf("the secret is in %s", file)
				}
			}
		}
	}
}

// viaLog is the log, once it says something, which it may do after the guest has heard.
func viaLog(g *netlab.Guest, what string) string {
	for range 100 {
		if strings.Contains(g.Proc.Output(), what) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return g.Proc.Output()
}

// TestViaOnly: the egress rules judge where connections lead, and nothing else than TCP
// leaves the guest, but what --via-except says and questions for names.
func TestViaOnly(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig", "ping")
	lab, p, _ := viaLab(t, "")
	udp := lab.Remote.ListenUDP("udp", "192.0.2.9:5000")
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := udp.ReadFromUDP(b)
			if err != nil {
				return
			}
			udp.WriteToUDP(b[:n], from)
		}
	}()
	g := viaGuest(t, lab, "--via", "socks5://192.0.2.9:1080", "--deny", "tcp:"+behind4+":8")
	if got := askIn(g, "+notcp", "behind.test", "A", "192.0.2.9"); got != behind4 {
		t.Errorf("a name: %q\n%s", got, g.Proc.Output())
	}
	p.took()
	if _, err := g.DialError("tcp", behind4+":8", 20*time.Second); err == nil {
		t.Error("what a rule denies is connected")
	}
	if asked := p.took(); len(asked) > 0 {
		t.Errorf("the proxy was asked for %q", asked)
	}
	if got := viaDatagram(t, g); got == "hello" {
		t.Error("a datagram came past the proxy")
	}
	if code, out := g.Run("ping", "-c", "1", "-W", "2", "192.0.2.9"); code == 0 || !strings.Contains(out, "iltered") && !strings.Contains(out, "rohibited") {
		t.Errorf("ping: %d, %s", code, out)
	}
	if code, out := lab.For(t).Host.Run(filepath.Join(netlab.Stage(), "aldentectl"), "why", "--pid", fmt.Sprint(g.Proc.PID), "udp", "192.0.2.9:5000"); !strings.Contains(out, "takes connections of TCP only") {
		t.Errorf("why: %d, %s", code, out)
	}
	if code, out := lab.For(t).Host.Run(filepath.Join(netlab.Stage(), "aldentectl"), "why", "--pid", fmt.Sprint(g.Proc.PID), "tcp", behind4+":7"); !strings.Contains(out, "socks5://192.0.2.9:1080 is asked for it") {
		t.Errorf("why: %d, %s", code, out)
	}
	open := g.Dial("tcp", behind4+":7")
	if code, out := lab.For(t).Host.Run(filepath.Join(netlab.Stage(), "aldentectl"), "flows", "--pid", fmt.Sprint(g.Proc.PID)); !strings.Contains(out, "--via socks5://192.0.2.9:1080") || !strings.Contains(out, behind4) {
		t.Errorf("flows: %d, %s", code, out)
	}
	open.Close()
	// Past it, by an option.
	g = viaGuest(t, lab, "--via", "socks5://192.0.2.9:1", "--via-except", "192.0.2.0/24")
	if got := viaDatagram(t, g); got != "hello" {
		t.Errorf("a datagram to what is excepted: %s\n%s", got, g.Proc.Output())
	}
	g.Dial("tcp", "192.0.2.9:1080").Close()
	if _, err := g.DialError("tcp", behind4+":7", 20*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("with a proxy that is not there: %v", err)
	}
}

func viaDatagram(t *testing.T, g *netlab.Guest) string {
	t.Helper()
	c, err := g.DialError("udp", "192.0.2.9:5000", time.Second)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	return viaSays(c, "hello", 5)
}

// TestViaNames: with a rule by name the proxy is told the address, or with an option the
// name.
func TestViaNames(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab, p, _ := viaLab(t, "")
	for _, names := range []bool{false, true} {
		for _, scheme := range []string{"socks5", "http"} {
			args := []string{"--via", scheme + "://192.0.2.9:1080", "--allow", "behind.test", "--deny", "any"}
			if names {
				args = append(args, "--via-names")
			}
			g := viaGuest(t, lab, args...)
			for typ, host := range map[string]string{"A": behind4, "AAAA": behind6} {
				if got := askIn(g, "+notcp", "behind.test", typ, "192.0.2.9"); netip.MustParseAddr(got) != netip.MustParseAddr(host) {
					t.Fatalf("%s: %q", typ, got)
				}
				p.took()
				c := g.Dial("tcp", net.JoinHostPort(host, "7"))
				if got := viaSays(c, "hello", 5); got != "hello" {
					t.Errorf("%s by %s: %q", host, scheme, got)
				}
				c.Close()
				want := net.JoinHostPort(host, "7")
				if names {
					want = "behind.test:7"
				}
				if asked := p.took(); !slices.Equal(asked, []string{want}) {
					t.Errorf("%s by %s: the proxy was asked for %q, want %q", host, scheme, asked, want)
				}
			}
		}
	}
}

// TestViaHangs: a proxy that does not answer is given up after ten seconds, and one whose
// aldente-names dies meanwhile at once; others go on.
func TestViaHangs(t *testing.T) {
	needOurs(t)
	lab, _, _ := viaLab(t, "")
	g := viaGuest(t, lab, "--via", "socks5://192.0.2.9:1080")
	began := time.Now()
	hung := make(chan error)
	go func() {
		_, err := g.DialError("tcp", net.JoinHostPort(behind4, fmt.Sprint(viaHang)), time.Minute)
		hung <- err
	}()
	if got := viaSays(g.Dial("tcp", net.JoinHostPort(behind4, "7")), "hello", 5); got != "hello" {
		t.Errorf("meanwhile: %q", got)
	}
	if err := <-hung; !errors.Is(err, syscall.EHOSTUNREACH) || time.Since(began) < 9*time.Second {
		t.Errorf("after %v: %v\n%s", time.Since(began), err, g.Proc.Output())
	}
}

// TestViaNamesDies: who asks the proxy dies, and what waits for it ends at once; what is
// connected stays, and the next goes by the proxy again, password and all.
func TestViaNamesDies(t *testing.T) {
	needOurs(t)
	lab, p, secret := viaLab(t, "me")
	g := viaGuest(t, lab, "--via", "http://me@192.0.2.9:1080", "--via-secret", secret)
	kept := g.Dial("tcp", net.JoinHostPort(behind4, "7"))
	hung := make(chan error)
	p.took()
	go func() {
		_, err := g.DialError("tcp", net.JoinHostPort(behind4, fmt.Sprint(viaHang)), time.Minute)
		hung <- err
	}()
	if !eventually(10*time.Second, func() bool { return len(p.took()) > 0 }) {
		t.Fatalf("the proxy was not asked\n%s", g.Proc.Output())
	}
	old, began := namesProcess(t, g.Proc.PID), time.Now()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-hung; err == nil || time.Since(began) > 8*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	if got := viaSays(kept, "hello", 5); got != "hello" {
		t.Errorf("what was connected: %q", got)
	}
	got := ""
	if !eventually(20*time.Second, func() bool {
		c, err := g.DialError("tcp", net.JoinHostPort(behind6, "7"), 5*time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		got = viaSays(c, "hello", 5)
		return got == "hello"
	}) {
		t.Errorf("the next: %q\n%s", got, g.Proc.Output())
	}
}

// TestViaVerifySNI: behind the proxy's answer a flow is looked at as any other.
func TestViaVerifySNI(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	lab, p, _ := viaLab(t, "")
	p.tls = serverConfig(t)
	g := viaGuest(t, lab, "--via", "socks5://[2001:db8:1::9]:1080", "--allow", "behind.test:443", "--deny", "any", "--verify-sni")
	for typ, host := range map[string]string{"A": behind4, "AAAA": behind6} {
		askIn(g, "+notcp", "behind.test", typ, "192.0.2.9")
		for name, want := range map[string]string{"behind.test": "served behind", "other.test": ""} {
			c := g.Dial("tcp", net.JoinHostPort(host, "443"))
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			b, _ := io.ReadAll(tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true}))
			if string(b) != want {
				t.Errorf("%s at %s: %q, want %q\n%s", name, host, b, want, g.Proc.Output())
			}
			c.Close()
		}
	}
}

// TestViaHost: a proxy on the host's loopback by the name that it has there, and a
// password that comes by a descriptor, with a command and in the background.
func TestViaHost(t *testing.T) {
	needOurs(t)
	lab, _, secret := viaLab(t, "me")
	p := &viaProxy{user: "me"}
	p.listen(lab.Host, "127.0.0.1", "::1")
	args := []string{"--config-net", "--via", "socks5://me@localhost:1080", "--via-secret", "fd:7"}
	g := lab.For(t).GuestWith(netlab.GuestSpec{Wrap: []string{"sh", "-c", "exec \"$@\" 7<" + secret, "sh"}, Args: args, User: netlab.Nobody})
	if got := viaSays(g.Dial("tcp", net.JoinHostPort(behind4, "7")), "hello", 5); got != "hello" || len(p.took()) != 1 {
		t.Errorf("%q\n%s", got, g.Proc.Output())
	}
	for _, bad := range [][]string{
		{"there is no password in its first line", "--via", "http://u@192.0.2.9:1", "--via-secret", writeStage(t, "\nx\n")},
		{"a password has at most 255 bytes", "--via", "http://u@192.0.2.9:1", "--via-secret", writeStage(t, strings.Repeat("x", 256))},
		{"is larger than", "--via", "http://u@192.0.2.9:1", "--via-secret", writeStage(t, strings.Repeat("x", 1000))},
		{"no such file", "--via", "http://u@192.0.2.9:1", "--via-secret", "/nowhere"},
		{"descriptor 77 is not open", "--via", "http://u@192.0.2.9:1", "--via-secret", "fd:77"},
		{"descriptor 4 is not open", "--via", "http://u@192.0.2.9:1", "--via-secret", "fd:4"}, // which may be one of the runtime's
	} {
		code, out := lab.For(t).Host.Run(append(append([]string{netlab.Pasta()}, bad[1:]...), "--", "true")...)
		if code == 0 || !strings.Contains(out, bad[0]) {
			t.Errorf("%v: %d, %s", bad, code, out)
		}
	}
	// A command finds the secret in none of its descriptors.
	for _, fd := range []string{"0", "7"} {
		code, out := lab.For(t).Host.Run("sh", "-c", "exec \"$@\" "+fd+"<"+secret, "sh", netlab.Pasta(), "--config-net", "--via", "socks5://me@127.0.0.1:1080",
			"--via-secret", "fd:"+fd, "--", "sh", "-c", "readlink /proc/self/fd/0; cat; ls /proc/self/fd | tr '\\n' ' '; tail -c +1 <&7")
		if strings.Contains(out, viaSecret) || fd == "0" && !strings.Contains(out, "/dev/null") {
			t.Errorf("descriptor %s, with a command: %d, %s", fd, code, out)
		}
	}
}
