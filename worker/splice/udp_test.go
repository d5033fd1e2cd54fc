// SPDX-License-Identifier: Apache-2.0

package splice

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/flow"
)

// udpPair returns two blocking sockets, each connected to the other.
func udpPair(tb testing.TB, addr string) (a, b int) {
	tb.Helper()
	a, b = newSocket(tb, addr, unix.SOCK_DGRAM), newSocket(tb, addr, unix.SOCK_DGRAM)
	for _, c := range [][2]int{{a, b}, {b, a}} {
		to, err := unix.Getsockname(c[1])
		must(tb, err)
		must(tb, unix.Connect(c[0], to))
		timeouts(c[0])
		_ = unix.SetsockoptInt(c[0], unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20)
		_ = unix.SetsockoptInt(c[0], unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	}
	return a, b
}

// dpeers are the two peers of a flow of datagrams.
type dpeers struct{ client, server int }

// datagrams makes a flow with a first datagram.
func (l *lane) datagrams(addr string, gro bool, first flow.Datagram) dpeers {
	l.tb.Helper()
	client, near := udpPair(l.tb, addr)
	farFD, server := udpPair(l.tb, addr)
	for _, fd := range []int{near, farFD} {
		must(l.tb, unix.SetNonblock(fd, true))
		if gro {
			must(l.tb, unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1))
		}
	}
	l.open = func(o *ipc.Open) (int, syscall.Errno) {
		if o.Flags&ipc.OpenSplice != 0 {
			return farFD, 0
		}
		return near, 0
	}
	sa, err := unix.Getsockname(client)
	must(l.tb, err)
	first.From, first.FromPort = address(sa)
	first.To = first.From
	l.t.Datagrams(9, ipc.ListenerMaySplice, 53, []flow.Datagram{first})
	l.answer()
	return dpeers{client, server}
}

func payload(size int, n byte) []byte { return bytes.Repeat([]byte{n}, size) }

// TestDatagrams sends what keeps its boundaries: sizes alike and not, empty ones,
// the largest, one by one and joined by the sender.
func TestDatagrams(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		for _, gro := range []bool{false, true} {
			for _, sizes := range [][]int{
				{1}, {0}, {100, 100, 100, 40}, {1400, 1400, 700, 1400, 0, 1400}, {65507}, {20000, 20000, 20000}, {10, 2000, 10, 2000}, {1, 2, 3, 4, 5},
			} {
				t.Run(fmt.Sprintf("%s/gro=%v/%v", addr, gro, sizes), func(t *testing.T) {
					l := newLane(t)
					p := l.datagrams(addr, gro, flow.Datagram{Buf: payload(3, 9), N: 3})
					defer unix.Close(p.client)
					defer unix.Close(p.server)
					expect(t, p.server, payload(3, 9))
					for _, way := range [][2]int{{p.client, p.server}, {p.server, p.client}} {
						for i, s := range sizes {
							_, err := unix.Write(way[0], payload(s, byte(i)))
							must(t, err)
						}
						before := l.t.Stats.Datagrams
						l.until("moved", func() bool { return l.t.Stats.Datagrams+l.t.Stats.Dropped >= before+uint64(len(sizes)) })
						for i, s := range sizes {
							expect(t, way[1], payload(s, byte(i)))
						}
					}
					if l.t.Stats.Dropped != 0 {
						t.Errorf("%+v", l.t.Stats)
					}
				})
			}
		}
	}
}

// TestJoined sends with UDP_SEGMENT, so that UDP_GRO joins, at sizes that change.
func TestJoined(t *testing.T) {
	l := newLane(t)
	p := l.datagrams("127.0.0.1", true, flow.Datagram{Buf: payload(1, 1), N: 1})
	defer unix.Close(p.client)
	defer unix.Close(p.server)
	expect(t, p.server, payload(1, 1))
	for _, size := range []int{1000, 300, 1400, 1, 20000} {
		must(t, unix.SetsockoptInt(p.client, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size))
		n := min(40, 45000/size)
		_, err := unix.Write(p.client, payload(n*size+size/2, 7))
		must(t, err)
		for range n {
			l.step()
		}
		for range n {
			expectSoon(t, l, p.server, payload(size, 7))
		}
		if size > 1 {
			expectSoon(t, l, p.server, payload(size/2, 7))
		}
	}
}

