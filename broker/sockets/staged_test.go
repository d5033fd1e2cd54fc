// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"io"
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
	"aldente/ipc/domain"
)

// byName are rules by which the guest may go everywhere by a name, and hellos may have
// some names.
type byName struct {
	mu  sync.Mutex
	may []domain.Name
}

func (p *byName) Judge(f egress.Flow) egress.Verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := egress.Verdict{Allowed: true, ByName: true, Name: "good.test", Rule: "--allow good.test"}
	if f.Open && !slices.Contains(p.may, f.Name) {
		v.Allowed = false
	}
	return v
}
func (p *byName) Explain(f egress.Flow) (egress.Verdict, []egress.Asked) { return p.Judge(f), nil }
func (p *byName) List() []egress.Listed                                  { return nil }

// looker is the process for names, as a test plays it.
type looker struct {
	t    *testing.T
	f    *Factory
	dead bool
	recs chan heard
}

// heard is a record that it was sent.
type heard struct {
	kind ipc.Kind
	rec  []byte
	fd   int

	closed *bool
}

func (h *heard) close() {
	if h.fd >= 0 && !*h.closed {
		unix.Close(h.fd)
		*h.closed = true
	}
}

func (l *looker) send(rec []byte, fd int) error {
	if l.dead {
		return unix.EPIPE
	}
	if fd >= 0 {
		fd, _ = unix.Dup(fd)
	}
	l.recs <- heard{kind: ipc.KindOf(rec), rec: rec, fd: fd}
	return nil
}

// next is what it is told next.
func (l *looker) next(kind ipc.Kind) *heard {
	l.t.Helper()
	select {
	case h := <-l.recs:
		if h.kind != kind {
			l.t.Fatalf("told %#x, not %#x", h.kind, kind)
		}
		h.closed = new(bool)
		l.t.Cleanup(h.close)
		return &h
	case <-time.After(5 * time.Second):
		l.t.Fatalf("not told %#x", kind)
	}
	return nil
}

// silent fails if it is told anything.
func (l *looker) silent() {
	l.t.Helper()
	select {
	case h := <-l.recs:
		l.t.Fatalf("told %#x", h.kind)
	case <-time.After(50 * time.Millisecond):
	}
}

func (l *looker) begins() (id uint32, what uint8, fd int) {
	l.t.Helper()
	h := l.next(ipc.NamesKindStage)
	var s ipc.Stage
	if err := s.Decode(h.rec); err != nil {
		l.t.Fatal(err)
	}
	return s.ID, s.What, h.fd
}

func (l *looker) says(rec []byte) {
	l.t.Helper()
	if err := l.f.FromNames(ipc.KindOf(rec), rec); err != nil {
		l.t.Fatal(err)
	}
}

func (l *looker) found(id uint32, name string) {
	l.t.Helper()
	r := ipc.Staged{ID: id, Found: ipc.FoundName}
	r.Name, _ = ipc.MakeName(name)
	l.says(r.Encode())
}

// workLooked is a factory at work whose flows to some ports are looked at.
func workLooked(t *testing.T, to ...uint16) (*atWork, *looker, *byName, *lockedBuffer) {
	t.Helper()
	rules := &byName{may: []domain.Name{"good.test", "other-good.test"}}
	l := &looker{t: t, recs: make(chan heard, 4*ipc.MaxStages)}
	w, log := workUnder(t, rules, func(*budget.Limits) {})
	for _, p := range to {
		w.cfg.VerifySNI = append(w.cfg.VerifySNI, PortRange{p, p})
	}
	l.f = w.Factory
	w.SetNames(l.send)
	return w, l, rules, log
}

// asks has the worker ask for a socket, and returns what comes in the end.
func (w *atWork) asks(t *testing.T, o ipc.Open) (fd int, a ipc.Opened) {
	t.Helper()
	fd, a = w.request(t, o)
	var late ipc.Opened
	lateFD, waited := -1, false
	for k := 0; k < 2 && (a.Flags&(ipc.OpenedWait|ipc.OpenedLate) != 0); k++ {
		if a.Flags == ipc.OpenedWait {
			waited = true
		} else {
			late, lateFD = a, fd
		}
		if k == 0 {
			fd, a = w.opened(t)
		}
	}
	if late.Token == 0 {
		return fd, a
	}
	if !waited || late.Token != o.Token {
		t.Fatalf("a late answer, %+v", late)
	}
	t.Cleanup(func() { unix.Close(lateFD) })
	return lateFD, late
}

