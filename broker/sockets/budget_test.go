// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/budget"
	"aldente/broker/inet"
	"aldente/broker/limiter"
	"aldente/ipc"
)

var testHost = budget.Host{Descriptors: 20000, Ephemeral: 28232}

// TestBudgetOfPorts: a worker holds as many UDP sockets as it may, and it does not
// help to hold them otherwise: what counts is what the kernel still has.
func TestBudgetOfPorts(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		start := time.Now()
		w, log := workWithin(t, func(l *budget.Limits) { l.UDP = 40 })
		o := toLoopback(ipc.ProtoUDP, v6, 9)
		fds, last := w.requests(t, o, 100)
		if len(fds) != 40 || last.Errno != uint16(unix.EMFILE) {
			t.Fatalf("%d sockets, then %v", len(fds), unix.Errno(last.Errno))
		}
		// A copy is as good as the first one.
		copies := make([]int, 10)
		for i := range copies {
			copies[i], _ = unix.Dup(fds[i])
		}
		closeAll(fds[:20])
		time.Sleep(150 * time.Millisecond) // between two counts
		more, _ := w.requests(t, o, 50)
		if len(more) != 10 {
			t.Errorf("%d more sockets after 20 were closed, of which 10 had copies", len(more))
		}
		if u := w.Usage()[budget.UDP]; u.Most != 40 || u.Opened != 50 || u.Refused != 100 {
			t.Errorf("usage %+v", u)
		}
		if n := strings.Count(log.String(), "as many UDP flows as it may"); n < 1 || n > 2+int(time.Since(start).Seconds()) || !strings.Contains(log.String(), "--limit udp=N") {
			t.Errorf("%d lines:\n%s", n, log)
		}
		closeAll(fds[20:])
		closeAll(copies)
		closeAll(more)
	}
}

func TestBudgetOfEchoes(t *testing.T) {
	if !inet.PingAllowed() {
		t.Skip("needs a group in net.ipv4.ping_group_range")
	}
	w, _ := workWithin(t, func(l *budget.Limits) { l.Echo = 10 })
	fds, last := w.requests(t, toLoopback(ipc.ProtoICMP, false, 0), 30)
	if len(fds) != 10 || last.Errno != uint16(unix.EMFILE) {
		t.Errorf("%d sockets, then %v", len(fds), unix.Errno(last.Errno))
	}
	closeAll(fds)
}

// TestBudgetOfReplies: sockets that answer from a listener's port take no port, and
// are bounded as well.
func TestBudgetOfReplies(t *testing.T) {
	w, _ := workWithin(t, func(l *budget.Limits) { l.UDP, l.Replies = 5, 30 })
	free, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(free.LocalAddr().(*net.UDPAddr).Port)
	free.Close()
	l, err := w.Listen(Listener{Proto: ipc.ProtoUDP, Addr: netip.MustParseAddr("127.0.0.1"), Port: port, GuestPort: port})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Unlisten(l.ID)
	o := ipc.Open{Token: 1, Proto: ipc.ProtoUDP, Listener: l.ID, Src: netip.MustParseAddr("127.0.0.1").As16(), SrcPort: l.Port,
		Dst: netip.MustParseAddr("127.0.0.1").As16()}
	var fds []int
	for port := range uint16(100) {
		o.DstPort = 1000 + port
		if fd, _ := w.request(t, o); fd >= 0 {
			fds = append(fds, fd)
		}
	}
	if len(fds) != 30 {
		t.Errorf("%d sockets", len(fds))
	}
	if more, _ := w.requests(t, toLoopback(ipc.ProtoUDP, false, 9), 20); len(more) != 5 {
		t.Errorf("%d flows beside them", len(more))
	} else {
		closeAll(more)
	}
	closeAll(fds)
}

