// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"strings"
	"syscall"
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/flow/flowtest"
	"aldente/worker/packet"
)

var (
	mdns4    = packet.AddrFrom4([4]byte{224, 0, 0, 251})
	mdns6    = packet.Addr{0: 0xff, 1: 2, 15: 0xfb}
	anybody4 = packet.AddrFrom4([4]byte{255, 255, 255, 255})
	network4 = packet.AddrFrom4([4]byte{10, 0, 0, 255})
)

// newGroupRig is a rig whose guest may speak to groups and hear mDNS.
func newGroupRig(t testing.TB, flags uint64) *rig {
	r := newRig(t)
	r.guest.Flags |= flags
	r.guest.Groups = [ipc.MaxGroups]ipc.Group{{Addr: mdns4, Port: 5353}, {Addr: mdns6, Port: 5353}}
	r.guest.NGroups = 2
	r.newMembers()
	return r
}

// TestGroupFlow: what the guest sends to a group leaves one by one, with its time to live,
// and what is answered to its port reaches it, from whoever.
func TestGroupFlow(t *testing.T) {
	for _, to := range []packet.Addr{mdns4, mdns6, anybody4, network4} {
		r := newGroupRig(t, ipc.FlagMulticast|ipc.FlagBroadcast)
		r.ttl = 7
		r.say(to, "one")
		o := r.oneOpen()
		if o.Dst != to || o.Flags != 0 || o.SrcPort != 1000 {
			t.Fatalf("%v: request %+v", to, o)
		}
		answers := r.host.Socket()
		r.Opened(o.Token, answers.FD, &ipc.Opened{Token: o.Token, Flags: ipc.OpenedLate | ipc.OpenedAnswers, LocalPort: 1000})
		s := r.host.Socket()
		r.Opened(o.Token, s.FD, &ipc.Opened{Token: o.Token, Addr: to, PeerPort: 2000, LocalPort: 1000})
		r.say(to, "two")
		r.say(to, "two")
		r.input(r.frame(to, 1000, 2000, []byte(strings.Repeat("long", 400))), 100)
		r.Flush()
		if len(s.Writes) != 3+16 || string(s.Writes[0].Data) != "one" || len(s.Writes[3].Data) != 100 {
			t.Errorf("%v: %d writes", to, len(s.Writes))
		}
		option := flow.OptionTTL
		switch {
		case to == mdns4:
			option = flow.OptionGroupTTL
		case to == mdns6:
			option = flow.OptionGroupHops
		}
		if s.Options[option] != 7 || s.Options[flow.OptionUDPSegment] != 0 {
			t.Errorf("%v: %v", to, s.Options)
		}
		from := remote6
		if to.Is4() {
			from = remote4
		}
		answers.Datagrams = []flow.Datagram{{Buf: []byte("mine"), N: 4, From: o.Src, FromPort: 1000, To: to},
			{Buf: []byte("answer"), N: 6, From: from, FromPort: 99}, {Buf: []byte("all"), N: 3, From: from, FromPort: 99, To: network4}, {Buf: []byte("again"), N: 5, From: from, FromPort: 98}}
		r.Ready(answers.Token, flow.Readable)
		got := r.received()
		if len(got) != 2 || got[0].src != from || got[0].srcPort != 99 || got[0].dst != o.Src || got[0].dstPort != 1000 || got[0].data != "answer" || got[1].srcPort != 98 {
			t.Errorf("%v: %+v", to, got)
		}
		r.advance(1000)
		if answers.Closes != 1 || s.Closes != 1 || r.Len() != 0 {
			t.Errorf("%v: closed %d and %d times", to, answers.Closes, s.Closes)
		}
		r.check()
	}
}

