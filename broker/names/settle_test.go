// SPDX-License-Identifier: Apache-2.0

package names

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// unserved is a rig of whose process only the notes are taken.
func unserved(t *testing.T) *rig {
	r := newRig(t, rules(t, "deny private", "allow tcp:*.test:443", "deny any"), "192.0.2.53")
	r.start()
	r.attend()
	return r
}

// start has the rig's process begin, up to the point where it may note something.
func (r *rig) start() {
	r.t.Helper()
	if err := r.Setup(r.broker); err != nil {
		r.t.Fatal(err)
	}
	for {
		p := []unix.PollFd{{Fd: int32(r.control), Events: unix.POLLIN}}
		if n, _ := unix.Poll(p, 10_000); n != 1 {
			r.t.Fatal("no end of the start-up records")
		}
		buf := make([]byte, ipc.MaxRecord)
		n, fd, err := ipc.Receive(r.control, buf, 0)
		if err != nil {
			r.t.Fatal(err)
		}
		if ipc.KindOf(buf[:n]) == ipc.NamesKindStart {
			r.notes = fd
			return
		}
	}
}

// note has the process note something, as it can: without waiting, and with nothing but
// write(2).
func (r *rig) note(rec []byte) error {
	_, err := unix.Write(r.notes, rec)
	return err
}

func (r *rig) allows(addr string) bool {
	return r.Rules.(interface {
		Allowed(uint8, netip.AddrPort) bool
	}).Allowed(ipc.ProtoTCP, netip.MustParseAddrPort(addr))
}

// TestSettle: what the process has noted counts once Settle returns, without anybody who
// serves it; addresses are judged as ever. Serve answers, when it comes to that.
func TestSettle(t *testing.T) {
	r := unserved(t)
	if n := r.Settle(); n != 0 {
		t.Errorf("%d handled of none", n)
	}
	for i := range 3 {
		if err := r.note(named(fmt.Sprintf("n%d.test", i), fmt.Sprintf("198.51.100.%d", i), "10.0.0.1")); err != nil {
			t.Fatal(err)
		}
	}
	if r.allows("198.51.100.1:443") {
		t.Fatal("allowed before anybody has looked")
	}
	if n := r.Settle(); n != 3 || !r.allows("198.51.100.0:443") || !r.allows("198.51.100.2:443") || r.allows("10.0.0.1:443") || r.allows("198.51.100.0:80") {
		t.Errorf("%d handled", n)
	}
	p := []unix.PollFd{{Fd: int32(r.control), Events: unix.POLLIN}}
	if n, _ := unix.Poll(p, 0); n != 0 {
		t.Error("whoever settles has answered")
	}
	if _, err := r.settled(r.broker); err != nil {
		t.Fatal(err)
	}
	rec, _ := r.hear(ipc.NamesKindGranted)
	if len(rec) != 3*ipc.GrantedSize {
		t.Fatalf("%d bytes", len(rec))
	}
	for ; len(rec) > 0; rec = rec[ipc.GrantedSize:] {
		var g ipc.Granted
		if err := g.Decode(rec[:ipc.GrantedSize]); err != nil || g.Mask != 1 || g.Around[0] <= 96 || g.Around[1] != 0 {
			t.Errorf("%+v, %v", g, err)
		}
	}
	if err := r.note(named("last.test", "198.51.100.77")); err != nil {
		t.Fatal(err)
	}
	r.leave()
	if !r.allows("198.51.100.77:443") {
		t.Error("what the guest was told last is lost with the process")
	}
	if n := r.Settle(); n != 0 || r.note(named("late.test", "198.51.100.78")) == nil {
		t.Errorf("%d handled of a process that is not served any more", n)
	}
}

// TestSettleUnasked: nobody waits for notes. Serve takes them with what comes by the channel,
// or when there are so many.
func TestSettleUnasked(t *testing.T) {
	r := newRig(t, rules(t, "allow tcp:*.test:443", "deny any"), "192.0.2.53")
	r.start()
	r.serve()
	r.eventually(func() bool { r.turn.Lock(); defer r.turn.Unlock(); return r.Server.notes >= 0 })
	p := []unix.PollFd{{Fd: int32(r.control), Events: unix.POLLIN}}
	addr := ""
	for i := 1; ; i++ {
		addr = fmt.Sprintf("198.51.100.%d", i)
		if err := r.note(named("a.test", addr)); err != nil {
			t.Fatal(err)
		}
		if n, _ := unix.Poll(p, 100); n == 0 && !r.allows(addr+":443") {
			break // it sleeps
		}
		if i == 50 {
			t.Fatal("each note wakes somebody")
		}
		r.hear(ipc.NamesKindGranted) // it was awake still
	}
	r.say((&ipc.Counted{}).Encode(), -1)
	if rec, _ := r.hear(ipc.NamesKindGranted); len(rec) != ipc.GrantedSize || !r.allows(addr+":443") {
		t.Errorf("%d bytes", len(rec))
	}
	for range owedSoon {
		if err := r.note(named("a.test", "198.51.100.1")); err != nil {
			t.Fatal(err)
		}
		r.Settle()
	}
	for n := 0; n < owedSoon*ipc.GrantedSize; {
		rec, _ := r.hear(ipc.NamesKindGranted)
		n += len(rec)
	}
}

