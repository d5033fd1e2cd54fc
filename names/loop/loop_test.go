// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// scene is a loop, with a test that plays its broker, a client and the resolver.
type scene struct {
	t       *testing.T
	broker  int // the broker's end
	notes   int // the same of the channel for notes
	noting  int // and the loop's end of that
	ended   chan error
	granted uint64   // what the broker grants
	around  uint8    // and how far that holds
	mute    bool     // it says nothing to what it is told
	named   []string // what it was told of
	refused []string
	closed  []uint16
	counted int
}

// newScene starts a loop with rules: *.good.test, and not bad.good.test.
func newScene(t *testing.T) *scene { return newSceneWith(t, 0) }

// newSceneWith is newScene for a process that may hold so many descriptors.
func newSceneWith(t *testing.T, files int) *scene {
	t.Helper()
	ours, theirs, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{t: t, broker: ours, ended: make(chan error, 1), granted: ^uint64(0)}
	if s.notes, s.noting, err = ipc.Pair(); err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{theirs, s.noting} {
		if err := unix.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if s.broker >= 0 {
			unix.Close(s.broker)
		}
		<-s.ended
		unix.Close(theirs)
		unix.Close(s.notes)
		unix.Close(s.noting)
	})
	pattern := func(s string) ipc.Name { n, _ := ipc.MakeName(s); return n }
	for _, rec := range [][]byte{
		(&ipc.NamesConfig{Resolvers: 1}).Encode(),
		(&ipc.NamesRule{Index: 0, Pattern: pattern("bad.good.test")}).Encode(),
		(&ipc.NamesRule{Index: 1, Flags: ipc.NameRuleAllow, Pattern: pattern("*.good.test")}).Encode(),
		(&ipc.NamesRules{Count: 2}).Encode(),
	} {
		s.say(rec, -1)
	}
	s.say(ipc.Empty(ipc.NamesKindStart), s.noting)
	go func() {
		l, err := New(theirs, files)
		if err == nil {
			err = l.Run()
			unix.Close(l.poll.FD())
			unix.Close(l.notes)
		}
		s.ended <- err
		close(s.ended)
	}()
	if kind, _ := s.hear(); kind != ipc.NamesKindReady {
		t.Fatalf("kind %#x", kind)
	}
	return s
}

func (s *scene) say(rec []byte, fd int) {
	s.t.Helper()
	if err := ipc.Send(s.broker, rec, fd); err != nil {
		s.t.Fatal(err)
	}
}

// hear waits for a record.
func (s *scene) hear() (ipc.Kind, []byte) {
	s.t.Helper()
	p := []unix.PollFd{{Fd: int32(s.broker), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, 20_000); n != 1 {
		s.t.Fatalf("nothing is said: %v", err)
	}
	buf := make([]byte, ipc.MaxRecord)
	n, fd, err := ipc.Receive(s.broker, buf, 0)
	if err != nil || fd >= 0 {
		s.t.Fatalf("descriptor %d, %v", fd, err)
	}
	kind, err := ipc.FromNames.Check(buf[:n], false, ipc.Starting|ipc.Running)
	if err != nil {
		s.t.Fatal(err)
	}
	return kind, buf[:n]
}

// serve plays the broker until done is true.
func (s *scene) serve(done func() bool) {
	s.t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); {
		if time.Now().After(end) {
			s.t.Fatalf("named %q, refused %q", s.named, s.refused)
		}
		p := []unix.PollFd{{Fd: int32(s.broker), Events: unix.POLLIN}}
		if n, _ := unix.Poll(p, 5); n == 1 {
			s.record(s.hear())
		}
	}
}

