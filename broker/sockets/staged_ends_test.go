// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

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
