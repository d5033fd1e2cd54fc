// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
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

// TestAnotherName: whatever is not a name that the rules let be there ends the flow: the
// server hears nothing, the log says why, and it is counted.
func TestAnotherName(t *testing.T) {
	for name, c := range map[string]struct {
		says  func(l *looker, id uint32)
		errno unix.Errno
		log   string
		why   StageReason
	}{
		"another name":  {func(l *looker, id uint32) { l.found(id, "evil.test") }, unix.EACCES, "hello=evil.test", StageOtherName},
		"no host name":  {func(l *looker, id uint32) { l.found(id, "evil test") }, unix.EACCES, "no host name", StageNoName},
		"no name":       {func(l *looker, id uint32) { l.says((&ipc.Staged{ID: id, Found: ipc.FoundNoName}).Encode()) }, unix.EACCES, "no server name", StageNoName},
		"no hello":      {func(l *looker, id uint32) { l.says((&ipc.Staged{ID: id, Found: ipc.FoundNotHello}).Encode()) }, unix.EACCES, "no TLS client hello", StageNoHello},
		"its end":       {func(l *looker, id uint32) { l.says((&ipc.Staged{ID: id, Found: ipc.FoundEnd}).Encode()) }, unix.EACCES, "the end", StageLost},
		"no process":    {func(l *looker, id uint32) { l.f.StagesGone() }, unix.ECONNRESET, "", StageLost},
		"nothing comes": {func(l *looker, id uint32) {}, unix.ETIMEDOUT, "nothing to see in time", StageLate},
		"cannot be written": {func(l *looker, id uint32) {
			l.found(id, "good.test")
			l.next(ipc.NamesKindStageSocket).close()
			l.says((&ipc.Passed{ID: id, Errno: uint16(unix.ECONNRESET)}).Encode())
		}, unix.ECONNRESET, "", StageLost},
		"refused meanwhile": {func(l *looker, id uint32) {
			l.found(id, "good.test")
			l.next(ipc.NamesKindStageSocket).close()
			l.rules.forbid("good.test")
			l.says((&ipc.Passed{ID: id, Count: 1}).Encode())
		}, unix.EACCES, "hello=good.test", StageOtherName},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "nothing comes" {
				defer func(d time.Duration) { stageTime = d }(stageTime)
				stageTime = 100 * time.Millisecond
			}
			server, port := listenAt(t, "tcp", "127.0.0.1:0")
			w, l, _, log := workLooked(t, port)
			o := toLoopback(ipc.ProtoTCP, false, port)
			o.Token = 9
			w.asks(t, o)
			conn, err := server.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			id, _, _ := l.begins()
			c.says(l, id)
			if _, s := w.switched(t, 9); s.Errno != uint16(c.errno) {
				t.Errorf("%+v", s)
			}
			l.next(ipc.NamesKindStageEnd)
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			if n, err := conn.Read(make([]byte, 9)); n != 0 || isTimeout(err) {
				t.Errorf("the server hears %d bytes, %v", n, err)
			}
			if u := w.Stages(); u != looked(0, c.why) {
				t.Errorf("%+v", u)
			}
			for end := time.Now().Add(5 * time.Second); !strings.Contains(log.String(), c.log) && time.Now().Before(end); {
				time.Sleep(time.Millisecond) // it is told after the worker
			}
			if got := log.String(); !strings.Contains(got, c.log) || c.log == "" && strings.Contains(got, "refused for its client hello") {
				t.Errorf("log: %s", got)
			} else if c.log != "" && (!strings.Contains(got, "name=good.test") || !strings.Contains(got, `rule="--allow good.test"`) || !strings.Contains(got, "to=127.0.0.1:")) {
				t.Errorf("log: %s", got)
			}
			// What comes late is of nobody.
			l.found(id, "good.test")
			l.says((&ipc.Passed{ID: id, Count: 1}).Encode())
			l.silent()
		})
	}
}