// TestBudgetIsTheInstances: a worker that is replaced leaves nothing behind, and
// its successor gets no more.
func TestBudgetIsTheInstances(t *testing.T) {
	w, _ := workWithin(t, func(l *budget.Limits) { l.UDP = 20 })
	fds, _ := w.requests(t, toLoopback(ipc.ProtoUDP, false, 9), 30)
	if len(fds) != 20 {
		t.Fatalf("%d sockets", len(fds))
	}
	closeAll(fds)
	unix.Close(w.worker)
	w.end(t)
	ours, theirs, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	w.worker = theirs
	go func() {
		err := w.Serve(ours)
		unix.Close(ours)
		w.done <- err
	}()
	fds, _ = w.requests(t, toLoopback(ipc.ProtoUDP, false, 9), 30)
	if len(fds) != 20 {
		t.Errorf("%d sockets for the next worker", len(fds))
	}
	closeAll(fds)
}

// silent is a port of loopback that answers nobody, since those who connected
// before are not accepted. answer accepts them.
func silent(t *testing.T, address string) (port uint16, answer func()) {
	t.Helper()
	a := netip.AddrPortFrom(netip.MustParseAddr(address), 0)
	at := inet.Listener{At: a}
	l, err := at.ListenTCP()
	if err != nil {
		t.Skip(err) // no IPv6
	}
	if err := unix.Listen(l, 0); err != nil {
		t.Fatal(err)
	}
	port = inet.LocalPort(l)
	var fill []net.Conn
	for failed := 0; failed < 2; { // one may be due to a busy machine
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(a.Addr(), port).String(), 500*time.Millisecond)
		if err != nil {
			failed++
			continue
		}
		fill = append(fill, c)
	}
	t.Cleanup(func() {
		unix.Close(l)
		for _, c := range fill {
			c.Close()
		}
	})
	return port, func() {
		for {
			fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			if err != nil {
				return
			}
			unix.Close(fd)
		}
	}
}

// TestBudgetOfConnects: connections that nobody answers are bounded, whoever holds
// them: the oldest make room for new ones, which are never refused for that.
func TestBudgetOfConnects(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1"} {
		t.Run(address, func(t *testing.T) {
			port, answer := silent(t, address)
			before := descriptorCount(t)
			w, _ := workWithin(t, func(l *budget.Limits) { l.HalfOpen = 8 })
			base := descriptorCount(t) - before
			o := toLoopback(ipc.ProtoTCP, address == "::1", port)
			fds, _ := w.requests(t, o, 30)
			if len(fds) != 30 {
				t.Fatalf("%d of 30 connections begun", len(fds))
			}
			for i, fd := range fds {
				e, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
				state := connectState(fd)
				if i < 22 && (unix.Errno(e) != unix.ECONNRESET || state == unix.BPF_TCP_SYN_SENT) ||
					i >= 22 && (e != 0 || state != unix.BPF_TCP_SYN_SENT) {
					t.Errorf("connection %d: error %v, state %d", i, unix.Errno(e), state)
				}
			}
			if u := w.Usage()[budget.TCP]; u.Held != 8 || u.Ended != 22 {
				t.Errorf("usage %+v", u)
			}
			// What is answered after all is let go of.
			for deadline := time.Now().Add(10 * time.Second); w.Usage()[budget.TCP].Held > 0; time.Sleep(50 * time.Millisecond) {
				answer()
				if time.Now().After(deadline) {
					t.Fatal("answered, and still held")
				}
			}
			// The epoll of those under way stays for the next.
			if n := descriptorCount(t) - before - base - len(fds); n > 1 {
				t.Errorf("%d descriptors left", n)
			}
			closeAll(fds)
		})
	}
}

// TestEndedIsReset: a connect that is ended just after its peer has answered is reset,
// for the peer and for a worker that has a copy: nobody has taken it, and neither may
// think so.
func TestEndedIsReset(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1"} {
		for name, end := range map[string]func(*underWay){
			"the oldest":         func(u *underWay) { u.endOldest() },
			"the worker is gone": func(u *underWay) { u.endAll() },
		} {
			ln, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
			if err != nil {
				t.Skip(err) // no IPv6
			}
			o := (&inet.Connect{To: netip.MustParseAddrPort(ln.Addr().String())}).Dial()
			if o.Err != nil {
				t.Fatal(o.Err)
			}
			peer, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			workers, err := unix.Dup(o.FD)
			if err != nil {
				t.Fatal(err)
			}
			var u underWay
			u.init()
			if !u.add(o.FD, stood{}, nil) {
				t.Fatal("not added")
			}
			end(&u)
			_ = peer.SetDeadline(time.Now().Add(5 * time.Second))
			if n, err := peer.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("%s, %s: the peer hears %d, %v", address, name, n, err)
			}
			if e, _ := unix.GetsockoptInt(workers, unix.SOL_SOCKET, unix.SO_ERROR); unix.Errno(e) != unix.ECONNRESET {
				t.Errorf("%s, %s: the worker hears %v", address, name, unix.Errno(e))
			}
			u.endAll()
			unix.Close(workers)
			peer.Close()
			ln.Close()
		}
	}
}

