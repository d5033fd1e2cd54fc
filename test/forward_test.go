// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// Further addresses of the guest, for rules with a target address.
const (
	guestOther4 = "192.0.2.55"
	guestThird4 = "192.0.2.56"
)

// lowPorts lets anybody bind any port on the host, so that the manual's examples
// can be taken as they are, and has all ports above 5000 but the last be
// ephemeral, so that the limit on open files of a small machine is not in the
// way of "all".
func lowPorts(lab *netlab.Lab) {
	lab.Host.Sysctl("net/ipv4/ip_unprivileged_port_start", "0")
	lab.Host.Sysctl("net/ipv4/ip_local_port_range", "5001 64999")
	// Every datagram to a closed port is to be refused at once.
	lab.Host.Sysctl("net/ipv4/icmp_ratelimit", "0")
	lab.Host.Sysctl("net/ipv6/icmp/ratelimit", "0")
}

// attempt is one attempt at a forwarded port.
type attempt struct {
	from string // "host" or "remote"
	addr string // where to, without port
	port int
	want string // port in the guest that answers, "" if nothing may
	peer string // as the guest sees it, "" if that does not matter
}

// try makes the attempt by both protocols.
func (r attempt) try(t *testing.T, lab *netlab.Lab) {
	t.Helper()
	ns := lab.Host
	if r.from == "remote" {
		ns = lab.Remote
	}
	at := netip.AddrPortFrom(netip.MustParseAddr(r.addr), uint16(r.port)).String()
	for _, network := range []string{"tcp", "udp"} {
		got, err := netlab.Ask(ns, network, at, "?")
		peer, port, _ := strings.Cut(got, " ")
		switch a, perr := netip.ParseAddr(peer); {
		case r.want == "":
			if err == nil {
				t.Errorf("%s %s from %s: %q, want an error", network, at, r.from, got)
			}
		case err != nil || port != r.want:
			t.Errorf("%s %s from %s: %q, %v, want port %s", network, at, r.from, got, err, r.want)
		case perr != nil || a.IsLoopback() || r.peer != "" && peer != r.peer:
			t.Errorf("%s %s from %s: peer %s, want %s", network, at, r.from, peer, r.peer)
		}
	}
}

// everywhere are attempts from host loopback, host address and remote, of both
// families.
func everywhere(port int, want string) []attempt {
	return []attempt{
		{"host", "127.0.0.1", port, want, netlab.Host4},
		{"host", "::1", port, want, netlab.Host6},
		{"host", netlab.Host4, port, want, ""},
		{"host", netlab.Host6, port, want, ""},
		{"remote", netlab.Host4, port, want, "192.0.2.9"},
		{"remote", netlab.Host6, port, want, "2001:db8:1::9"},
	}
}

// atAddress are attempts of which only those to the address may succeed.
func atAddress(port int, want string) []attempt {
	return []attempt{
		{"host", "127.0.0.1", port, "", ""},
		{"host", "::1", port, "", ""},
		{"remote", netlab.Host4, port, want, "192.0.2.9"},
		{"remote", netlab.Host6, port, "", ""},
	}
}

