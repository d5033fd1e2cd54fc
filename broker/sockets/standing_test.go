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
	asked   func(egress.Flow) // nil: nobody wants to know
}

func (p *turning) Judge(f egress.Flow) egress.Verdict {
	p.mu.Lock()
	asked := p.asked
	p.mu.Unlock()
	if asked != nil {
		asked(f)
	}
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
	left, defied = w.Recheck(Revoker{Peers: func(r *ipc.Revoke) error {
		told = append(told, *r)
		return nil
	}})
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
	w.Recheck(Revoker{Peers: func(*ipc.Revoke) error { return unix.EAGAIN }})
	if n := len(w.ledger.standing.refused); n != len(told) {
		t.Errorf("%d are remembered once the worker does not read, %d were told of", n, len(told))
	}
	revokeTimeout = 0
	if _, _, defied := w.recheck(); !defied {
		t.Error("nothing is found out")
	}
}

// changeable is followed where the rules may be changed.
func changeable(t *testing.T) (*atWork, *turning) {
	t.Helper()
	w, p := followed(t)
	w.ledger.mu.Lock()
	defer w.ledger.mu.Unlock()
	if !w.FollowAll() {
		t.Fatal("flows cannot be followed")
	}
	return w, p
}

// tokens has the worker told, and returns which flows it is to end.
func (w *atWork) tokens() (told []uint64, left int, defied bool) {
	left, defied = w.Recheck(Revoker{
		Peers: func(*ipc.Revoke) error { return nil },
		Flows: func(r *ipc.RevokeFlows) error {
			told = append(told, r.Tokens[:r.N]...)
			return nil
		},
	})
	slices.Sort(told)
	return told, left, defied
}

// opensTCP opens connections to a server on loopback, with tokens from 1 on.
func (w *atWork) opensTCP(t *testing.T, v6 bool, port uint16, n int) (fds []int) {
	t.Helper()
	for i := range n {
		o := toLoopback(ipc.ProtoTCP, v6, port)
		o.Token = uint64(i + 1)
		fd, answer := w.request(t, o)
		if fd < 0 {
			t.Fatal(answer)
		}
		fds = append(fds, fd)
	}
	return fds
}

// TestRecheckConnections: where rules may be changed, connections that are made end by
// their tokens, until they are closed; those that are to go on do, until somebody says
// otherwise.
func TestRecheckConnections(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1"} {
		port := servers(t, address)
		w, p := changeable(t)
		fds := w.opensTCP(t, address == "::1", port, 3)
		if told, left, _ := w.tokens(); told != nil || left != 0 {
			t.Errorf("nothing has changed: %v, %d", told, left)
		}
		p.refuse(port)
		w.RulesChanged(true)
		if told, left, _ := w.tokens(); told != nil || left != 0 {
			t.Errorf("to be kept: %v, %d", told, left)
		}
		w.RulesChanged(false)
		unix.Close(fds[1])
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if _, left, _ := w.tokens(); left == 2 {
				break
			}
		}
		for range 2 {
			if told, left, defied := w.tokens(); !slices.Equal(told, []uint64{1, 3}) || left != 2 || defied {
				t.Errorf("told of %v, %d left, %t", told, left, defied)
			}
		}
		unix.Close(fds[0])
		unix.Close(fds[2])
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) { // our own copies of what was under way, too
			told, left, _ := w.tokens()
			if told == nil && left == 0 {
				break
			} else if time.Now().After(end) {
				t.Fatalf("all is done: %v, %d", told, left)
			}
		}
	}
}

// TestRecheckConnectionsDefied: a worker that keeps connections is found out, one that
// was not told is not.
func TestRecheckConnectionsDefied(t *testing.T) {
	defer func(d time.Duration) { revokeTimeout = d }(revokeTimeout)
	revokeTimeout = 50 * time.Millisecond
	port := servers(t, "127.0.0.1")
	w, p := changeable(t)
	defer closeAll(w.opensTCP(t, false, port, 2*ipc.MaxRevoke+1))
	p.refuse(port)
	deaf := Revoker{Peers: func(*ipc.Revoke) error { return nil }, Flows: func(*ipc.RevokeFlows) error { return unix.EAGAIN }}
	for range 2 {
		if left, defied := w.Recheck(deaf); left != 2*ipc.MaxRevoke+1 || defied {
			t.Errorf("%d left, %t: of which it was not told", left, defied)
		}
		time.Sleep(2 * revokeTimeout)
	}
	if told, _, defied := w.tokens(); len(told) != 2*ipc.MaxRevoke+1 || defied {
		t.Errorf("told of %d, %t", len(told), defied)
	}
	time.Sleep(2 * revokeTimeout)
	if _, _, defied := w.tokens(); !defied {
		t.Error("nothing is found out")
	}
}

