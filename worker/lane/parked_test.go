// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/flow"
)

// TestParkedSleep: the lane sleeps while an accepted connection waits for room.
func TestParkedSleep(t *testing.T) {
	f := newFixture(t, ipc.LinkTap, 1500, true)
	l := f.l
	l.guest.Shares = flow.NewShares(1)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fd, err := unix.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	l.tcp.AddListener(&ipc.Listener{ID: 1, Proto: ipc.ProtoTCP, Flags: ipc.ListenerMayBypass, GuestPort: 80}, int32(fd))
	l.guest.Shares.Reduce(-1)
	c, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l.turn()       // accepts, parks
	l.freed = true // some descriptor was closed
	l.continueWork()
	n := 0
	for ; n < 1000 && l.timeout() == 0; n++ {
		l.turn()
	}
	if n == 1000 {
		t.Errorf("no sleep in %d turns", n)
	}
}
