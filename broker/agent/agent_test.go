// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet"
	"aldente/broker/hostnet/nettest"
	"aldente/broker/netns"
	"aldente/broker/tun"
)

func TestMain(m *testing.M) {
	if os.Args[0] == netns.AgentName {
		Main()
		return
	}
	nettest.Main(m)
}

// guest is a namespace with an agent in it.
type guest struct {
	*Client
	child *netns.Child
}

// newGuest starts a command in new namespaces, and an agent there.
func newGuest(t *testing.T) *guest {
	t.Helper()
	if _, err := os.Stat(tunDevice); err != nil {
		t.Skipf("needs %s: %v", tunDevice, err)
	}
	c, err := netns.Create(netns.Command{Path: "true", UID: os.Geteuid(), GID: os.Getegid()})
	if err != nil {
		t.Skipf("needs user namespaces: %v", err)
	}
	t.Cleanup(c.Kill)
	if _, err := c.Ready(); err != nil {
		t.Skipf("needs user namespaces: %v", err)
	}
	return &guest{join(t, &c.Namespace), c}
}

// join starts one more agent in a namespace.
func join(t *testing.T, ns *netns.Namespace) *Client {
	t.Helper()
	a, err := Start(ns, func(line string) { fmt.Fprintln(os.Stderr, line) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return a
}

// setup runs a set-up that has to succeed without warnings.
func (g *guest) setup(t *testing.T, s Setup) Tap {
	t.Helper()
	tap, err := g.Setup(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(tap.FD) })
	if len(tap.Warnings) > 0 {
		t.Errorf("warnings: %q", tap.Warnings)
	}
	return tap
}

// do runs a function in the guest's network namespace.
func (g *guest) do(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(g.child.Net, unix.CLONE_NEWNET)
		defer func() { done <- err }() // also if f ends the goroutine
		if err == nil {
			f()
		}
	}()
	if err := <-done; err != nil {
		t.Fatalf("setns: %v", err)
	}
}

// ip runs ip(8) in the guest and returns its output.
func (g *guest) ip(t *testing.T, args string) (out string) {
	t.Helper()
	g.do(t, func() { out = nettest.Run(t, "ip", strings.Fields(args)...) })
	return out
}

// addresses lists the guest's addresses on an interface.
func (g *guest) addresses(t *testing.T, name string) (all []string) {
	t.Helper()
	var links []struct {
		Info []struct {
			Local     string `json:"local"`
			Address   string `json:"address"`
			Bits      int    `json:"prefixlen"`
			Scope     string `json:"scope"`
			Tentative bool   `json:"tentative"`
		} `json:"addr_info"`
	}
	if err := json.Unmarshal([]byte(g.ip(t, "-j addr show dev "+name)), &links); err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		for _, a := range l.Info {
			s := fmt.Sprintf("%s/%d", a.Local, a.Bits)
			if a.Address != "" {
				s = fmt.Sprintf("%s peer %s/%d", a.Local, a.Address, a.Bits)
			}
			if a.Tentative {
				s += " tentative"
			}
			if a.Scope != "link" || strings.Contains(s, ".") {
				all = append(all, s)
			}
		}
	}
	return all
}

func discover(t *testing.T) *hostnet.Network {
	t.Helper()
	n, err := hostnet.Discover(hostnet.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// copyOf is the set-up that --config-net makes without further options.
func copyOf(n *hostnet.Network) Setup {
	return Setup{Name: n.TapName(), MTU: 65520, Configure: true,
		V4: Copy(&n.V4, netip.Prefix{}, netip.Addr{}), V6: Copy(&n.V6, netip.Prefix{}, netip.Addr{})}
}

// TestSetupUsable binds to the guest's addresses as soon as Setup returns, and
// connects a socket to itself there.
func TestSetupUsable(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "v0")
	nettest.IP(t, "addr add fd01::5/64 dev v0 nodad")
	s := copyOf(discover(t))
	for range 5 {
		g := newGuest(t)
		tap := g.setup(t, s)
		m := tap.MAC
		ll := [16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]}
		g.do(t, func() {
			for _, a := range [][16]byte{netip.MustParseAddr("fd01::5").As16(), ll, netip.MustParseAddr("::1").As16()} {
				sa := &unix.SockaddrInet6{Port: 7, Addr: a}
				if a == ll {
					sa.ZoneId = uint32(tap.IfIndex)
				}
				fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Error(err)
					return
				}
				if err := unix.Bind(fd, sa); err != nil {
					t.Errorf("bind %v: %v", netip.AddrFrom16(a), err)
				}
				if err := unix.Sendto(fd, []byte("x"), 0, sa); err != nil {
					t.Errorf("send to %v: %v", netip.AddrFrom16(a), err)
				}
				if n, err := unix.Read(fd, make([]byte, 8)); n != 1 {
					t.Errorf("%v does not reach itself: %v", netip.AddrFrom16(a), err)
				}
				unix.Close(fd)
			}
		})
	}
}

