// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/budget"
	"aldente/broker/egress"
	"aldente/ipc"
)

// TestLookedAt: a connection's first bytes go by the process for names, and no others; the
// server hears nothing before the name is judged, and then all.
func TestLookedAt(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		addr := "127.0.0.1:0"
		if v6 {
			addr = "[::1]:0"
		}
		server, port := listenAt(t, "tcp", addr)
		w, l, _, _ := workLooked(t, port)
		o := toLoopback(ipc.ProtoTCP, v6, port)
		o.Token = 77
		pair, a := w.asks(t, o)
		if a.Errno != 0 || a.Flags != ipc.OpenedLate|ipc.OpenedStaged || pair < 0 || a.PeerPort != port {
			t.Fatalf("%+v, %d", a, pair)
		}
		c, err := server.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		id, what, end := l.begins()
		put(t, pair, "hello")
		if what != ipc.StageTLS || get(t, end) != "hello" {
			t.Fatal("not what was sent")
		}
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := c.Read(make([]byte, 9)); n != 0 || !errors.Is(err, unix.EAGAIN) && !isTimeout(err) {
			t.Fatalf("the server hears %d bytes before, %v", n, err)
		}
		if w.Stages().Held != 1 {
			t.Error(w.Stages())
		}
		l.found(id, "good.test")
		h := l.next(ipc.NamesKindStageSocket)
		put(t, h.fd, "hello")
		l.says((&ipc.Passed{ID: id, Count: 5}).Encode())
		fd, s := w.switched(t, 77)
		if s.Count != 5 {
			t.Fatalf("%+v", s)
		}
		put(t, fd, ", server")
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 13)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello, server" {
			t.Fatalf("%q, %v", b, err)
		}
		if u := w.Stages(); u != looked(1) {
			t.Error(u)
		}
		l.silent()
	}
}

// TestLookedAtUDP: the same for a flow of datagrams.
func TestLookedAtUDP(t *testing.T) {
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	port := netip.MustParseAddrPort(server.LocalAddr().String()).Port()
	w, l, _, _ := workLooked(t, port)
	o := toLoopback(ipc.ProtoUDP, false, port)
	o.Token = 78
	pair, a := w.asks(t, o)
	if a.Flags != ipc.OpenedLate|ipc.OpenedStaged || a.LocalPort == 0 {
		t.Fatalf("%+v", a)
	}
	id, what, end := l.begins()
	put(t, pair, "one")
	put(t, pair, "two")
	if what != ipc.StageQUIC || get(t, end) != "one" || get(t, end) != "two" {
		t.Fatal("not what was sent")
	}
	l.found(id, "other-good.test")
	h := l.next(ipc.NamesKindStageSocket)
	put(t, h.fd, "one")
	l.says((&ipc.Passed{ID: id, Count: 1}).Encode())
	fd, s := w.switched(t, 78)
	if s.Count != 1 {
		t.Fatalf("%+v", s)
	}
	put(t, fd, "two")
	_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 9)
	for _, want := range []string{"one", "two"} {
		n, from, err := server.ReadFromUDPAddrPort(b)
		if err != nil || string(b[:n]) != want || from.Port() != a.LocalPort {
			t.Fatalf("%q from %v, %v", b[:n], from, err)
		}
	}
	if u := w.Usage()[budget.UDP]; u.Opened != 1 || u.Held != 1 {
		t.Errorf("counted as %+v", u)
	}
}

// TestNotLookedAt: flows to other ports, by other rules, and echo go as ever; without a
// process for names, those that are to be looked at do not go at all.
func TestNotLookedAt(t *testing.T) {
	_, port := listenAt(t, "tcp", "127.0.0.1:0")
	w, l, _, _ := workLooked(t, port+1)
	fd, a := w.request(t, toLoopback(ipc.ProtoTCP, false, port))
	if fd < 0 || a.Flags&^ipc.OpenedInProgress != 0 {
		t.Errorf("%+v", a)
	}
	unix.Close(fd)
	l.silent()
	w.cfg().VerifySNI = []PortRange{{1, port}}
	w.stages.send = nil
	if fd, a = w.request(t, toLoopback(ipc.ProtoTCP, false, port)); fd >= 0 || a.Errno != uint16(unix.EACCES) {
		t.Errorf("%+v", a)
	}
	f := Config{VerifySNI: w.cfg().VerifySNI}
	g := New(f)
	d := decision{to: netip.AddrPortFrom(netip.Addr{}, port), verdict: egress.Verdict{Allowed: true, ByName: true}}
	for name, q := range map[string]request{
		"echo": {proto: ipc.ProtoICMP}, "an answer": {proto: ipc.ProtoUDP, listener: Listener{ID: 1}}, "TCP": {proto: ipc.ProtoTCP},
	} {
		if got := g.looksAt(&q, &d); got != (name == "TCP") {
			t.Errorf("%s: %v", name, got)
		}
	}
	d.verdict.ByName = false
	if g.looksAt(&request{proto: ipc.ProtoTCP}, &d) {
		t.Error("a flow that is allowed by its address is looked at")
	}
}

