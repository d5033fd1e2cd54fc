// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
	"aldente/test/netlab"
)

// call asks from one address of a namespace, and tells what came back; "" for nothing
// within half a second.
func call(ns *netlab.NS, network, from, to string) string {
	return callFor(ns, network, from, to, 500*time.Millisecond)
}

// callFor is call that waits for so long: where an answer has to come, until it does.
func callFor(ns *netlab.NS, network, from, to string, wait time.Duration) string {
	d := net.Dialer{Timeout: 500 * time.Millisecond}
	d.SetMultipathTCP(false)
	d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	if network == "udp" {
		d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
	}
	var c net.Conn
	if err := ns.Do(func() (err error) { c, err = d.Dial(network, to); return }); err != nil {
		return ""
	}
	defer c.Close()
	b := make([]byte, 512)
	if _, err := c.Write([]byte("?")); err != nil {
		return ""
	}
	n, _ := readWithin(c, b, wait)
	return string(b[:n])
}

// callers are the lab's sources by family: the remote's two, and the host's by its
// loopback and its own address.
var callers = [2]map[string][2]string{
	{"allowed": {"192.0.2.9", netlab.Host4}, "other": {"198.51.100.9", netlab.Host4}, "loopback": {"127.0.0.1", "127.0.0.1"}, "own": {netlab.Host4, netlab.Host4}},
	{"allowed": {"2001:db8:1::9", netlab.Host6}, "other": {"2001:db8:2::9", netlab.Host6}, "loopback": {"::1", "::1"}, "own": {netlab.Host6, netlab.Host6}},
}

// TestIngress: who may connect by forwarded ports, in all ways in which a client can
// come: by both protocols and families, by the link and past it, from the host by its
// loopback and its own address.
func TestIngress(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	only := []string{"--allow-in", "192.0.2.9", "--allow-in", "2001:db8:1::9", "--deny-in", "any"}
	for _, tt := range []struct {
		name    string
		program string
		args    []string
		spec    string
		want    string // who gets an answer on port 10001 of the host, which is 10002 of the guest
	}{
		{"nobody said", aldente(), nil, "10001:10002", "allowed other loopback own"},
		{"one network", aldente(), only, "10001:10002", "allowed"},
		{"one network, pasta", netlab.Pasta(), only, "10001:10002", "allowed"},
		{"by an interface", netlab.Pasta(), only, "%h0/10001:10002", "allowed"},
		{"and the host", aldente(), append([]string{"--allow-in", "host"}, only...), "10001:10002", "allowed loopback own"},
		{"not the host", aldente(), []string{"--deny-in", "host"}, "10001:10002", "allowed other"},
		{"the guest's port", aldente(), []string{"--allow-in", "192.0.2.0/24:10002", "--allow-in", "[2001:db8:1::9]:10002", "--deny-in", "any:10002"}, "10001:10002", "allowed own4"},
		{"not the host's port", aldente(), []string{"--deny-in", "any:10001"}, "10001:10002", "allowed other loopback own"},
		{"no bypass", netlab.Pasta(), append([]string{"--no-splice", "--allow-in", "host"}, only...), "10001:10002", "allowed loopback own"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := lab.For(t)
			args := append([]string{"--config-net"}, tt.args...)
			g := lab.GuestWith(netlab.GuestSpec{Binary: tt.program, Args: append(args, "-t", tt.spec, "-u", tt.spec)})
			tellPeer(g.NS, ":10002")
			for k, f := range families {
				for who, ends := range callers[k] {
					ns := lab.Remote
					if who == "loopback" || who == "own" {
						ns = lab.Host
					}
					want := strings.Contains(tt.want+" ", who+" ") || strings.Contains(tt.want+" ", who+f.name[3:]+" ")
					if strings.HasPrefix(tt.spec, "%") && ns == lab.Host {
						continue // nothing of the host's own comes by that interface
					}
					for _, network := range []string{"tcp", "udp"} {
						wait := 500 * time.Millisecond
						if want {
							wait = soonEnough
						}
						got := callFor(ns, network, ends[0], f.at(ends[1], "10001"), wait)
						if want && !strings.HasSuffix(got, " 10002") || !want && got != "" {
							t.Errorf("%s from %s (%s): %q, want an answer: %v", network, ends[0], who, got, want)
						}
					}
				}
			}
		})
	}
}