// TestSetupWithoutConfiguration leaves the interface to a DHCP client.
func TestSetupWithoutConfiguration(t *testing.T) {
	nettest.Host(t)
	g := newGuest(t)
	mac := [6]byte{2, 0, 0, 0, 0, 0x77}
	tap := g.setup(t, Setup{Name: "eth7", MAC: mac, MTU: 9000, QueueLen: 2000})
	if tap.MAC != mac || tap.Name != "eth7" {
		t.Errorf("%+v", tap)
	}
	var links []struct {
		Index   int      `json:"ifindex"`
		Flags   []string `json:"flags"`
		MTU     int      `json:"mtu"`
		Address string   `json:"address"`
		Queue   int      `json:"txqlen"`
	}
	if err := json.Unmarshal([]byte(g.ip(t, "-j link show dev eth7")), &links); err != nil {
		t.Fatal(err)
	}
	if l := links[0]; l.Index != tap.IfIndex || l.MTU != 9000 || l.Address != "02:00:00:00:00:77" || l.Queue != 2000 ||
		slices.Contains(l.Flags, "UP") {
		t.Errorf("%+v", l)
	}
	if a := g.addresses(t, "eth7"); a != nil {
		t.Errorf("addresses %q", a)
	}
	if lo := g.addresses(t, "lo"); !slices.Contains(lo, "127.0.0.1/8") {
		t.Errorf("lo has %q", lo)
	}
}

// TestTapDescriptor checks what the worker relies on.
func TestTapDescriptor(t *testing.T) {
	nettest.Host(t)
	g := newGuest(t)
	tap := g.setup(t, Setup{Name: "tap0", Configure: true})
	req, _ := unix.NewIfreq("")
	if err := unix.IoctlIfreq(tap.FD, unix.TUNGETIFF, req); err != nil {
		t.Fatal(err)
	}
	const want = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if req.Name() != "tap0" || req.Uint16() != want {
		t.Errorf("%q, flags %#x", req.Name(), req.Uint16())
	}
	if n, err := unix.IoctlGetInt(tap.FD, unix.TUNGETVNETHDRSZ); n != 10 || err != nil {
		t.Errorf("header of %d bytes, %v", n, err)
	}
	if flags, _ := unix.FcntlInt(uintptr(tap.FD), unix.F_GETFL, 0); flags&unix.O_NONBLOCK == 0 {
		t.Error("blocking")
	}
	if flags, _ := unix.FcntlInt(uintptr(tap.FD), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
		t.Error("not close-on-exec")
	}
	if tap.Offload&tun.OffloadTCP != tun.OffloadTCP || tap.Offload&^(tun.OffloadTCP|tun.OffloadUDP) != 0 {
		t.Errorf("offloads %#x", tap.Offload)
	}
	if again := g.setup(t, Setup{Name: "tap0", MTU: 1400}); again.IfIndex != tap.IfIndex || again.Offload != tap.Offload {
		t.Errorf("the same tap again: %+v, first %+v", again, tap)
	}
}

// TestSetupNameTaken tries names that exist in the namespace.
func TestSetupNameTaken(t *testing.T) {
	nettest.Host(t)
	g := newGuest(t)
	g.setup(t, Setup{Name: "tap0"})
	other := join(t, &g.child.Namespace)
	fails := func(name, want string) {
		t.Helper()
		if _, err := other.Setup(Setup{Name: name}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", name, err, want)
		}
	}
	fails("tap0", "in use: is another instance attached")
	fails("lo", "another interface has that name")
	fails("a/b", "is not valid")
	fails("", "is not valid")
	fails("a-name-that-is-too-long", "longer than 15 bytes")
	g.ip(t, "tuntap add mode tap name keep vnet_hdr")
	tap, err := other.Setup(Setup{Name: "keep"})
	if err != nil {
		t.Fatalf("persistent tap: %v", err)
	}
	unix.Close(tap.FD)
}

// TestSetupHeld: a tap that an instance is about to leave is waited for.
func TestSetupHeld(t *testing.T) {
	nettest.Host(t)
	g := newGuest(t)
	g.ip(t, "tuntap add mode tap name kept vnet_hdr")
	var held int
	g.do(t, func() {
		var err error
		if held, err = unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		req, _ := unix.NewIfreq("kept")
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(held, unix.TUNSETIFF, req); err != nil {
			t.Fatal(err)
		}
	})
	time.AfterFunc(attachPause*5, func() { unix.Close(held) })
	g.setup(t, Setup{Name: "kept"})
}

