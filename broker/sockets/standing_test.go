// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/budget"
	"aldente/broker/egress"
	"aldente/ipc"
)

// turning is a set of rules that changes its mind about ports.
type turning struct {
	mu      sync.Mutex
	refused []uint16
}

func (p *turning) Judge(f egress.Flow) egress.Verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	return egress.Verdict{Allowed: !slices.Contains(p.refused, f.To.Port()), Rule: "--deny host"}
}

func (p *turning) Explain(f egress.Flow) (egress.Verdict, []egress.Asked) { return p.Judge(f), nil }

func (p *turning) List() []egress.Listed { return nil }

func (p *turning) refuse(ports ...uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = ports
}

// followed is workWithin under rules that turn.
func followed(t *testing.T) (*atWork, *turning) {
	t.Helper()
	p := &turning{}
	w, _ := workUnder(t, p, func(*budget.Limits) {})
	return w, p
}

// recheck is Recheck with what the worker was told.
func (w *atWork) recheck() (told []ipc.Revoke, left int, defied bool) {
	left, defied = w.Recheck(func(r *ipc.Revoke) error {
		told = append(told, *r)
		return nil
	})
	return told, left, defied
}

// TestRecheck: what the egress rules refuse now is revoked, until it is closed; all
// else is left alone.
func TestRecheck(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		w, p := followed(t)
		addr := netip.MustParseAddr("127.0.0.1")
		if v6 {
			addr = netip.IPv6Loopback()
		}
		fds, _ := w.requests(t, toLoopback(ipc.ProtoUDP, v6, 9), 3)
		others, last := w.requests(t, toLoopback(ipc.ProtoUDP, v6, 10), 3)
		if len(fds) != 3 || len(others) != 3 {
			t.Fatalf("%d and %d sockets, %+v", len(fds), len(others), last)
		}
		if told, left, defied := w.recheck(); len(told) != 0 || left != 0 || defied {
			t.Errorf("nothing has changed: %v, %d, %t", told, left, defied)
		}
		p.refuse(9)
		unix.Close(fds[0])
		want := ipc.Revoke{Proto: ipc.ProtoUDP, Port: 9, Addr: addr.As16()}
		for range 2 { // again, as long as it is not done
			if told, left, defied := w.recheck(); !slices.Equal(told, []ipc.Revoke{want}) || left != 2 || defied {
				t.Errorf("told %v, %d left, %t; want %v", told, left, defied, want)
			}
		}
		closeAll(fds[1:])
		if told, left, defied := w.recheck(); len(told) != 0 || left != 0 || defied {
			t.Errorf("all is done: %v, %d, %t", told, left, defied)
		}
		closeAll(others)
	}
}

// TestRecheckDefied: a worker that keeps what was revoked is found out, copies it
// has made elsewhere included.
func TestRecheckDefied(t *testing.T) {
	defer func(d time.Duration) { revokeTimeout = d }(revokeTimeout)
	revokeTimeout = 50 * time.Millisecond
	w, p := followed(t)
	fd, answer := w.request(t, toLoopback(ipc.ProtoUDP, false, 9))
	if fd < 0 {
		t.Fatal(answer)
	}
	kept, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	p.refuse(9)
	if _, left, defied := w.recheck(); left != 1 || defied {
		t.Errorf("%d left, %t, at once", left, defied)
	}
	time.Sleep(2 * revokeTimeout)
	if _, left, defied := w.recheck(); left != 1 || !defied {
		t.Errorf("%d left, %t, later", left, defied)
	}
	unix.Close(kept)
	if _, left, defied := w.recheck(); left != 0 || defied {
		t.Errorf("%d left, %t, after the end", left, defied)
	}
}

// TestRecheckForgets: flows that come and go are not remembered for ever.
func TestRecheckForgets(t *testing.T) {
	w, _ := followed(t)
	for range 3 * fewStanding {
		fd, answer := w.request(t, toLoopback(ipc.ProtoUDP, false, 9))
		if fd < 0 {
			t.Fatal(answer)
		}
		unix.Close(fd)
	}
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	if n := len(w.ledger.standing.flows); n > fewStanding {
		t.Errorf("%d flows remembered, none is open", n)
	}
}

// TestRecheckUnderWay: a connection that nobody has answered ends at once, by
// nobody's leave, and one that is answered by whom the egress rules refuse meanwhile.
func TestRecheckUnderWay(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1"} {
		port, answer := silent(t, address)
		w, p := followed(t)
		o := toLoopback(ipc.ProtoTCP, address == "::1", port)
		fds, _ := w.requests(t, o, 2)
		if len(fds) != 2 {
			t.Fatal("no connections under way")
		}
		w.recheck()
		if s := connectState(fds[0]); s != unix.BPF_TCP_SYN_SENT {
			t.Fatalf("ended while it was allowed: state %d", s)
		}
		p.refuse(port)
		if told, _, _ := w.recheck(); len(told) != 0 {
			t.Errorf("the worker was told %v", told)
		}
		p.refuse()
		late, _ := w.request(t, o)
		p.refuse(port)
		for _, fd := range fds {
			if s := connectState(fd); s != unix.BPF_TCP_CLOSE {
				t.Errorf("state %d", s)
			}
		}
		closeAll(fds)
		time.Sleep(promptly)
		for deadline := time.Now().Add(10 * time.Second); w.Usage()[budget.TCP].Held > 0; time.Sleep(50 * time.Millisecond) {
			answer()
			if time.Now().After(deadline) {
				t.Fatal("answered, and still held")
			}
		}
		if _, err := unix.Write(late, []byte("?")); err != unix.EPIPE && err != unix.ECONNRESET {
			t.Errorf("a write to whom the egress rules refuse: %v", err)
		}
		unix.Close(late)
	}
}

// TestRecheckManyDefied: more flows than are told of at a time hide none that was
// told of before, nor does a worker that does not read.
func TestRecheckManyDefied(t *testing.T) {
	defer func(d time.Duration) { revokeTimeout = d }(revokeTimeout)
	revokeTimeout = time.Hour
	w, p := followed(t)
	var ports []uint16
	for port := uint16(2000); len(ports) < 4*maxRevokes; port++ {
		fd, answer := w.request(t, toLoopback(ipc.ProtoUDP, false, port))
		if fd < 0 {
			t.Fatal(answer)
		}
		defer unix.Close(fd)
		ports = append(ports, port)
	}
	p.refuse(ports...)
	told := map[uint16]bool{}
	for range 3 {
		revoked, _, _ := w.recheck()
		for _, r := range revoked {
			told[r.Port] = true
		}
	}
	if n := len(w.ledger.standing.refused); n != len(told) {
		t.Errorf("%d are remembered, %d were told of", n, len(told))
	}
	w.Recheck(func(*ipc.Revoke) error { return unix.EAGAIN })
	if n := len(w.ledger.standing.refused); n != len(told) {
		t.Errorf("%d are remembered once the worker does not read, %d were told of", n, len(told))
	}
	revokeTimeout = 0
	if _, _, defied := w.recheck(); !defied {
		t.Error("nothing is found out")
	}
}
