// SPDX-License-Identifier: Apache-2.0

package inet

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/nettest"
	"aldente/ipc"
)

func TestMain(m *testing.M) { nettest.Main(m) }

var (
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	loopbacks = []netip.Addr{loopback4, netip.IPv6Loopback()}
)

// option is a socket option with the value that it should have.
type option struct {
	name        string
	level, opt  int
	want        int
	maybeAbsent bool // from a kernel without it
}

// options compares what a socket has with what it should have.
func options(t *testing.T, fd int, all ...option) {
	t.Helper()
	for _, o := range all {
		got, err := unix.GetsockoptInt(fd, o.level, o.opt)
		if err != nil && o.maybeAbsent {
			continue
		}
		if err != nil || got != o.want {
			t.Errorf("%s is %d, %v, want %d", o.name, got, err, o.want)
		}
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("blocks: flags %#x, %v", flags, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("is inherited: flags %#x, %v", flags, err)
	}
}

func protocol(want int) option {
	return option{name: "SO_PROTOCOL", level: unix.SOL_SOCKET, opt: unix.SO_PROTOCOL, want: want}
}

func reusePort(want int) option {
	return option{name: "SO_REUSEPORT", level: unix.SOL_SOCKET, opt: unix.SO_REUSEPORT, want: want}
}

func inline() option {
	return option{name: "SO_OOBINLINE", level: unix.SOL_SOCKET, opt: unix.SO_OOBINLINE, want: 1}
}

func v6Only(want int) option {
	return option{name: "IPV6_V6ONLY", level: unix.IPPROTO_IPV6, opt: unix.IPV6_V6ONLY, want: want}
}

func recvErr(v4 bool) option {
	if v4 {
		return option{name: "IP_RECVERR", level: unix.IPPROTO_IP, opt: unix.IP_RECVERR, want: 1}
	}
	return option{name: "IPV6_RECVERR", level: unix.IPPROTO_IPV6, opt: unix.IPV6_RECVERR, want: 1}
}

func pktInfo(v4 bool, want int) option {
	if v4 {
		return option{name: "IP_PKTINFO", level: unix.IPPROTO_IP, opt: unix.IP_PKTINFO, want: want}
	}
	return option{name: "IPV6_RECVPKTINFO", level: unix.IPPROTO_IPV6, opt: unix.IPV6_RECVPKTINFO, want: want}
}

func device(t *testing.T, fd int, want string) {
	t.Helper()
	if got, err := unix.GetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE); err != nil || got != want {
		t.Errorf("bound to interface %q, %v, want %q", got, err, want)
	}
}

