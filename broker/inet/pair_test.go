// SPDX-License-Identifier: Apache-2.0

package inet

import (
	"bytes"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// openFiles are how many descriptors this process has.
func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// receive waits for bytes.
func receive(t *testing.T, fd int) []byte {
	t.Helper()
	if !readable(t, fd, 10*time.Second) {
		t.Fatal("nothing comes")
	}
	b := make([]byte, 100)
	n, err := unix.Read(fd, b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// TestPair: what one end sends the other hears, both ways, and nobody else is heard: not
// who sends from another port, nor who connects while the pair is made.
func TestPair(t *testing.T) {
	for _, proto := range []uint8{ipc.ProtoUDP, ipc.ProtoTCP} {
		a, b, port, err := Pair(proto)
		if err != nil {
			t.Fatal(err)
		}
		for _, way := range [][2]int{{a, b}, {b, a}} {
			if _, err := unix.Write(way[0], []byte("hello")); err != nil {
				t.Fatal(err)
			}
			if got := receive(t, way[1]); !bytes.Equal(got, []byte("hello")) {
				t.Errorf("protocol %d: %q", proto, got)
			}
		}
		if port == 0 || port != LocalPort(b) {
			t.Errorf("protocol %d: port %d, the other end has %d", proto, port, LocalPort(b))
		}
		if sa, err := unix.Getpeername(a); err != nil || sa.(*unix.SockaddrInet4).Addr != PairAddr.As4() || portOf(sa) != port {
			t.Errorf("protocol %d: connected to %v, %v", proto, sa, err)
		}
		for _, fd := range []int{a, b} {
			flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			cloexec, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if err != nil || flags&unix.O_NONBLOCK == 0 || cloexec&unix.FD_CLOEXEC == 0 {
				t.Errorf("protocol %d: flags %#x, %#x, %v", proto, flags, cloexec, err)
			}
		}
		if proto == ipc.ProtoUDP {
			for _, fd := range []int{a, b} {
				sendTo(t, netip.AddrPortFrom(PairAddr, LocalPort(fd)))
				if readable(t, fd, 50*time.Millisecond) {
					t.Error("a stranger is heard")
				}
				// Nobody gets the port while it is had.
				f := Flow{From: netip.AddrPortFrom(PairAddr, LocalPort(fd)), To: netip.AddrPortFrom(PairAddr, 9)}
				if r := f.Dial(); r.Err == nil {
					t.Error("a second socket on the port")
					unix.Close(r.FD)
				}
			}
			options(t, a, recvErr(true))
			option := option{name: "IP_RECVERR", level: unix.IPPROTO_IP, opt: unix.IP_RECVERR, want: 0}
			options(t, b, option)
		} else {
			options(t, a, inline())
			options(t, b, inline())
		}
		unix.Close(a)
		unix.Close(b)
	}
}

// TestPairStrangers: whoever connects to a listener before the one that is meant is not
// taken for it, and is let go.
func TestPairStrangers(t *testing.T) {
	l := Listener{At: netip.AddrPortFrom(PairAddr, 0)}
	fd, err := l.ListenTCP()
	keep(t, fd, err)
	to := netip.AddrPortFrom(PairAddr, LocalPort(fd))
	var strangers []int
	for range 20 {
		c := Connect{Source: PairAddr, To: to}
		r := c.Dial()
		strangers = append(strangers, keep(t, r.FD, r.Err))
	}
	own := Connect{Source: PairAddr, To: to}
	r := own.Dial()
	keep(t, r.FD, r.Err)
	got, err := acceptFrom(fd, LocalPort(r.FD))
	keep(t, got, err)
	if _, err := unix.Write(r.FD, []byte("mine")); err != nil {
		t.Fatal(err)
	}
	if b := receive(t, got); string(b) != "mine" {
		t.Errorf("%q", b)
	}
	for _, s := range strangers {
		if !readable(t, s, 10*time.Second) {
			t.Error("a stranger's connection stays")
		}
	}
}

// TestPairEndless: nobody waits for a connection that does not come.
func TestPairEndless(t *testing.T) {
	l := Listener{At: netip.AddrPortFrom(PairAddr, 0)}
	fd, err := l.ListenTCP()
	keep(t, fd, err)
	if got, err := acceptFrom(fd, 1); err == nil {
		unix.Close(got)
		t.Error("accepted")
	}
}

// TestPairFails: of a pair that cannot be made nothing is left.
func TestPairFails(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	for room := range 3 {
		for _, proto := range []uint8{ipc.ProtoUDP, ipc.ProtoTCP} {
			// The listing itself had one of these.
			low, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(low)
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(low + room), Max: was.Max}); err != nil {
				t.Fatal(err)
			}
			a, b, _, err := Pair(proto)
			if e := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); e != nil {
				t.Fatal(e)
			}
			if err == nil && room < 2 {
				t.Errorf("room for %d: protocol %d is made", room, proto)
			}
			if err == nil {
				unix.Close(a)
				unix.Close(b)
			}
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// TestQuestion: a socket to a resolver has a port of its own each time, hears its peer, and
// nobody else.
func TestQuestion(t *testing.T) {
	families(t, func(t *testing.T, lo netip.Addr) {
		server := Listener{At: netip.AddrPortFrom(lo, 0)}
		fd, err := server.ListenUDP()
		keep(t, fd, err)
		ports := map[uint16]bool{}
		for range 8 {
			q := Question{To: netip.AddrPortFrom(lo, LocalPort(fd))}
			r := q.Dial()
			keep(t, r.FD, r.Err)
			options(t, r.FD, recvErr(lo.Is4()))
			ports[LocalPort(r.FD)] = true
			if _, err := unix.Write(r.FD, []byte("?")); err != nil {
				t.Fatal(err)
			}
			if got := receive(t, fd); string(got) != "?" {
				t.Errorf("%q", got)
			}
			sendTo(t, netip.AddrPortFrom(lo, LocalPort(r.FD)))
			if readable(t, r.FD, 20*time.Millisecond) {
				t.Error("a stranger is heard")
			}
		}
		if len(ports) != 8 {
			t.Errorf("ports %v", ports)
		}
	})
}

// TestDrain: what strangers have sent before a socket is connected is gone, what its peer sends
// is not; a flood is not waited for.
func TestDrain(t *testing.T) {
	families(t, func(t *testing.T, lo netip.Addr) {
		server := Listener{At: netip.AddrPortFrom(lo, 0)}
		peer, err := server.ListenUDP()
		keep(t, peer, err)
		for _, tt := range []struct {
			strangers int
			fails     bool
		}{{0, false}, {1, false}, {drainMost, false}, {drainMost + 1, true}} {
			s := bare(ipc.ProtoUDP, lo.Is4())
			keep(t, s.fd, s.err)
			s.bind(netip.AddrPortFrom(lo, 0), 0)
			for range tt.strangers {
				sendTo(t, netip.AddrPortFrom(lo, LocalPort(s.fd)))
			}
			s.connect(netip.AddrPortFrom(lo, LocalPort(peer)), 0)
			s.drain()
			if (s.err != nil) != tt.fails {
				t.Errorf("%d datagrams: %v", tt.strangers, s.err)
			}
			if tt.fails {
				continue
			}
			if readable(t, s.fd, 0) {
				t.Errorf("%d datagrams: something is left", tt.strangers)
			}
			sa := sockaddr(netip.AddrPortFrom(lo, LocalPort(s.fd)), 0)
			if err := unix.Sendto(peer, []byte("!"), 0, sa); err != nil {
				t.Fatal(err)
			}
			if got := receive(t, s.fd); string(got) != "!" {
				t.Errorf("%d datagrams: %q", tt.strangers, got)
			}
		}
	})
}

// TestDrainError: an error that waits at a socket before it is connected is not what
// connecting ends with.
func TestDrainError(t *testing.T) {
	families(t, func(t *testing.T, lo netip.Addr) {
		server := Listener{At: netip.AddrPortFrom(lo, 0)}
		peer, err := server.ListenUDP()
		keep(t, peer, err)
		s := bare(ipc.ProtoUDP, lo.Is4())
		keep(t, s.fd, s.err)
		if lo.Is4() {
			s.try(unix.IPPROTO_IP, unix.IP_RECVERR, 1)
		} else {
			s.try(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
		}
		s.bind(netip.AddrPortFrom(lo, 0), 0)
		closed := Listener{At: netip.AddrPortFrom(lo, 0)}
		fd, err := closed.ListenUDP()
		if err != nil {
			t.Fatal(err)
		}
		at := sockaddr(netip.AddrPortFrom(lo, LocalPort(fd)), 0)
		unix.Close(fd)
		if err := unix.Sendto(s.fd, []byte("?"), 0, at); err != nil {
			t.Fatal(err)
		}
		if p := []unix.PollFd{{Fd: int32(s.fd)}}; !awaitError(p) {
			t.Skip("the kernel tells of no error")
		}
		s.connect(netip.AddrPortFrom(lo, LocalPort(peer)), 0)
		s.drain()
		if s.err != nil {
			t.Errorf("drained: %v", s.err)
		}
	})
}

// awaitError waits until a socket has an error.
func awaitError(p []unix.PollFd) bool {
	for range 100 {
		if n, err := unix.Poll(p, 100); n == 1 && p[0].Revents&unix.POLLERR != 0 {
			return true
		} else if err != nil && err != unix.EINTR {
			return false
		}
	}
	return false
}