// TestRecheckConnectionsForgets: connections that come and go are not remembered for
// ever, and where rules stay, none is.
func TestRecheckConnectionsForgets(t *testing.T) {
	port := servers(t, "127.0.0.1")
	for name, start := range map[string]func(*testing.T) (*atWork, *turning){"may change": changeable, "stay": followed} {
		w, _ := start(t)
		for range 2*fewStanding + 10 {
			fd, answer := w.request(t, toLoopback(ipc.ProtoTCP, false, port))
			if fd < 0 {
				t.Fatal(answer)
			}
			unix.Close(fd)
		}
		w.ledger.mu.Lock()
		n := len(w.ledger.standing.flows)
		w.ledger.mu.Unlock()
		if n > fewStanding || name == "stay" && n != 0 {
			t.Errorf("%s: %d connections remembered, none is open", name, n)
		}
	}
}

// TestJudgedUnlocked: rules may be thousands, and flows too. While those that are there are
// judged anew, others are opened.
func TestJudgedUnlocked(t *testing.T) {
	port := servers(t, "127.0.0.1")
	w, p := changeable(t)
	defer closeAll(w.opensTCP(t, false, port, 3))
	under := stood{Flow: egress.Flow{Proto: ipc.ProtoTCP, To: netip.MustParseAddrPort("192.0.2.1:1")}, token: 9}
	var pipe [2]int // whose reading end is never writable
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[1])
	added := false
	for end := time.Now().Add(10 * time.Second); !added && time.Now().Before(end); time.Sleep(time.Millisecond) {
		w.ledger.mu.Lock()
		if w.ledger.waiting.n == 0 { // else those may be judged when they end
			added = w.ledger.waiting.add(pipe[0], under, nil)
		}
		w.ledger.mu.Unlock()
	}
	if !added {
		t.Fatal("not added")
	}
	judged := map[egress.Flow]int{}
	p.mu.Lock()
	p.asked = func(f egress.Flow) {
		judged[f]++
		for end := time.Now().Add(5 * time.Second); !w.ledger.mu.TryLock(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("locked while it is judged")
			}
		}
		w.ledger.mu.Unlock()
	}
	p.mu.Unlock()
	p.refuse(1)
	for _, keep := range []bool{true, false} {
		w.RulesChanged(keep)
	}
	if _, left, _ := w.tokens(); left != 0 || judged[under.Flow] != 3 || len(judged) < 2 {
		t.Errorf("%d left, judged %v", left, judged)
	}
}

// overtaken is a set of rules that changes right behind the first answer that it gives.
type overtaken struct {
	*turning
	change func()
}

func (p *overtaken) Judge(f egress.Flow) egress.Verdict {
	v := p.turning.Judge(f)
	p.mu.Lock()
	change := p.change
	p.change = nil
	p.mu.Unlock()
	if change != nil {
		change()
	}
	return v
}

// TestOvertaken: rules that change between the decision about a flow and its socket's being
// remembered count for it: nobody else would find it.
func TestOvertaken(t *testing.T) {
	for _, c := range []struct {
		proto   uint8
		address string
	}{{ipc.ProtoTCP, "127.0.0.1"}, {ipc.ProtoTCP, "::1"}, {ipc.ProtoUDP, "127.0.0.1"}, {ipc.ProtoUDP, "::1"}} {
		port := servers(t, c.address)
		p := &overtaken{turning: &turning{}}
		w, _ := workUnder(t, p, func(*budget.Limits) {})
		w.ledger.mu.Lock()
		followed := w.FollowAll()
		w.ledger.mu.Unlock()
		if !followed {
			t.Fatal("flows cannot be followed")
		}
		for _, refuse := range []uint16{port + 1, port} {
			p.mu.Lock()
			p.change = func() {
				p.refuse(refuse)
				w.RulesChanged(false)
				w.tokens()
			}
			p.mu.Unlock()
			o := toLoopback(c.proto, c.address == "::1", port)
			fd, answer := w.request(t, o)
			if refused := answer.Errno != 0; refused != (refuse == port) || refused != (fd < 0) {
				t.Errorf("%v, refusing %d: descriptor %d, %+v", c, refuse, fd, answer)
			}
			if fd >= 0 {
				unix.Close(fd)
			}
			p.refuse()
		}
	}
}
