// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// Outcomes of reaching for something from the guest.
const (
	open       = "open"
	prohibited = "prohibited" // ICMP "administratively prohibited" came back
	refused    = "refused"    // RST, or ICMP "port unreachable"
	silent     = "silent"
)

// prohibition is what a guest's kernel makes of the ICMP message: code 13 of
// type 3 (RFC 1812), code 1 of type 1 (RFC 4443).
var prohibition = map[bool]error{true: syscall.EHOSTUNREACH, false: syscall.EACCES}

// reach tries "PROTO ADDR:PORT", or "icmp ADDR", from the guest.
func reach(g *netlab.Guest, what string) string {
	proto, to, _ := strings.Cut(what, " ")
	if proto == "icmp" {
		_, out := g.Run("ping", "-c", "1", "-W", "2", to)
		switch {
		case strings.Contains(out, "Packet filtered"), strings.Contains(out, "Administratively prohibited"):
			return prohibited
		case strings.Contains(out, " 0% packet loss"):
			return open
		}
		return silent
	}
	host, _, _ := net.SplitHostPort(to)
	c, err := g.DialError(proto, to, 5*time.Second)
	if err == nil {
		defer c.Close()
		if _, err = c.Write([]byte("?")); err == nil {
			_, err = readWithin(c, make([]byte, 1), time.Second)
		}
	}
	var timeout net.Error
	switch v4 := net.ParseIP(host).To4() != nil; {
	case err == nil:
		return open
	case errors.Is(err, prohibition[v4]):
		return prohibited
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return refused
	case errors.As(err, &timeout) && timeout.Timeout():
		return silent
	}
	return err.Error()
}

// serve answers on ports of an address of a namespace, by TCP and UDP.
func serve(ns *netlab.NS, addr string, ports ...int) {
	for _, p := range ports {
		at := addr + ":" + strconv.Itoa(p)
		go netlab.Echo(ns.Listen("tcp", at))
		u := ns.ListenUDP("udp", at)
		go func() {
			b := make([]byte, 2048)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(b[:n], from)
			}
		}()
	}
}

// egressLab has a remote with an address in each named set, and servers on
// ports 7, 53 and 80 of remote and host.
func egressLab(t *testing.T) *netlab.Lab {
	lab := netlab.New(t, netlab.Options{})
	addresses(lab)
	serve(lab.Remote, "[::]", 7, 53, 80)
	serve(lab.Host, "[::]", 7, 53, 80)
	return lab
}

// addresses gives the remote one in each named set.
func addresses(lab *netlab.Lab) {
	lab.Remote.IP("addr add 10.9.8.7/32 dev lo", "addr add 100.64.9.9/32 dev lo", "addr add 172.16.9.9/32 dev lo",
		"addr add 192.168.9.9/32 dev lo", "addr add 169.254.169.254/32 dev lo", "addr add 169.254.9.9/32 dev lo",
		"addr add fd12::7/128 dev lo nodad", "addr add fd00:ec2::254/128 dev lo nodad", "addr add 64:ff9b::a09:807/128 dev lo nodad")
}