// TestForwardExamples has each example that passt(1) gives for -t, and tries what
// it says and what it does not say, TCP and UDP.
func TestForwardExamples(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	lowPorts(lab)
	join := func(all ...[]attempt) (r []attempt) {
		for _, a := range all {
			r = append(r, a...)
		}
		return r
	}
	for _, tt := range []struct {
		spec  string
		tries []attempt
	}{
		{"all", join(everywhere(22, "22"), everywhere(4000, "4000"), everywhere(65000, "65000"), everywhere(40000, ""))},
		{"::1/all", []attempt{
			{"host", "::1", 22, "22", netlab.Host6}, {"host", "::1", 65535, "65535", netlab.Host6},
			{"host", "127.0.0.1", 22, "", ""}, {"remote", netlab.Host6, 22, "", ""}, {"host", "::1", 40000, "", ""},
		}},
		{"22", join(everywhere(22, "22"), everywhere(23, ""))},
		{"22:23", join(everywhere(22, "23"), everywhere(23, ""))},
		{"22,25", join(everywhere(22, "22"), everywhere(25, "25"), everywhere(23, ""))},
		{"22-80", join(everywhere(22, "22"), everywhere(53, "53"), everywhere(80, "80"), everywhere(81, ""))},
		{"22-80:32-90", join(everywhere(22, "32"), everywhere(53, "63"), everywhere(80, "90"))},
		{netlab.Host4 + "/22", atAddress(22, "22")},
		{netlab.Host4 + "%h0/22", atAddress(22, "22")},
		{"%h0/22", []attempt{
			{"remote", netlab.Host4, 22, "22", "192.0.2.9"}, {"remote", netlab.Host6, 22, "22", "2001:db8:1::9"},
			{"host", "127.0.0.1", 22, "", ""}, {"host", "::1", 22, "", ""},
		}},
		{"0.0.0.0/5000:" + guestOther4 + "/6000", []attempt{
			{"host", "127.0.0.1", 5000, "6000", ""}, {"remote", netlab.Host4, 5000, "6000", "192.0.2.9"}, {"host", "::1", 5000, "", ""},
		}},
		{"127.0.0.6/all:" + guestThird4, []attempt{
			{"host", "127.0.0.6", 22, "22", ""}, {"host", "127.0.0.6", 4000, "4000", ""}, {"host", "127.0.0.1", 22, "", ""},
		}},
		{"2000-5000,~3000-3010", join(everywhere(2000, "2000"), everywhere(2999, "2999"), everywhere(3000, ""),
			everywhere(3010, ""), everywhere(3011, "3011"), everywhere(5000, "5000"))},
		{netlab.Host4 + "/20-30,~25", join(atAddress(20, "20"), atAddress(24, "24"), atAddress(25, ""), atAddress(30, "30"))},
		{"~2000-2010", join(everywhere(1999, "1999"), everywhere(2000, ""), everywhere(2010, ""), everywhere(2011, "2011"), everywhere(40000, ""))},
	} {
		t.Run(strings.ReplaceAll(tt.spec, "/", "|"), func(t *testing.T) {
			lab := lab.For(t)
			g := lab.Guest("-t", tt.spec, "-u", tt.spec)
			g.IP("addr add "+guestOther4+"/32 dev "+g.Interface(), "addr add "+guestThird4+"/32 dev "+g.Interface())
			serve := map[string]bool{}
			target := "" // answers to datagrams leave from the address that was asked
			if _, addr, ok := strings.Cut(tt.spec, ":192"); ok {
				target, _, _ = strings.Cut("192"+addr, "/")
			}
			for _, r := range tt.tries {
				if r.want != "" && !serve[r.want] {
					serve[r.want] = true
					tellPeer(g.NS, target+":"+r.want)
				}
			}
			for _, r := range tt.tries {
				r.try(t, lab)
			}
		})
	}
}

