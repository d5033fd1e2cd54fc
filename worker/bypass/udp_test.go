// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bytes"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/datagram"
	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
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
		if o.Flags&ipc.OpenBypass != 0 {
			return farFD, 0
		}
		return near, 0
	}
	sa, err := unix.Getsockname(client)
	must(l.tb, err)
	first.From, first.FromPort = address(sa)
	first.To = first.From
	l.t.Datagrams(9, ipc.ListenerMayBypass, 53, []flow.Datagram{first})
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

// TestNotJoined: a socket that does not take datagrams joined gets them one by one,
// and none is lost for it.
func TestNotJoined(t *testing.T) {
	l := newLane(t)
	p := l.datagrams("127.0.0.1", true, flow.Datagram{Buf: payload(1, 1), N: 1})
	defer unix.Close(p.client)
	defer unix.Close(p.server)
	expect(t, p.server, payload(1, 1))
	var farFD int
	l.t.flows.Each(func(i uint32) { farFD = int(l.t.flows.At(i).sides[far].sock.FD) })
	// Without checksums the kernel cuts nothing: EINVAL (udp_send_skb of net/ipv4/udp.c).
	must(t, unix.SetsockoptInt(farFD, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1))
	for round := range byte(3) {
		for k := range byte(20) {
			_, err := unix.Write(p.client, payload(2000, round*20+k))
			must(t, err)
		}
		for k := range byte(20) {
			expectSoon(t, l, p.server, payload(2000, round*20+k))
		}
	}
	if l.t.Stats.Dropped != 0 {
		t.Errorf("%+v", l.t.Stats)
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
	l.t.Datagrams(9, ipc.ListenerMayBypass, 53, batch)
	if len(l.opens) != 1 {
		t.Fatalf("%d requests", len(l.opens))
	}
	if o := l.opens[0]; o.Flags != ipc.OpenBypass || o.Listener != 9 || o.Src != l.guest.Seen4 || o.Dst != from || o.DstPort != port {
		t.Errorf("far end: %+v", o)
	}
	held := l.t.queues.Used()
	more := flow.Datagram{Buf: payload(60_000, 1), N: 60_000, From: from, FromPort: port, To: from}
	for range 10 {
		l.t.Datagrams(9, ipc.ListenerMayBypass, 53, []flow.Datagram{more})
	}
	if l.t.queues.Used() > datagram.MaxQueue || l.t.queues.Used() <= held || l.t.Stats.Dropped == 0 {
		t.Errorf("%d chunks for one flow, %d before, %d dropped", l.t.queues.Used(), held, l.t.Stats.Dropped)
	}
	l.open = func(o *ipc.Open) (int, syscall.Errno) {
		if o.Flags == 0 {
			if o.Listener != 9 || o.SrcPort != 53 || o.DstPort != port || o.Dst != from || o.Src != from {
				t.Errorf("socket for answers: %+v", o)
			}
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
	if l.t.queues.Used() != 0 {
		t.Errorf("%d chunks still held", l.t.queues.Used())
	}
}

// TestWaitingEnds: what waits for a socket goes with its flow.
func TestWaitingEnds(t *testing.T) {
	l := newLane(t)
	l.t.Datagrams(9, ipc.ListenerMayBypass, 53, []flow.Datagram{
		{Buf: payload(40_000, 1), N: 40_000, From: l.guest.Seen4, FromPort: 1000, To: l.guest.Seen4}})
	if l.t.queues.Used() == 0 {
		t.Fatal("nothing waits")
	}
	l.t.Close()
	if n := l.t.queues.Used(); n != 0 || l.t.LenUDP() != 0 {
		t.Errorf("%d chunks, %d flows left", n, l.t.LenUDP())
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
		l.t.Datagrams(9, ipc.ListenerMayBypass, 53, d)
		l.answer()
	}
	if l.t.Stats.FlowsUDP != 1 || l.t.Stats.Dropped != 5 || descriptors(t) != before {
		t.Errorf("%+v, %d descriptors more", l.t.Stats, descriptors(t)-before)
	}
	l.wheel.Advance(l.Now()+3_000_000_000, func(id uint32) {
		l.start = l.start.Add(-3 * 1e9)
		l.t.Timer(id)
	})
	if l.t.LenUDP() != 0 {
		t.Errorf("still remembered after three seconds")
	}
}

// ask makes a flow of its own from a port, and has it answered if that is said.
func (l *lane) ask(port uint16, answered bool) {
	l.tb.Helper()
	servers := map[uint64]int{}
	l.open = func(o *ipc.Open) (int, syscall.Errno) {
		a, b := udpPair(l.tb, "127.0.0.1")
		must(l.tb, unix.SetNonblock(a, true))
		if o.Flags&ipc.OpenBypass != 0 {
			servers[o.Token] = b
		} else {
			unix.Close(b)
		}
		return a, 0
	}
	d := []flow.Datagram{{Buf: payload(4, 4), N: 4, From: l.guest.Seen4, FromPort: port, To: l.guest.Seen4}}
	l.t.Datagrams(9, ipc.ListenerMayBypass, 53, d)
	l.answer()
	for _, b := range servers {
		newest := l.t.flows.Len() - l.t.numUnanswered
		if answered {
			_, err := unix.Write(b, payload(2, 2))
			must(l.tb, err)
			full := newest == l.t.flows.Cap()-l.t.maxUnanswered
			evicted := l.t.Stats.Evicted
			l.until("an answer", func() bool {
				return l.t.flows.Len()-l.t.numUnanswered > newest || full && l.t.Stats.Evicted > evicted
			})
		}
		unix.Close(b)
	}
}

// TestFlowLimits evicts the flow that was not used for longest, among those that
// were answered and among the others, and lets all of them end in time.
func TestFlowLimits(t *testing.T) {
	const half = 64 / unansweredPart
	l := newLane(t)
	before := descriptors(t)
	for p := range half {
		l.ask(uint16(1000+p), true)
	}
	l.ask(1000, true) // used again
	if l.t.Stats.Evicted != 0 || l.t.LenUDP() != half || descriptors(t) != before+2*half {
		t.Errorf("%d flows, %d evicted, %d descriptors", l.t.LenUDP(), l.t.Stats.Evicted, descriptors(t)-before)
	}
	// Those who get no answer push out one another.
	for p := range 300 {
		l.ask(uint16(3000+p), false)
	}
	if l.t.Stats.Evicted != 300-half || l.t.LenUDP() != 2*half {
		t.Errorf("%d flows, %d evicted", l.t.LenUDP(), l.t.Stats.Evicted)
	}
	flows := l.t.Stats.FlowsUDP
	for p := range half {
		l.ask(uint16(1000+p), false)
	}
	if l.t.Stats.FlowsUDP != flows {
		t.Error("a flow that was answered was evicted")
	}
	l.ask(2000, true)
	l.ask(1000, false)
	if l.t.Stats.FlowsUDP != flows+2 { // 2000, and 1000 that was used first of all
		t.Errorf("%d flows more", l.t.Stats.FlowsUDP-flows)
	}
	for n := l.t.numUnanswered; n > 0; n-- {
		if !l.t.Evict() || l.t.numUnanswered != n-1 {
			t.Fatal("not the unanswered ones first, for want of descriptors")
		}
	}
	if n := l.t.LenUDP(); !l.t.Evict() || l.t.LenUDP() != n-1 {
		t.Error("nothing given up for want of descriptors")
	}
	l.start = l.start.Add(-200 * 1e9)
	l.wheel.Advance(l.Now(), func(id uint32) { l.t.Timer(id) })
	if l.t.LenUDP() != 0 || descriptors(t) != before {
		t.Errorf("%d flows and %d descriptors left", l.t.LenUDP(), descriptors(t)-before)
	}
}

// TestAnswersAsked: beyond some flows that wait for their first answer, only the
// answer has a socket opened that it leaves by, and waits for it.
func TestAnswersAsked(t *testing.T) {
	l := newLane(t)
	l.t.numUnanswered += maxPreopened // as many as that
	client, near := udpPair(t, "127.0.0.1")
	farFD, server := udpPair(t, "127.0.0.1")
	defer unix.Close(client)
	defer unix.Close(server)
	must(t, unix.SetNonblock(farFD, true))
	must(t, unix.SetNonblock(near, true))
	asked := 0
	l.open = func(o *ipc.Open) (int, syscall.Errno) {
		if o.Flags == 0 {
			asked++
			return near, 0
		}
		return farFD, 0
	}
	l.t.maxUnanswered += maxPreopened
	sa, _ := unix.Getsockname(client)
	from, port := address(sa)
	for k := range 3 {
		l.t.Datagrams(9, ipc.ListenerMayBypass, 53, []flow.Datagram{{Buf: payload(4, byte(k)), N: 4, From: from, FromPort: port, To: from}})
		l.answer()
		expect(t, server, payload(4, byte(k)))
	}
	if asked != 0 {
		t.Error("asked for a socket without need")
	}
	for k := range 3 {
		_, err := unix.Write(server, payload(5, byte(k)))
		must(t, err)
	}
	for k := range 3 {
		expectSoon(t, l, client, payload(5, byte(k)))
	}
	if asked != 1 {
		t.Errorf("%d sockets asked for", asked)
	}
	l.t.numUnanswered -= maxPreopened
	l.t.maxUnanswered -= maxPreopened
}

// TestStrayDatagrams: what others have sent to the socket that answers, before it
// was connected, goes to the listener with their names; to the socket that leads
// on, to nobody.
func TestStrayDatagrams(t *testing.T) {
	l := newLane(t)
	p := l.datagrams("127.0.0.1", true, flow.Datagram{Buf: payload(3, 9), N: 3})
	defer unix.Close(p.client)
	defer unix.Close(p.server)
	expect(t, p.server, payload(3, 9))
	type returned struct {
		id       uint32
		from, to packet.Addr
		port     uint16
		data     string
	}
	var got []returned
	l.t.Return = func(id uint32, d []flow.Datagram) {
		got = append(got, returned{id, d[0].From, d[0].To, d[0].FromPort, string(d[0].Buf[:d[0].N])})
	}
	k := l.t.flows.Key(0)
	peer, port := k.Remote()
	local, other := nearAddr(k), packet.AddrFrom4([4]byte{127, 0, 0, 9})
	f := l.t.flows.At(0)
	d := []flow.Datagram{
		{Buf: []byte("s1"), N: 2, From: other, FromPort: port},
		{Buf: []byte("p1"), N: 2, From: peer, FromPort: port},
		{Buf: []byte("s2"), N: 2, From: peer, FromPort: port + 1, To: other},
		{Buf: []byte("p2"), N: 2, From: peer, FromPort: port},
	}
	mine := l.t.fromPeer(0, f, near, d)
	if len(mine) != 2 || string(mine[0].Buf) != "p1" || string(mine[1].Buf) != "p2" {
		t.Errorf("%+v", mine)
	}
	want := []returned{{9, other, local, port, "s1"}, {9, peer, other, port + 1, "s2"}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	got = nil
	if mine := l.t.fromPeer(0, f, far, []flow.Datagram{{From: other, FromPort: 1}}); len(mine) != 0 || len(got) != 0 || l.t.Stats.Dropped != 1 {
		t.Errorf("%+v, %+v, %d dropped", mine, got, l.t.Stats.Dropped)
	}
}

// TestBothNamespaces tells a flow of the host from one of the namespace with the
// same addresses and ports.
func TestBothNamespaces(t *testing.T) {
	l := newLane(t)
	l.open = func(*ipc.Open) (int, syscall.Errno) { return -1, syscall.EACCES }
	d := []flow.Datagram{{Buf: payload(4, 4), N: 4, From: l.guest.Seen4, FromPort: 1000, To: l.guest.Seen4}}
	l.t.Datagrams(1, ipc.ListenerMayBypass, 53, d)
	l.t.Datagrams(2, ipc.ListenerNamespace, 53, d)
	if l.t.LenUDP() != 2 {
		t.Errorf("%d flows", l.t.LenUDP())
	}
	if len(l.opens) != 2 {
		t.Errorf("%+v", l.opens)
	}
	global := packet.Addr{0: 0x22, 1: 1, 15: 1} // not shortened by what tells the two apart
	k := store.MakeKey(&global, &global, 1, 1)
	if nearAddr(&k) != global {
		t.Errorf("%v", nearAddr(&k))
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
			l.Write(int32(p.client), b)
		}
		l.step()
		for range 10 {
			l.Recv(int32(p.server), b, flow.MsgDontWait)
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