func TestEgress(t *testing.T) {
	needOurs(t)
	lab := egressLab(t)
	const mapped = "--map-host-loopback"
	for _, tt := range []struct {
		name    string
		program string   // empty: pasta
		args    []string //
		want    map[string]string
	}{
		{"pasta allows any", "", nil, map[string]string{
			"tcp 192.0.2.9:7": open, "udp 192.0.2.9:7": open, "icmp 192.0.2.9": open,
			"tcp [2001:db8:1::9]:7": open, "udp [2001:db8:1::9]:7": open, "icmp 2001:db8:1::9": open,
			"tcp 169.254.169.254:80": open, "tcp 192.0.2.1:7": open, // the gateway, mapped to the host
		}},
		{"deny any", "", []string{"--deny", "any"}, map[string]string{
			"tcp 192.0.2.9:7": prohibited, "udp 192.0.2.9:7": prohibited, "icmp 192.0.2.9": prohibited,
			"tcp [2001:db8:1::9]:7": prohibited, "udp [2001:db8:1::9]:7": prohibited, "icmp 2001:db8:1::9": prohibited,
			"tcp 192.0.2.1:7": prohibited, "udp 192.0.2.1:7": prohibited, "icmp 192.0.2.1": prohibited,
		}},
		{"first match", "", []string{"--allow", "tcp:192.0.2.9:7", "--deny", "192.0.2.0/24", "--allow", "192.0.2.9", "--deny", "icmp:any"}, map[string]string{
			"tcp 192.0.2.9:7": open, "tcp 192.0.2.9:80": prohibited, "udp 192.0.2.9:7": prohibited,
			"tcp 198.51.100.9:7": open, "udp [2001:db8:1::9]:7": open,
			"icmp 198.51.100.9": prohibited, "icmp 2001:db8:1::9": prohibited, "tcp [2001:db8:1::9]:7": open,
		}},
		{"first match, the other way", "", []string{"--deny", "192.0.2.0/24", "--allow", "tcp:192.0.2.9:7"}, map[string]string{
			"tcp 192.0.2.9:7": prohibited, "tcp 198.51.100.9:7": open,
		}},
		{"by protocol", "", []string{"--deny", "udp:any"}, map[string]string{
			"tcp 192.0.2.9:7": open, "udp 192.0.2.9:7": prohibited, "icmp 192.0.2.9": open, "udp [2001:db8:1::9]:7": prohibited,
		}},
		{"mapped rule", "", []string{"--deny", "::ffff:192.0.2.9"}, map[string]string{
			"tcp 192.0.2.9:7": prohibited, "tcp 192.0.2.1:7": open, "tcp [2001:db8:1::9]:7": open,
		}},
		{"set private", "", []string{"--deny", "private"}, map[string]string{
			"tcp 10.9.8.7:7": prohibited, "udp 172.16.9.9:7": prohibited, "icmp 192.168.9.9": prohibited,
			"tcp 100.64.9.9:7": prohibited, "tcp [fd12::7]:7": prohibited, "icmp fd12::7": prohibited,
			"tcp [64:ff9b::a09:807]:7": prohibited, "tcp 192.0.2.9:7": open, "tcp [2001:db8:1::9]:7": open,
		}},
		{"set link-local", "", []string{"--deny", "link-local"}, map[string]string{
			"tcp 169.254.9.9:7": prohibited, "udp 169.254.169.254:7": prohibited, "tcp 10.9.8.7:7": open,
		}},
		{"set metadata", "", []string{"--deny", "metadata"}, map[string]string{
			"tcp 169.254.169.254:80": prohibited, "udp 169.254.169.254:80": prohibited, "icmp 169.254.169.254": prohibited,
			"tcp [fd00:ec2::254]:80": prohibited, "tcp 169.254.9.9:7": open, "tcp [fd12::7]:7": open,
		}},
		{"set host", "", []string{"--deny", "host", mapped, "192.0.2.77", mapped, "2001:db8:1::77",
			"-a", "192.0.2.50", "-a", "2001:db8:1::50"}, map[string]string{
			"tcp 192.0.2.2:7": prohibited, "udp 192.0.2.2:7": prohibited, "icmp 192.0.2.2": prohibited, // its own address
			"tcp [2001:db8:1::2]:7": prohibited,
			"tcp 192.0.2.77:7":      prohibited, "udp [2001:db8:1::77]:7": prohibited, // its loopback
			"tcp 192.0.2.9:7": open, "tcp [2001:db8:1::9]:7": open,
		}},
		{"mapped guest address", "", []string{"--deny", "host", "--map-guest-addr", "192.0.2.78"}, map[string]string{
			"tcp 192.0.2.78:7": prohibited, "tcp 192.0.2.9:7": open,
		}},
		{"mapped guest address, allowed", "", []string{"--map-guest-addr", "192.0.2.78"}, map[string]string{
			"tcp 192.0.2.78:7": open,
		}},
		{"aldente's own", "aldente", []string{mapped, "192.0.2.77", "-a", "192.0.2.50"}, map[string]string{
			"tcp 192.0.2.77:7": prohibited, "tcp 192.0.2.2:7": prohibited, "tcp 169.254.169.254:80": prohibited,
			"tcp [fd00:ec2::254]:80": prohibited, "tcp 192.0.2.9:7": open, "icmp 192.0.2.9": open, "udp [2001:db8:1::9]:7": open,
		}},
		{"aldente's own, overruled", "aldente", []string{"--allow", "tcp:host:80", mapped, "192.0.2.77", "-a", "192.0.2.50"}, map[string]string{
			"tcp 192.0.2.77:80": open, "tcp 192.0.2.77:7": prohibited, "udp 192.0.2.77:80": prohibited, "tcp 192.0.2.2:80": open,
		}},
		{"gateway of aldente is no way to the host", "aldente", nil, map[string]string{
			"tcp 192.0.2.1:7": open, // the real one: the remote has that address
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := netlab.GuestSpec{Args: append([]string{"--config-net"}, tt.args...)}
			if tt.program != "" {
				s.Binary = filepath.Join(filepath.Dir(netlab.Pasta()), tt.program)
			}
			g := lab.For(t).GuestWith(s)
			for what, want := range tt.want {
				if got := reach(g, what); got != want {
					t.Errorf("%s: %s, want %s", what, got, want)
				}
			}
		})
	}
}

