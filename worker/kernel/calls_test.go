// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/worker/flow"
	"aldente/worker/packet"
)

// end is a socket's address as the translators have it.
func end(t *testing.T, sa unix.Sockaddr) (packet.Addr, uint16) {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return packet.AddrFrom4(a.Addr), uint16(a.Port)
	case *unix.SockaddrInet6:
		return packet.Addr(a.Addr), uint16(a.Port)
	}
	t.Fatalf("%T", sa)
	return packet.Addr{}, 0
}

func bothFamilies(t *testing.T, f func(t *testing.T, v4 bool)) {
	for _, v4 := range []bool{true, false} {
		t.Run(fmt.Sprintf("IPv4=%v", v4), func(t *testing.T) { f(t, v4) })
	}
}

// TestDatagrams receives several with a call: with the addresses of both ends, cut
// where the buffer is, and joined as UDP_GRO does.
func TestDatagrams(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		in, to := loopback(t, v4, unix.SOCK_DGRAM)
		out, from := loopback(t, v4, unix.SOCK_DGRAM)
		must(t, unix.Connect(out, to))
		if v4 {
			must(t, unix.SetsockoptInt(in, unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
		} else {
			must(t, unix.SetsockoptInt(in, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1))
		}
		must(t, unix.SetsockoptInt(in, unix.IPPROTO_UDP, unix.UDP_GRO, 1))
		var s Sockets
		d := make([]flow.Datagram, maxDatagrams+1)
		for i := range d {
			d[i].Buf = make([]byte, 3000)
		}
		if n, e := s.RecvDatagrams(int32(in), d); e != syscall.EAGAIN {
			t.Fatalf("%d datagrams of none, %v", n, e)
		}
		s.Write(int32(out), []byte("one"))
		s.Writev(int32(out), [][]byte{make([]byte, 2000), make([]byte, 2000)})
		s.Option(int32(out), flow.OptionUDPSegment, 1000)
		s.Write(int32(out), make([]byte, 2500))
		peer, port := end(t, from)
		local, _ := end(t, to)
		type datagram struct {
			n, segment int
			truncated  bool
		}
		want := []datagram{{3, 0, false}, {3000, 0, true}, {2500, 1000, false}}
		n, e := s.RecvDatagrams(int32(in), d)
		if n != len(want) || e != 0 {
			t.Fatalf("%d datagrams, %v", n, e)
		}
		for i, w := range want {
			if got := (datagram{d[i].N, d[i].Segment, d[i].Truncated}); got != w || d[i].From != peer || d[i].FromPort != port || d[i].To != local {
				t.Errorf("datagram %d: %+v, want %+v; from %v %d to %v", i, got, w, d[i].From, d[i].FromPort, d[i].To)
			}
		}
		if string(d[0].Buf[:3]) != "one" {
			t.Errorf("%q", d[0].Buf[:3])
		}
	})
}

// TestControlCut: a datagram with more control messages than there is room for is not
// taken for one of which all is known.
func TestControlCut(t *testing.T) {
	in, to := loopback(t, true, unix.SOCK_DGRAM)
	out, _ := loopback(t, true, unix.SOCK_DGRAM)
	must(t, unix.Connect(out, to))
	must(t, unix.SetsockoptInt(in, unix.IPPROTO_UDP, unix.UDP_GRO, 1))
	var s Sockets
	d := []flow.Datagram{{Buf: make([]byte, 3000)}}
	for _, cut := range []bool{false, true} {
		if cut {
			must(t, unix.SetsockoptInt(in, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1))
			for _, o := range []int{unix.IP_PKTINFO, unix.IP_RECVTTL, unix.IP_RECVTOS, unix.IP_RECVORIGDSTADDR} {
				must(t, unix.SetsockoptInt(in, unix.IPPROTO_IP, o, 1))
			}
		}
		s.Option(int32(out), flow.OptionUDPSegment, 1000)
		if n, e := s.Write(int32(out), make([]byte, 2500)); n != 2500 || e != 0 {
			t.Fatal(n, e)
		}
		ready(t, in, unix.POLLIN)
		if n, e := s.RecvDatagrams(int32(in), d); n != 1 || e != 0 || d[0].Truncated != cut {
			t.Errorf("%d datagrams, cut %t, want %t, %v", n, d[0].Truncated, cut, e)
		}
		if !cut && d[0].Segment != 1000 {
			t.Errorf("segments of %d", d[0].Segment)
		}
	}
}