// TestLookedAtRefused: a guest whose server refuses hears so, before anything is looked at.
func TestLookedAtRefused(t *testing.T) {
	server, port := listenAt(t, "tcp", "127.0.0.1:0")
	server.Close()
	w, l, _, _ := workLooked(t, port)
	o := toLoopback(ipc.ProtoTCP, false, port)
	o.Token = 5
	if fd, a := w.asks(t, o); fd >= 0 || a.Errno != uint16(unix.ECONNREFUSED) {
		t.Errorf("%+v", a)
	}
	l.silent()
	if u := w.Stages(); u != looked(0) {
		t.Error(u)
	}
}

// TestCapturedLooker: a process for names that was taken over gets no socket for a name
// that may not be, and none to the worker without having had it; nor by saying things
// twice, or of others.
func TestCapturedLooker(t *testing.T) {
	server, port := listenAt(t, "tcp", "127.0.0.1:0")
	w, l, rules, _ := workLooked(t, port)
	ask := func(token uint64) uint32 {
		o := toLoopback(ipc.ProtoTCP, false, port)
		o.Token = token
		w.asks(t, o)
		if _, err := server.Accept(); err != nil {
			t.Fatal(err)
		}
		id, _, _ := l.begins()
		return id
	}
	id := ask(1)
	l.says((&ipc.Passed{ID: id, Count: 5}).Encode()) // before it was judged
	l.says((&ipc.Passed{ID: id + 1}).Encode())
	l.found(id+1, "good.test")
	l.silent()
	l.found(id, "good.test")
	l.next(ipc.NamesKindStageSocket)
	l.found(id, "evil.test") // said before
	l.found(id, "good.test")
	l.silent()
	rules.mu.Lock()
	rules.may = nil // the rules have changed
	rules.mu.Unlock()
	l.says((&ipc.Passed{ID: id, Count: 5}).Encode())
	if _, s := w.switched(t, 1); s.Errno != uint16(unix.EACCES) {
		t.Errorf("%+v", s)
	}
	l.next(ipc.NamesKindStageEnd)
	for name, rec := range map[string][]byte{
		"a record of the broker's": (&ipc.StageEnd{ID: 1}).Encode(), "half a record": (&ipc.Passed{ID: 1}).Encode()[:12],
		"an unknown finding": append((&ipc.Staged{ID: 1, Found: ipc.FoundEnd}).Encode()[:12], make([]byte, 257)...),
		"a name in half":     (&ipc.Staged{ID: 1, Found: ipc.FoundName}).Encode(),
		"a count beyond":     (&ipc.Passed{ID: 1, Count: ipc.MaxStaged + 1}).Encode(),
	} {
		if err := w.FromNames(ipc.KindOf(rec), rec); !errors.Is(err, ipc.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestManyLookedAt: as many as may be, and no more; all are gone with the worker, or with
// the process for names, and nothing is left open.
func TestManyLookedAt(t *testing.T) {
	server, port := listenAt(t, "tcp", "127.0.0.1:0")
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	w, l, _, _ := workLooked(t, port)
	before := descriptorCount(t)
	var pairs []int
	for i := range ipc.MaxStages + 3 {
		o := toLoopback(ipc.ProtoTCP, false, port)
		o.Token = uint64(i + 1)
		if _, err := unix.Write(w.worker, encode(o)); err != nil {
			t.Fatal(err)
		}
		fd, a := w.opened(t)
		if a.Flags&ipc.OpenedLate == 0 {
			fd, a = w.opened(t)
		} else {
			w.opened(t)
		}
		if i >= ipc.MaxStages {
			if fd >= 0 || a.Errno != uint16(unix.EAGAIN) {
				t.Fatalf("%d: %+v", i, a)
			}
			continue
		}
		if fd < 0 {
			t.Fatalf("%d: %+v", i, a)
		}
		pairs = append(pairs, fd)
		h := <-l.recs
		unix.Close(h.fd)
	}
	if u := w.Stages(); u.Held != ipc.MaxStages || u.Ended[StageNoRoom] != 3 {
		t.Errorf("%+v", u)
	}
	w.StagesGone()
	for range pairs {
		if _, s := w.switchedAny(t); s.Errno == 0 {
			t.Fatal("a socket")
		}
		<-l.recs
	}
	closeAll(pairs)
	if u := w.Stages(); u.Held != 0 {
		t.Errorf("%+v", u)
	}
	if after := descriptorCount(t); after > before+8 {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	// The worker's end is that of its flows.
	o := toLoopback(ipc.ProtoTCP, false, port)
	o.Token = 1
	w.asks(t, o)
	<-l.recs
	unix.Shutdown(w.worker, unix.SHUT_RDWR)
	l.next(ipc.NamesKindStageEnd)
	for end := time.Now().Add(5 * time.Second); w.Stages().Held != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a flow outlives its worker")
		}
	}
}