func (s *scene) record(kind ipc.Kind, rec []byte) {
	s.t.Helper()
	switch kind {
	case ipc.NamesKindDial:
		for ; len(rec) > 0; rec = rec[ipc.DialSize:] {
			var d ipc.Dial
			if err := d.Decode(rec[:ipc.DialSize]); err != nil {
				s.t.Fatal(err)
			}
			s.dial(&d)
		}
	case ipc.NamesKindNamed:
		var n ipc.Named
		if err := n.Decode(rec); err != nil {
			s.t.Fatal(err)
		}
		s.named = append(s.named, fmt.Sprintf("%s %d %v", n.Name.String(), n.Count, netip.AddrFrom16(n.Addr[0]).Unmap()))
		if s.mute {
			return
		}
		g := ipc.Granted{Seq: n.Seq, Mask: s.granted}
		for i := range n.Count {
			if s.granted>>i&1 != 0 {
				g.Around[i] = s.around
			}
		}
		s.say(g.Encode(), -1)
	case ipc.NamesKindCounted:
		s.counted++
	case ipc.NamesKindRefused:
		var r ipc.Refused
		if err := r.Decode(rec); err != nil {
			s.t.Fatal(err)
		}
		s.refused = append(s.refused, r.Name.String())
	case ipc.NamesKindClosed:
		var c ipc.Closed
		if err := c.Decode(rec); err != nil {
			s.t.Fatal(err)
		}
		s.closed = append(s.closed, c.Port)
	}
}

// dial passes one end of a pair of datagram sockets, and answers what comes by the other.
func (s *scene) dial(d *ipc.Dial) {
	s.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := unix.SetNonblock(fds[1], true); err != nil {
		s.t.Fatal(err)
	}
	u := ipc.Upstream{Seq: d.Seq, Resolver: d.Resolver, Proto: d.Proto}
	s.say(u.Encode(), fds[1])
	unix.Close(fds[1])
	f := os.NewFile(uintptr(fds[0]), "resolver")
	s.t.Cleanup(func() { f.Close() })
	go func() {
		b := make([]byte, 2000)
		n, err := f.Read(b)
		if err != nil || n == 0 {
			return
		}
		_, _ = f.Write(reply(b[:n]))
	}()
}

// reply answers with two addresses.
func reply(b []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(b) != nil {
		return nil
	}
	m.Response, m.Additionals = true, nil
	h := dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60}
	for _, a := range [][4]byte{{192, 0, 2, 1}, {192, 0, 2, 2}} {
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a}})
	}
	out, _ := m.Pack()
	return out
}

// client passes one end of a pair, and returns the other.
func (s *scene) client(id uint32, proto uint8) int {
	s.t.Helper()
	typ := unix.SOCK_DGRAM
	if proto == ipc.ProtoTCP {
		typ = unix.SOCK_STREAM
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	_ = unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUF, 1) // the least
	s.say((&ipc.Client{ID: id, Proto: proto, Port: uint16(id)}).Encode(), fds[1])
	unix.Close(fds[1])
	return fds[0]
}

func question(name string, id uint16) []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	b, _ := m.Pack()
	return b
}

func framed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// addresses are what an answer has.
func addresses(t *testing.T, b []byte) (rcode dnsmessage.RCode, n int) {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	return m.RCode, len(m.Answers)
}

// read is what a client hears, while the test plays the broker.
func (s *scene) read(fd int) (b []byte) {
	s.t.Helper()
	s.serve(func() bool {
		buf := make([]byte, 70_000)
		n, err := unix.Read(fd, buf)
		if err == unix.EAGAIN {
			return false
		}
		if err != nil {
			s.t.Fatal(err)
		}
		b = buf[:n]
		return true
	})
	return b
}