// TestBestEffort binds what is free, and fails only if nothing is, or if a port
// was named.
func TestBestEffort(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	lowPorts(lab)
	lab.Host.Listen("tcp", ":3080")
	t.Run("all", func(t *testing.T) {
		lab := lab.For(t)
		g := lab.Guest("-t", "all")
		tellPeer(g.NS, ":3081")
		if got, err := netlab.Ask(lab.Remote, "tcp", netlab.Host4+":3081", "?"); got != "192.0.2.9 3081" {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("named", func(t *testing.T) {
		lab := lab.For(t)
		p := lab.StartPasta(netlab.GuestSpec{User: netlab.Nobody}, append(netlab.NoForward("-t"), "-t", "3079-3080", "--", "true")...)
		if st := p.Wait(); st != 1 || !strings.Contains(p.Output(), "3080") {
			t.Errorf("status %d, %q", st, p.Output())
		}
	})
	t.Run("nothing", func(t *testing.T) {
		lab := lab.For(t)
		p := lab.StartPasta(netlab.GuestSpec{User: netlab.Nobody}, append(netlab.NoForward("-t"), "-t", "~1-3079,~3081-65535", "--", "true")...)
		if st := p.Wait(); st != 1 {
			t.Errorf("status %d, %q", st, p.Output())
		}
	})
}

// TestLowPorts needs no privilege but the sysctl's, and says what is missing.
func TestLowPorts(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	lab.Host.Sysctl("net/ipv4/ip_unprivileged_port_start", "1024")
	p := lab.StartPasta(netlab.GuestSpec{User: netlab.Nobody}, append(netlab.NoForward("-t"), "-t", "80", "--", "true")...)
	if st := p.Wait(); netlab.Nested() {
		t.Skip("root of a user namespace may bind them")
	} else if st != 1 || !strings.Contains(p.Output(), "80") {
		t.Errorf("status %d, %q", st, p.Output())
	}
	lab.Host.Sysctl("net/ipv4/ip_unprivileged_port_start", "80")
	g := lab.Guest("-t", "80")
	tellPeer(g.NS, ":80")
	if got, err := netlab.Ask(lab.Remote, "tcp", netlab.Host4+":80", "?"); got != "192.0.2.9 80" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestFreebind binds an address that the host gets later.
func TestFreebind(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("--freebind", "-t", "192.0.2.77/8080", "-u", "192.0.2.77/8080")
	tellPeer(g.NS, ":8080")
	lab.Host.IP("addr add 192.0.2.77/24 dev h0")
	attempt{"remote", "192.0.2.77", 8080, "8080", "192.0.2.9"}.try(t, lab)
}

// TestPortsFreeAtEnd finds the ports of an instance that has ended free: one left
// behind for a moment would take what is meant for the next.
func TestPortsFreeAtEnd(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	for range 10 {
		args := append(netlab.NoForward("-t", "-u"), "-t", "8080", "-u", "8080", "--", "true")
		p := lab.StartPasta(netlab.GuestSpec{User: netlab.Nobody}, args...)
		if st := p.Wait(); st != 0 {
			t.Fatalf("status %d\n%s", st, p.Output())
		}
		lab.Host.Listen("tcp", ":8080").Close()
		lab.Host.ListenUDP("udp", ":8080").Close()
	}
}

// TestAllPorts forwards as many ports as there are, TCP and UDP. How long that
// takes is in the log: a fraction of a second, on a machine that does nothing else.
func TestAllPorts(t *testing.T) {
	heavy(t)
	lab := netlab.New(t, netlab.Options{})
	lab.Host.Sysctl("net/ipv4/ip_unprivileged_port_start", "0")
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	// "all" twice, on the host and in the namespace, has to fit.
	last := min(32767, limit.Max/8)
	lab.Host.Sysctl("net/ipv4/ip_local_port_range", fmt.Sprintf("%d 65535", last+1))
	start := time.Now()
	g := lab.Guest("-t", "all", "-u", "all", "-T", "~22", "-U", "~22")
	t.Logf("4 times %d ports in %v", last, time.Since(start))
	tellPeer(g.NS, netlab.Host4+":22")
	attempt{"remote", netlab.Host4, 22, "22", "192.0.2.9"}.try(t, lab)
}

// TestRestart ends a translator and starts another on the namespace that it
// leaves behind, while somebody holds its tap open or not.
func TestRestart(t *testing.T) {
	needOurs(t) // the path is one that only root may walk
	lab := netlab.New(t, netlab.Options{})
	ns := netlab.NewNS(t, "kept")
	for round := range 3 {
		var args []string
		args = append(args, "--config-net", "-f", "-t", "8080", "-u", "none", "-T", "none", "-U", "none", "--netns-only", "--netns", ns.Path())
		p := lab.StartPasta(netlab.GuestSpec{User: netlab.Root}, args...)
		deadline := time.Now().Add(10 * time.Second)
		var once sync.Once
		for got := ""; got != "192.0.2.9 8080"; {
			if strings.Contains(ns.Read("/proc/net/dev"), "h0:") {
				once.Do(func() { tellRound(ns, round) })
			}
			var err error
			if got, err = netlab.Ask(lab.Remote, "tcp", netlab.Host4+":8080", "?"); time.Now().After(deadline) || p.Exited() {
				t.Fatalf("round %d: %q, %v\n%s", round, got, err, p.Output())
			}
			if got == "" {
				time.Sleep(20 * time.Millisecond)
			}
		}
		if round == 1 {
			p.Kill() // no time for anything
		} else {
			_ = p.Signal(15)
		}
		if _, ok := p.WaitFor(5 * time.Second); !ok {
			t.Fatal("does not end")
		}
	}
}

// tellRound serves once: the listener of an earlier round is still there.
func tellRound(ns *netlab.NS, round int) {
	if round == 0 {
		tellPeer(ns, ":8080")
	}
}
