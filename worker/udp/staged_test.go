// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"fmt"
	"slices"
	"syscall"
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/flow/flowtest"
	"aldente/worker/packet"
)

// stageFlow has a flow of the guest's looked at that has said "0" and "1". It returns
// where that is looked at.
func (r *rig) stageFlow(remote packet.Addr) (look *flowtest.Socket, token uint64) {
	r.Helper()
	r.say(remote, "0")
	r.say(remote, "1")
	o := r.oneOpen()
	look = r.host.Socket()
	r.fds[o.Token] = look
	r.Opened(o.Token, look.FD, &ipc.Opened{Token: o.Token, Flags: ipc.OpenedStaged | ipc.OpenedLate, Addr: remote})
	return look, o.Token
}

// switchTo gives it its socket, to which so many datagrams were written.
func (r *rig) switchTo(token uint64, count int) *flowtest.Socket {
	s := r.host.Socket()
	r.fds[token] = s
	if old := r.Switch(s.FD, &ipc.Switch{Token: token, Count: uint32(count)}); old >= 0 {
		r.host.Close(old)
	}
	return s
}

// TestStaged: datagrams before the switch are looked at and kept, and leave once, in
// order, with what is theirs, behind those that whoever looked has sent.
func TestStaged(t *testing.T) {
	for _, remote := range []packet.Addr{remote4, remote6} {
		for passed := range 6 {
			r := newRig(t)
			look, token := r.stageFlow(remote)
			r.ttl = 7
			r.say(remote, "2")
			r.input(r.frame(remote, 1000, 2000, []byte("345")), 1) // three that were joined
			r.Flush()
			want := []string{"0", "1", "2", "3", "4", "5"}
			if got := sent(look); !slices.Equal(got, want) {
				t.Fatalf("looked at: %q", got)
			}
			if len(look.Options) != 0 {
				t.Errorf("options of where it is looked at: %v", look.Options)
			}
			r.check()
			s := r.switchTo(token, passed)
			r.say(remote, "6")
			r.Flush()
			if r.host.ByOthers != passed { // for the limit: each has a byte
				t.Errorf("%d bytes were written by others, of %d", r.host.ByOthers, passed)
			}
			if got := sent(s); !slices.Equal(got, append(want[passed:], "6")) || look.Closes != 1 || s.Closes != 0 {
				t.Fatalf("behind %d: %q, closed %d times", passed, got, look.Closes)
			}
			opt := flow.OptionTTL
			if !remote.Is4() {
				opt = flow.OptionHopLimit
			}
			if s.Options[opt] != 7 {
				t.Errorf("time to live %d", s.Options[opt])
			}
			s.Receive([]byte("answer"), 0)
			r.Ready(token, flow.Readable)
			if got := r.received(); len(got) != 1 || got[0].data != "answer" {
				t.Errorf("to the guest: %v", got)
			}
			r.check()
		}
	}
}

// TestStagedMany: no more are looked at than may be, none behind one that was not taken;
// the rest waits as far as there is room.
func TestStagedMany(t *testing.T) {
	r := newRig(t)
	look, token := r.stageFlow(remote4)
	var want []string
	for i := 2; i < 3*ipc.MaxStagedDatagrams; i++ {
		r.say(remote4, fmt.Sprint(i))
	}
	if n := len(look.Sent()); n != ipc.MaxStagedDatagrams {
		t.Fatalf("%d looked at", n)
	}
	s := r.switchTo(token, ipc.MaxStagedDatagrams)
	for i := ipc.MaxStagedDatagrams; i < 3*ipc.MaxStagedDatagrams; i++ {
		want = append(want, fmt.Sprint(i))
	}
	if got := sent(s); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}

	r = newRig(t)
	look, token = r.stageFlow(remote4)
	look.WriteErrs = []syscall.Errno{syscall.EAGAIN}
	r.say(remote4, "2")
	r.say(remote4, "3")
	if got := sent(look); len(got) != 2 {
		t.Fatalf("behind one that was not taken: %q", got)
	}
	if got := sent(r.switchTo(token, 2)); !slices.Equal(got, []string{"2", "3"}) {
		t.Errorf("%q", got)
	}
}

// TestStagedEmpty: an empty datagram, which would be the end to whoever looks, is not copied and
// counts for none: what follows leaves once all the same.
func TestStagedEmpty(t *testing.T) {
	for passed := range 4 {
		r := newRig(t)
		r.say(remote4, "")
		look, token := r.stageFlow(remote4)
		r.say(remote4, "")
		r.say(remote4, "2")
		want := []string{"0", "1", "2"}
		if got := sent(look); !slices.Equal(got, want) {
			t.Fatalf("looked at: %q", got)
		}
		got := slices.DeleteFunc(sent(r.switchTo(token, passed)), func(s string) bool { return s == "" })
		if !slices.Equal(got, want[passed:]) {
			t.Errorf("behind %d: %q", passed, got)
		}
		r.check()
	}
}

// TestStagedRefused: an end instead of a socket, and a count of what was never there, are
// refusals, which the guest hears of; it asks again in time.
func TestStagedRefused(t *testing.T) {
	for name, s := range map[string]ipc.Switch{"refused": {Errno: uint16(syscall.EACCES)}, "no descriptor": {}, "too much": {Count: 3}} {
		r := newRig(t)
		look, token := r.stageFlow(remote4)
		s.Token = token
		fd := int32(-1)
		if name == "too much" {
			fd = r.host.Socket().FD
		}
		if old := r.Switch(fd, &s); old != -1 || look.Closes != 1 || r.host.OpenSockets() != 0 {
			t.Errorf("%s: %d, closed %d times, %d left", name, old, look.Closes, r.host.OpenSockets())
		}
		if n := len(r.errors()); (n == 1) != (s.Errno != 0) {
			t.Errorf("%s: the guest is told %d times", name, n)
		}
		r.check()
		r.advance(60)
		r.say(remote4, "again")
		r.oneOpen()
		r.Close()
	}
}

// TestStagedGone: a flow that is looked at ends as others do, and a socket that comes
// late is closed.
func TestStagedGone(t *testing.T) {
	for name, end := range map[string]func(r *rig){
		"revoked": func(r *rig) { r.Revoke(remote4, 2000) },
		"revoked by its token": func(r *rig) {
			r.RevokeFlow(r.token(r.ages.Oldest()))
		},
		"evicted": func(r *rig) { r.Evict() },
		"unused":  func(r *rig) { r.advance(1000) },
		"closed":  func(r *rig) { r.Close() },
	} {
		r := newRig(t)
		look, token := r.stageFlow(remote4)
		end(r)
		if look.Closes != 1 || r.Len() != 0 {
			t.Errorf("%s: closed %d times, %d flows", name, look.Closes, r.Len())
		}
		if s := r.switchTo(token, 0); s.Closes != 1 {
			t.Errorf("%s: a late socket is closed %d times", name, s.Closes)
		}
		if r.pool.Used() != 0 {
			t.Errorf("%s: %d chunks are left", name, r.pool.Used())
		}
	}
	r := newRig(t)
	first, token := r.connect(remote4)
	if s := r.switchTo(token, 0); s.Closes != 1 || first.Closes != 0 {
		t.Error("a flow that was not looked at has another socket")
	}
	r = newRig(t)
	look, token := r.stageFlow(remote4)
	r.host.WatchErr = syscall.ENOSPC
	if s := r.switchTo(token, 0); s.Closes != 1 || look.Closes != 1 || r.Len() != 0 {
		t.Errorf("closed %d and %d times, %d flows", s.Closes, look.Closes, r.Len())
	}
}
