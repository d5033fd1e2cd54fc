// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/link"
	"aldente/worker/tcp/tcptest"
)

// TestMoreFramesThanATurn has more frames come at once than one turn takes: no
// event announces the rest, which the lane holds already.
func TestMoreFramesThanATurn(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkStream, 1500, true)
	w.turn()
	before := w.l.Stats.Frames
	const count = 6000
	var b []byte
	for range count {
		b = append(binary.BigEndian.AppendUint32(b, link.MinFrame), make([]byte, link.MinFrame)...)
	}
	if n, err := unix.Write(w.peer, b); n != len(b) {
		t.Fatalf("%d bytes written, %v", n, err)
	}
	w.turn()
	if n := w.l.Stats.Frames - before; n != count {
		t.Errorf("%d frames taken of %d", n, count)
	}
}

// TestMoreBytesThanATurn has a host send more at once than one flow may pass on
// in one turn: the lane goes on by itself.
func TestMoreBytesThanATurn(t *testing.T) {
	w, _ := newBulkWorld(t)
	w.turn()
	if got := w.bytesDown(); got != 1<<20 {
		t.Errorf("%d bytes to the guest of %d", got, 1<<20)
	}
}

// TestTurnBesideDatagrams: of bulk, a turn passes on less when something comes by a socket
// of another kind, to which what comes next may be an answer.
func TestTurnBesideDatagrams(t *testing.T) {
	var alone, beside int
	t.Run("alone", func(t *testing.T) {
		w, _ := newBulkWorld(t)
		w.l.turn()
		w.receive()
		alone = w.bytesDown()
	})
	t.Run("beside", func(t *testing.T) {
		w, to := newBulkWorld(t)
		s := w.newDatagramSocket()
		port := uint16(s.addr.(*unix.SockaddrInet4).Port)
		d := w.newDatagrams(dgrams{guest: guest4, remote: our4, guestPort: serverPort, remotePort: port, fd: s.fd, to: to, fromListener: true})
		if err := unix.Sendto(s.fd, d.payload(toGuest, 20), 0, to); err != nil {
			t.Fatal(err)
		}
		w.l.turn()
		w.receive()
		beside = w.bytesDown()
		w.hear()
		w.answer()
		w.turn()
	})
	if alone > 0 && (beside == 0 || beside > alone*2/3) {
		t.Errorf("%d bytes in a turn beside a datagram, %d alone", beside, alone)
	}
}

// newBulkWorld returns a world in which a host has sent 1 MiB that the lane has not seen, and
// the address of a listener for datagrams.
func newBulkWorld(t *testing.T) (*world, unix.Sockaddr) {
	r := rand.New(rand.NewPCG(1, 1))
	w := newWorld(t, r, ipc.LinkTap, 65520, true)
	w.calm = true
	w.turn()
	c := w.newConn(remote4, guest4, remotePort, guestPort)
	c.toHost, c.abortAt = 0, never
	c.g.Buf, c.g.Scale = 4<<20, 8
	c.g.Connect()
	for tries := 0; c.host == nil || c.g.State != tcptest.Open; tries++ {
		if c.refused || tries > 10_000 {
			t.Fatal("refused: another seed is needed")
		}
		w.answer()
		w.transmit()
		w.turn()
		w.deliver()
		w.sleep(ms)
	}
	t.Cleanup(func() {
		c.host.abort()
		w.turn()
	})
	w.transmit()
	to, _ := w.offer(0, ipc.ProtoUDP, serverPort)
	w.turn()
	// All of it arrives while the lane does nothing.
	fd := int32(-1)
	for k := range int32(1000) {
		if _, err := unix.GetsockoptInt(int(k), unix.SOL_SOCKET, unix.SO_PEEK_OFF); err == nil && int(k) != c.host.fd && peerOf(int(k), c.host.fd) {
			fd = k
		}
	}
	if fd < 0 || unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) != nil {
		t.Skip("no large receive buffer for us")
	}
	c.host.total = 1 << 20
	for c.host.sent < c.host.total {
		c.host.write(c.host.total)
		if !ready(c.host.fd, unix.POLLOUT, 1000) {
			t.Skipf("the kernel holds %d bytes only", c.host.sent)
		}
	}
	for ready(c.host.fd, unix.POLLOUT, 0) {
		n, err := unix.IoctlGetInt(c.host.fd, unix.SIOCOUTQ)
		if err != nil || n == 0 {
			break
		}
	}
	return w, to
}

// bytesDown is how many bytes of TCP are on their way to the guest.
func (w *world) bytesDown() (n int) {
	for _, f := range w.down.queue {
		n += len(f.seg.Payload)
	}
	return n
}

// peerOf tells whether two sockets are ends of one connection.
func peerOf(a, b int) bool {
	name, err := unix.Getsockname(a)
	peer, perr := unix.Getpeername(b)
	if err != nil || perr != nil {
		return false
	}
	x, ok := name.(*unix.SockaddrInet4)
	y, yok := peer.(*unix.SockaddrInet4)
	return ok && yok && x.Port == y.Port && x.Addr == y.Addr
}
