// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/flow"
)

// TestDescribed: what is told of a connection is what it has moved, spliced or
// copied, with and without pipes, for whoever has begun it.
func TestDescribed(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		for _, flags := range []uint8{ipc.ListenerMayBypass, ipc.ListenerNamespace} {
			for _, pipes := range []bool{true, false} {
				l := newLane(t)
				l.noPipe = !pipes
				c := l.connectBy(addr, flags)
				sa, err := unix.Getsockname(c.client)
				must(t, err)
				client, clientPort := address(sa)
				sa, err = unix.Getsockname(c.server)
				must(t, err)
				server, serverPort := address(sa)
				want := ipc.Flow{Proto: ipc.ProtoTCP, Direction: ipc.FlowBypassOut, State: ipc.FlowEstablished, Guest: client, GuestPort: clientPort,
					Remote: server, RemotePort: serverPort, Sent: 3 << 20, Received: 500, Listener: 7}
				if flags == ipc.ListenerMayBypass {
					want.Direction, want.Guest, want.GuestPort, want.Remote, want.RemotePort = ipc.FlowBypassIn, server, serverPort, client, clientPort
					want.Sent, want.Received = want.Received, want.Sent
				}
				go io.Copy(fd(c.client), io.LimitReader(zero{}, 3<<20))
				go io.Copy(fd(c.server), io.LimitReader(zero{}, 500))
				done := make(chan error, 2)
				for f, n := range map[int]int64{c.server: 3 << 20, c.client: 500} {
					go func() { _, err := io.CopyN(io.Discard, fd(f), n); done <- err }()
				}
				for range 2 {
					l.until("moved", func() bool {
						select {
						case err := <-done:
							must(t, err)
							return true
						default:
							return false
						}
					})
				}
				var got ipc.Flow
				if l.t.Places() != 1 || !l.t.Describe(0, &got) {
					t.Fatal("it is not described")
				}
				if got.Age < got.Idle || got.Age == 0 {
					t.Errorf("of age %d, idle for %d", got.Age, got.Idle)
				}
				if got.RTT == 0 && got.Retransmits == 0 {
					t.Error("nothing is known of the way")
				}
				got.Age, got.Idle, got.RTT, got.Retransmits = 0, 0, 0, 0
				if got != want {
					t.Errorf("%s, pipes %t:\n%+v\nwant %+v", addr, pipes, got, want)
				}
				must(t, unix.Shutdown(c.client, unix.SHUT_WR))
				l.until("half closed", func() bool { l.t.Describe(0, &got); return got.State == ipc.FlowFinWait2 })
				must(t, unix.Shutdown(c.server, unix.SHUT_WR))
				l.until("closed", func() bool { return !l.t.Describe(0, &got) })
				c.close()
			}
		}
	}
}

type zero struct{}

func (zero) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestDescribedDatagrams: the same for datagrams, which have packets too.
func TestDescribedDatagrams(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		l := newLane(t)
		p := l.datagrams(addr, false, flow.Datagram{Buf: payload(5, 9), N: 5, Segment: 2})
		defer unix.Close(p.client)
		defer unix.Close(p.server)
		var got ipc.Flow
		if l.t.PlacesUDP() != 1 || !l.t.DescribeUDP(0, &got) {
			t.Fatal("it is not described")
		}
		if got.State != ipc.FlowUnanswered || got.Direction != ipc.FlowBypassIn || got.Received != 5 || got.ReceivedPackets != 3 || got.Sent != 0 {
			t.Errorf("unanswered: %+v", got)
		}
		_, err := unix.Write(p.server, payload(7, 1))
		must(t, err)
		l.until("answered", func() bool { l.t.DescribeUDP(0, &got); return got.State == ipc.FlowOpen })
		sa, err := unix.Getsockname(p.client)
		must(t, err)
		client, clientPort := address(sa)
		if got.Sent != 7 || got.SentPackets != 1 || got.Remote != client || got.RemotePort != clientPort || got.GuestPort == 0 || got.Listener != 9 {
			t.Errorf("answered: %+v", got)
		}
	}
}