func (w *atWork) record(t *testing.T) ([]byte, int) {
	t.Helper()
	buf := make([]byte, ipc.MaxRecord)
	n, fd, err := ipc.Receive(w.worker, buf, 0)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n], fd
}

func (w *atWork) opened(t *testing.T) (int, ipc.Opened) {
	t.Helper()
	b, fd := w.record(t)
	var a ipc.Opened
	if err := a.Decode(b); err != nil {
		t.Fatal(err)
	}
	return fd, a
}

// switched is the worker's next record.
func (w *atWork) switched(t *testing.T, token uint64) (int, ipc.Switch) {
	t.Helper()
	fd, s := w.switchedAny(t)
	if s.Token != token {
		t.Fatalf("%+v", s)
	}
	return fd, s
}

func (w *atWork) switchedAny(t *testing.T) (int, ipc.Switch) {
	t.Helper()
	b, fd := w.record(t)
	var s ipc.Switch
	if err := s.Decode(b); err != nil || (s.Errno == 0) != (fd >= 0) {
		t.Fatalf("%+v, %d, %v", s, fd, err)
	}
	if fd >= 0 {
		t.Cleanup(func() { unix.Close(fd) })
	}
	return fd, s
}

func put(t *testing.T, fd int, s string) {
	t.Helper()
	if n, err := unix.Write(fd, []byte(s)); n != len(s) || err != nil {
		t.Fatal(n, err)
	}
}

func get(t *testing.T, fd int) string {
	t.Helper()
	b := make([]byte, 1<<16)
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(p, 5000); err != nil {
		t.Fatal(err)
	}
	n, err := unix.Read(fd, b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// listenAt is a server, and its port.
func listenAt(t *testing.T, network, addr string) (net.Listener, uint16) {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, netip.MustParseAddrPort(l.Addr().String()).Port()
}

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
		if u := w.Stages(); u != (StageUsage{Passed: 1}) {
			t.Error(u)
		}
		l.silent()
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
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
	w.cfg.VerifySNI = []PortRange{{1, port}}
	w.stages.send = nil
	if fd, a = w.request(t, toLoopback(ipc.ProtoTCP, false, port)); fd >= 0 || a.Errno != uint16(unix.EACCES) {
		t.Errorf("%+v", a)
	}
	f := Config{VerifySNI: w.cfg.VerifySNI}
	g := &Factory{cfg: f}
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
	if u := w.Stages(); u != (StageUsage{}) {
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
		usage StageUsage
	}{
		"another name":  {func(l *looker, id uint32) { l.found(id, "evil.test") }, unix.EACCES, "hello=evil.test", StageUsage{Refused: 1}},
		"no host name":  {func(l *looker, id uint32) { l.found(id, "evil test") }, unix.EACCES, "no host name", StageUsage{Refused: 1}},
		"no name":       {func(l *looker, id uint32) { l.says((&ipc.Staged{ID: id, Found: ipc.FoundNoName}).Encode()) }, unix.EACCES, "no server name", StageUsage{Refused: 1}},
		"no hello":      {func(l *looker, id uint32) { l.says((&ipc.Staged{ID: id, Found: ipc.FoundNotHello}).Encode()) }, unix.EACCES, "no TLS client hello", StageUsage{Refused: 1}},
		"no process":    {func(l *looker, id uint32) { l.f.StagesGone() }, unix.ECONNRESET, "", StageUsage{Failed: 1}},
		"nothing comes": {func(l *looker, id uint32) {}, unix.ETIMEDOUT, "nothing to see in time", StageUsage{Refused: 1}},
		"cannot be written": {func(l *looker, id uint32) {
			l.found(id, "good.test")
			l.next(ipc.NamesKindStageSocket).close()
			l.says((&ipc.Passed{ID: id, Errno: uint16(unix.ECONNRESET)}).Encode())
		}, unix.ECONNRESET, "", StageUsage{Failed: 1}},
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
			if u := w.Stages(); u != c.usage {
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
	if u := w.Stages(); u.Held != ipc.MaxStages || u.Failed != 3 {
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
	if u := w.Stages(); u != (StageUsage{Failed: 1}) {
		t.Errorf("%+v", u)
	}
}
