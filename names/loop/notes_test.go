// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// TestToldBeforeTheAnswer: an answer of which the broker has said enough does not wait for it,
// and what it is told lies among its notes by then, by which it is not woken; unless it
// is to forget that.
func TestToldBeforeTheAnswer(t *testing.T) {
	s := newScene(t)
	fd := s.client(1, ipc.ProtoUDP)
	defer unix.Close(fd)
	s.around = 128
	unix.Write(fd, question("a.good.test", 1))
	s.read(fd)
	s.mute = true
	for i, name := range []string{"b.good.test", "c.good.test"} {
		unix.Write(fd, question(name, uint16(i)))
		if rcode, k := addresses(t, s.read(fd)); rcode != dnsmessage.RCodeSuccess || k != 2 {
			t.Errorf("%v, %d addresses", rcode, k)
		}
		var n ipc.Named
		if b := s.note(); b == nil || n.Decode(b) != nil || n.Name.String() != name || n.Count != 2 {
			t.Fatalf("noted %v of %s", n.Count, n.Name.String())
		}
	}
	if len(s.named) != 1 {
		t.Errorf("woken for %q", s.named[1:])
	}
	s.say(ipc.Empty(ipc.NamesKindForget), -1)
	unix.Write(fd, question("d.good.test", 4))
	s.serve(func() bool { return len(s.named) == 2 })
	if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200); n != 0 {
		t.Error("an answer without the broker's word")
	}
}

// note is what the broker finds among its notes; nil: nothing.
func (s *scene) note() []byte {
	b := make([]byte, ipc.MaxRecord)
	n, _, err := ipc.Receive(s.notes, b, unix.MSG_DONTWAIT)
	if err != nil {
		return nil
	}
	return b[:n]
}

// confirm gives the broker's word on its notes, all in one message, and tells how many.
func (s *scene) confirm() (n int) {
	var all []byte
	for b := s.note(); b != nil; b = s.note() {
		var r ipc.Named
		if err := r.Decode(b); err != nil {
			s.t.Fatal(err)
		}
		all = append(all, (&ipc.Granted{Seq: r.Seq, Mask: 3}).Encode()...)
		n++
	}
	s.say(all, -1)
	return n
}

// TestNotesBounded: of what is noted the broker hears within a second, and at once where
// there is much; so much is out that it has not confirmed, and no more; and where there is no
// room for notes, an answer waits for its word.
func TestNotesBounded(t *testing.T) {
	s := newScene(t)
	fd := s.client(1, ipc.ProtoUDP)
	defer unix.Close(fd)
	s.around = 128
	ask := func(i int) {
		t.Helper()
		unix.Write(fd, question(fmt.Sprintf("n%d.good.test", i), uint16(i)))
		if rcode, k := addresses(t, s.read(fd)); rcode != dnsmessage.RCodeSuccess || k != 2 {
			t.Errorf("%v, %d addresses", rcode, k)
		}
		for p := []unix.PollFd{{Fd: int32(s.broker), Events: unix.POLLIN}}; ; s.record(s.hear()) {
			if n, _ := unix.Poll(p, 0); n != 1 {
				break
			}
		}
	}
	ask(0)
	before := s.counted
	ask(1)
	s.serve(func() bool { return s.counted > before })
	// What is in the cache needs no sockets, and the broker nothing but its notes.
	s.confirm()
	for before = s.counted; s.counted == before; {
		ask(1)
	}
	if n := s.confirm(); n > mostNotes+2 {
		t.Errorf("told when there are %d notes", n)
	}
	began, named := time.Now(), len(s.named)
	for range 33 {
		ask(1)
	}
	if n := s.confirm(); (n != 32 || len(s.named) != named+1) && time.Since(began) < 2*time.Second { // later they count as lost
		t.Errorf("%d notes, %q", n, s.named[named:])
	}
	for err := error(nil); err == nil; {
		_, err = unix.Write(s.noting, make([]byte, ipc.NamedSize))
	}
	named = len(s.named)
	ask(1)
	if len(s.named) != named+1 {
		t.Errorf("told of %q", s.named[named:])
	}
}