// TestSetupWarnings expects what cannot be set to be named, and the rest to be
// set.
func TestSetupWarnings(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "v0")
	nettest.IP(t, "addr add 10.1.0.5/24 dev v0", "route add default via 10.1.0.1", "addr add fd01::5/64 dev v0 nodad",
		"-6 route add default via fd01::1")
	s := copyOf(discover(t))
	for i := range 12 {
		r := defaultRoute(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}))
		s.V4.Routes = append([][]byte{r}, s.V4.Routes...)
	}
	g := newGuest(t)
	g.do(t, func() {
		nettest.Run(t, "sh", "-c", "for i in all default; do echo 1 >/proc/sys/net/ipv6/conf/$i/disable_ipv6; done")
	})
	tap, err := g.Setup(s)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tap.FD)
	text := strings.Join(tap.Warnings, "\n")
	for _, want := range []string{"cannot set address fd01::5/64 (IPv6 is disabled in the namespace): permission denied",
		"cannot set route to default via 203.0.113.11: network is unreachable", "more routes"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if r := g.ip(t, "route show default"); !strings.HasPrefix(r, "default via 10.1.0.1 dev v0") {
		t.Errorf("default route %q", r)
	}
}

// TestSetupManyRoutes copies a table that takes many batches.
func TestSetupManyRoutes(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "v0")
	var batch strings.Builder
	batch.WriteString("addr add 10.1.0.5/24 dev v0\nroute add default via 10.1.0.1\n")
	const n = 5000
	for i := range n {
		fmt.Fprintf(&batch, "route add 100.%d.%d.0/24 via 10.1.0.9\n", i>>8, i&0xff)
	}
	file := t.TempDir() + "/batch"
	if err := os.WriteFile(file, []byte(batch.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	nettest.Run(t, "ip", "-b", file)
	net := discover(t)
	g := newGuest(t)
	start := time.Now()
	g.setup(t, copyOf(net))
	t.Logf("%d routes in %v", n, time.Since(start))
	if got := strings.Count(g.ip(t, "route"), "\n"); got != n+2 {
		t.Errorf("%d routes, want %d", got, n+2)
	}
}

// TestAgentMalformedBody sends what no kernel says; the agent refuses and lives.
func TestAgentMalformedBody(t *testing.T) {
	nettest.Host(t)
	g := newGuest(t)
	for name, f := range map[string]Family{
		"short address": {Addresses: [][]byte{{2, 24}}},
		"short route":   {Routes: [][]byte{{2}}},
		"cut multipath": {Routes: [][]byte{append(make([]byte, 12), 12, 0, 9, 0, 99, 0, 0, 0, 0, 0, 0, 0)}},
		"no family":     {Addresses: [][]byte{make([]byte, 8)}},
	} {
		if tap, err := g.Setup(Setup{Name: "tap0", Configure: true, V4: f}); err == nil {
			unix.Close(tap.FD)
			t.Errorf("%s: no error", name)
		} else if strings.Contains(err.Error(), "died") {
			t.Fatalf("%s: %v", name, err)
		}
	}
	g.setup(t, Setup{Name: "tap0", Configure: true})
}

// TestAgentDies kills the agent, and expects a sentence about it.
func TestAgentDies(t *testing.T) {
	nettest.Host(t)
	g := newGuest(t)
	g.setup(t, Setup{Name: "tap0"})
	unix.Kill(g.PID(), unix.SIGKILL)
	if _, err := g.Setup(Setup{Name: "tap1"}); err == nil || !strings.Contains(err.Error(), "died unexpectedly") {
		t.Errorf("error %v", err)
	}
	fds := []unix.PollFd{{Fd: int32(g.FD()), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 10_000); n != 1 {
		t.Errorf("channel not readable: %d, %v", n, err)
	}
}

// TestAgentSleeps expects no thread of an agent that has nothing to do to run, once it has
// come to rest.
func TestAgentSleeps(t *testing.T) {
	nettest.Host(t)
	g := newGuest(t)
	g.setup(t, Setup{Name: "tap0", Configure: true})
	time.Sleep(300 * time.Millisecond)
	before := switches(t, g.PID())
	for range 5 {
		time.Sleep(1500 * time.Millisecond)
		after := switches(t, g.PID())
		if after == before {
			return
		}
		t.Logf("%d context switches while idle", after-before)
		before = after
	}
	t.Error("it never sleeps")
}

// switches adds up the voluntary context switches of a process.
func switches(t *testing.T, pid int) (sum int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/task", pid)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		b, _ := os.ReadFile(dir + "/" + task.Name() + "/status")
		var n int
		if _, rest, ok := strings.Cut(string(b), "\nvoluntary_ctxt_switches:"); ok {
			fmt.Sscan(rest, &n)
		}
		sum += n
	}
	return sum
}

// BenchmarkStart measures from nothing to a configured namespace.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		c, err := netns.Create(netns.Command{Path: "true", UID: os.Geteuid(), GID: os.Getegid()})
		if err != nil {
			b.Skip(err)
		}
		a, err := Start(&c.Namespace, nil)
		if err != nil {
			b.Fatal(err)
		}
		tap, err := a.Setup(Setup{Name: "tap0", Configure: true})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		unix.Close(tap.FD)
		c.Kill()
		a.Close()
		b.StartTimer()
	}
}