// TestGroupRefused: what may not leave does not, and nobody is told of what was sent to
// many.
func TestGroupRefused(t *testing.T) {
	node, reserved := mdns6, mdns6
	node[1], reserved[1] = 1, 0
	for _, tt := range []struct {
		flags uint64
		to    packet.Addr
		port  uint16
	}{
		{0, mdns4, 2000}, {ipc.FlagBroadcast, mdns4, 2000}, {0, mdns6, 2000}, {ipc.FlagMulticast, anybody4, 2000}, {ipc.FlagMulticast, network4, 2000},
		{ipc.FlagMulticast, node, 2000}, {ipc.FlagMulticast, reserved, 2000},
		{ipc.FlagBroadcast, anybody4, 67}, {ipc.FlagBroadcast, anybody4, 68}, {ipc.FlagMulticast, mdns6, 547}, {ipc.FlagMulticast, mdns6, 546},
	} {
		r := newGroupRig(t, tt.flags)
		r.input(r.frame(tt.to, 1000, tt.port, []byte("x")), 0)
		if r.Len() != 0 || r.Stats.NotUnicast != 1 {
			t.Errorf("%v port %d left", tt.to, tt.port)
		}
	}
	r := newGroupRig(t, ipc.FlagMulticast)
	r.say(mdns4, "x")
	r.refuse(r.oneOpen(), syscall.EACCES, ipc.OpenedProhibited)
	r.say(mdns4, "x")
	if len(r.host.Frames) != 0 {
		t.Error("the guest is told")
	}
}

// joins has the guest want a group, and answers the request.
func (r *rig) joins(group packet.Addr) (*flowtest.Socket, uint64) {
	r.Helper()
	r.Wants(group, true)
	o := r.oneOpen()
	want := ipc.Open{Token: o.Token, Proto: ipc.ProtoUDP, Flags: ipc.OpenMember, Src: group, Dst: group, SrcPort: 5353, DstPort: 5353}
	if o != want {
		r.Fatalf("request %+v", o)
	}
	s := r.host.Socket()
	r.Opened(o.Token, s.FD, &ipc.Opened{Token: o.Token, Addr: group, PeerPort: 5353})
	return s, o.Token
}

// TestMember: what comes to a group that the guest has joined reaches it as it was sent.
func TestMember(t *testing.T) {
	for _, group := range []packet.Addr{mdns4, mdns6} {
		r := newGroupRig(t, ipc.FlagMulticast)
		s, token := r.joins(group)
		from, own := remote6, guest6
		if group.Is4() {
			from, own = remote4, guest4
		}
		r.Wants(group, true) // once more
		if n := len(r.host.TakeOpens()); n != 0 || !s.Watched || s.Token != token {
			t.Errorf("%d requests, watched %t", n, s.Watched)
		}
		s.Datagrams = []flow.Datagram{
			{Buf: []byte("one"), N: 3, From: from, FromPort: 5353}, {Buf: []byte("two"), N: 3, From: own, FromPort: 9},
			{Buf: []byte("zero"), N: 4, From: from, FromPort: 0},
		}
		r.Ready(token, flow.Readable)
		frames := r.host.TakeFrames()
		if len(frames) != 2 || r.Stats.NoTarget != 1 {
			t.Fatalf("%d frames", len(frames))
		}
		var p packet.Packet
		for k, f := range frames {
			if err := p.Decode(append(f.Data, make([]byte, 0)...)); err != nil {
				t.Fatal(err)
			}
			want := from
			if k == 1 { // the host itself, by the address that it has in common with the guest
				want = packet.Addr(r.guest.Our6)
				if group.Is4() {
					want = packet.Addr(r.guest.Our4)
				}
			}
			if p.Dst != group || p.DstMAC != packet.GroupMAC(&group) || p.TTL != 255 || p.Src != want {
				t.Errorf("frame %d: %v to %v at %v", k, p.Src, p.Dst, p.DstMAC)
			}
		}
		// A listener on the port, which hears all that comes there, does not say it twice.
		l := r.listen(ipc.Listener{ID: 9, Proto: ipc.ProtoUDP, HostPort: 5353, GuestPort: 5353})
		l.Datagrams = []flow.Datagram{{Buf: []byte("one"), N: 3, From: from, FromPort: 5353, To: group}}
		r.ListenerReady(l.Token, flow.Readable)
		if n := len(r.host.TakeFrames()); n != 0 {
			t.Errorf("%d frames by a listener", n)
		}
	}
}

