// SPDX-License-Identifier: Apache-2.0

package names

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// unserved is a rig whose channel may be looked at, and of which nobody takes records.
func unserved(t *testing.T) *rig {
	r := newRig(t, rules(t, "deny private", "allow tcp:*.test:443", "deny any"), "192.0.2.53")
	r.Server.serve(r.broker)
	return r
}

func (r *rig) allows(addr string) bool {
	return r.Rules.(interface {
		Allowed(uint8, netip.AddrPort) bool
	}).Allowed(ipc.ProtoTCP, netip.MustParseAddrPort(addr))
}

// TestSettle: what the process has told counts once Settle returns, though Serve has not come
// to it; each is answered, and addresses are judged as ever.
func TestSettle(t *testing.T) {
	r := unserved(t)
	if n := r.Settle(); n != 0 {
		t.Errorf("%d handled of none", n)
	}
	for i := range 3 {
		r.say(named(fmt.Sprintf("n%d.test", i), fmt.Sprintf("198.51.100.%d", i), "10.0.0.1"), -1)
	}
	if r.allows("198.51.100.1:443") {
		t.Fatal("allowed before anybody has looked")
	}
	if n := r.Settle(); n != 3 || !r.allows("198.51.100.0:443") || !r.allows("198.51.100.2:443") || r.allows("10.0.0.1:443") || r.allows("198.51.100.0:80") {
		t.Errorf("%d handled", n)
	}
	for range 3 {
		rec, _ := r.hear(ipc.NamesKindGranted)
		var g ipc.Granted
		if err := g.Decode(rec); err != nil || g.Mask != 1 || g.Around[0] <= 96 || g.Around[1] != 0 {
			t.Errorf("%+v, %v", g, err)
		}
	}
	r.Server.serve(-1)
	r.say(named("late.test", "198.51.100.77"), -1)
	if n := r.Settle(); n != 0 || r.allows("198.51.100.77:443") {
		t.Errorf("%d handled of a process that is not served any more", n)
	}
}

// TestSettleBounded: of a process that says much, or takes no answers, so much is taken and
// no more; and what none of ours says is the end of it all the same.
func TestSettleBounded(t *testing.T) {
	if err := unix.SetNonblock(unserved(t).control, true); err != nil {
		t.Fatal(err)
	}
	r := unserved(t)
	for range 3 { // as much as the channel holds, and its answers are not taken
		for ipc.SendNow(r.control, named("a.test", "198.51.100.1"), -1) == nil {
		}
		if n := r.Settle(); n > settleMost {
			t.Errorf("%d handled", n)
		}
	}
	dir := t.TempDir()
	spare, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(spare)
	none := named("a.test", "198.51.100.1")
	none[ipc.HeaderSize+11] = 200
	odd := named("A.test", "198.51.100.1") // no process of ours writes it so
	for name, say := range map[string]func(r *rig){
		"another record": func(r *rig) { r.say((&ipc.Dial{Proto: ipc.ProtoUDP}).Encode(), -1) },
		"malformed":      func(r *rig) { r.say(none, -1) },
		"no such name":   func(r *rig) { r.say(odd, -1) },
		"a descriptor":   func(r *rig) { r.say(named("a.test", "198.51.100.1"), spare) },
	} {
		r := unserved(t)
		say(r)
		r.say(named("b.test", "198.51.100.2"), -1)
		if n := r.Settle(); n != 2 || r.allows("198.51.100.1:443") || !r.allows("198.51.100.2:443") {
			t.Errorf("%s: %d taken", name, n)
		}
		if rec, _ := r.hear(ipc.NamesKindGranted); len(rec) == 0 {
			t.Errorf("%s: no answer", name)
		}
		// Serve waits in the channel by now, or is about to.
		r.Server.serve(-1)
		r.serve()
		r.eventually(func() bool { r.turn.Lock(); defer r.turn.Unlock(); return r.Server.control == r.broker })
		say(r)
		r.Settle()
		if name == "another record" {
			r.hear(ipc.NamesKindUpstream)
			continue
		}
		if err := r.end(); err == nil {
			t.Errorf("%s: Serve has not ended by it", name)
		}
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

// TestSettleKeeps: what Settle takes for Serve is handled by that, in its order, though it
// sleeps and nothing else comes.
func TestSettleKeeps(t *testing.T) {
	r := newRig(t, rules(t, "allow tcp:*.test:443", "deny any"), "192.0.2.53")
	r.serve()
	for i := range uint32(200) {
		r.say((&ipc.Dial{Seq: i, Proto: ipc.ProtoTCP}).Encode(), -1) // of which there is none
		if i%8 == 7 {
			r.Settle()
		}
		if i%40 == 39 {
			time.Sleep(2 * time.Millisecond)
		}
		if i >= 20 {
			var u ipc.Upstream
			if rec, _ := r.hear(ipc.NamesKindUpstream); u.Decode(rec) != nil || u.Seq != i-20 {
				t.Fatalf("%d: %+v", i, u)
			}
		}
	}
}

// TestSettleBeside: who settles and who serves take turns, and each record is handled once.
func TestSettleBeside(t *testing.T) {
	r := newRig(t, rules(t, "allow tcp:*.test:443", "deny any"), "192.0.2.53")
	r.serve()
	const n = 500
	r.serving.Go(func() {
		for i := range n {
			_ = ipc.Send(r.control, named(fmt.Sprintf("n%d.test", i), fmt.Sprintf("198.18.%d.%d", i/250, i%250+1)), -1)
		}
		// With what it says next it hears what there was no room for.
		for ipc.Send(r.control, (&ipc.Counted{}).Encode(), -1) == nil {
			time.Sleep(20 * time.Millisecond)
		}
	})
	for range n {
		r.Settle()
		r.hear(ipc.NamesKindGranted)
	}
	if !r.allows("198.18.1.250:443") || !r.allows("198.18.0.1:443") {
		t.Error("lost")
	}
}

// TestForget: a process hears that addresses of the host's may be others, and what rules say
// of an address is not told on where nobody would say so.
func TestForget(t *testing.T) {
	r := newRig(t, rules(t, "allow *.test", "deny any"), "192.0.2.53")
	lasting := false
	r.Lasting = func() bool { return lasting }
	r.serve()
	r.Forget()
	r.hear(ipc.NamesKindForget)
	for _, lasting = range []bool{false, true} {
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
