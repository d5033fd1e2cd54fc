// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"net"
	"net/netip"
	"slices"
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
	mu   sync.Mutex
	may  []domain.Name
	none bool // nothing is allowed
}

func (p *byName) Judge(f egress.Flow) egress.Verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := egress.Verdict{Allowed: true, ByName: true, Name: "good.test", Rule: "--allow good.test"}
	if p.none || f.Open && !slices.Contains(p.may, f.Name) {
		v.Allowed = false
	}
	return v
}

// forbid has flows by a name allowed no more.
func (p *byName) forbid(name domain.Name) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.may = slices.DeleteFunc(p.may, func(n domain.Name) bool { return n == name })
}

func (p *byName) Explain(f egress.Flow) (egress.Verdict, []egress.Asked) { return p.Judge(f), nil }
func (p *byName) List() []egress.Listed                                  { return nil }

// looker is the process for names, as a test plays it.
type looker struct {
	t     *testing.T
	f     *Factory
	rules *byName
	dead  bool
	full  bool
	recs  chan heard
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
	if l.full {
		return unix.EAGAIN
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
	l := &looker{t: t, rules: rules, recs: make(chan heard, 4*ipc.MaxStages)}
	w, log := workUnder(t, rules, func(*budget.Limits) {})
	for _, p := range to {
		w.cfg().VerifySNI = append(w.cfg().VerifySNI, PortRange{p, p})
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

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// looked is what became of flows that were looked at.
func looked(passed uint64, ended ...StageReason) StageUsage {
	u := StageUsage{Bound: ipc.MaxStages, Passed: passed}
	for _, r := range ended {
		u.Ended[r]++
	}
	return u
}