// TestErrorQueue sends to a port where nobody is.
func TestErrorQueue(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		nobody, to := loopback(t, v4, unix.SOCK_DGRAM)
		fd, _ := loopback(t, v4, unix.SOCK_DGRAM)
		want := flow.SocketError{Errno: syscall.ECONNREFUSED, Origin: flow.OriginICMP6, Type: 1, Code: 4}
		if v4 {
			want.Origin, want.Type, want.Code = flow.OriginICMP, 3, 3
			must(t, unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
		} else {
			must(t, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
		}
		must(t, unix.Connect(fd, to))
		unix.Close(nobody)
		want.Offender, _ = end(t, to)
		var s Sockets
		e := flow.SocketError{Buf: make([]byte, 100)}
		if errno := s.RecvError(int32(fd), &e); errno != syscall.EAGAIN {
			t.Fatalf("an error before anything was sent: %v", errno)
		}
		if n, errno := s.Write(int32(fd), []byte("who?")); n != 4 || errno != 0 {
			t.Fatal(n, errno)
		}
		ready(t, fd, unix.POLLERR)
		errno := s.RecvError(int32(fd), &e)
		got := e
		got.Buf, got.N = nil, 0
		if errno != 0 || got.Errno != want.Errno || got.Origin != want.Origin || got.Type != want.Type || got.Code != want.Code || got.Offender != want.Offender {
			t.Errorf("%+v, want %+v, %v", got, want, errno)
		}
		if string(e.Buf[:e.N]) != "who?" {
			t.Errorf("about %q", e.Buf[:e.N])
		}
		if errno := s.RecvError(int32(fd), &e); errno != syscall.EAGAIN {
			t.Errorf("a second error: %v", errno)
		}
	})
}

// TestAccepted takes connections, and knows both ends of each.
func TestAccepted(t *testing.T) {
	bothFamilies(t, func(t *testing.T, v4 bool) {
		l, at := loopback(t, v4, unix.SOCK_STREAM)
		must(t, unix.Listen(l, 1))
		var s Sockets
		if fd, _, _, e := s.Accept(int32(l)); e != syscall.EAGAIN || fd >= 0 {
			t.Fatalf("descriptor %d, %v", fd, e)
		}
		client, from := loopback(t, v4, unix.SOCK_STREAM)
		if err := unix.Connect(client, at); err != unix.EINPROGRESS && err != nil {
			t.Fatal(err)
		}
		ready(t, l, unix.POLLIN)
		fd, peer, port, e := s.Accept(int32(l))
		if e != 0 {
			t.Fatal(e)
		}
		defer Close(fd)
		if a, p := end(t, from); peer != a || port != p {
			t.Errorf("from %v %d, want %v %d", peer, port, a, p)
		}
		local, port, e := s.LocalAddr(fd)
		if a, p := end(t, at); local != a || port != p || e != 0 {
			t.Errorf("at %v %d, want %v %d, %v", local, port, a, p, e)
		}
		if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); flags&unix.O_NONBLOCK == 0 {
			t.Error("may block")
		}
		if _, e := s.RTT(fd); e != 0 {
			t.Error(e)
		}
		if _, _, e := s.LocalAddr(-1); e != syscall.EBADF {
			t.Error(e)
		}
		if e := s.TakeError(-1); e != syscall.EBADF {
			t.Error(e)
		}
		if e := s.TakeError(fd); e != 0 {
			t.Error(e)
		}
	})
}

// TestOptions sets each, and asks the kernel.
func TestOptions(t *testing.T) {
	for o, at := range map[flow.Option]struct {
		level, name, v, factor int
		v4                     bool
		typ                    int
	}{
		flow.OptionPeekOff:      {unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0, 1, true, unix.SOCK_DGRAM},
		flow.OptionKeepAlive:    {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1, 1, true, unix.SOCK_STREAM},
		flow.OptionTTL:          {unix.IPPROTO_IP, unix.IP_TTL, 7, 1, true, unix.SOCK_DGRAM},
		flow.OptionHopLimit:     {unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 7, 1, false, unix.SOCK_DGRAM},
		flow.OptionUDPSegment:   {unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000, 1, true, unix.SOCK_DGRAM},
		flow.OptionNoDelay:      {unix.IPPROTO_TCP, unix.TCP_NODELAY, 1, 1, true, unix.SOCK_STREAM},
		flow.OptionSendBuffer:   {unix.SOL_SOCKET, unix.SO_SNDBUF, 20000, 2, true, unix.SOCK_STREAM},
		flow.OptionRecvBuffer:   {unix.SOL_SOCKET, unix.SO_RCVBUF, 20000, 2, true, unix.SOCK_STREAM},
		flow.OptionWindowClamp:  {unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, 30000, 1, true, unix.SOCK_STREAM},
		flow.OptionTOS:          {unix.IPPROTO_IP, unix.IP_TOS, 0x20, 1, true, unix.SOCK_DGRAM},
		flow.OptionTrafficClass: {unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0x20, 1, false, unix.SOCK_DGRAM},
	} {
		t.Run(fmt.Sprint("option ", o), func(t *testing.T) {
			fd, _ := loopback(t, at.v4, at.typ)
			var s Sockets
			if e := s.Option(int32(fd), o, at.v); e != 0 {
				t.Fatal(e)
			}
			if v, err := unix.GetsockoptInt(fd, at.level, at.name); v != at.v*at.factor || err != nil {
				t.Errorf("%d, %v", v, err)
			}
		})
	}
	var s Sockets
	fd, host := connected(t)
	defer unix.Close(host)
	defer unix.Close(fd)
	if e := s.LowWater(int32(fd), 1000); e != 0 {
		t.Error(e)
	}
	if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT); v != 1000 || err != nil {
		t.Errorf("low-water mark %d, %v", v, err)
	}
}

