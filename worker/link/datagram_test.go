// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

// messageTypes are the sockets that keep the bounds of messages.
var messageTypes = map[string]int{"datagram": unix.SOCK_DGRAM, "seqpacket": unix.SOCK_SEQPACKET}

// messages returns a link of messages and the other end of its socket. A buffer size of
// zero leaves the kernel's default.
func messages(t fataler, typ, mtu, buffer int) (l *datagram, peer int, closeAll func()) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if buffer != 0 {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, buffer); err != nil {
				t.Fatal(err)
			}
		}
	}
	l = NewDatagram(nil, int32(fds[0]), mtu).(*datagram)
	return l, fds[1], func() { l.Close(); unix.Close(fds[1]) }
}

// peerMessages are what the peer can read now.
func peerMessages(t fataler, peer int) (all [][]byte) {
	t.Helper()
	b := make([]byte, 1<<17)
	for {
		n, err := unix.Read(peer, b)
		switch {
		case err == unix.EAGAIN || err == nil && n == 0:
			return all
		case err != nil:
			t.Fatal(err)
		case n > MaxFrame || n < minWire:
			t.Fatalf("message of %d bytes", n)
		}
		all = append(all, bytes.Clone(b[:n]))
	}
}

// TestMessages: each message is a frame, the hello and what cannot be one are none; each
// frame is a message.
func TestMessages(t *testing.T) {
	for name, typ := range messageTypes {
		t.Run(name, func(t *testing.T) {
			l, peer, done := messages(t, typ, 1500, 1<<20)
			defer done()
			r := newReceiver(l)
			var want [][]byte
			bad := uint64(0)
			for _, m := range [][]byte{
				[]byte(hello), random(14), random(13), random(60), {}, random(1514), []byte(hello + "x"), random(65550),
				random(maxReceived), random(maxReceived + 1), random(messageSlot), random(messageSlot + 9000), random(15), []byte(hello),
			} {
				if _, err := unix.Write(peer, m); err != nil {
					t.Fatal(err)
				}
				switch {
				case string(m) == hello:
				case len(m) < MinFrame || len(m) > maxReceived:
					bad++
				default:
					want = append(want, m)
				}
				if len(m)%2 == 0 { // one by one, or several
					r.receive()
				}
			}
			r.receive()
			r.receive() // empty messages are told from the end of all by the next call
			r.expect(t, want)
			for k := range r.b.Frames {
				if f := r.b.Frames[k]; f.Offload != (packet.Offload{Flags: packet.OffloadUntold}) {
					t.Errorf("%+v", f.Offload)
				}
			}
			if c := l.Counters(); r.err != nil || c.Malformed != bad || c.Received != uint64(len(want)) {
				t.Errorf("%v, %+v, want %d malformed", r.err, *c, bad)
			}
			for _, n := range []int{14, 59, 60, 61, 1514, 65535} {
				for _, split := range []int{0, 14, min(n, 54), n} {
					f := random(n)
					if !l.Send(nil, f[:split], f[split:]) || l.Flush() != nil || l.WantWrite() {
						t.Fatalf("frame of %d bytes dropped", n)
					}
					if got := peerMessages(t, peer); len(got) != 1 || !bytes.Equal(got[0], padded(f)) {
						t.Fatalf("frame of %d bytes, split at %d: %d messages", n, split, len(got))
					}
				}
			}
			for _, n := range []int{0, 13, 65536} {
				if l.Send(nil, make([]byte, n), nil) || l.Send(nil, nil, make([]byte, n)) {
					t.Errorf("frame of %d bytes sent", n)
				}
			}
		})
	}
}

// TestManyMessages: more than one call takes arrive all the same, in order, and none of
// it allocates.
func TestManyMessages(t *testing.T) {
	for name, typ := range messageTypes {
		for _, size := range []int{60, 1514, 20000, 65550} {
			t.Run(fmt.Sprint(name, size), func(t *testing.T) {
				l, peer, done := messages(t, typ, 1500, 1<<20)
				defer done()
				r := newReceiver(l)
				var want [][]byte
				for range 3 {
					for range 200 {
						f := random(size)
						if _, err := unix.Write(peer, f); err == unix.EAGAIN {
							break
						}
						want = append(want, f)
					}
					r.receive()
				}
				r.expect(t, want)
				b := NewBatch()
				frame := random(size)[:min(size, MaxFrame)]
				if n := testing.AllocsPerRun(50, func() {
					unix.Write(peer, frame)
					l.Receive(b)
					l.Send(nil, frame, nil)
					unix.Read(peer, l.scratch)
				}); n > 0 {
					t.Errorf("%v allocations", n)
				}
			})
		}
	}
}

// TestMessagesWait: a peer that does not read loses nothing that fits the backlog, of
// a super-frame all or nothing; what is longer than the socket's buffer is refused.
func TestMessagesWait(t *testing.T) {
	for name, typ := range messageTypes {
		t.Run(name, func(t *testing.T) {
			l, peer, done := messages(t, typ, 1500, 16<<10)
			defer done()
			var want [][]byte
			for !l.WantWrite() || len(want) < 100 {
				f := random(1000)
				if !l.Send(nil, f[:54], f[54:]) {
					t.Fatal("dropped with room")
				}
				want = append(want, f)
			}
			if l.CanSend() || l.Writable() {
				t.Error("says that it is taken")
			}
			long := random(40000)
			if !l.Send(nil, long, nil) { // which nobody can know yet
				t.Error("refused while there is room")
			}
			s := tcpSuper(true, packet.ACK, 0, random(60000), 60)
			sent := uint64(0)
			for dropped := false; !dropped; {
				before := *l.Counters()
				ok := l.Send(&s.o, s.headers, s.payload)
				after := *l.Counters()
				dropped = !ok
				sent = after.Sent - before.Sent
				if ok != (sent == 1000) || !ok && (sent != 0 || after.Dropped-before.Dropped != 1000) {
					t.Fatalf("%v: %d of 1000 taken, %d dropped", ok, sent, after.Dropped-before.Dropped)
				}
			}
			frames := 0
			for k := 0; l.WantWrite(); k++ {
				for _, m := range peerMessages(t, peer) {
					if frames < len(want) && !bytes.Equal(m, want[frames]) {
						t.Fatalf("message %d is another", frames)
					}
					frames++
				}
				if l.Writable() != l.CanSend() || k > 1<<16 {
					t.Fatal("never done")
				}
			}
			frames += len(peerMessages(t, peer))
			if c := l.Counters(); uint64(frames) != c.Sent || c.Refused != 1 {
				t.Errorf("%d messages, %+v", frames, *c)
			}
		})
	}
}

// TestMessagesEnd: the peer's end is told as soon as the kernel tells it.
func TestMessagesEnd(t *testing.T) {
	for name, typ := range messageTypes {
		t.Run(name, func(t *testing.T) {
			l, peer, done := messages(t, typ, 1500, 0)
			defer done()
			unix.Write(peer, random(60))
			unix.Close(peer)
			r := newReceiver(l)
			r.receive() // frames that came before it
			if len(r.frames) != 1 || r.err != nil || l.Counters().Malformed != 0 {
				t.Fatalf("%d frames, %v", len(r.frames), r.err)
			}
			if l.Send(nil, random(60), nil) || !errors.Is(l.Flush(), ErrClosed) || l.CanSend() || l.WantWrite() || l.Writable() {
				t.Error("sends to nobody")
			}
			if l.Counters().Dropped != 1 {
				t.Errorf("%+v", *l.Counters())
			}
			if _, err := l.Receive(r.b); !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		})
	}
}