// TestMemberEchoes: the guest does not hear itself, but others that say the same.
func TestMemberEchoes(t *testing.T) {
	r := newGroupRig(t, ipc.FlagMulticast)
	s, token := r.joins(mdns4)
	r.input(r.frame(mdns4, 5353, 5353, []byte("question")), 0)
	o := r.oneOpen()
	sender := r.host.Socket()
	r.Opened(o.Token, sender.FD, &ipc.Opened{Token: o.Token, Addr: mdns4, PeerPort: 5353, LocalPort: 5353})
	said := func(what ...string) (heard string) {
		for _, w := range what {
			s.Datagrams = append(s.Datagrams, flow.Datagram{Buf: []byte(w), N: len(w), From: remote4, FromPort: 5353})
		}
		r.Ready(token, flow.Readable)
		for _, f := range r.host.TakeFrames() { // of which one may carry several
			heard += string(f.Data[42:])
		}
		return heard
	}
	if got := said("other", "question", "another"); got != "otheranother" {
		t.Errorf("%q reaches the guest", got)
	}
	if got := said("question"); got != "question" {
		t.Errorf("another's: %q", got)
	}
	r.input(r.frame(mdns4, 5353, 5353, []byte("late")), 0)
	r.Flush()
	r.host.Time += echoLife + 1
	if got := said("late"); got != "late" {
		t.Errorf("later: %q", got)
	}
}

// TestMemberLeaves: who leaves, or says nothing for long, hears nothing any more; who was
// refused is not asked for again at once; and an answer that nobody waits for is closed.
func TestMemberLeaves(t *testing.T) {
	r := newGroupRig(t, ipc.FlagMulticast)
	other := packet.AddrFrom4([4]byte{224, 0, 0, 252})
	r.Wants(other, true)
	if n := len(r.host.TakeOpens()); n != 0 {
		t.Error("a group is asked for that nobody has named")
	}
	s, token := r.joins(mdns4)
	r.Wants(mdns4, false)
	if s.Closes != 1 || r.hears(&mdns4, 5353) {
		t.Error("still a member")
	}
	r.Ready(token, flow.Readable)
	s, _ = r.joins(mdns4)
	r.host.Time += 100
	if r.Forget(100); s.Closes != 0 {
		t.Error("left too early")
	}
	r.host.Time++
	if r.Forget(100); s.Closes != 1 {
		t.Error("still a member, of whom nothing is heard")
	}
	// It leaves while the answer is on its way.
	r.Wants(mdns4, true)
	o := r.oneOpen()
	r.Wants(mdns4, false)
	late := r.host.Socket()
	r.Opened(o.Token, late.FD, &ipc.Opened{Token: o.Token})
	unasked := r.host.Socket()
	r.Opened(o.Token, unasked.FD, &ipc.Opened{Token: o.Token})
	if late.Closes != 1 || unasked.Closes != 1 {
		t.Errorf("closed %d, %d times", late.Closes, unasked.Closes)
	}
	r.Wants(mdns4, true)
	r.refuse(r.oneOpen(), syscall.EACCES, 0)
	r.Wants(mdns4, true)
	if n := len(r.host.TakeOpens()); n != 0 {
		t.Error("asked again at once")
	}
	r.host.Time += memberAgain
	s, _ = r.joins(mdns4)
	r.Close()
	if s.Closes != 1 {
		t.Error("open in the end")
	}
}