// TestOptionsInherited: what an accepted connection has from its listener, so that it
// need not be set for each.
func TestOptionsInherited(t *testing.T) {
	for _, v4 := range []bool{true, false} {
		l, at := loopback(t, v4, unix.SOCK_STREAM)
		must(t, unix.Listen(l, 1))
		var s Sockets
		if e := s.Option(int32(l), flow.OptionNoDelay, 1); e != 0 {
			t.Fatal(e)
		}
		c, _ := loopback(t, v4, unix.SOCK_STREAM)
		if err := unix.Connect(c, at); err != nil && err != unix.EINPROGRESS {
			t.Fatal(err)
		}
		p := []unix.PollFd{{Fd: int32(l), Events: unix.POLLIN}}
		if n, err := unix.Poll(p, 10_000); n != 1 {
			t.Fatal("no connection:", err)
		}
		fd, _, _, e := s.Accept(int32(l))
		if e != 0 {
			t.Fatal(e)
		}
		defer unix.Close(int(fd))
		if v, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY); v != 1 || err != nil {
			t.Errorf("IPv4 %v: TCP_NODELAY is %d, %v", v4, v, err)
		}
	}
}

// TestResetWhileConnecting: whoever else has the socket is not to go on connecting.
func TestResetWhileConnecting(t *testing.T) {
	l, at := loopback(t, true, unix.SOCK_STREAM)
	must(t, unix.Listen(l, 0))
	for range 10 { // more than its queue holds: some of them wait
		fd, _ := loopback(t, true, unix.SOCK_STREAM)
		if err := unix.Connect(fd, at); err != unix.EINPROGRESS && err != nil {
			t.Fatal(err)
		}
		var s Sockets
		if info, e := s.info(int32(fd)); e != 0 || info.State != unix.BPF_TCP_SYN_SENT {
			continue
		}
		s.ResetOnClose(int32(fd))
		if info, e := s.info(int32(fd)); e != 0 || info.State != unix.BPF_TCP_CLOSE {
			t.Errorf("state %d, %v", info.State, e)
		}
		return
	}
	t.Skip("the listener takes all")
}

// TestPoller waits for what there is, as long as it is told to.
func TestPoller(t *testing.T) {
	var p Poller
	must(t, p.Open())
	defer Close(p.FD())
	var pair [2]int
	must(t, unix.Pipe2(pair[:], unix.O_CLOEXEC|unix.O_NONBLOCK))
	r, w := int32(pair[0]), int32(pair[1])
	defer Close(r)
	defer Close(w)
	const token = 0xfedcba9876543210
	if e := p.Add(r, token, flow.Readable); e != 0 {
		t.Fatal(e)
	}
	wait := func(what string, want int, least time.Duration, f func() int) {
		t.Helper()
		longest := time.Duration(-1)
		for range 20 { // the runtime's signals end a wait early
			began := time.Now()
			if n := f(); n != want {
				t.Errorf("%s: %d events", what, n)
			}
			if longest = max(longest, time.Since(began)); longest >= least {
				return
			}
		}
		t.Errorf("%s: waited for %v", what, longest)
	}
	wait("nothing, no time", 0, 0, func() int { return p.Wait(0, true) })
	wait("nothing, soon", 0, 5*time.Millisecond, func() int { return p.Wait(5, true) })
	wait("nothing, later", 0, 20*time.Millisecond, func() int { return p.Wait(20, true) })
	wait("nothing, shortly", 0, 300*time.Microsecond, func() int { return p.WaitShortly(300_000) })
	if n, e := Write(w, []byte{1}); n != 1 || e != 0 {
		t.Fatal(n, e)
	}
	for range 2 { // level-triggered
		wait("something", 1, 0, func() int { return p.Wait(-1, false) })
		wait("something, shortly", 1, 0, func() int { return p.WaitShortly(300_000) })
	}
	if events, got := p.At(0); events != flow.Readable || got != token {
		t.Errorf("events %#x, token %#x", events, got)
	}
	if e := p.Change(r, token, flow.Writable); e != 0 {
		t.Error(e)
	}
	wait("not asked for", 0, 0, func() int { return p.Wait(0, false) })
	p.Remove(r)
	if e := p.Change(r, token, flow.Readable); e != syscall.ENOENT {
		t.Errorf("watched still: %v", e)
	}
	if e := p.Rewatch(r, token, flow.Readable); e != syscall.ENOENT {
		t.Errorf("watched still: %v", e)
	}
}

