// SPDX-License-Identifier: Apache-2.0

package inet

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// TestFlowSharing: who else gets a flow's port, by how the first came by it.
func TestFlowSharing(t *testing.T) {
	families(t, func(t *testing.T, lo netip.Addr) {
		for _, tt := range []struct {
			first, second Sharing
			both          bool
		}{
			{Alone, Alone, false},
			{Alone, SharedUntilConnected, false},
			{AloneUntilBound, Alone, false},
			{AloneUntilBound, SharedUntilConnected, true},
			{SharedUntilConnected, SharedUntilConnected, true},
			{SharedAndOpen, AloneUntilBound, false},
		} {
			to := netip.AddrPortFrom(lo, 9)
			f := Flow{From: netip.AddrPortFrom(lo, 0), To: to, Sharing: tt.first}
			r := f.Dial()
			keep(t, r.FD, r.Err)
			shared := 1
			if tt.first == Alone {
				shared = 0
			}
			want := []option{protocol(unix.IPPROTO_UDP), reusePort(shared), recvErr(lo.Is4()), pktInfo(lo.Is4(), 0)}
			if lo.Is6() {
				want = append(want, v6Only(1))
			}
			options(t, r.FD, want...)
			port := LocalPort(r.FD)
			f = Flow{From: netip.AddrPortFrom(lo, port), To: netip.AddrPortFrom(lo, 10), Sharing: tt.second}
			r = f.Dial()
			if r.Err == nil {
				unix.Close(r.FD)
			}
			if both := r.Err == nil; both != tt.both || !both && !errors.Is(r.Err, unix.EADDRINUSE) {
				t.Errorf("%d, then %d: %v", tt.first, tt.second, r.Err)
			}
			f.AnyPort = true
			r = f.Dial()
			keep(t, r.FD, r.Err)
			if got := LocalPort(r.FD); (got == port) != tt.both || got == 0 {
				t.Errorf("%d, then %d on any port: %d beside %d", tt.first, tt.second, got, port)
			}
		}
	})
}