// TestFirstDatagrams holds what comes before the sockets, in order, joined ones
// as such, up to a bound.
func TestFirstDatagrams(t *testing.T) {
	l := newLane(t)
	client, near := udpPair(t, "127.0.0.1")
	farFD, server := udpPair(t, "127.0.0.1")
	defer unix.Close(client)
	defer unix.Close(server)
	sa, _ := unix.Getsockname(client)
	from, port := address(sa)
	var batch []flow.Datagram
	for i, size := range []int{10, 40_000, 0, 65507, 3000} {
		batch = append(batch, flow.Datagram{Buf: payload(size, byte(i)), N: size, From: from, FromPort: port, To: from})
	}
	batch = append(batch, flow.Datagram{Buf: payload(250, 77), N: 250, Segment: 100, From: from, FromPort: port, To: from})
	l.t.Datagrams(9, ipc.ListenerMaySplice, 53, batch)
	if len(l.opens) != 2 {
		t.Fatalf("%d requests", len(l.opens))
	}
	if o := l.opens[0]; o.Flags != 0 || o.Listener != 9 || o.SrcPort != 53 || o.DstPort != port || o.Dst != from || o.Src != from {
		t.Errorf("socket for answers: %+v", o)
	}
	if o := l.opens[1]; o.Flags != ipc.OpenSplice || o.Listener != 9 || o.Src != l.guest.Seen4 || o.Dst != from || o.DstPort != port {
		t.Errorf("far end: %+v", o)
	}
	held := l.t.queued
	more := flow.Datagram{Buf: payload(60_000, 1), N: 60_000, From: from, FromPort: port, To: from}
	for range 10 {
		l.t.Datagrams(9, ipc.ListenerMaySplice, 53, []flow.Datagram{more})
	}
	if l.t.queued > maxQueue || l.t.queued <= held || l.t.Stats.Dropped == 0 {
		t.Errorf("%d chunks for one flow, %d before, %d dropped", l.t.queued, held, l.t.Stats.Dropped)
	}
	l.open = func(o *ipc.Open) (int, syscall.Errno) {
		if o.Flags == 0 {
			return near, 0
		}
		return farFD, 0
	}
	l.answer()
	for i, size := range []int{10, 40_000, 0, 65507, 3000} {
		expect(t, server, payload(size, byte(i)))
	}
	for _, size := range []int{100, 100, 50} {
		expect(t, server, payload(size, 77))
	}
	if l.t.queued != 0 || l.t.pool.Used() != 0 {
		t.Errorf("%d chunks still held", l.t.queued)
	}
}

// TestRefusedDatagrams remembers for a while that there is no far end.
func TestRefusedDatagrams(t *testing.T) {
	l := newLane(t)
	l.open = func(o *ipc.Open) (int, syscall.Errno) {
		if o.Flags == 0 {
			return newSocket(t, "127.0.0.1", unix.SOCK_DGRAM), 0
		}
		return -1, syscall.EACCES
	}
	before := descriptors(t)
	d := []flow.Datagram{{Buf: payload(4, 4), N: 4, From: l.guest.Seen4, FromPort: 1000, To: l.guest.Seen4}}
	for range 5 {
		l.t.Datagrams(9, ipc.ListenerMaySplice, 53, d)
		l.answer()
	}
	if l.t.Stats.FlowsUDP != 1 || l.t.Stats.Dropped != 5 || descriptors(t) != before {
		t.Errorf("%+v, %d descriptors more", l.t.Stats, descriptors(t)-before)
	}
	l.wheel.Advance(l.Now()+3*second, func(id uint32) {
		l.start = l.start.Add(-3 * 1e9)
		l.t.Timer(id)
	})
	if l.t.LenUDP() != 0 {
		t.Errorf("still remembered after three seconds")
	}
}