// TestEndedWhilePassedOn: a flow that ends while its socket is passed on to the process for
// names does not close that meanwhile: its number might be another's by then.
func TestEndedWhilePassedOn(t *testing.T) {
	_, port := listenAt(t, "tcp", "127.0.0.1:0")
	w, l, _, _ := workLooked(t, port)
	o := toLoopback(ipc.ProtoTCP, false, port)
	o.Token = 9
	w.asks(t, o)
	id, _, _ := l.begins()
	passed := -1
	w.SetNames(func(rec []byte, fd int) error {
		if ipc.KindOf(rec) == ipc.NamesKindStageSocket {
			w.endStaged(id, unix.ECONNRESET, StageLost)
			passed = fd
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
				t.Errorf("descriptor %d while it is passed on: %v", fd, err)
			}
		}
		return nil
	})
	l.found(id, "good.test")
	if _, err := unix.FcntlInt(uintptr(passed), unix.F_GETFD, 0); err != unix.EBADF {
		t.Errorf("descriptor %d afterwards: %v", passed, err)
	}
	if _, s := w.switched(t, 9); s.Errno != uint16(unix.ECONNRESET) {
		t.Errorf("%+v", s)
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

// TestLookerDead: where the process for names is gone, flows end at once.
func TestLookerDead(t *testing.T) {
	_, port := listenAt(t, "tcp", "127.0.0.1:0")
	w, l, _, _ := workLooked(t, port)
	l.dead = true
	o := toLoopback(ipc.ProtoTCP, false, port)
	o.Token = 3
	if _, err := unix.Write(w.worker, encode(o)); err != nil {
		t.Fatal(err)
	}
	var kinds []ipc.Kind // that it has to wait may come late
	for range 3 {
		b, fd := w.record(t)
		if fd >= 0 {
			unix.Close(fd)
		}
		var s ipc.Switch
		if s.Decode(b) == nil && s.Errno != uint16(unix.ECONNRESET) {
			t.Errorf("%+v", s)
		}
		kinds = append(kinds, ipc.KindOf(b))
	}
	if !slices.Contains(kinds, ipc.KindSwitch) {
		t.Errorf("%v", kinds)
	}
	if u := w.Stages(); u != looked(0, StageLost) {
		t.Errorf("%+v", u)
	}
}

// TestLookedAtRecheck: what the rules refuse since ends while it is looked at, and nobody
// but the worker has to be asked.
func TestLookedAtRecheck(t *testing.T) {
	server, port := listenAt(t, "tcp", "127.0.0.1:0")
	w, l, rules, log := workLooked(t, port)
	o := toLoopback(ipc.ProtoTCP, false, port)
	o.Token = 4
	w.asks(t, o)
	conn, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l.begins()
	recheck := func() (int, bool) {
		return w.Recheck(Revoker{Peers: func(*ipc.Revoke) error { return nil }, Flows: func(*ipc.RevokeFlows) error { return nil }})
	}
	if left, _ := recheck(); left != 0 {
		t.Errorf("%d of what is allowed", left)
	}
	rules.mu.Lock()
	rules.may = nil
	rules.mu.Unlock()
	if left, defied := recheck(); left != 1 || defied {
		t.Errorf("%d, %t", left, defied)
	}
	if _, s := w.switched(t, 4); s.Errno != uint16(unix.EACCES) {
		t.Errorf("%+v", s)
	}
	l.next(ipc.NamesKindStageEnd)
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := conn.Read(make([]byte, 9)); n != 0 || isTimeout(err) {
		t.Errorf("the server hears %d bytes, %v", n, err)
	}
	if left, _ := recheck(); left != 0 || w.Stages() != looked(0, StageOtherName) {
		t.Errorf("%d left, %+v", left, w.Stages())
	}
	if got := log.String(); !strings.Contains(got, "refused by the egress rules") {
		t.Errorf("log: %s", got)
	}
}

// TestStageEndsBeforeTold: what ends a flow before the worker has been told of it ends it
// for the worker behind that, which would keep it for ever otherwise; nobody looks at it.
func TestStageEndsBeforeTold(t *testing.T) {
	for name, c := range map[string]struct {
		end   func(f *Factory)
		errno unix.Errno
		why   StageReason
	}{
		"the process for names": {(*Factory).StagesGone, unix.ECONNRESET, StageLost},
		"the rules":             {func(f *Factory) { f.recheckStages() }, unix.EACCES, StageOtherName},
	} {
		t.Run(name, func(t *testing.T) {
			l := &looker{t: t, recs: make(chan heard, 8)}
			f := New(Config{Logger: slog.New(slog.DiscardHandler), Egress: &byName{}, VerifySNI: []PortRange{{443, 443}}})
			t.Cleanup(f.Close)
			f.SetNames(l.send)
			ours, theirs, err := ipc.Pair()
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(ours)
			defer unix.Close(theirs)
			_ = unix.SetsockoptTimeval(theirs, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
			w := &atWork{Factory: f, worker: theirs}
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			s := &served{fd: ours}
			flow := &staged{q: request{proto: ipc.ProtoUDP, token: 11}, d: decision{to: netip.MustParseAddrPort("198.51.100.7:443")}, s: s}
			s.mu.Lock() // as while other answers are sent
			var both sync.WaitGroup
			both.Go(func() { f.connected(flow, fd) })
			for f.Stages().Held == 0 {
				time.Sleep(time.Millisecond)
			}
			ended := make(chan struct{})
			both.Go(func() {
				c.end(f)
				close(ended)
			})
			select {
			case <-ended:
			case <-time.After(5 * time.Second):
				t.Error("the flow's end waits for its worker")
			}
			s.mu.Unlock()
			both.Wait()
			pair, a := w.opened(t)
			defer unix.Close(pair)
			if a.Token != 11 || a.Flags != ipc.OpenedLate|ipc.OpenedStaged {
				t.Fatalf("%+v", a)
			}
			if _, s := w.switched(t, 11); s.Errno != uint16(c.errno) {
				t.Errorf("%+v", s)
			}
			l.next(ipc.NamesKindStageEnd) // and no Stage before it
			if _, err := unix.Write(pair, []byte("x")); err != unix.EPIPE {
				t.Errorf("somebody looks: %v", err)
			}
			if u := f.Stages(); u != looked(0, c.why) {
				t.Errorf("%+v", u)
			}
		})
	}
}