// TestBudgetOfNewConnects: those that nobody answers are limited in their number a
// second, those that are answered are not.
func TestBudgetOfNewConnects(t *testing.T) {
	port, _ := silent(t, "127.0.0.1")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near := uint16(ln.Addr().(*net.TCPAddr).Port)
	start := time.Now()
	w, log := workWithin(t, func(l *budget.Limits) { l.NewTCP = limiter.Rate{PerSecond: 1, Burst: 20} })
	for range 200 {
		fd, a := w.request(t, toLoopback(ipc.ProtoTCP, false, near))
		if fd < 0 || a.Flags&ipc.OpenedInProgress != 0 {
			t.Fatalf("a connection that is there at once: %+v", a)
		}
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		unix.Close(fd)
	}
	fds, last := w.requests(t, toLoopback(ipc.ProtoTCP, false, port), 200)
	seconds := int(time.Since(start).Seconds())
	if len(fds) < 20 || len(fds) > 21+seconds || last.Errno != uint16(unix.EAGAIN) {
		t.Errorf("%d connections begun, then %v", len(fds), unix.Errno(last.Errno))
	}
	if !strings.Contains(log.String(), "--limit new=N") || strings.Count(log.String(), "\n") > 2+seconds {
		t.Errorf("log:\n%s", log)
	}
	closeAll(fds)
}

// TestCloseIsTheLast: what a worker closes is closed, also when it does so while we
// had a copy.
func TestCloseIsTheLast(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	w, _ := workWithin(t, func(*budget.Limits) {})
	fd, _ := w.request(t, toLoopback(ipc.ProtoTCP, false, uint16(ln.Addr().(*net.TCPAddr).Port)))
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	unix.Close(fd)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the peer sees %v", err)
	}
}

// TestBatchOfConnects: answers of one message carry their own sockets, also when
// some of them end while the message is handled.
func TestBatchOfConnects(t *testing.T) {
	port, _ := silent(t, "127.0.0.1")
	w, _ := workWithin(t, func(l *budget.Limits) { l.HalfOpen = 3 })
	var b []byte
	for i := range ipc.MaxBatch {
		o := toLoopback(ipc.ProtoTCP, false, port)
		if i%2 == 1 {
			o = toLoopback(ipc.ProtoUDP, false, 9)
		}
		o.Token = uint64(i)
		b = append(b, encode(o)...)
	}
	if _, err := unix.Write(w.worker, b); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, ipc.MaxRecord)
	for i := range ipc.MaxBatch {
		n, fd, err := ipc.Receive(w.worker, buf, 0)
		var a ipc.Opened
		if err != nil || a.Decode(buf[:n]) != nil || a.Token != uint64(i) || fd < 0 {
			t.Fatalf("answer %d: %+v, descriptor %d, %v", i, a, fd, err)
		}
		want := [2]int{unix.IPPROTO_TCP, unix.IPPROTO_UDP}[i%2]
		if proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || proto != want {
			t.Errorf("answer %d carries a socket of protocol %d, %v", i, proto, err)
		}
		unix.Close(fd)
	}
}