// TestFlowHears: a flow hears its peer and nobody else, whoever made the socket; one
// beside a listener hears all until it is connected, for the listener.
func TestFlowHears(t *testing.T) {
	families(t, func(t *testing.T, lo netip.Addr) {
		peer := Listener{At: netip.AddrPortFrom(lo, 0)}
		fd, err := peer.ListenUDP()
		keep(t, fd, err)
		to := netip.AddrPortFrom(lo, LocalPort(fd))
		answer := func(r Result, what string) {
			t.Helper()
			keep(t, r.FD, r.Err)
			sendTo(t, netip.AddrPortFrom(lo, LocalPort(r.FD)))
			if readable(t, r.FD, 0) {
				t.Errorf("%s: hears anybody", what)
			}
			if err := unix.Sendto(fd, []byte("answer"), 0, sockaddr(netip.AddrPortFrom(lo, LocalPort(r.FD)), 0)); err != nil {
				t.Fatal(err)
			}
			if !readable(t, r.FD, 10*time.Second) {
				t.Errorf("%s: does not hear its peer", what)
			}
		}
		from := netip.AddrPortFrom(Any(lo), 0)
		for _, how := range []Sharing{Alone, AloneUntilBound, SharedUntilConnected} {
			f := Flow{From: from, To: to, Sharing: how}
			answer(f.Dial(), fmt.Sprintf("sharing %d", how))
		}
		bare, err := Bare(ipc.ProtoUDP, lo.Is4())
		keep(t, bare, err)
		own, err := unix.FcntlInt(uintptr(bare), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := Flow{From: from, To: to, AnyPort: true}
		answer(f.DialBy(own), "a socket that was there")

		half := Flow{From: from, To: to, Sharing: SharedAndOpen}
		r := half.Bind()
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		options(t, r.FD, reusePort(1), pktInfo(lo.Is4(), 1), recvErr(lo.Is4()))
		port := LocalPort(r.FD)
		sendTo(t, netip.AddrPortFrom(lo, port))
		if !readable(t, r.FD, 10*time.Second) {
			t.Error("beside a listener: hears nobody before it is connected")
		}
		r = half.ConnectBy(r.FD)
		keep(t, r.FD, r.Err)
		if sa, err := unix.Getpeername(r.FD); err != nil || LocalPort(r.FD) != port {
			t.Errorf("connected to %v, %v, by port %d, want %d", sa, err, LocalPort(r.FD), port)
		}
	})
}

// TestFlowStrangers: what strangers have sent to a flow's socket before it is connected is
// gone, however much that is; what its peer sends from then on is not.
func TestFlowStrangers(t *testing.T) {
	families(t, func(t *testing.T, lo netip.Addr) {
		peer := Listener{At: netip.AddrPortFrom(lo, 0)}
		fd, err := peer.ListenUDP()
		keep(t, fd, err)
		for _, how := range []Sharing{Alone, AloneUntilBound, SharedUntilConnected} {
			for _, strangers := range []int{0, 1, drainMost, drainMost + 1, 2*drainMost + 2} {
				f := Flow{From: netip.AddrPortFrom(lo, 0), To: netip.AddrPortFrom(lo, LocalPort(fd)), Sharing: how}
				s := bare(ipc.ProtoUDP, lo.Is4())
				s.bindFlow(&f)
				for range strangers {
					sendTo(t, netip.AddrPortFrom(lo, LocalPort(s.fd)))
				}
				if waits := readable(t, s.fd, 0); waits != (strangers > 0 && how != SharedUntilConnected) {
					t.Errorf("sharing %d, %d datagrams: %t before it is connected", how, strangers, waits)
				}
				s.connectFlow(&f)
				keep(t, s.fd, s.err)
				if readable(t, s.fd, 0) {
					t.Errorf("sharing %d, %d datagrams: something is left", how, strangers)
				}
				if err := unix.Sendto(fd, []byte("!"), 0, sockaddr(netip.AddrPortFrom(lo, LocalPort(s.fd)), 0)); err != nil {
					t.Fatal(err)
				}
				if got := receive(t, s.fd); string(got) != "!" {
					t.Errorf("sharing %d, %d datagrams: then %q", how, strangers, got)
				}
			}
		}
	})
}

// TestListenUDP: a port is had exclusively, then shared with ours.
func TestListenUDP(t *testing.T) {
	families(t, func(t *testing.T, lo netip.Addr) {
		l := Listener{Path: Path{Device: "lo"}, At: netip.AddrPortFrom(lo, 0)}
		fd, err := l.ListenUDP()
		keep(t, fd, err)
		options(t, fd, protocol(unix.IPPROTO_UDP), reusePort(1), pktInfo(lo.Is4(), 1))
		device(t, fd, "lo")
		second := Listener{Path: l.Path, At: netip.AddrPortFrom(lo, LocalPort(fd))}
		if other, err := second.ListenUDP(); other >= 0 || !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("two on one port: descriptor %d, %v", other, err)
		}
		second.Beside = true
		other, err := second.ListenUDP()
		keep(t, other, err)
	})
	dual := Listener{At: netip.AddrPortFrom(netip.IPv6Unspecified(), 0), Dual: true}
	fd, err := dual.ListenUDP()
	keep(t, fd, err)
	options(t, fd, v6Only(0), pktInfo(true, 1), pktInfo(false, 1))
	sendTo(t, netip.AddrPortFrom(loopback4, LocalPort(fd)))
	if !readable(t, fd, 10*time.Second) {
		t.Error("does not stand for IPv4")
	}
}

// TestAnchor: it keeps a port, hears nobody, and lets sockets of ours on it.
func TestAnchor(t *testing.T) {
	families(t, func(t *testing.T, lo netip.Addr) {
		fd, err := Anchor("lo", lo.Is4(), 0)
		keep(t, fd, err)
		at := netip.AddrPortFrom(lo, LocalPort(fd))
		options(t, fd, reusePort(1))
		device(t, fd, "lo")
		sendTo(t, at)
		if readable(t, fd, 0) {
			t.Error("hears somebody")
		}
		alone := Flow{From: at, To: netip.AddrPortFrom(lo, 9)}
		if r := alone.Dial(); !errors.Is(r.Err, unix.EADDRINUSE) {
			t.Errorf("a port that is kept: %+v", r)
		}
		alone.Sharing = SharedUntilConnected
		r := alone.Dial()
		keep(t, r.FD, r.Err)
	})
}