// TestIngressProtocols: rules for one protocol leave the other alone.
func TestIngressProtocols(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "10001", "-u", "10001", "--deny-in", "udp:any", "--deny-in", "tcp:198.51.100.0/24")
	tellPeer(g.NS, ":10001")
	for network, want := range map[string][2]string{"tcp": {"192.0.2.9 10001", ""}, "udp": {"", ""}} {
		for k, from := range []string{"192.0.2.9", "198.51.100.9"} {
			wait := 500 * time.Millisecond
			if want[k] != "" {
				wait = soonEnough
			}
			if got := callFor(lab.Remote, network, from, netlab.Host4+":10001", wait); got != want[k] {
				t.Errorf("%s from %s: %q, want %q", network, from, got, want[k])
			}
		}
	}
}

// TestIngressSpoofed: who passes for the host by an address, from outside, is not it.
// Nothing answers; but a datagram would do its work without.
func TestIngressSpoofed(t *testing.T) {
	needOurs(t)
	needRoot(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-u", "10001", "--allow-in", "host", "--deny-in", "any")
	heard := counted(g.NS, "[::]:10001")
	lab.Remote.IP("addr add "+netlab.Host6+"/128 dev lo nodad", "-6 route add "+netlab.Host6+"/128 dev r0 table 99", "-6 rule add to "+netlab.Host6+"/128 lookup 99 priority 0")
	err := lab.Remote.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		own := net.ParseIP(netlab.Host6).To16()
		// An IPv6 header, a UDP header with its checksum, a byte.
		p := append([]byte{0x60, 0, 0, 0, 0, 9, unix.IPPROTO_UDP, 64}, append(append([]byte{}, own...), own...)...)
		p = append(p, 0x12, 0x34, 10001>>8, 10001&0xff, 0, 9, 0, 0, '?')
		sum := uint32(9 + unix.IPPROTO_UDP)
		for i := 8; i < len(p); i += 2 {
			w := uint32(p[i]) << 8
			if i+1 < len(p) {
				w |= uint32(p[i+1])
			}
			sum += w
		}
		for sum > 0xffff {
			sum = sum&0xffff + sum>>16
		}
		p[46], p[47] = byte(^sum>>8), byte(^sum)
		return unix.Sendto(fd, p, 0, &unix.SockaddrInet6{Addr: [16]byte(own)})
	})
	if err != nil {
		t.Fatal(err)
	}
	if !eventually(5*time.Second, func() bool { return lab.Host.Counters()["UdpInErrors"] > 0 || dropped(t, lab, g) > 0 }) {
		t.Skip("the host's kernel takes no such packet")
	}
	if n := heard.Load(); n != 0 {
		t.Errorf("the guest has heard %d datagrams of who is not the host", n)
	}
	if got := call(lab.Host, "udp", netlab.Host6, net.JoinHostPort(netlab.Host6, "10001")); got != "" || !eventually(5*time.Second, func() bool { return heard.Load() == 1 }) {
		t.Errorf("the host itself is not heard: %d", heard.Load())
	}
}

// dropped is what "forward list" says was dropped.
func dropped(t *testing.T, lab *netlab.Lab, g *netlab.Guest) (n uint64) {
	t.Helper()
	for _, r := range asked[[]api.PortRule](t, lab, g, "forward", "list") {
		n += r.Dropped
	}
	return n
}

// TestIngressTold: rules are listed, and what was dropped is counted.
func TestIngressTold(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	file := filepath.Join(openDir(t), "flows")
	g := lab.Guest("-t", "10001", "--deny-in", "198.51.100.0/24", "--flow-log", file)
	if n := dropped(t, lab, g); n != 0 {
		t.Errorf("%d dropped of nothing", n)
	}
	if got := call(lab.Remote, "tcp", "198.51.100.9", netlab.Host4+":10001"); got != "" {
		t.Fatalf("%q", got)
	}
	eventually(soonEnough, func() bool { return dropped(t, lab, g) > 0 }) // the reset goes before the count
	if n := dropped(t, lab, g); n != 1 {
		t.Errorf("%d refused", n)
	}
	if _, out := ask(lab, g, "forward", "list"); !strings.Contains(out, ", 1 refused") {
		t.Errorf("%s", out)
	}
	if n := hitsBy(t, lab, g)["--deny-in 198.51.100.0/24 who connects to the guest; of UDP not counted"]; n != 1 {
		t.Errorf("%v", hitsBy(t, lab, g))
	}
	flowLine(t, file, `flow refused protocol=tcp direction=in guest=192\.0\.2\.2:10001 remote=198\.51\.100\.9:\d+ verdict=refused rule="--deny-in 198\.51\.100\.0/24" reason="inbound rules"`)
}