func TestCountEntries(t *testing.T) {
	const text = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1038\n" +
		"tfd:        5 events: 40000018 data:                1  pos:0 ino:2d151d sdev:9\n" +
		"tfd:       15 events: 40000018 data:                3  pos:0 ino:2d151e sdev:9\n" +
		"tfd:       15 events: 40000018 data:        a00000001  pos:0 ino:2d151e sdev:9\n" +
		"tfd:       15 events: 40000018 data:               31  pos:0 ino:2d151e sdev:9\n" +
		"tfd:       15 events: 40000018 data:                9  pos:0 ino:2d151e sdev:9\n" +
		"tfd:       15 events: 40000018 data:"
	n := countEntries([]byte(text))
	if n != [budget.Kinds]int{budget.UDP: 2, budget.Echo: 1} {
		t.Errorf("%v", n)
	}
	if n, ok := udpInUse([]byte("sockets: used 30\nTCP: inuse 4 orphan 1\nUDP: inuse 10 mem 0\nUDPLITE: inuse 7\n"), "UDP:"); n != 10 || !ok {
		t.Errorf("%d, %t", n, ok)
	}
	for _, bad := range []string{"", "UDP: inuse", "UDP: inuse x", "UDP6: inuse 3"} {
		if n, ok := udpInUse([]byte(bad), "UDP:"); ok {
			t.Errorf("%q: %d", bad, n)
		}
	}
}

// TestBudgetOfFlows: a worker holds as many flows of all kinds as it may, connections
// that were answered among them, whatever it says of what it has closed.
func TestBudgetOfFlows(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	w, log := workWithin(t, func(l *budget.Limits) { l.Conns = 30 })
	tcp := toLoopback(ipc.ProtoTCP, false, uint16(ln.Addr().(*net.TCPAddr).Port))
	fds, last := w.requests(t, tcp, 20)
	if len(fds) != 20 {
		t.Fatalf("%d connections, then %v", len(fds), unix.Errno(last.Errno))
	}
	more, last := w.requests(t, toLoopback(ipc.ProtoUDP, false, 9), 20)
	if len(more) != 10 || last.Errno != uint16(unix.EMFILE) {
		t.Fatalf("%d flows beside 20 connections, then %v", len(more), unix.Errno(last.Errno))
	}
	if got, last := w.requests(t, tcp, 3); len(got) != 0 || last.Errno != uint16(unix.EMFILE) {
		t.Errorf("%d more connections, %v", len(got), unix.Errno(last.Errno))
	}
	copies := make([]int, 5) // a copy is as good as the first one
	for i := range copies {
		copies[i], _ = unix.Dup(fds[i])
	}
	closeAll(fds[:8])
	time.Sleep(120 * time.Millisecond) // a recount that found nothing was just now
	got, _ := w.requests(t, tcp, 8)
	if len(got) != 3 {
		t.Errorf("%d connections where 3 were closed", len(got))
	}
	closeAll(copies)
	closeAll(fds[8:])
	closeAll(more)
	closeAll(got)
	if !strings.Contains(log.String(), "as many flows as it may") || !strings.Contains(log.String(), "conns=N") {
		t.Errorf("log: %s", log.String())
	}
	if u := w.Factory.Usage()[budget.Conn]; u.Limit != 30 || u.Most != 30 || u.By[budget.ManyFlows] == 0 {
		t.Errorf("%+v", u)
	}
}

// TestBudgetOfNewFlows: so many flows in a second begin, of all kinds; the next one
// may be asked for again.
func TestBudgetOfNewFlows(t *testing.T) {
	w, log := workWithin(t, func(l *budget.Limits) { l.NewConns = limiter.Rate{PerSecond: 2, Burst: 10} })
	fds, last := w.requests(t, toLoopback(ipc.ProtoUDP, false, 9), 40)
	defer closeAll(fds)
	if len(fds) < 10 || len(fds) > 20 || last.Errno != uint16(unix.ENOBUFS) {
		t.Errorf("%d flows, then %v", len(fds), unix.Errno(last.Errno))
	}
	if !strings.Contains(log.String(), "new-conns=N") || w.Factory.Usage()[budget.Conn].By[budget.Paced] == 0 {
		t.Errorf("log: %s", log.String())
	}
	e := w.Factory.Why(ipc.ProtoUDP, netip.MustParseAddrPort("192.0.2.77:9"))
	if s := e.Steps[len(e.Steps)-2].Result; !e.Allowed && !strings.Contains(s, "too many new flows in a second") {
		t.Errorf("%q", s)
	}
}