// TestEgressForwardedDNS: the resolver that queries are forwarded to stays
// reachable, on its ports, unless it is denied by its own address.
func TestEgressForwardedDNS(t *testing.T) {
	needOurs(t)
	lab := egressLab(t)
	forward := []string{"--config-net", "--dns-forward", "203.0.113.53", "--dns-host", "192.0.2.9"}
	for _, tt := range []struct {
		name string
		args []string
		want map[string]string
	}{
		{"no network but DNS", []string{"--deny", "any"}, map[string]string{
			"udp 203.0.113.53:53": open, "tcp 203.0.113.53:53": open, "udp 192.0.2.9:53": open,
			"tcp 192.0.2.9:7": prohibited, "udp 203.0.113.53:7": prohibited, "tcp 198.51.100.9:53": prohibited, "icmp 192.0.2.9": prohibited,
		}},
		{"denied by its address", []string{"--deny", "192.0.2.9"}, map[string]string{
			"udp 203.0.113.53:53": prohibited, "tcp 203.0.113.53:53": prohibited, "udp 192.0.2.9:53": prohibited,
		}},
		{"denied by a set", []string{"--deny", "192.0.2.0/24"}, map[string]string{
			"udp 203.0.113.53:53": open, "tcp 192.0.2.9:7": prohibited,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := lab.For(t).Guest(append(forward[1:], tt.args...)...)
			for what, want := range tt.want {
				if got := reach(g, what); got != want {
					t.Errorf("%s: %s, want %s", what, got, want)
				}
			}
		})
	}
}

// TestEgressLaterAddress: what the host gets after the start is the host's too.
func TestEgressLaterAddress(t *testing.T) {
	needOurs(t)
	lab := egressLab(t)
	g := lab.Guest("--deny", "host")
	later := []string{"tcp 192.0.2.200:7", "udp [2001:db8:1::200]:7"}
	lab.Host.IP("addr add 192.0.2.200/24 dev h0", "addr add 2001:db8:1::200/64 dev h0 nodad")
	// An IPv6 address is there, and a moment later its route.
	if !eventually(10*time.Second, func() bool {
		_, out := lab.Host.Run("ip", "-6", "route", "get", "2001:db8:1::200")
		return strings.HasPrefix(out, "local ")
	}) {
		t.Fatal("the host has no local route")
	}
	for _, what := range later {
		if got := reach(g, what); got != prohibited {
			t.Errorf("%s: %s", what, got)
		}
	}
}

// TestEgressBypass: the loopback bypass is under the egress rules as the tap is.
func TestEgressBypass(t *testing.T) {
	needOurs(t)
	lab := egressLab(t)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, open},
		{[]string{"--deny", "host"}, refused},
		{[]string{"--allow", "tcp:127.0.0.1:80", "--allow", "tcp:[::1]:80", "--deny", "host"}, open},
	} {
		t.Run(fmt.Sprint(tt.args), func(t *testing.T) {
			g := lab.For(t).Guest(append(tt.args, "-T", "80")...)
			for _, what := range []string{"tcp 127.0.0.1:80", "tcp [::1]:80"} {
				if got := reach(g, what); got != tt.want {
					t.Errorf("%s: %s, want %s", what, got, tt.want)
				}
			}
		})
	}
}

// TestEgressLog: a destination that is refused is named once, with the rule, and the
// sum is told in the end.
func TestEgressLog(t *testing.T) {
	needOurs(t)
	lab := egressLab(t)
	g := lab.Guest("--deny", "udp:any")
	c := g.Dial("udp", "192.0.2.9:7")
	for range 40 {
		g.Dial("udp", "192.0.2.9:7").Write([]byte("?"))
	}
	_, _ = c.Write([]byte("?"))
	line := regexp.MustCompile(`refused by the egress rules protocol=udp to=192\.0\.2\.9:7 rule=.*--deny udp:any`)
	if !eventually(5*time.Second, func() bool { return line.MatchString(g.Proc.Output()) }) {
		t.Fatalf("no line:\n%s", g.Proc.Output())
	}
	g.Close()
	out := g.Proc.Output()
	if n := len(line.FindAllString(out, -1)); n != 1 || !strings.Contains(out, "the egress rules have refused more than is named above refusals=41 named=1\n") {
		t.Errorf("%d lines, and the sum:\n%s", n, out)
	}
}