// TestQuestions: a question goes to a resolver, its addresses to the broker, and what that
// grants to the client; and a name that is refused goes nowhere.
func TestQuestions(t *testing.T) {
	s := newScene(t)
	udp, tcp := s.client(1, ipc.ProtoUDP), s.client(2, ipc.ProtoTCP)
	defer unix.Close(udp)
	defer unix.Close(tcp)
	s.granted = 2
	unix.Write(udp, question("a.good.test", 1))
	if rcode, n := addresses(t, s.read(udp)); rcode != dnsmessage.RCodeSuccess || n != 1 {
		t.Errorf("%v, %d addresses where one is granted", rcode, n)
	}
	s.granted = ^uint64(0)
	unix.Write(tcp, framed(question("b.good.test", 2)))
	if b := s.read(tcp); int(binary.BigEndian.Uint16(b)) != len(b)-2 {
		t.Errorf("%x", b)
	} else if rcode, n := addresses(t, b[2:]); rcode != dnsmessage.RCodeSuccess || n != 2 {
		t.Errorf("%v, %d addresses where two are granted", rcode, n)
	}
	before := len(s.named)
	for i, name := range []string{"bad.good.test", "good.test", "other.test"} {
		unix.Write(udp, question(name, uint16(i)))
		if rcode, n := addresses(t, s.read(udp)); rcode != dnsmessage.RCodeRefused || n != 0 {
			t.Errorf("%s: %v, %d addresses", name, rcode, n)
		}
	}
	if len(s.named) != before || len(s.named) != 2 || s.named[0] != "a.good.test 2 192.0.2.1" {
		t.Errorf("named %q", s.named)
	}
	s.serve(func() bool { return len(s.refused) == 3 })
}

// TestHalfClosed: who says that nothing more comes gets the answer to what was asked.
func TestHalfClosed(t *testing.T) {
	s := newScene(t)
	fd := s.client(1, ipc.ProtoTCP)
	defer unix.Close(fd)
	unix.Write(fd, framed(question("a.good.test", 7)))
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if b := s.read(fd); len(b) < 12 {
		t.Errorf("%x", b)
	}
}