// TestFlowLimits evicts the flow that was not used for longest, and lets all of
// them end in time.
func TestFlowLimits(t *testing.T) {
	l := newLane(t)
	l.open = func(o *ipc.Open) (int, syscall.Errno) {
		a, b := udpPair(t, "127.0.0.1")
		unix.Close(b)
		must(t, unix.SetNonblock(a, true))
		return a, 0
	}
	before := descriptors(t)
	one := func(port uint16) {
		l.t.Datagrams(9, ipc.ListenerMaySplice, 53, []flow.Datagram{{Buf: payload(4, 4), N: 4, From: l.guest.Seen4, FromPort: port, To: l.guest.Seen4}})
		l.answer()
	}
	for p := range 64 {
		one(uint16(1000 + p))
	}
	one(1000) // used again
	for p := range 30 {
		one(uint16(2000 + p))
	}
	if l.t.LenUDP() != 64 || l.t.Stats.Evicted != 30 || descriptors(t) != before+128 {
		t.Errorf("%d flows, %d evicted, %d descriptors", l.t.LenUDP(), l.t.Stats.Evicted, descriptors(t)-before)
	}
	flows := l.t.Stats.FlowsUDP
	one(1000)
	if l.t.Stats.FlowsUDP != flows {
		t.Error("the flow that was in use was evicted")
	}
	if !l.t.Evict() || l.t.LenUDP() != 63 {
		t.Error("nothing given up for want of descriptors")
	}
	l.start = l.start.Add(-200 * 1e9)
	l.wheel.Advance(l.Now(), func(id uint32) { l.t.Timer(id) })
	if l.t.LenUDP() != 0 || descriptors(t) != before {
		t.Errorf("%d flows and %d descriptors left", l.t.LenUDP(), descriptors(t)-before)
	}
}

// TestBothNamespaces tells a flow of the host from one of the namespace with the
// same addresses and ports.
func TestBothNamespaces(t *testing.T) {
	l := newLane(t)
	l.open = func(*ipc.Open) (int, syscall.Errno) { return -1, syscall.EACCES }
	d := []flow.Datagram{{Buf: payload(4, 4), N: 4, From: l.guest.Seen4, FromPort: 1000, To: l.guest.Seen4}}
	l.t.Datagrams(1, ipc.ListenerMaySplice, 53, d)
	l.t.Datagrams(2, ipc.ListenerNamespace, 53, d)
	if l.t.LenUDP() != 2 {
		t.Errorf("%d flows", l.t.LenUDP())
	}
	if len(l.opens) != 4 || l.opens[0].Src != l.guest.Seen4 || l.opens[2].Src != l.guest.Seen4 {
		t.Errorf("%+v", l.opens)
	}
}

func TestNoAllocationsUDP(t *testing.T) {
	l := newLane(t)
	p := l.datagrams("127.0.0.1", true, flow.Datagram{Buf: payload(1, 1), N: 1})
	defer unix.Close(p.client)
	defer unix.Close(p.server)
	b := payload(1000, 1)
	allocs := testing.AllocsPerRun(100, func() {
		for range 10 {
			raw(unix.SYS_WRITE, uintptr(p.client), base(b), uintptr(len(b)))
		}
		l.step()
		for range 10 {
			raw6(unix.SYS_RECVFROM, uintptr(p.server), base(b), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func expect(t *testing.T, s int, want []byte) {
	t.Helper()
	b := make([]byte, 1<<16)
	n, err := unix.Read(s, b)
	if err != nil || !bytes.Equal(b[:n], want) {
		t.Fatalf("got %d bytes, %v, want %d", n, err, len(want))
	}
}

func expectSoon(t *testing.T, l *lane, s int, want []byte) {
	t.Helper()
	b := make([]byte, 1<<16)
	n := 0
	l.until("a datagram", func() bool {
		k, _, err := unix.Recvfrom(s, b, unix.MSG_DONTWAIT)
		n = k
		return err == nil
	})
	if !bytes.Equal(b[:n], want) {
		t.Fatalf("got %d bytes, want %d", n, len(want))
	}
}
