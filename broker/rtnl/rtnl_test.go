// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

func TestNextAttr(t *testing.T) {
	attr := func(n, typ uint16, val ...byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, n)
		return append(binary.NativeEndian.AppendUint16(b, typ), val...)
	}
	for _, c := range []struct {
		name string
		in   []byte
		ok   bool
		typ  uint16
		val  []byte
		rest int
	}{
		{name: "empty"},
		{name: "header cut", in: []byte{8, 0, 1}, rest: 3},
		{name: "length below header", in: attr(3, 1), rest: 4},
		{name: "length beyond end", in: attr(9, 1, 1, 2, 3, 4), rest: 8},
		{name: "no value", in: attr(4, 7), ok: true, typ: 7},
		{name: "padding", in: append(attr(5, 7, 0xaa, 0, 0, 0), 9), ok: true, typ: 7, val: []byte{0xaa}, rest: 1},
		{name: "padding cut", in: attr(5, 7, 0xaa), ok: true, typ: 7, val: []byte{0xaa}},
		{name: "nested flag", in: attr(4, 7|0x8000), ok: true, typ: 7},
	} {
		typ, val, rest, ok := Attrs(c.in).next()
		if ok != c.ok || typ != c.typ || !bytes.Equal(val, c.val) || len(rest) != c.rest {
			t.Errorf("%s: got type %d, value %x, %d left, %v", c.name, typ, val, len(rest), ok)
		}
	}
}

func TestDumpAndGet(t *testing.T) {
	nettest.Host(t)
	c := dial(t)
	found := false
	err := c.Dump(unix.RTM_GETADDR, (&AddrHeader{}).Body(), func(m Message) {
		a, ok := m.Addr()
		ip, local := a.Local()
		found = found || ok && local && ip == netip.AddrFrom4([4]byte{127, 0, 0, 1}) && a.Index() == Loopback && a.PrefixLen() == 8
	})
	if err != nil {
		t.Fatal(err)
	}
	if !found {
		t.Error("127.0.0.1 is not in the dump")
	}
	l, err := c.LinkAt(Loopback)
	if err != nil || l.Name() != "lo" || l.Flags()&unix.IFF_LOOPBACK == 0 {
		t.Errorf("interface 1: %q, %v", l.Name(), err)
	}
	if l, err := c.LinkNamed("lo"); err != nil || l.Index() != Loopback {
		t.Errorf("lo: %v", err)
	}
	for _, name := range []string{"nosuchlink", "a name that only an alternative may have"} {
		if _, err := c.LinkNamed(name); !errors.Is(err, unix.ENODEV) {
			t.Errorf("%s: %v, want ENODEV", name, err)
		}
	}
	if _, err := c.LinkAt(1 << 30); !errors.Is(err, unix.ENODEV) {
		t.Errorf("interface 1<<30: %v, want ENODEV", err)
	}
	to := AppendAttr((&RouteHeader{Family: unix.AF_INET, DstLen: 32}).Body(), unix.RTA_DST, []byte{127, 0, 0, 1})
	r, err := c.Route(to)
	if err != nil {
		t.Fatal(err)
	}
	if oif, ok := r.Out(); !ok || oif != Loopback || r.Type() != unix.RTN_LOCAL || r.Dst() != netip.MustParsePrefix("127.0.0.1/32") {
		t.Errorf("127.0.0.1 by %d, of type %d, %v", oif, r.Type(), r.Dst())
	}
}

// TestSockDiag finds sockets, by listing and by asking for one.
func TestSockDiag(t *testing.T) {
	d, err := DialSockDiag()
	if err != nil {
		t.Skip(err)
	}
	defer d.Close()
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	q := SockQuery{Family: unix.AF_INET, Proto: unix.IPPROTO_TCP, States: 1 << StateListen, Local: PortOnly(at.Port())}
	found := 0
	if err := d.List(&q); err != nil {
		t.Fatal(err)
	}
	for done := false; !done; {
		done, err = d.Next(func(s Sock) {
			if s.Local() == at && s.State() == StateListen && s.UID() == uint32(os.Geteuid()) {
				found++
			}
		})
		if errors.Is(err, unix.ENOENT) {
			t.Skip("a kernel without sock_diag")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if found != 1 {
		t.Errorf("found %d times", found)
	}
	u, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(at.Addr(), 9)))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	q = SockQuery{Family: unix.AF_INET, Proto: unix.IPPROTO_UDP, States: ^uint32(0),
		Local: u.LocalAddr().(*net.UDPAddr).AddrPort(), Peer: netip.AddrPortFrom(at.Addr(), 9)}
	if s, ok := d.Lookup(&q); !ok || s.Local() != q.Local || s.Peer() != q.Peer || s.State() != StateEstablished {
		t.Errorf("%v to %v: %t", q.Local, q.Peer, ok)
	}
	u.Close()
	if s, ok := d.Lookup(&q); ok && s.Local() == q.Local {
		t.Error("found when it was gone")
	}
}

// TestDoAssignsErrors sends more than one batch of requests that fail each in
// its own way, and expects each error where it belongs.
func TestDoAssignsErrors(t *testing.T) {
	nettest.Host(t)
	c := dial(t)
	const n = 2000
	reqs := make([]Request, n)
	want := make([]error, n)
	for i := range reqs {
		body := make([]byte, unix.SizeofIfInfomsg)
		if i%3 == 0 {
			binary.NativeEndian.PutUint32(body[4:], 1) // lo: asks for no change, so succeeds, given the right to
		} else {
			binary.NativeEndian.PutUint32(body[4:], 1<<30)
			want[i] = unix.ENODEV
		}
		reqs[i] = Request{Type: unix.RTM_NEWLINK, Body: body}
	}
	errs, err := c.Do(reqs)
	if err != nil {
		t.Fatal(err)
	}
	for i := range errs {
		if !errors.Is(errs[i], want[i]) {
			t.Fatalf("request %d: %v, want %v", i, errs[i], want[i])
		}
	}
	if _, err := c.Get(unix.RTM_GETLINK, reqs[0].Body); err != nil {
		t.Errorf("after the batches: %v", err)
	}
}

func dial(t *testing.T) *Conn {
	t.Helper()
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
