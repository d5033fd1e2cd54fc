// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/inet"
	"aldente/ipc"
)

// flowFrom opens a flow's socket from a port of loopback, to another.
func flowFrom(t *testing.T, f *Factory, v6 bool, port, to uint16) (fd int, got uint16) {
	t.Helper()
	a, peer := netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if v6 {
		a, peer = netip.IPv6Unspecified(), netip.IPv6Loopback()
	}
	o := f.flowSocket(&path{}, netip.AddrPortFrom(a, port), netip.AddrPortFrom(peer, to), true)
	if o.fd < 0 {
		t.Fatal(o.errno)
	}
	t.Cleanup(func() { unix.Close(o.fd) })
	return o.fd, o.localPort
}

func knowing(t *testing.T) *Factory {
	t.Helper()
	f := New(Config{V4: Family{Enabled: true}, V6: Family{Enabled: true}})
	t.Cleanup(f.Close)
	if err := f.KnowPorts(); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		f.ports.mu.Lock()
		defer f.ports.mu.Unlock()
		for k := range f.ports.shared {
			f.ports.forget(k)
		}
		f.ports.kernel.diag.Close()
	})
	return f
}

// TestSharedPort: flows of one instance share a port, but no two to one peer; another
// instance of the same user has no part in it, whenever it comes.
func TestSharedPort(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		f, other := knowing(t), knowing(t)
		a, peer := netip.IPv4Unspecified(), netip.MustParseAddrPort("127.0.0.1:9")
		if v6 {
			a, peer = netip.IPv6Unspecified(), netip.MustParseAddrPort("[::1]:9")
		}
		o := f.flowSocket(&path{}, netip.AddrPortFrom(a, 0), peer, true)
		if o.fd < 0 {
			t.Fatal(o.errno)
		}
		fd, port := o.fd, o.localPort
		if _, err := f.ports.kernel.on(17, port, 0); err != nil {
			t.Skip(err)
		}
		if _, got := flowFrom(t, f, v6, port, 9); got == port {
			t.Error("two sockets between the same ends")
		}
		for to := uint16(10); to < 20; to++ {
			if _, got := flowFrom(t, f, v6, port, to); got != port {
				t.Errorf("to port %d from %d, not %d", to, got, port)
			}
			if _, got := flowFrom(t, other, v6, port, 100+to); got == port {
				t.Error("another instance speaks from the port")
			}
		}
		// What is closed leaves its peer to the next.
		unix.Close(fd)
		if _, got := flowFrom(t, f, v6, port, 9); got != port {
			t.Errorf("from port %d after the first was closed", got)
		}
		if n := len(f.ports.shared); n != 1 {
			t.Errorf("%d ports shared", n)
		}
		// In use, it is not given back, however long ago.
		for _, s := range f.ports.shared {
			s.used = time.Now().Add(-2 * sharedLife)
		}
		f.ports.sweep()
		if len(f.ports.shared) != 1 {
			t.Error("given back while flows are on it")
		}
	}
}

// TestPortOfAnother: the port that a flow of ours had first, another instance of the
// user may have by now. That we had it is no reason to share it.
func TestPortOfAnother(t *testing.T) {
	f, other := knowing(t), knowing(t)
	a, to := netip.IPv4Unspecified(), netip.MustParseAddrPort("127.0.0.1:9")
	o := f.flowSocket(&path{}, netip.AddrPortFrom(a, 0), to, true)
	if o.fd < 0 {
		t.Fatal(o.errno)
	}
	port := o.localPort
	unix.Close(o.fd)
	if _, got := flowFrom(t, other, false, port, 10); got != port {
		t.Skip("somebody else was faster")
	}
	for to := uint16(11); to < 14; to++ {
		if _, got := flowFrom(t, f, false, port, to); got == port {
			t.Error("a port of another instance was shared")
		}
	}
	if len(f.ports.shared) != 0 {
		t.Error("held as shared")
	}
}

// TestHolders: who has a port, by what the kernel tells, and in whose way it is.
func TestHolders(t *testing.T) {
	l, err := openLister()
	if err != nil {
		t.Skip(err)
	}
	defer l.diag.Close()
	for _, tt := range []struct {
		name   string
		at     inet.Listener
		v4, v6 bool
	}{
		{"IPv4", inet.Listener{At: netip.MustParseAddrPort("127.0.0.1:0")}, true, false},
		{"IPv6", inet.Listener{At: netip.MustParseAddrPort("[::1]:0")}, false, true},
		{"IPv6, any address", inet.Listener{At: netip.MustParseAddrPort("[::]:0")}, false, true},
		{"both", inet.Listener{At: netip.MustParseAddrPort("[::]:0"), Dual: true}, true, true},
	} {
		for proto, listen := range map[uint8]func() (int, error){ipc.ProtoTCP: tt.at.ListenTCP, ipc.ProtoUDP: tt.at.ListenUDP} {
			fd, err := listen()
			if err != nil {
				t.Skip(err)
			}
			defer unix.Close(fd)
			port := inet.LocalPort(fd)
			all, err := l.on(proto, port, 0)
			if err != nil {
				t.Skip(err)
			}
			if len(all) != 1 || all[0].cookie != cookie(fd) || all[0].uid != uint32(os.Geteuid()) || all[0].local.Port() != port || all[0].peer.Port() != 0 {
				t.Errorf("%s, protocol %d: %+v", tt.name, proto, all)
				continue
			}
			if all[0].inFamily(true) != tt.v4 || all[0].inFamily(false) != tt.v6 {
				t.Errorf("%s, protocol %d: in IPv4's way %t, in IPv6's %t", tt.name, proto, all[0].inFamily(true), all[0].inFamily(false))
			}
			if all, err := l.on(proto, port, 9); err != nil || len(all) != 0 {
				t.Errorf("%s, protocol %d: connected, %+v, %v", tt.name, proto, all, err)
			}
		}
	}
}

// TestBesides: beside a listener of one address or interface a flow's socket is deaf
// until it is connected, since what is sent to other addresses is not that
// listener's; none is made that is as near to a datagram as the listener.
func TestBesides(t *testing.T) {
	lo, other := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.2")
	for _, c := range []struct {
		name   string
		listen []Listener
		from   netip.Addr
		device string
		how    inet.Sharing
		ok     bool
	}{
		{"no listener", nil, netip.IPv4Unspecified(), "", inet.SharedUntilConnected, true},
		{"the whole port", []Listener{{}}, netip.IPv4Unspecified(), "", inet.SharedAndOpen, true},
		{"the whole port of the family", []Listener{{Addr: netip.IPv4Unspecified()}}, other, "", inet.SharedAndOpen, true},
		{"loopback alone", []Listener{{Addr: lo}}, netip.IPv4Unspecified(), "", inet.SharedUntilConnected, true},
		{"loopback alone, from elsewhere", []Listener{{Addr: lo}}, other, "", inet.SharedUntilConnected, true},
		{"the flow's address among others", []Listener{{Addr: lo}, {Addr: other}}, other, "", inet.SharedUntilConnected, false},
		{"an interface", []Listener{{Interface: "h0"}}, netip.IPv4Unspecified(), "", inet.SharedUntilConnected, true},
		{"the flow's interface", []Listener{{Interface: "h0"}}, netip.IPv4Unspecified(), "h0", inet.SharedUntilConnected, false},
	} {
		how, ok := besides(c.listen, &path{Interface: c.device}, portKey{v4: true, port: 123}, c.from)
		if how != c.how || ok != c.ok {
			t.Errorf("%s: %v, %t, want %v, %t", c.name, how, ok, c.how, c.ok)
		}
	}
}
