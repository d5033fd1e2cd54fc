// SPDX-License-Identifier: Apache-2.0

package inet

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestGroupSockets: what is sent to a group is heard by who has joined it on the interface,
// beside others that have the port; what is sent to the host itself is not.
func TestGroupSockets(t *testing.T) {
	const lo = 1 // index of the loopback interface
	group := netip.MustParseAddrPort("239.1.2.3:5353")
	// A service of somebody else's, as mDNS has.
	other, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	keep(t, other, err)
	if err := unix.SetsockoptInt(other, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(other, &unix.SockaddrInet4{Port: int(group.Port())}); err != nil {
		t.Fatal(err)
	}
	g := Group{Path: Path{Scope: lo}, At: group, From: group.Port()}
	member := g.Join()
	keep(t, member.FD, member.Err)
	sender := g.Dial()
	keep(t, sender.FD, sender.Err)
	if p := LocalPort(sender.FD); p != group.Port() {
		t.Errorf("port %d", p)
	}
	say := func(fd int, what string) {
		t.Helper()
		if _, err := unix.Write(fd, []byte(what)); err != nil {
			t.Error(err)
		}
	}
	say(sender.FD, "one")
	if got := receive(t, member.FD); string(got) != "one" {
		t.Errorf("%q", got)
	}
	if readable(t, sender.FD, 20*time.Millisecond) {
		t.Error("the sender hears")
	}
	// Others of the group, or on the port, are not meant.
	sendTo(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), group.Port()))
	if readable(t, member.FD, 50*time.Millisecond) || readable(t, sender.FD, 0) {
		t.Error("what is for the host is heard")
	}
	if !readable(t, other, 10*time.Second) {
		t.Error("the host's service does not hear what is for it")
	}
	g.NotHost = true
	quiet := g.Dial()
	keep(t, quiet.FD, quiet.Err)
	// By its own interface the host hears in any case, which is that of loopback here.
	options(t, quiet.FD, option{name: "IP_MULTICAST_LOOP", level: unix.IPPROTO_IP, opt: unix.IP_MULTICAST_LOOP, want: 0})
	g.Filter = Nothing
	deaf := g.Join()
	keep(t, deaf.FD, deaf.Err)
	say(sender.FD, "three")
	if got := receive(t, member.FD); string(got) != "three" {
		t.Errorf("%q", got)
	}
	if readable(t, deaf.FD, 20*time.Millisecond) {
		t.Error("heard in spite of its filter")
	}
	none := Group{Path: Path{Scope: 1 << 20}, At: group, From: group.Port()}
	if r := none.Join(); r.Err == nil {
		unix.Close(r.FD)
		t.Error("joined on no interface")
	}
	everybody := Group{At: netip.MustParseAddrPort("255.255.255.255:99"), From: 99, Path: Path{Device: "lo"}}
	if r := everybody.Dial(); r.Err == nil {
		if v, err := unix.GetsockoptInt(r.FD, unix.SOL_SOCKET, unix.SO_BROADCAST); err != nil || v != 1 {
			t.Errorf("SO_BROADCAST %d, %v", v, err)
		}
		unix.Close(r.FD)
	}
}