// TestSettleBounded: of a process that notes much, or takes no answers, so much is taken and
// no more; what counts as the caller's doing grows with the addresses; and what none of ours
// notes is its end.
func TestSettleBounded(t *testing.T) {
	r := unserved(t)
	for range 8 { // as much as the channel holds, and its answers are not taken
		for r.note(named("a.test", "198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4")) == nil {
		}
		if n := r.Settle(); n > 2*settleMost || n < 2 {
			t.Errorf("counts for %d", n)
		}
	}
	if n := len(r.owed); n > mostOwed {
		t.Errorf("%d answers wait", n)
	}
	none := named("a.test", "198.51.100.1")
	none[ipc.HeaderSize+11] = 200
	for name, rec := range map[string][]byte{
		"another record": (&ipc.Dial{Proto: ipc.ProtoUDP}).Encode(),
		"malformed":      none,
		"too long":       make([]byte, ipc.MaxRecord+1),
		"nothing":        {0},
		"no such name":   named("A.test", "198.51.100.1"), // no process of ours writes it so
	} {
		for _, settle := range []bool{false, true} {
			r := newRig(t, rules(t, "allow tcp:*.test:443", "deny any"), "192.0.2.53")
			r.start()
			r.serve()
			r.eventually(func() bool { r.turn.Lock(); defer r.turn.Unlock(); return r.Server.notes >= 0 })
			if err := r.note(rec); err != nil {
				t.Fatal(err)
			}
			_ = r.note(named("b.test", "198.51.100.2")) // it may have ended by then
			if settle {
				r.Settle()
			} else {
				r.say((&ipc.Counted{}).Encode(), -1)
			}
			if err := r.end(); !errors.Is(err, ipc.ErrMalformed) || r.allows("198.51.100.1:443") || len(r.dialled) > 0 {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestSettleDescriptors: what comes with a note is closed, and is the process's end.
func TestSettleDescriptors(t *testing.T) {
	r := unserved(t)
	before := descriptors(t)
	for range 3 {
		if err := ipc.Send(r.notes, named("a.test", "198.51.100.1"), r.control); err != nil {
			t.Fatal(err)
		}
	}
	r.Settle()
	if _, err := r.settled(r.broker); !errors.Is(err, ipc.ErrMalformed) || r.allows("198.51.100.1:443") {
		t.Errorf("%v", err)
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors are left", after-before)
	}
}

// eventually waits until something is true.
func (r *rig) eventually(what func() bool) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); !what(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatal("it does not become so")
		}
	}
}

// TestSettleBeside: who settles and who serves take turns, each note is handled once, and
// each is answered.
func TestSettleBeside(t *testing.T) {
	r := newRig(t, rules(t, "allow tcp:*.test:443", "deny any"), "192.0.2.53")
	r.start()
	r.serve()
	const n = 500
	r.serving.Go(func() {
		for i := range n {
			for rec := named(fmt.Sprintf("n%d.test", i), fmt.Sprintf("198.18.%d.%d", i/250, i%250+1)); r.note(rec) == unix.EAGAIN; {
				time.Sleep(time.Millisecond)
			}
		}
		for ipc.Send(r.control, (&ipc.Counted{}).Encode(), -1) == nil {
			time.Sleep(20 * time.Millisecond)
		}
	})
	for answers := 0; answers < n; {
		p := []unix.PollFd{{Fd: int32(r.control), Events: unix.POLLIN}}
		r.Settle()
		if k, _ := unix.Poll(p, 1); k == 1 {
			rec, _ := r.hear(ipc.NamesKindGranted)
			answers += len(rec) / ipc.GrantedSize
		}
	}
	if !r.allows("198.18.1.250:443") || !r.allows("198.18.0.1:443") {
		t.Error("lost")
	}
}

// TestNotesOfOne: a process that is gone, or never came so far, leaves no channel behind, and
// nobody finds its notes among those of the next.
func TestNotesOfOne(t *testing.T) {
	r := newRig(t, rules(t, "allow tcp:*.test:443", "deny any"), "192.0.2.53")
	before := descriptors(t)
	for range 3 {
		r.start()
		unix.Close(r.notes)
	}
	r.start()
	r.attend()
	if err := r.note(named("a.test", "198.51.100.1")); err != nil {
		t.Fatal(err)
	}
	r.leave()
	unix.Close(r.notes)
	r.start()
	r.attend()
	if n := r.Settle(); n != 0 {
		t.Errorf("%d notes of the one before", n)
	}
	r.leave()
	if after := descriptors(t); after != before+1 { // the process's own
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// TestForget: a process hears that addresses of the host's may be others, and what rules say
// of an address is not told on where nobody would say so.
func TestForget(t *testing.T) {
	r := newRig(t, rules(t, "allow *.test", "deny any"), "192.0.2.53")
	var lasts atomic.Bool
	r.Lasting = lasts.Load
	r.serve()
	r.Forget()
	r.hear(ipc.NamesKindForget)
	for _, lasting := range []bool{false, true} {
		lasts.Store(lasting)
		r.say(named("a.test", "198.51.100.1"), -1)
		rec, _ := r.hear(ipc.NamesKindGranted)
		var g ipc.Granted
		if err := g.Decode(rec); err != nil || g.Around[0] > 0 != lasting {
			t.Errorf("%v: %+v, %v", lasting, g, err)
		}
	}
	for range 4096 {
		r.Forget()
	}
	if r.killed == 0 {
		t.Error("one that hears nothing goes on")
	}
}
