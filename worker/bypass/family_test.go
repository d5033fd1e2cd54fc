// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"errors"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// TestOtherFamily: a connection into a guest that lacks its family goes by the other,
// one that is refused for another reason does not; it is asked twice at most.
func TestOtherFamily(t *testing.T) {
	for _, tt := range []struct {
		name   string
		addr   string
		flags  uint8
		no6    bool // known
		errnos [2]syscall.Errno
		asked  int
	}{
		{"no IPv6", "::1", ipc.ListenerMayBypass, false, [2]syscall.Errno{syscall.EADDRNOTAVAIL}, 2},
		{"no IPv6 in the kernel", "::1", ipc.ListenerMayBypass, false, [2]syscall.Errno{syscall.EAFNOSUPPORT}, 2},
		{"no address known", "::1", ipc.ListenerMayBypass, true, [2]syscall.Errno{}, 1},
		{"no IPv4", "127.0.0.1", ipc.ListenerMayBypass, false, [2]syscall.Errno{syscall.ENETUNREACH}, 2},
		{"neither", "::1", ipc.ListenerMayBypass, false, [2]syscall.Errno{syscall.EADDRNOTAVAIL, syscall.EADDRNOTAVAIL}, 2},
		{"nobody listens", "::1", ipc.ListenerMayBypass, false, [2]syscall.Errno{syscall.ECONNREFUSED}, 1},
		{"out of the namespace", "::1", ipc.ListenerNamespace, false, [2]syscall.Errno{syscall.EADDRNOTAVAIL}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLane(t)
			if tt.no6 {
				l.guest.Seen6 = packet.Addr{}
			}
			front, at := listenTCP(t, tt.addr)
			defer unix.Close(front)
			back, backAt := listenTCP(t, "127.0.0.1")
			defer unix.Close(back)
			asked := 0
			l.open = func(o *ipc.Open) (int, syscall.Errno) {
				asked++
				if to, as := packet.Addr(o.Src), packet.Addr(o.Dst); to.Is4() != as.Is4() || !as.IsLoopback() || asked == 2 && to.Is4() == (tt.addr == "127.0.0.1") {
					t.Errorf("asked for %+v", *o)
				}
				if e := tt.errnos[asked-1]; e != 0 {
					return -1, e
				}
				return l.dial("127.0.0.1", backAt)
			}
			c := newSocket(t, tt.addr, unix.SOCK_STREAM)
			defer unix.Close(c)
			timeouts(c)
			must(t, unix.Connect(c, at))
			l.accept(front, tt.flags)
			served := tt.errnos[tt.asked-1] == 0
			l.until("opened or refused", func() bool { return l.t.Stats.Opened+l.t.Stats.Refused == 1 })
			if asked != tt.asked || (l.t.Stats.Opened == 1) != served {
				t.Errorf("asked %d times: %+v", asked, l.t.Stats)
			}
			if !served {
				if _, err := fd(c).Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("read: %v", err)
				}
			}
		})
	}
}

// TestOtherFamilyDatagrams: what came before the second answer arrives, in order, and
// the answers of the guest come from where its client has asked.
func TestOtherFamilyDatagrams(t *testing.T) {
	for _, known := range []bool{false, true} {
		l := newLane(t)
		if known {
			l.guest.Seen6 = packet.Addr{}
		}
		client, near := udpPair(t, "::1")
		farFD, server := udpPair(t, "127.0.0.1")
		defer unix.Close(client)
		defer unix.Close(server)
		for _, s := range []int{near, farFD} {
			must(t, unix.SetNonblock(s, true))
		}
		var asked []bool
		l.open = func(o *ipc.Open) (int, syscall.Errno) {
			if o.Flags&ipc.OpenBypass == 0 {
				return near, 0
			}
			to := packet.Addr(o.Src)
			if asked = append(asked, to.Is4()); !to.Is4() {
				return -1, syscall.EADDRNOTAVAIL
			}
			return farFD, 0
		}
		sa, err := unix.Getsockname(client)
		must(t, err)
		from, port := address(sa)
		for k := range byte(3) {
			l.t.Datagrams(9, ipc.ListenerMayBypass, 53, []flow.Datagram{{Buf: payload(4, k), N: 4, From: from, FromPort: port, To: from}})
		}
		l.answer()
		for k := range byte(3) {
			expect(t, server, payload(4, k))
		}
		if n := len(asked); !asked[n-1] || n != 2 && !known || n != 1 && known {
			t.Errorf("known %t: asked for IPv4: %t", known, asked)
		}
		_, err = unix.Write(server, payload(5, 9))
		must(t, err)
		expectSoon(t, l, client, payload(5, 9))
	}
	// Neither family: refused, and nothing is left.
	l := newLane(t)
	asked := 0
	l.open = func(*ipc.Open) (int, syscall.Errno) { asked++; return -1, syscall.EADDRNOTAVAIL }
	l.t.Datagrams(9, ipc.ListenerMayBypass, 53, []flow.Datagram{{Buf: payload(4, 1), N: 4, From: l.guest.Seen6, FromPort: 7, To: l.guest.Seen6}})
	l.answer()
	if asked != 2 || l.t.Stats.Dropped != 1 {
		t.Errorf("asked %d times, %+v", asked, l.t.Stats)
	}
}