// keep fails the test if a socket was not made, and closes it in the end.
func keep(t *testing.T, fd int, err error) int {
	t.Helper()
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
		t.Skip(err) // no IPv6
	}
	if err != nil || fd < 0 {
		t.Fatalf("descriptor %d, %v", fd, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// families runs a test by both of them.
func families(t *testing.T, f func(t *testing.T, lo netip.Addr)) {
	for _, lo := range loopbacks {
		t.Run(map[bool]string{true: "IPv4", false: "IPv6"}[lo.Is4()], func(t *testing.T) { f(t, lo) })
	}
}

// readable tells whether something arrives.
func readable(t *testing.T, fd int, timeout time.Duration) bool {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, int(timeout.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
}

// sendTo sends a datagram from a socket of its own.
func sendTo(t *testing.T, to netip.AddrPort) {
	t.Helper()
	f := Flow{From: netip.AddrPortFrom(Any(to.Addr()), 0), To: to}
	r := f.Dial()
	fd := keep(t, r.FD, r.Err)
	if _, err := unix.Write(fd, []byte("hello")); err != nil {
		t.Fatal(err)
	}
}

// TestBare: of each kind, with no option, since whoever goes on sets them.
func TestBare(t *testing.T) {
	families(t, func(t *testing.T, lo netip.Addr) {
		for _, tt := range []struct {
			proto uint8
			typ   int
		}{{ipc.ProtoTCP, unix.SOCK_STREAM}, {ipc.ProtoUDP, unix.SOCK_DGRAM}} {
			fd, err := Bare(tt.proto, lo.Is4())
			keep(t, fd, err)
			domain := unix.AF_INET6
			if lo.Is4() {
				domain = unix.AF_INET
			}
			options(t, fd, protocol(int(tt.proto)), reusePort(0),
				option{name: "SO_TYPE", level: unix.SOL_SOCKET, opt: unix.SO_TYPE, want: tt.typ},
				option{name: "SO_DOMAIN", level: unix.SOL_SOCKET, opt: unix.SO_DOMAIN, want: domain})
			if port := LocalPort(fd); port != 0 {
				t.Errorf("has port %d", port)
			}
		}
	})
	if fd, err := Bare(200, true); fd >= 0 || err == nil {
		t.Errorf("a protocol that nobody has: descriptor %d, %v", fd, err)
	}
}

// TestListenTCP: each listener has what those that accept from it rely on.
func TestListenTCP(t *testing.T) {
	families(t, func(t *testing.T, lo netip.Addr) {
		l := Listener{Path: Path{Device: "lo", Freebind: true}, At: netip.AddrPortFrom(lo, 0)}
		fd, err := l.ListenTCP()
		keep(t, fd, err)
		want := []option{protocol(unix.IPPROTO_TCP), inline(), reusePort(0),
			{name: "SO_REUSEADDR", level: unix.SOL_SOCKET, opt: unix.SO_REUSEADDR, want: 1},
			{name: "SO_ACCEPTCONN", level: unix.SOL_SOCKET, opt: unix.SO_ACCEPTCONN, want: 1},
			{name: "IP_FREEBIND", level: unix.IPPROTO_IP, opt: unix.IP_FREEBIND, want: 1, maybeAbsent: true}}
		if lo.Is6() {
			want = append(want, v6Only(1))
		}
		options(t, fd, want...)
		device(t, fd, "lo")
		again := Listener{At: netip.AddrPortFrom(lo, LocalPort(fd))}
		if second, err := again.ListenTCP(); second >= 0 || !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("two on one port: descriptor %d, %v", second, err)
		}
		// Whoever has it may have shut it down.
		if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
			t.Fatal(err)
		}
		if err := ListenAgain(fd); err != nil {
			t.Error(err)
		}
		options(t, fd, option{name: "SO_ACCEPTCONN", level: unix.SOL_SOCKET, opt: unix.SO_ACCEPTCONN, want: 1})
	})
	l := Listener{At: netip.AddrPortFrom(netip.IPv6Unspecified(), 0), Dual: true}
	fd, err := l.ListenTCP()
	keep(t, fd, err)
	options(t, fd, v6Only(0))
	c := Connect{To: netip.AddrPortFrom(loopback4, LocalPort(fd))}
	r := c.Dial()
	keep(t, r.FD, r.Err)
	if !readable(t, fd, 10*time.Second) {
		t.Error("does not stand for IPv4")
	}
}

// TestConnect: a connection under way, from where it was to come, with what it was
// to have.
func TestConnect(t *testing.T) {
	families(t, func(t *testing.T, lo netip.Addr) {
		l := Listener{At: netip.AddrPortFrom(lo, 0)}
		listens, err := l.ListenTCP()
		keep(t, listens, err)
		to := netip.AddrPortFrom(lo, LocalPort(listens))
		domain := unix.AF_INET6
		if lo.Is4() {
			domain = unix.AF_INET
		}
		for _, tt := range []struct {
			name string
			c    Connect
			bare bool
		}{
			{"plain", Connect{To: to}, false},
			{"with a socket that is there", Connect{To: to}, true},
			{"with all", Connect{Path: Path{Device: "lo"}, Source: lo, To: to, Peeks: true}, false},
		} {
			t.Run(tt.name, func(t *testing.T) {
				r := Result{}
				if tt.bare {
					fd, err := Bare(ipc.ProtoTCP, lo.Is4())
					if err != nil {
						t.Fatal(err)
					}
					if r = tt.c.DialBy(fd); r.FD != fd {
						t.Errorf("descriptor %d, want %d", r.FD, fd)
					}
				} else {
					r = tt.c.Dial()
				}
				keep(t, r.FD, r.Err)
				if !r.InProgress {
					t.Error("not in progress: it was waited for")
				}
				peek := -1
				if tt.c.Peeks {
					peek = 0
				}
				want := []option{protocol(unix.IPPROTO_TCP), inline(),
					{name: "TCP_NODELAY", level: unix.IPPROTO_TCP, opt: unix.TCP_NODELAY, want: 1}}
				if PeekOffWorks(domain) {
					want = append(want, option{name: "SO_PEEK_OFF", level: unix.SOL_SOCKET, opt: unix.SO_PEEK_OFF, want: peek})
				}
				options(t, r.FD, want...)
				device(t, r.FD, tt.c.Device)
				if !readable(t, listens, 10*time.Second) {
					t.Error("nobody to accept")
				}
			})
		}
	})
}

// TestFailures: no socket, the error of the step that failed, and no descriptor left.
func TestFailures(t *testing.T) {
	nowhere := netip.MustParseAddr("255.255.255.255")
	before := next(t)
	fd := func(fd int, err error) Result { return Result{FD: fd, Err: err} }
	bare := func(proto uint8) int {
		fd, err := Bare(proto, true)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	absent := Path{Device: "nosuchdevice"}
	at := netip.AddrPortFrom(loopback4, 0)
	foreign := netip.MustParseAddrPort("192.0.2.77:0")
	for name, r := range map[string]Result{
		"connect":             (&Connect{To: netip.AddrPortFrom(nowhere, 9)}).Dial(),
		"connect, bare":       (&Connect{To: netip.AddrPortFrom(nowhere, 9)}).DialBy(bare(ipc.ProtoTCP)),
		"connect, interface":  (&Connect{Path: absent, To: netip.AddrPortFrom(loopback4, 9)}).Dial(),
		"connect, source":     (&Connect{Source: foreign.Addr(), To: netip.AddrPortFrom(loopback4, 9)}).Dial(),
		"flow":                (&Flow{From: at, To: netip.AddrPortFrom(nowhere, 9)}).Dial(),
		"flow, bare":          (&Flow{From: at, To: netip.AddrPortFrom(nowhere, 9)}).DialBy(bare(ipc.ProtoUDP)),
		"flow, interface":     (&Flow{Path: absent, From: at, To: netip.AddrPortFrom(loopback4, 9)}).Dial(),
		"flow, source":        (&Flow{From: foreign, To: netip.AddrPortFrom(loopback4, 9)}).Dial(),
		"flow, source, bound": (&Flow{From: foreign, Sharing: SharedAndOpen}).Bind(),
		"flow, second half":   (&Flow{To: netip.AddrPortFrom(nowhere, 9), Sharing: SharedAndOpen}).ConnectBy(bare(ipc.ProtoUDP)),
		"TCP listener":        fd((&Listener{At: foreign}).ListenTCP()),
		"TCP, interface":      fd((&Listener{Path: absent, At: at}).ListenTCP()),
		"UDP listener":        fd((&Listener{At: foreign}).ListenUDP()),
		"UDP, interface":      fd((&Listener{Path: absent, At: at}).ListenUDP()),
		"anchor":              fd(Anchor("nosuchdevice", true, 0)),
		"ping":                (&Ping{Path: absent, From: at, To: loopback4}).Dial(),
	} {
		var e unix.Errno
		if r.FD != -1 || r.InProgress || !errors.As(r.Err, &e) {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if after := next(t); after != before {
		t.Errorf("descriptors are left: the lowest free was %d, is %d", before, after)
	}
	if port := LocalPort(-1); port != 0 {
		t.Errorf("no socket has port %d", port)
	}
}

// next is the lowest descriptor that is free.
func next(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	return fd
}

// TestPing: the identifier is kept where it is free.
func TestPing(t *testing.T) {
	if !PingAllowed() {
		t.Skip("net.ipv4.ping_group_range holds no group of ours")
	}
	families(t, func(t *testing.T, lo netip.Addr) {
		p := Ping{From: netip.AddrPortFrom(Any(lo), 0), To: lo}
		r := p.Dial()
		keep(t, r.FD, r.Err)
		proto := unix.IPPROTO_ICMPV6
		if lo.Is4() {
			proto = unix.IPPROTO_ICMP
		}
		options(t, r.FD, protocol(proto), recvErr(lo.Is4()))
		id := LocalPort(r.FD)
		if id == 0 {
			t.Fatal("no identifier")
		}
		p.From = netip.AddrPortFrom(Any(lo), id)
		second := p.Dial()
		keep(t, second.FD, second.Err)
		if got := LocalPort(second.FD); got == id || got == 0 {
			t.Errorf("identifier %d, beside %d", got, id)
		}
	})
}

// TestScope: link-local addresses alone are of an interface.
func TestScope(t *testing.T) {
	for _, tt := range []struct {
		addr string
		want uint32
	}{{"fe80::1", 7}, {"ff02::1", 7}, {"2001:db8::1", 0}, {"::1", 0}} {
		sa := sockaddr(netip.AddrPortFrom(netip.MustParseAddr(tt.addr), 80), 7).(*unix.SockaddrInet6)
		if sa.ZoneId != tt.want || sa.Port != 80 {
			t.Errorf("%s: %+v", tt.addr, sa)
		}
	}
}

// TestOwnNamespace: the same each time, and another one's is another.
func TestOwnNamespace(t *testing.T) {
	was := OwnNamespace()
	if again := OwnNamespace(); again != was {
		t.Errorf("%d, then %d", was, again)
	}
	nettest.Host(t)
	if now := OwnNamespace(); now == was && was != 0 {
		t.Errorf("%d in another namespace, too", now)
	}
}
