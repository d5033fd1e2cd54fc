// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/budget"
	"aldente/broker/egress"
	"aldente/broker/inet"
	"aldente/ipc"
	"aldente/ipc/domain"
)

// answering is an aldente-names that takes sockets, or does not.
type answering struct {
	err    error
	fds    []int
	protos []uint8
	settle func() int // nil: there is nothing
}

// Settle implements Names.
func (a *answering) Settle() int {
	if a.settle == nil {
		return 0
	}
	return a.settle()
}

// Client implements Names.
func (a *answering) Client(proto uint8, fd int, port uint16) error {
	if a.err != nil {
		return a.err
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	a.fds, a.protos = append(a.fds, own), append(a.protos, proto)
	if port != inet.LocalPort(fd) {
		return unix.EINVAL
	}
	return err
}

// TestDecideNames: what is sent to port 53 of a resolver that the guest knows goes to
// aldente-names, whatever the rules say of the resolver; to port 853 nothing goes, and all
// else is decided as before.
func TestDecideNames(t *testing.T) {
	set, err := egress.New([]egress.Rule{{Allow: true, Dest: "192.0.2.53"}, {Allow: true, Dest: "pypi.test"}, {Dest: "any"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Egress: set,
		V4: Family{Enabled: true, DNSForward: netip.MustParseAddr("169.254.1.1"), DNSHost: netip.MustParseAddr("127.0.0.53"),
			MapGuestAddr: netip.MustParseAddr("192.0.2.80"), GuestAddr: netip.MustParseAddr("192.0.2.54")},
		V6: Family{Enabled: true},
	}
	redirect, err := egress.ParseRedirect("203.0.113.0/24:53=192.0.2.53")
	if err != nil {
		t.Fatal(err)
	}
	c.Redirects = egress.NewRedirects([]egress.Redirect{redirect})
	for _, a := range []string{"169.254.1.1", "192.0.2.53", "192.0.2.54", "2001:db8::53"} {
		c.Resolvers = append(c.Resolvers, netip.MustParseAddr(a))
	}
	for _, tt := range []struct {
		proto   uint8
		to      string
		names   bool
		refused unix.Errno
		always  always
		leads   string
	}{
		{ipc.ProtoUDP, "169.254.1.1:53", true, 0, possible, "127.0.0.53:53"},
		{ipc.ProtoTCP, "169.254.1.1:53", true, 0, possible, "127.0.0.53:53"},
		{ipc.ProtoUDP, "192.0.2.53:53", true, 0, possible, "192.0.2.53:53"},
		{ipc.ProtoUDP, "192.0.2.54:53", true, 0, possible, "192.0.2.54:53"}, // that the rules deny
		{ipc.ProtoTCP, "[2001:db8::53]:53", true, 0, possible, "[2001:db8::53]:53"},
		{ipc.ProtoUDP, "203.0.113.7:53", true, 0, possible, "192.0.2.53:53"}, // that --redirect leads to
		{ipc.ProtoTCP, "203.0.113.7:53", true, 0, possible, "192.0.2.53:53"},
		{ipc.ProtoUDP, "192.0.2.80:53", true, 0, possible, "192.0.2.54:53"}, // the host itself is the resolver
		{ipc.ProtoUDP, "192.0.2.80:853", true, unix.EACCES, isPrivateDNS, "192.0.2.54:853"},
		{ipc.ProtoUDP, "192.0.2.80:54", false, unix.EACCES, possible, "192.0.2.54:54"},
		{ipc.ProtoTCP, "169.254.1.1:853", true, unix.EACCES, isPrivateDNS, "127.0.0.53:853"},
		{ipc.ProtoUDP, "192.0.2.53:853", true, unix.EACCES, isPrivateDNS, "192.0.2.53:853"}, // that the rules allow
		{ipc.ProtoTCP, "[2001:db8::53]:853", true, unix.EACCES, isPrivateDNS, "[2001:db8::53]:853"},
		{ipc.ProtoTCP, "192.0.2.53:443", false, 0, possible, "192.0.2.53:443"},
		{ipc.ProtoICMP, "192.0.2.53:0", false, 0, possible, "192.0.2.53:0"},
		{ipc.ProtoTCP, "192.0.2.54:443", false, unix.EACCES, possible, "192.0.2.54:443"},
		{ipc.ProtoUDP, "192.0.2.55:53", false, unix.EACCES, possible, "192.0.2.55:53"}, // a resolver of the guest's own choice
	} {
		dst := netip.MustParseAddrPort(tt.to)
		d := c.decide(&request{proto: tt.proto, src: netip.AddrPortFrom(inet.Any(dst.Addr()), 40000), dst: dst})
		if d.names != tt.names || d.refused != tt.refused || d.always != tt.always || d.to.String() != tt.leads {
			t.Errorf("%d to %s: %+v, want %+v", tt.proto, tt.to, d, tt)
		}
	}
}

// TestDecideNamesReply: no answer of a forwarded port leads to a resolver for which
// aldente-names answers, though the rules allow the resolver: whether it is one the worker
// alone knows.
func TestDecideNamesReply(t *testing.T) {
	for _, addr := range []string{"192.0.2.53", "2001:db8::53"} {
		a := netip.MustParseAddr(addr)
		c := Config{V4: Family{Enabled: true}, V6: Family{Enabled: true}, Resolvers: []netip.Addr{a}}
		l := Listener{ID: 1, Proto: ipc.ProtoUDP, Port: 7000, GuestPort: 7000}
		for port, want := range map[uint16]unix.Errno{53: unix.EACCES, 853: unix.EACCES, 54: 0} {
			d := c.decide(&request{proto: ipc.ProtoUDP, listener: l, src: netip.AddrPortFrom(inet.Any(a), 7000), dst: netip.AddrPortFrom(a, port)})
			if d.refused != want || d.names {
				t.Errorf("%s:%d: %+v", addr, port, d)
			}
		}
	}
}

// resolving is a factory at work with a resolver that the guest asks.
func resolving(t *testing.T, names Names) *atWork {
	t.Helper()
	w, _ := workWithin(t, func(*budget.Limits) {})
	w.cfg().Resolvers = []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")}
	w.Names = names
	return w
}

func toResolver(proto uint8, addr string, port uint16) ipc.Open {
	a := netip.MustParseAddr(addr)
	return ipc.Open{Token: 9, Proto: proto, Src: inet.Any(a).As16(), SrcPort: 40000, Dst: a.As16(), DstPort: port}
}

// TestOpenNames: a worker gets one end of a pair, aldente-names the other; the worker is told
// where its end really leads, and nobody keeps a descriptor.
func TestOpenNames(t *testing.T) {
	names := &answering{}
	w := resolving(t, names)
	before := descriptorCount(t)
	for i, o := range []ipc.Open{toResolver(ipc.ProtoUDP, "192.0.2.53", 53), toResolver(ipc.ProtoTCP, "192.0.2.53", 53), toResolver(ipc.ProtoUDP, "2001:db8::53", 53)} {
		flags := uint16(0)
		if o.Proto == ipc.ProtoUDP {
			flags = ipc.OpenedNames
		}
		fd, a := w.request(t, o)
		if fd < 0 || a.Errno != 0 || netip.AddrFrom16(a.Addr).Unmap() != inet.PairAddr || a.Flags != flags || a.PeerPort == 0 {
			t.Fatalf("%d: descriptor %d, %+v", i, fd, a)
		}
		if got := inet.LocalPort(names.fds[i]); got != a.PeerPort || names.protos[i] != o.Proto {
			t.Errorf("%d: port %d, %+v", i, got, a)
		}
		if _, err := unix.Write(fd, []byte("question")); err != nil {
			t.Error(err)
		}
		b := make([]byte, 20)
		p := []unix.PollFd{{Fd: int32(names.fds[i]), Events: unix.POLLIN}}
		if n, _ := unix.Poll(p, 10_000); n != 1 {
			t.Fatal("nothing comes")
		}
		if n, err := unix.Read(names.fds[i], b); string(b[:max(n, 0)]) != "question" {
			t.Errorf("%q, %v", b[:max(n, 0)], err)
		}
		unix.Close(fd)
		unix.Close(names.fds[i])
	}
	descriptorsAgain(t, before)
}

// descriptorsAgain waits until the factory has closed its copies: it answers first.
func descriptorsAgain(t *testing.T, before int) {
	t.Helper()
	after := descriptorCount(t)
	for end := time.Now().Add(5 * time.Second); after != before && time.Now().Before(end); after = descriptorCount(t) {
		time.Sleep(time.Millisecond)
	}
	if after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// TestOpenNamesFails: where nobody answers, nothing leads anywhere.
func TestOpenNamesFails(t *testing.T) {
	for _, tt := range []struct {
		names Names
		port  uint16
		want  unix.Errno
	}{
		{nil, 53, unix.EACCES},
		{&answering{err: unix.EPIPE}, 53, unix.EAGAIN},
		{&answering{err: unix.EAGAIN}, 53, unix.EAGAIN},
		{&answering{}, 853, unix.EACCES},
	} {
		w := resolving(t, tt.names)
		before := descriptorCount(t)
		for _, proto := range []uint8{ipc.ProtoUDP, ipc.ProtoTCP} {
			fd, a := w.request(t, toResolver(proto, "192.0.2.53", tt.port))
			if fd >= 0 || unix.Errno(a.Errno) != tt.want {
				t.Errorf("%+v, protocol %d: descriptor %d, %v", tt, proto, fd, unix.Errno(a.Errno))
			}
		}
		descriptorsAgain(t, before)
	}
}

// TestUpstream: sockets to resolvers lead to port 53 and nowhere else, are counted for as
// long as somebody has them, whatever the rules say of the resolver, and count against
// nothing of the worker's.
func TestUpstream(t *testing.T) {
	w := resolving(t, &answering{})
	lo := netip.MustParseAddr("127.0.0.1")
	fd, e := w.Upstream(ipc.ProtoUDP, lo)
	if e != 0 {
		t.Fatal(e)
	}
	if sa, err := unix.Getpeername(fd); err != nil || sa.(*unix.SockaddrInet4).Port != 53 || sa.(*unix.SockaddrInet4).Addr != lo.As4() {
		t.Errorf("connected to %v, %v", sa, err)
	}
	fds := []int{fd}
	for len(fds) < 1000 {
		fd, e := w.Upstream(ipc.ProtoUDP, lo)
		if e != 0 {
			break
		}
		fds = append(fds, fd)
	}
	most := w.Usage()[budget.Upstream].Limit
	if len(fds) != most {
		t.Errorf("%d sockets of %d", len(fds), most)
	}
	other, a := w.request(t, toLoopback(ipc.ProtoUDP, false, 9))
	if other < 0 {
		t.Errorf("a flow of the guest's: %v", unix.Errno(a.Errno))
	}
	unix.Close(other)
	for _, fd := range fds {
		unix.Close(fd)
	}
	var fd2 int
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if fd2, e = w.Upstream(ipc.ProtoUDP, lo); e == 0 {
			unix.Close(fd2)
			break
		}
	}
	if e != 0 {
		t.Errorf("closed sockets count: %v", e)
	}
	if fd, e := w.Upstream(ipc.ProtoTCP, lo); e == 0 {
		unix.Close(fd)
	} else if e != unix.ECONNREFUSED {
		t.Errorf("TCP: %v", e)
	}
}

// TestNamesGone: the worker is told to end all flows of datagrams to names, and no other.
func TestNamesGone(t *testing.T) {
	w := resolving(t, &answering{})
	var told []ipc.Revoke
	w.NamesGone(func(r *ipc.Revoke) error {
		told = append(told, *r)
		return errors.New("there is no worker")
	})
	if len(told) != 1 || told[0] != (ipc.Revoke{Proto: ipc.ProtoUDP, Addr: inet.PairAddr.As16()}) {
		t.Errorf("%+v", told)
	}
	w.NamesClosed(7, func(r *ipc.Revoke) error {
		told = append(told, *r)
		return nil
	})
	if len(told) != 2 || told[1] != (ipc.Revoke{Proto: ipc.ProtoUDP, Addr: inet.PairAddr.As16(), Port: 7}) {
		t.Errorf("%+v", told)
	}
}

// TestWhyNames: whoever asks is told who answers.
func TestWhyNames(t *testing.T) {
	w := resolving(t, &answering{})
	for to, want := range map[string]bool{"192.0.2.53:53": true, "192.0.2.53:853": false} {
		x := w.Why(ipc.ProtoUDP, netip.MustParseAddrPort(to))
		text := ""
		for _, s := range x.Steps {
			text += s.What + ": " + s.Result + "\n"
		}
		if x.Allowed != want || !strings.Contains(text, "aldente-names answers") {
			t.Errorf("%s: %v\n%s", to, x.Allowed, text)
		}
	}
}

// TestDecidedOnceSettled: nothing is decided for the guest before the egress rules know of all
// that it has been told of: neither refused, nor allowed by the name before, nor where a
// rule by name denies it. What that takes counts as the worker's doing.
func TestDecidedOnceSettled(t *testing.T) {
	names := &answering{}
	w := work(t, append([]egress.Rule{{Dest: "tcp:b.cdn.test:443"}}, namedRules...)...)
	w.Names = names
	e := w.cfg().Egress.(*egress.RuleSet)
	var told []string
	names.settle = func() int {
		for _, name := range told {
			e.Grant(domain.Name(name), nil, []netip.Addr{netip.MustParseAddr("198.51.100.7")}, time.Now().Add(time.Hour))
		}
		n := len(told)
		told = nil
		return n
	}
	decide := func(dst string, listener uint32) (decision, int) {
		s := &served{}
		q := request{proto: ipc.ProtoTCP, src: netip.MustParseAddrPort("10.0.0.2:4000"), dst: netip.MustParseAddrPort(dst)}
		q.listener.ID = listener
		return w.decideSettled(&q, s), s.refusals
	}
	for i, tt := range []struct {
		dst     string
		told    []string
		refused unix.Errno
		name    string
	}{
		{"198.51.100.7:443", nil, unix.EACCES, ""},
		{"198.51.100.7:443", []string{"a.cdn.test"}, 0, "a.cdn.test"},
		{"198.51.100.7:443", nil, 0, "a.cdn.test"},
		{"198.51.100.7:80", []string{"a.cdn.test", "c.cdn.test"}, 0, "c.cdn.test"},
		{"198.51.100.7:443", []string{"b.cdn.test"}, unix.EACCES, "b.cdn.test"},
		{"198.51.100.7:80", nil, 0, "b.cdn.test"},
		{"127.0.0.1:443", []string{"a.cdn.test"}, unix.EACCES, ""}, // whatever the rules say
	} {
		told = tt.told
		d, counts := decide(tt.dst, 0)
		if d.refused != tt.refused || string(d.verdict.Name) != tt.name || counts != len(tt.told) || told != nil {
			t.Errorf("%d: refused %v, by name of %q, counts for %d refusals", i, d.refused, d.verdict.Name, counts)
		}
	}
	told = []string{"a.cdn.test"}
	if decide("198.51.100.7:443", 1); told == nil {
		t.Error("asked for what came by a listener")
	}
}
