// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"aldente/test/netlab"
)

// aldente is the program under its own name.
func aldente() string { return filepath.Join(filepath.Dir(netlab.Pasta()), "aldente") }

// TestNamesResolve starts commands that look names up, on hosts with resolvers of
// all kinds: also with one that only the host's loopback has.
func TestNamesResolve(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "getent")
	lab := netlab.New(t, netlab.Options{})
	serveDNS(lab.Host, "127.0.0.53:53")
	serveDNS(lab.Host, "[::1]:53")
	serveDNS(lab.Host, netlab.Host4+":53")
	serveDNS(lab.Remote, "192.0.2.9:53")
	const rest = "search corp.example.org\noptions timeout:1 attempts:1\n"
	for _, tt := range []struct {
		name   string
		resolv string
		args   []string
		want   string // lines of the command's resolv.conf
	}{
		{"loopback", "nameserver 127.0.0.53\n" + rest, nil, rest + "nameserver 169.254.1.1\n"},
		{"loopback IPv6", "nameserver ::1\n" + rest, nil, rest + "nameserver fd61:6c64:656e:7465::53\n"},
		{"host's own address", rest + "nameserver " + netlab.Host4 + "\n", nil, rest + "nameserver 169.254.1.1\n"},
		{"denied", "nameserver 192.0.2.9\n" + rest, []string{"--deny", "192.0.2.0/24"}, rest + "nameserver 169.254.1.1\n"},
		{"no network but names", "nameserver 127.0.0.53\n" + rest, []string{"--deny", "any"}, rest + "nameserver 169.254.1.1\n"},
		{"other family", "nameserver 127.0.0.53\n" + rest, []string{"-6"}, rest + "nameserver fd61:6c64:656e:7465::53\n"},
		{"other family by TCP", "nameserver 127.0.0.53\n" + rest + "options use-vc\n", []string{"-6"},
			rest + "options use-vc\nnameserver fd61:6c64:656e:7465::53\n"},
		{"other family IPv4", "nameserver ::1\n" + rest, []string{"-4"}, rest + "nameserver 169.254.1.1\n"},
		{"reachable", "nameserver 192.0.2.9\n" + rest, nil, "nameserver 192.0.2.9\n" + rest},
		{"given", "nameserver 127.0.0.53\n" + rest, []string{"--dns", "192.0.2.9"}, rest + "nameserver 192.0.2.9\n"},
		{"forwarded as told", "nameserver 127.0.0.53\n" + rest, []string{"--dns-forward", "192.0.2.99"}, rest + "nameserver 192.0.2.99\n"},
		{"other search list", "nameserver 127.0.0.53\n" + rest, []string{"--search", "example.com"},
			"options timeout:1 attempts:1\nsearch example.com\nnameserver 169.254.1.1\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := lab.For(t)
			args := append([]string{"--config-net"}, tt.args...)
			args = append(args, "--", "sh", "-c", "cat /etc/resolv.conf; echo; getent ahosts www.example.net")
			p := lab.StartPasta(netlab.GuestSpec{Binary: aldente(), Resolv: tt.resolv, User: netlab.Nobody}, args...)
			st := p.Wait()
			conf, answer, _ := strings.Cut(p.Stdout(), "\n\n")
			if conf+"\n" != tt.want {
				t.Errorf("resolv.conf:\n%s\nwant\n%s", conf, tt.want)
			}
			address := "198.51.100.7"
			if slices.Contains(tt.args, "-6") {
				address = "2001:db8::7"
			}
			if st != 0 || !strings.Contains(answer, address) {
				t.Errorf("status %d, answer %q\n%s", st, answer, p.Output())
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		lab := lab.For(t)
		p := lab.StartPasta(netlab.GuestSpec{Binary: aldente(), Resolv: "nameserver 127.0.0.53\n" + rest, User: netlab.Nobody},
			"--config-net", "--dns", "none", "--", "sh", "-c", "cat /etc/resolv.conf; timeout 3 getent ahosts www.example.net")
		if st := p.Wait(); st == 0 || !strings.Contains(p.Stdout(), "127.0.0.53") {
			t.Errorf("status %d, %q", st, p.Stdout())
		}
	})
	for name, prepare := range map[string]string{
		"the host's file stays": `mount --bind "$1" /etc/resolv.conf`,
		"a link to another place": `mount -t tmpfs tmpfs /run && mkdir /run/etc /run/r && cp /etc/passwd /etc/group /run/etc &&
			cp "$1" /run/r/resolv.conf && ln -s ../run/r/resolv.conf /run/etc/resolv.conf && mount --bind /run/etc /etc`,
	} {
		t.Run(name, func(t *testing.T) {
			lab := lab.For(t)
			p := lab.Host.Start(netlab.Spec{Args: []string{"unshare", "-m", "sh", "-c",
				prepare + ` && "$2" --config-net -- sh -c "cat /etc/resolv.conf; echo changed >/etc/resolv.conf; cat /etc/resolv.conf" && cat /etc/resolv.conf`,
				"sh", writeStage(t, "nameserver 127.0.0.53\n"), aldente()}})
			if st := p.Wait(); st != 0 || p.Stdout() != "nameserver 169.254.1.1\nchanged\nnameserver 127.0.0.53\n" {
				t.Errorf("status %d\n%s", st, p.Output())
			}
		})
	}
}

// writeStage writes a file that any user may read.
func writeStage(t *testing.T, text string) string {
	t.Helper()
	f, err := os.CreateTemp(netlab.Stage(), "f")
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	return f.Name()
}

// TestAldenteForwardsNothing by itself, and what it is told to.
func TestAldenteForwardsNothing(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	tellBoth(lab.Host, "127.0.0.1:9090")
	tellBoth(lab.Host, "127.0.0.1:9091")
	g := lab.GuestWith(netlab.GuestSpec{Binary: aldente(), Args: []string{"--config-net", "-T", "9090", "-U", "9090"}})
	tellPeer(g.NS, ":8080")
	for _, network := range []string{"tcp", "udp"} {
		if got := askSoonFull(lab.Remote, network, netlab.Host4+":8080"); got != "" {
			t.Errorf("%s: forwarded inbound: %q", network, got)
		}
		got := askSoonFull(g.NS, network, "127.0.0.1:9090")
		if peer, _, _ := strings.Cut(got, " "); peer != "127.0.0.1" {
			t.Errorf("%s: what was asked for is refused: %q", network, got)
		}
		if got := askSoonFull(g.NS, network, "127.0.0.1:9091"); got != "" {
			t.Errorf("%s: forwarded outbound: %q", network, got)
		}
	}
}