// TestForgetGroups: when the network becomes another, groups are left, and joined again once
// the guest says that it wants them, also after a refusal; what goes to groups begins anew,
// and nothing else does.
func TestForgetGroups(t *testing.T) {
	r := newGroupRig(t, ipc.FlagMulticast)
	ends := map[int32]ipc.How{}
	r.Ended = func(fd int32, how ipc.How, _ *flow.Traffic) { ends[fd] = how }
	m, _ := r.joins(mdns4)
	r.Wants(mdns6, true)
	r.refuse(r.oneOpen(), syscall.ENODEV, 0)
	r.say(remote4, "x")
	other := r.answer(r.oneOpen())
	r.say(mdns4, "x")
	o := r.oneOpen()
	answers, s := r.host.Socket(), r.host.Socket()
	r.Opened(o.Token, answers.FD, &ipc.Opened{Token: o.Token, Flags: ipc.OpenedLate | ipc.OpenedAnswers, LocalPort: 1000})
	r.Opened(o.Token, s.FD, &ipc.Opened{Token: o.Token, Addr: mdns4, PeerPort: 2000, LocalPort: 1000})
	r.say(mdns6, "x")
	r.refuse(r.oneOpen(), syscall.ENETUNREACH, 0)
	r.ForgetGroups()
	if m.Closes != 1 || answers.Closes != 1 || s.Closes != 1 || other.Closes != 0 || r.Len() != 1 || ends[s.FD] != ipc.EndGone {
		t.Errorf("closed %d, %d, %d and %d times, %d flows left, ended %v", m.Closes, answers.Closes, s.Closes, other.Closes, r.Len(), ends)
	}
	r.joins(mdns4)
	r.joins(mdns6)
	for _, to := range []packet.Addr{mdns4, mdns6} {
		if r.say(to, "x"); r.oneOpen().Dst != to {
			t.Errorf("%v is not asked for again", to)
		}
	}
}

// TestGroupWaits: what the link does not take now is taken later, of both kinds of sockets.
func TestGroupWaits(t *testing.T) {
	r := newGroupRig(t, ipc.FlagMulticast)
	m, member := r.joins(mdns4)
	r.say(mdns4, "x")
	o := r.oneOpen()
	answers, s := r.host.Socket(), r.host.Socket()
	r.Opened(o.Token, answers.FD, &ipc.Opened{Token: o.Token, Flags: ipc.OpenedLate | ipc.OpenedAnswers, LocalPort: 1000})
	r.Opened(o.Token, s.FD, &ipc.Opened{Token: o.Token, Addr: mdns4, PeerPort: 2000, LocalPort: 1000})
	r.host.LinkRoom = 0
	for range 3 * readBatch * turnRounds / 2 {
		one := flow.Datagram{Buf: []byte("y"), N: 1, From: remote4, FromPort: 9}
		m.Datagrams, answers.Datagrams = append(m.Datagrams, one), append(answers.Datagrams, one)
	}
	r.Ready(member, flow.Readable)
	r.Ready(answers.Token, flow.Readable)
	if n := len(r.host.TakeFrames()); n != 0 || r.Pending() {
		t.Errorf("%d frames to a link that takes none, pending %t", n, r.Pending())
	}
	r.host.LinkRoom = flowtest.Unlimited
	r.Resume()
	for r.Pending() {
		r.Poll()
	}
	if len(m.Datagrams) != 0 || len(answers.Datagrams) != 0 {
		t.Errorf("%d and %d are left", len(m.Datagrams), len(answers.Datagrams))
	}
	// What fails on its way to many is nobody's to hear.
	r.host.TakeFrames()
	s.WriteErrs, s.Pending = []syscall.Errno{syscall.ENETUNREACH, syscall.ENETUNREACH}, syscall.EHOSTUNREACH
	r.say(mdns4, "x")
	r.Flush()
	r.Ready(o.Token, flow.Failed)
	if n := len(r.host.TakeFrames()); n != 0 {
		t.Errorf("%d frames", n)
	}
	r.leave(&r.members[0])
	if r.Left() {
		t.Error("the guest has not left")
	}
	r.joins(mdns4)
	if r.Wants(mdns4, false); !r.Left() || r.Left() {
		t.Error("the guest has left")
	}
}
