// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/igmp"
	"aldente/worker/packet"
)

var mdns4 = packet.AddrFrom4([4]byte{224, 0, 0, 251})

// membership is a report of IGMP version 2 that the guest wants a group, or leaves it.
func membership(group packet.Addr, wanted bool) []byte {
	msg := []byte{0x17, 0, 0, 0, group[12], group[13], group[14], group[15]}
	if wanted {
		msg[0] = 0x16
	}
	binary.BigEndian.PutUint16(msg[2:], packet.Checksum(msg))
	e := guestEnds(false)
	e.Dst, e.TTL = group, 1
	b := make([]byte, 128)
	n := packet.PutIP(b, e, packet.ProtoIGMP, len(msg))
	return b[:n+copy(b[n:], msg)]
}

// listener is a report of MLD version 1, behind a router alert.
func listener(group packet.Addr) []byte {
	msg := append([]byte{packet.MLDReport1, 0, 0, 0, 0, 0, 0, 0}, group[:]...)
	e := guestEnds(true)
	e.Src, e.Dst, e.TTL = packet.Addr{0: 0xfe, 1: 0x80, 15: 2}, group, 1
	binary.BigEndian.PutUint16(msg[2:], ^packet.Fold(packet.Sum(msg, packet.PseudoSum(&e.Src, &e.Dst, packet.ProtoICMPv6, len(msg)))))
	b := make([]byte, 128)
	n := packet.PutIP(b, e, packet.ProtoHopByHop, 8+len(msg))
	n += copy(b[n:], []byte{packet.ProtoICMPv6, 0, 5, 2, 0, 0, 1, 0})
	return b[:n+copy(b[n:], msg)]
}

// queries counts the frames in which the guest is asked for its groups.
func queries(frames [][]byte) (v4, v6 int) {
	var p packet.Packet
	for _, f := range frames {
		switch {
		case p.Decode(f) != nil:
		case p.Proto == packet.ProtoIGMP && p.Payload()[0] == 0x11:
			v4++
		case p.IPVersion == 6 && p.Proto == packet.ProtoICMPv6 && p.Payload()[0] == packet.MLDQuery:
			v6++
		}
	}
	return v4, v6
}

// TestMembership: the guest is asked which groups it wants as its link comes up, and now
// and then; the broker is asked for those that were named; and who leaves one has others
// asked, though not as often as it likes.
func TestMembership(t *testing.T) {
	mdns6 := packet.Addr{0: 0xff, 1: 2, 15: 0xfb}
	k := newLookedWith(t, func(c *ipc.Config) {
		c.OurLL6 = packet.Addr{0: 0xfe, 1: 0x80, 15: 1}
		c.NGroups = 2
		c.Groups[0], c.Groups[1] = ipc.Group{Addr: mdns4, Port: 5353}, ipc.Group{Addr: mdns6, Port: 5353}
	})
	if v4, v6 := queries(k.heard()); v4 != 1 || v6 != 1 {
		t.Errorf("asked %d and %d times at first", v4, v6)
	}
	ignored := k.l.Stats.Ignored
	k.from(membership(packet.AddrFrom4([4]byte{224, 0, 0, 252}), true), &packet.Offload{})
	damaged := membership(mdns4, true)
	damaged[len(damaged)-1]++
	k.from(damaged, &packet.Offload{})
	if k.l.Stats.Ignored != ignored+1 {
		t.Error("a report that is damaged is taken")
	}
	for _, frame := range [][]byte{membership(mdns4, true), listener(mdns6)} {
		k.from(frame, &packet.Offload{})
		o := k.asked()
		var p packet.Packet
		if err := p.Decode(frame); err != nil || o.Dst != p.Dst || o.Flags != ipc.OpenMember || o.DstPort != 5353 {
			t.Errorf("%+v, %v", o, err)
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, ipc.OpenedSize)
		(&ipc.Opened{Token: o.Token, Addr: o.Dst, PeerPort: 5353}).Encode(b)
		send(t, k.broker, b, fd)
		k.turns()
	}
	for range 5 {
		k.from(membership(mdns4, false), &packet.Offload{})
		k.from(membership(mdns4, true), &packet.Offload{})
	}
	if v4, _ := queries(k.heard()); v4 != 1 {
		t.Errorf("asked %d times since it has left", v4)
	}
	k.l.wheel.Advance(k.l.now+igmp.Interval+igmp.Interval/4, k.l.fire)
	if v4, v6 := queries(k.heard()); v4 != 1 || v6 != 1 {
		t.Errorf("asked %d and %d times later", v4, v6)
	}
}

// TestNoMembership: where no group was named, nobody is asked, and reports are nothing.
func TestNoMembership(t *testing.T) {
	k := newLooked(t)
	k.from(membership(mdns4, true), &packet.Offload{})
	if v4, v6 := queries(k.heard()); v4+v6 != 0 || k.l.Stats.Ignored != 1 {
		t.Errorf("asked %d and %d times, %+v", v4, v6, k.l.Stats)
	}
	k.l.wheel.Advance(k.l.now+2*igmp.Interval, k.l.fire)
	if v4, v6 := queries(k.heard()); v4+v6 != 0 {
		t.Error("asked")
	}
}

// TestMembershipElsewhere: when the network becomes another, groups are left, and the guest
// is asked at once which it wants.
func TestMembershipElsewhere(t *testing.T) {
	k := newLookedWith(t, func(c *ipc.Config) {
		c.OurLL6 = packet.Addr{0: 0xfe, 1: 0x80, 15: 1}
		c.NGroups, c.Groups[0] = 1, ipc.Group{Addr: mdns4, Port: 5353}
	})
	k.heard()
	k.from(membership(mdns4, true), &packet.Offload{})
	o := k.asked()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, ipc.OpenedSize, ipc.MaxRecord)
	(&ipc.Opened{Token: o.Token, Addr: o.Dst, PeerPort: 5353}).Encode(b)
	send(t, k.broker, b, fd)
	k.turns()
	next := k.l.guest.Config
	next.NGroups = 0
	send(t, k.broker, next.Encode(), -1)
	k.turns()
	if v4, v6 := queries(k.heard()); v4 != 1 || v6 != 1 {
		t.Errorf("asked %d and %d times", v4, v6)
	}
	var left ipc.Ended
	n, _, err := unix.Recvfrom(k.broker, b[:cap(b)], unix.MSG_DONTWAIT)
	if err != nil || left.Decode(b[:n]) != nil || left.Token != o.Token {
		t.Errorf("the broker hears %x, %v", b[:n], err)
	}
	k.from(membership(mdns4, true), &packet.Offload{})
	if again := k.asked(); again.Dst != mdns4 || again.Flags != ipc.OpenMember {
		t.Errorf("%+v", again)
	}
}