// TestRecords takes records with their descriptors, and notices the end.
func TestRecords(t *testing.T) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(p[0])
	must(t, SetNonblock(p[0]))
	var r Records
	got := ""
	take := func(rec []byte, fd int32) {
		got += fmt.Sprintf("%s %v;", rec, fd >= 0)
		if fd >= 0 {
			if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
				t.Error("a descriptor that a child would have")
			}
			Close(fd)
		}
	}
	if !r.Receive(int32(p[0]), take) || got != "" {
		t.Errorf("%q of nothing", got)
	}
	must(t, unix.Sendmsg(p[1], []byte("one"), unix.UnixRights(p[1]), nil, 0))
	must(t, unix.Sendmsg(p[1], []byte("two"), nil, nil, 0))
	if !r.Receive(int32(p[0]), take) || got != "one true;two false;" {
		t.Errorf("%q", got)
	}
	// What came before takes nothing away from what comes now.
	for _, passes := range []bool{true, false, true} {
		got = ""
		for _, rec := range []string{"three", "four", "five"} {
			var rights []byte
			if passes {
				rights = unix.UnixRights(p[1])
			}
			must(t, unix.Sendmsg(p[1], []byte(rec), rights, nil, 0))
		}
		if want := fmt.Sprintf("three %[1]v;four %[1]v;five %[1]v;", passes); !r.Receive(int32(p[0]), take) || got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	unix.Close(p[1])
	if r.Receive(int32(p[0]), take) {
		t.Error("the end is not the end")
	}
	if r.Receive(-1, take) {
		t.Error("no channel is one")
	}
}

// TestPipes holds as much in a pipe as it says.
func TestPipes(t *testing.T) {
	var s Sockets
	r, w, size, e := s.Pipe()
	if e != 0 {
		t.Fatal(e)
	}
	defer Close(r)
	defer Close(w)
	if n, e := s.Write(w, make([]byte, size)); n != size || e != 0 {
		t.Errorf("%d bytes of %d, %v", n, size, e)
	}
	fd, host := connected(t)
	defer unix.Close(host)
	defer unix.Close(fd)
	if n, e := s.Splice(r, int32(fd), 1000); n != 1000 || e != 0 {
		t.Errorf("%d bytes, %v", n, e)
	}
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	none := limit
	none.Cur = 0
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &none))
	_, _, _, e = s.Pipe()
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	if e != syscall.EMFILE {
		t.Errorf("without descriptors: %v", e)
	}
}

// TestReserve touches both ends of a space that is larger than what it takes.
func TestReserve(t *testing.T) {
	b, err := Reserve(1 << 30)
	must(t, err)
	b[0], b[len(b)-1] = 1, 1
	if len(b) != 1<<30 || !bytes.Equal(b[1:5], make([]byte, 4)) {
		t.Errorf("%d bytes", len(b))
	}
	must(t, unix.Munmap(b))
	if _, err := Reserve(-1); err == nil {
		t.Error("less than nothing")
	}
}

// TestPrint writes lines, and goes on where nobody reads them.
func TestPrint(t *testing.T) {
	var p [2]int
	must(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
	Print(p[1], []byte("line\n"))
	b := make([]byte, 10)
	if n, err := unix.Read(p[0], b); string(b[:max(n, 0)]) != "line\n" {
		t.Errorf("%q, %v", b, err)
	}
	unix.Close(p[0])
	unix.Close(p[1])
	Print(p[1], []byte("to nobody\n"))
}

// TestCallsAllocateNothing: they are made for each packet.
func TestCallsAllocateNothing(t *testing.T) {
	fd, host := connected(t)
	defer unix.Close(host)
	defer unix.Close(fd)
	s, b := new(Sockets), make([]byte, 100)
	vec, d := [][]byte{b[:40], b[40:]}, []flow.Datagram{{Buf: b}}
	e := flow.SocketError{Buf: b}
	if n := testing.AllocsPerRun(100, func() {
		s.Write(int32(fd), b)
		s.Writev(int32(fd), vec)
		s.Recv(int32(fd), b, flow.MsgPeek|flow.MsgDontWait)
		s.RecvSkip(int32(fd), 10, b)
		s.RecvDatagrams(int32(fd), d)
		s.RecvError(int32(fd), &e)
		s.TakeError(int32(fd))
		s.RTT(int32(fd))
		s.Option(int32(fd), flow.OptionNoDelay, 1)
		s.LocalAddr(int32(fd))
		s.Accept(int32(fd))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