// TestSlowReader: who asks much, says that nothing more comes, and reads later, gets all of it.
func TestSlowReader(t *testing.T) {
	s := newScene(t)
	fd := s.client(1, ipc.ProtoTCP)
	defer unix.Close(fd)
	const n = 200
	var all []byte
	for i := range n {
		all = append(all, framed(question("a.good.test", uint16(i)))...)
	}
	for len(all) > 0 { // not faster than it is read
		k, err := unix.Write(fd, all)
		if err != nil && err != unix.EAGAIN {
			t.Fatal(err)
		}
		all = all[max(k, 0):]
		until := time.Now().Add(2 * time.Millisecond)
		s.serve(func() bool { return time.Now().After(until) })
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(200 * time.Millisecond)
	s.serve(func() bool { return time.Now().After(until) })
	var got []byte
	for {
		b := s.read(fd)
		if len(b) == 0 {
			break
		}
		got = append(got, b...)
	}
	answers := 0
	for len(got) >= 2 {
		k := 2 + int(binary.BigEndian.Uint16(got))
		if k > len(got) {
			t.Fatal("half an answer")
		}
		got = got[k:]
		answers++
	}
	if answers != n || len(got) != 0 {
		t.Errorf("%d answers of %d", answers, n)
	}
}

// TestRulesChange: other rules count from the next question on.
func TestRulesChange(t *testing.T) {
	s := newScene(t)
	fd := s.client(1, ipc.ProtoUDP)
	defer unix.Close(fd)
	other, _ := ipc.MakeName("other.test")
	s.say((&ipc.NamesRule{Flags: ipc.NameRuleAllow, Pattern: other}).Encode(), -1)
	s.say((&ipc.NamesRules{Count: 1}).Encode(), -1)
	for name, want := range map[string]dnsmessage.RCode{"other.test": dnsmessage.RCodeSuccess, "a.good.test": dnsmessage.RCodeRefused} {
		unix.Write(fd, question(name, 1))
		if rcode, _ := addresses(t, s.read(fd)); rcode != want {
			t.Errorf("%s: %v, want %v", name, rcode, want)
		}
	}
}

// end closes the channel, or breaks it, and returns how the loop ended.
func (s *scene) end(rec []byte, fd int) error {
	s.t.Helper()
	if rec != nil {
		s.say(rec, fd)
	} else {
		unix.Close(s.broker)
		s.broker = -1
	}
	select {
	case err := <-s.ended:
		return err
	case <-time.After(20 * time.Second):
		s.t.Fatal("it goes on")
		return nil
	}
}

// TestEnds: with the broker's end of the channel, and with a record that no broker of ours
// sends.
func TestEnds(t *testing.T) {
	if err := newScene(t).end(nil, -1); err != nil {
		t.Errorf("with the channel: %v", err)
	}
	for what, rec := range map[string][]byte{
		"a record of its own":   (&ipc.Dial{Proto: ipc.ProtoUDP}).Encode(),
		"another configuration": (&ipc.NamesConfig{Resolvers: 1}).Encode(),
		"a rule out of order":   (&ipc.NamesRule{Index: 3, Pattern: mustName("a.test")}).Encode(),
		"rules that do not add": (&ipc.NamesRules{Count: 1}).Encode(),
		"a rule that is none":   (&ipc.NamesRule{Pattern: mustName("*")}).Encode(),
		"a client without any":  (&ipc.Client{ID: 9, Proto: ipc.ProtoUDP, Port: 1}).Encode(),
	} {
		if err := newScene(t).end(rec, -1); err == nil {
			t.Errorf("%s: it ends as if all was well", what)
		}
	}
}

func mustName(s string) ipc.Name { n, _ := ipc.MakeName(s); return n }

// TestNobodyReads: a broker that takes no records is waited for as long as there is room,
// and then the process ends: it keeps no more of them than it may.
func TestNobodyReads(t *testing.T) {
	s := newScene(t)
	var clients []int
	defer func() {
		for _, fd := range clients {
			unix.Close(fd)
		}
	}()
	var err error
	for id := uint32(1); err == nil; id++ {
		if id > 200_000 {
			t.Fatal("it takes clients for ever")
		}
		if id%500 == 1 {
			clients = append(clients, s.client(id, ipc.ProtoUDP))
		}
		_, _ = unix.Write(clients[len(clients)-1], question(fmt.Sprintf("n%d.good.test", id), 1))
		select {
		case err = <-s.ended:
			if err == nil {
				t.Fatal("it ends as if all was well")
			}
		default:
		}
		if id > 20_000 {
			return // more than may be under way: nothing is left to be said
		}
	}
	if errors.Is(err, ipc.ErrMalformed) {
		t.Error(err)
	}
}

// TestEvicted: where clients come without end, the one that has been silent for longest goes,
// and the broker hears of it; of those that have gone themselves it hears nothing.
func TestEvicted(t *testing.T) {
	s := newSceneWith(t, 100)
	var fds []int
	for id := range uint32(50 + 3) { // half of it is for clients
		fds = append(fds, s.client(id+1, ipc.ProtoUDP))
	}
	s.serve(func() bool { return len(s.closed) == 3 })
	if s.closed[0] != 1 || s.closed[1] != 2 || s.closed[2] != 3 {
		t.Errorf("closed %v", s.closed)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// TestLateSocket: a socket that nobody waits for any more is closed.
func TestLateSocket(t *testing.T) {
	s := newScene(t)
	for _, seq := range []uint32{1 << 20, 1<<20 + 1} {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		s.say((&ipc.Upstream{Seq: seq, Proto: ipc.ProtoTCP}).Encode(), fds[1])
		unix.Close(fds[1])
		p := []unix.PollFd{{Fd: int32(fds[0]), Events: unix.POLLIN}}
		if n, _ := unix.Poll(p, 20_000); n != 1 || p[0].Revents&unix.POLLHUP == 0 {
			t.Error("it is kept")
		}
		unix.Close(fds[0])
	}
}
