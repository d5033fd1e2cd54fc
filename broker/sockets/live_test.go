// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/inet"
	"aldente/ipc"
)

// bothFree is a port that nobody has on loopback, of either protocol.
func bothFree(t *testing.T) uint16 {
	t.Helper()
	for range 20 {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := netip.MustParseAddrPort(c.LocalAddr().String()).Port()
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
		c.Close()
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

func listens(t *testing.T, fd int) bool {
	t.Helper()
	on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && on == 1
}

// TestBeside: a listener is bound where another has the port by other addresses, which
// hears on; nobody else gets in by that, then or later.
func TestBeside(t *testing.T) {
	any4, any6, lo := netip.IPv4Unspecified(), netip.IPv6Unspecified(), netip.MustParseAddr("127.0.0.1")
	for _, tt := range []struct {
		name     string
		old, new netip.Addr
		device   string
	}{
		{"narrower", netip.Addr{}, lo, ""}, {"wider", lo, netip.Addr{}, ""}, {"one family", netip.Addr{}, any4, ""},
		{"the other", netip.Addr{}, any6, ""}, {"both", any4, netip.Addr{}, ""}, {"an interface", netip.Addr{}, netip.Addr{}, "lo"},
	} {
		for _, proto := range []uint8{ipc.ProtoTCP, ipc.ProtoUDP} {
			f, port := knowing(t), bothFree(t)
			old, err := f.Listen(Listener{Proto: proto, Addr: tt.old, Port: port})
			if err != nil {
				t.Skip(err)
			}
			want := Listener{Proto: proto, Addr: tt.new, Interface: tt.device, Port: port}
			if _, err := f.Bind(want); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("%s, %d: alone: %v", tt.name, proto, err)
			}
			fresh, err := f.Beside(want, []Listener{old})
			if err != nil {
				t.Errorf("%s, %d: %v", tt.name, proto, err)
				f.Unlisten(old.ID)
				continue
			}
			if proto == ipc.ProtoTCP && (!listens(t, old.FD) || !listens(t, fresh.FD)) {
				t.Errorf("%s: one does not listen", tt.name)
			}
			for range 2 { // beside both, and beside the new one alone
				stranger := inet.Listener{At: netip.AddrPortFrom(lo, port)}
				listen := stranger.ListenTCP
				if proto == ipc.ProtoUDP {
					listen = stranger.ListenUDP
				}
				if fd, err := listen(); err == nil {
					unix.Close(fd)
					if tt.new != any6 {
						t.Errorf("%s, %d: somebody else has got in", tt.name, proto)
					}
				}
				f.Unlisten(old.ID)
			}
			unix.Close(fresh.FD)
		}
	}
}

// TestBesideOthers: where somebody else has another address of the port, a listener of
// ours that has one does not let us have all.
func TestBesideOthers(t *testing.T) {
	f, other, port := knowing(t), knowing(t), bothFree(t)
	old, err := f.Listen(Listener{Proto: ipc.ProtoUDP, Addr: netip.MustParseAddr("127.0.0.1"), Port: port})
	if err != nil {
		t.Skip(err)
	}
	defer f.Unlisten(old.ID)
	theirs, err := other.Listen(Listener{Proto: ipc.ProtoUDP, Addr: netip.MustParseAddr("127.0.0.2"), Port: port})
	if err != nil {
		t.Skip(err)
	}
	l, err := f.Beside(Listener{Proto: ipc.ProtoUDP, Port: port}, []Listener{old})
	if !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("beside another instance's: %v", err)
		unix.Close(l.FD)
	}
	other.Unlisten(theirs.ID)
	if l, err = f.Beside(Listener{Proto: ipc.ProtoUDP, Port: port}, []Listener{old}); err != nil {
		t.Errorf("once that is gone: %v", err)
	} else {
		unix.Close(l.FD)
	}
}

// TestRetarget: a listener leads elsewhere, by the same socket and identifier.
func TestRetarget(t *testing.T) {
	f := knowing(t)
	l := f.Adopt(Listener{Proto: ipc.ProtoTCP, Port: 80, GuestPort: 80, Splice: true, FD: -1})
	to := netip.MustParseAddr("10.0.0.1")
	got := f.Retarget(l.ID, Listener{GuestPort: 81, Target: to})
	if now, ok := f.listener(l.ID); !ok || now != got || now.ID != l.ID || now.Port != 80 || now.GuestPort != 81 || now.Target != to || now.Splice {
		t.Errorf("%+v, kept %+v", got, now)
	}
}

// TestListenAgain: a UDP port can be listened on again while flows that came by it go
// on, but not past somebody else's socket.
func TestListenAgain(t *testing.T) {
	for _, stranger := range []bool{false, true} {
		f, port := knowing(t), bothFree(t)
		lo := netip.MustParseAddr("127.0.0.1")
		l, err := f.Listen(Listener{Proto: ipc.ProtoUDP, Port: port})
		if err != nil {
			t.Skip(err)
		}
		d := decision{from: netip.AddrPortFrom(lo, port), to: netip.AddrPortFrom(lo, bothFree(t))}
		o := f.openReply(&request{}, &d)
		if o.fd < 0 {
			t.Fatal(o.errno)
		}
		defer unix.Close(o.fd)
		f.Unlisten(l.ID)
		if stranger {
			other := inet.Flow{From: d.from, To: netip.AddrPortFrom(lo, 9), Sharing: inet.SharedAndOpen}
			r := other.Dial()
			if r.FD < 0 {
				t.Fatal(r.Err)
			}
			defer unix.Close(r.FD)
		}
		again, err := f.Listen(Listener{Proto: ipc.ProtoUDP, Port: port})
		switch {
		case !stranger && err != nil:
			t.Errorf("with a flow left: %v", err)
		case stranger && !errors.Is(err, unix.EADDRINUSE):
			t.Errorf("with somebody else's socket: %v", err)
		case err == nil:
			f.Unlisten(again.ID)
		}
	}
}