// TestIngressLive: ports that are forwarded while the instance runs, or lead to another
// port of the guest's, follow the rules; so does a listener that a worker has left.
func TestIngressLive(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	s := steer(t, lab, "--deny-in", "198.51.100.0/24:8081", "--deny-in", "[2001:db8:2::]/64:8081")
	s.answer(8080, 8081)
	other := func(want string) {
		t.Helper()
		for k, f := range families {
			for _, network := range []string{"tcp", "udp"} {
				to := callers[k]["other"]
				got := ""
				// UDP flows that were there go on for a while.
				eventually(soonEnough, func() bool {
					got = call(lab.Remote, network, to[0], f.at(to[1], "9001"))
					return got == want
				})
				if got != want {
					t.Errorf("%s from %s: %q, want %q", network, to[0], got, want)
				}
				if got := callFor(lab.Remote, network, callers[k]["allowed"][0], f.at(to[1], "9001"), soonEnough); got == "" {
					t.Errorf("%s: nobody answers who may", network)
				}
			}
		}
	}
	s.must("-A -t 9001:8080 -u 9001:8080")
	other("8080")
	s.must("-D -t 9001:8080 -u 9001:8080 -A -t 9001:8081 -u 9001:8081")
	other("")
	if w := s.g.Worker(); w == 0 || syscall.Kill(w, syscall.SIGKILL) != nil {
		t.Fatal("no worker to kill")
	}
	if !eventually(10*time.Second, func() bool {
		return call(lab.Remote, "tcp", "192.0.2.9", netlab.Host4+":9001") == "8081"
	}) {
		t.Fatal("no worker any more")
	}
	other("")
	s.must("-D -t 9001:8081 -u 9001:8081 -A -t 9001:8080 -u 9001:8080")
	other("8080")
}

// TestIngressBesideFlow: a flow that the guest begins from a forwarded port does not
// let in whom the rules keep out, and has its own answers.
func TestIngressBesideFlow(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-u", "10001", "--allow-in", "192.0.2.9", "--deny-in", "any")
	go netlab.EchoUDP(lab.Remote.ListenUDP("udp", "198.51.100.9:7"))
	c := g.ListenUDP("udp", "0.0.0.0:10001")
	b := make([]byte, 100)
	for range 3 {
		if _, err := c.WriteTo([]byte("flow"), &net.UDPAddr{IP: net.ParseIP("198.51.100.9"), Port: 7}); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, from, err := c.ReadFrom(b)
		if err != nil || string(b[:n]) != "flow" || from.String() != "198.51.100.9:7" {
			t.Fatalf("%q from %v, %v", b[:n], from, err)
		}
		// From another port of the same address: no answer of that flow's.
		if got := call(lab.Remote, "udp", "198.51.100.9", netlab.Host4+":10001"); got != "" {
			t.Errorf("%q", got)
		}
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if n, from, err := c.ReadFrom(b); err == nil {
			t.Errorf("the guest hears %q of %v", b[:n], from)
		}
	}
}

// TestIngressAuto: ports that are forwarded since something is bound in the guest
// follow the rules, too.
func TestIngressAuto(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.GuestWith(netlab.GuestSpec{Binary: aldente(), Args: []string{"--config-net", "-t", "10001-10010,auto", "-u", "none", "--deny-in", "198.51.100.9"}})
	tellPeer(g.NS, ":10003")
	if !eventually(10*time.Second, func() bool {
		return call(lab.Remote, "tcp", "192.0.2.9", netlab.Host4+":10003") == "192.0.2.9 10003"
	}) {
		t.Fatal("not forwarded")
	}
	if got := call(lab.Remote, "tcp", "198.51.100.9", netlab.Host4+":10003"); got != "" {
		t.Errorf("%q", got)
	}
}

// TestIngressRefused: rules that cannot be are told before anything is started.
func TestIngressRefused(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for arg, want := range map[string]string{
		"192.0.2.1/24": "Invalid --allow-in 192.0.2.1/24: 192.0.2.1/24 has host bits set: meant 192.0.2.0/24?",
		"icmp:any":     "Invalid --allow-in icmp:any: icmp is not forwarded to the guest",
	} {
		p := lab.StartPasta(netlab.GuestSpec{Binary: filepath.Join(filepath.Dir(netlab.Pasta()), "aldente")}, "--allow-in", arg, "--", "true")
		if st := p.Wait(); st != 1 || !strings.Contains(p.Output(), want) {
			t.Errorf("%s: status %d: %s", arg, st, fmt.Sprint(p.Output()))
		}
	}
}
