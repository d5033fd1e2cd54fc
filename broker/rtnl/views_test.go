// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"bytes"
	"encoding/binary"
	"iter"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/fuzz"
)

// decoded reads a structure as package encoding/binary does, which knows nothing of
// our offsets.
func decoded[T any](t *testing.T, b []byte) (v T) {
	t.Helper()
	if err := binary.Read(bytes.NewReader(b), binary.NativeEndian, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// sockMsg is struct inet_diag_msg, include/uapi/linux/inet_diag.h.
type sockMsg struct {
	Family, State, Timer, Retrans uint8
	Sport, Dport                  [2]byte
	Src, Dst                      [16]byte
	If                            uint32
	Cookie                        [2]uint32
	Expires, Rqueue, Wqueue       uint32
	UID, Inode                    uint32
}

// nexthop is struct rtnexthop, include/uapi/linux/rtnetlink.h.
type nexthop struct {
	Len         uint16
	Flags, Hops uint8
	Index       int32
}

// FuzzViews looks at any bytes as a link, an address, a route and a socket. What is
// long enough is one, and has what package encoding/binary finds in the structures of
// golang.org/x/sys; what is changed is that, and nothing else.
func FuzzViews(f *testing.F) {
	a4, a6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	hop := AppendAttr(binary.NativeEndian.AppendUint32([]byte{16, 0, 4, 9}, 3), unix.RTA_GATEWAY, a4.AsSlice())
	route := (&RouteHeader{Family: unix.AF_INET, DstLen: 24, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Flags: unix.RTNH_F_ONLINK}).Body()
	address := (&AddrHeader{Family: unix.AF_INET6, PrefixLen: 64, Scope: 253, Flags: 0x80, Index: 2}).Body()
	for _, b := range [][]byte{
		AppendAttr(AppendAttr(bytes.Clone(route), unix.RTA_DST, a4.AsSlice()), unix.RTA_GATEWAY, a4.AsSlice()),
		AppendAttrUint32(AppendAttrUint32(bytes.Clone(route), unix.RTA_TABLE, 77), unix.RTA_OIF, 1<<31),
		AppendAttr(bytes.Clone(route), unix.RTA_MULTIPATH, append(bytes.Clone(hop), hop...)),
		AppendAttr(bytes.Clone(route), unix.RTA_MULTIPATH, append(bytes.Clone(hop), hop[:11]...)),
		AppendAttr(bytes.Clone(route), unix.RTA_MULTIPATH, []byte{9, 0, 0, 0, 1, 0, 0, 0, 1}),
		AppendAttr(AppendAttr(bytes.Clone(address), unix.IFA_ADDRESS, a6.AsSlice()), unix.IFA_LOCAL, a6.AsSlice()),
		AppendAttrUint32(AppendAttr(bytes.Clone(address), unix.IFA_ADDRESS, a6.AsSlice()), unix.IFA_FLAGS, 0x10080),
		AppendAttr(AppendAttrUint32(appendName((&LinkHeader{Index: 7, Flags: 1, Change: 1}).Body(), unix.IFLA_IFNAME, "eth0"), unix.IFLA_MTU, 1500), unix.IFLA_ADDRESS, []byte{2, 0, 0, 0, 0, 1}),
		AppendAttr(append([]byte{unix.AF_INET6, 7, 0, 0, 0x12, 0x34, 0, 53}, bytes.Repeat([]byte{7}, 64)...), skV6Only, []byte{1}),
		append([]byte{unix.AF_INET, 1, 0, 0, 0x12, 0x34, 0, 53, 127, 0, 0, 1}, bytes.Repeat([]byte{9}, 60)...),
		AppendAttr(AppendAttrUint32(AppendAttrUint32([]byte{unix.AF_INET, 0, 0, 0, 4, 0, 0, 0}, unix.NHA_ID, 7), unix.NHA_OIF, 2), unix.NHA_GATEWAY, a4.AsSlice()),
		AppendAttr(AppendAttrUint32(make([]byte, 8), unix.NHA_ID, 9), unix.NHA_GROUP, []byte{7, 0, 0, 0, 3, 1, 0, 0, 8, 0, 0, 0, 255, 0, 0, 0, 1}),
		route[:11], address[:7], nil,
	} {
		fuzz.Add(f, b, uint32(5))
	}
	f.Fuzz(func(t *testing.T, b []byte, v uint32) {
		if len(b) > 4096 {
			return
		}
		checkLink(t, b)
		checkAddr(t, bytes.Clone(b), v)
		checkRouteView(t, bytes.Clone(b), v)
		checkSock(t, b)
		checkNexthop(t, b)
		checkMadeHop(t, b, v)
	})
}

// nhMsg is struct nhmsg, and nhGroup struct nexthop_grp, include/uapi/linux/nexthop.h.
type (
	nhMsg struct {
		Family, Scope, Protocol, Reserved uint8
		Flags                             uint32
	}
	nhGroup struct {
		ID           uint32
		Weight, High uint8
		Reserved     uint16
	}
)

func checkNexthop(t *testing.T, b []byte) {
	t.Helper()
	n, ok := NexthopOf(b)
	if ok != (len(b) >= 8) {
		t.Fatalf("a nexthop object of %d bytes: %t", len(b), ok)
	}
	if !ok {
		return
	}
	want := decoded[nhMsg](t, b)
	if n.Family() != want.Family || n.Flags() != want.Flags || len(n.Attrs()) != len(b)-8 {
		t.Fatalf("%x is %d, %#x", b, n.Family(), n.Flags())
	}
	if gw := n.Gateway(); gw.IsValid() && !bytes.Equal(gw.AsSlice(), n.Attrs().Get(unix.NHA_GATEWAY)) {
		t.Fatalf("%v of %x", gw, b)
	}
	group := n.Attrs().Get(unix.NHA_GROUP)
	for id, weight := range n.Group() {
		one := decoded[nhGroup](t, group)
		if id != one.ID || weight != int(one.High)<<8+int(one.Weight)+1 {
			t.Fatalf("%d of weight %d, in %x", id, weight, group)
		}
		group = group[8:]
	}
	if len(group) >= 8 {
		t.Fatalf("%x is left", group)
	}
}

// checkMadeHop makes paths of any numbers, and finds those again.
func checkMadeHop(t *testing.T, b []byte, v uint32) {
	t.Helper()
	var gw netip.Addr
	switch {
	case len(b) >= 16:
		gw = netip.AddrFrom16([16]byte(b))
	case len(b) >= 4:
		gw = netip.AddrFrom4([4]byte(b))
	}
	var hops Hops
	for range 2 {
		hops = AppendHop(hops, int(int32(v)), int(v%257), uint8(v), unix.AF_INET, gw)
	}
	n := 0
	for h := range hops.All() {
		n++
		if h.Index() != int(int32(v)) || h.Weight() != max(1, int(v%257)) || h.Flags() != uint8(v) || !h.Attrs().Whole() || gw.Is4() != h.Gateway(unix.AF_INET).IsValid() {
			t.Fatalf("%x of %v, %d", []byte(hops), gw, v)
		}
	}
	if n != 2 || !hops.Whole() {
		t.Fatalf("%d paths in %x", n, []byte(hops))
	}
}

func checkLink(t *testing.T, b []byte) {
	t.Helper()
	l, ok := LinkOf(b)
	if ok != (len(b) >= unix.SizeofIfInfomsg) {
		t.Fatalf("a link of %d bytes: %t", len(b), ok)
	}
	if !ok {
		return
	}
	want := decoded[unix.IfInfomsg](t, b)
	if l.Index() != int(want.Index) || l.Flags() != want.Flags || len(l.Attrs()) != len(b)-unix.SizeofIfInfomsg {
		t.Fatalf("%x is %d, %#x", b, l.Index(), l.Flags())
	}
	if name := l.Name(); len(name) > len(b) || bytes.Contains([]byte(name), []byte{0}) {
		t.Fatalf("name %q", name)
	}
	if mac := l.MAC(); mac != [6]byte{} && !bytes.Equal(l.Attrs().Get(unix.IFLA_ADDRESS), mac[:]) {
		t.Fatalf("%x", mac)
	}
}

func checkAddr(t *testing.T, b []byte, v uint32) {
	t.Helper()
	a, ok := AddrOf(b)
	if ok != (len(b) >= unix.SizeofIfAddrmsg) {
		t.Fatalf("an address of %d bytes: %t", len(b), ok)
	}
	if !ok {
		return
	}
	want := decoded[unix.IfAddrmsg](t, b)
	flags, more := a.Attrs().Uint32(unix.IFA_FLAGS)
	if !more {
		flags = uint32(want.Flags)
	}
	if a.Family() != want.Family || a.PrefixLen() != int(want.Prefixlen) || a.Scope() != want.Scope || a.Index() != int(int32(want.Index)) || a.Flags() != flags {
		t.Fatalf("%x is %d, %d, %d, %d, %#x", b, a.Family(), a.PrefixLen(), a.Scope(), a.Index(), a.Flags())
	}
	if ip, ok := a.Local(); ok && !bytes.Equal(ip.AsSlice(), a.Attrs().Get(unix.IFA_LOCAL)) && !bytes.Equal(ip.AsSlice(), a.Attrs().Get(unix.IFA_ADDRESS)) {
		t.Fatalf("%v of %x", ip, b)
	}
	if p := a.Network(); p.IsValid() && (!bytes.Equal(p.Addr().AsSlice(), a.Attrs().Get(unix.IFA_ADDRESS)) || p.Bits() != int(want.Prefixlen)) {
		t.Fatalf("%v of %x", p, b)
	}
	a.SetIndex(int(int32(v)))
	a.SetFlags(v)
	want.Index, want.Flags = v, uint8(v)
	if got := decoded[unix.IfAddrmsg](t, a.Body()); got != want {
		t.Fatalf("changed to %+v, want %+v", got, want)
	}
	if more && a.Flags() != v || !more && a.Flags() != uint32(uint8(v)) {
		t.Fatalf("flags %#x, want %#x", a.Flags(), v)
	}
}

func checkRouteView(t *testing.T, b []byte, v uint32) {
	t.Helper()
	r, ok := RouteOf(b)
	if ok != (len(b) >= unix.SizeofRtMsg) {
		t.Fatalf("a route of %d bytes: %t", len(b), ok)
	}
	if !ok {
		return
	}
	want := decoded[unix.RtMsg](t, b)
	table, more := r.Attrs().Uint32(unix.RTA_TABLE)
	if !more {
		table = uint32(want.Table)
	}
	if r.Family() != want.Family || r.DstLen() != int(want.Dst_len) || r.Protocol() != want.Protocol || r.Type() != want.Type ||
		r.Flags() != want.Flags || r.Table() != table || !bytes.Equal(r.Header(), b[:unix.SizeofRtMsg]) {
		t.Fatalf("%x is %d, %d, %d, %d, %#x", b, r.Family(), r.DstLen(), r.Protocol(), r.Type(), r.Flags())
	}
	if dst := r.Dst(); dst.IsValid() && (dst.Addr().Is4() != (want.Family == unix.AF_INET) || dst.Bits() != int(want.Dst_len)) {
		t.Fatalf("%v of %x", dst, b)
	}
	if gw := r.Gateway(); gw.IsValid() && !bytes.Equal(gw.AsSlice(), r.Attrs().Get(unix.RTA_GATEWAY)) {
		t.Fatalf("gateway %v of %x", gw, b)
	}
	if src := r.Src(); src.IsValid() && (src.Bits() != int(want.Src_len) || !bytes.Equal(src.Addr().AsSlice(), r.Attrs().Get(unix.RTA_SRC))) {
		t.Fatalf("from %v of %x", src, b)
	}
	if r.SrcLen() != int(want.Src_len) || r.TOS() != want.Tos || r.Preference() < -1 || r.Preference() > 1 {
		t.Fatalf("%x is %d, %d, %d", b, r.SrcLen(), r.TOS(), r.Preference())
	}
	before := bytes.Clone(b)
	r.SetFlags(v)
	r.SetMain()
	want.Flags, want.Table, want.Src_len = v, unix.RT_TABLE_MAIN, 0
	if got := decoded[unix.RtMsg](t, r.Body()); got != want || !bytes.Equal(b[unix.SizeofRtMsg:], before[unix.SizeofRtMsg:]) {
		t.Fatalf("changed to %+v, want %+v", got, want)
	}
	checkHops(t, r.Hops(), v)
}

// sameAttrs compares attributes, whatever is between them and behind.
func sameAttrs(a, b Attrs) bool {
	next, stop := iter.Pull2(b.All())
	defer stop()
	for typ, val := range a.All() {
		t, v, ok := next()
		if !ok || t != typ || !bytes.Equal(v, val) {
			return false
		}
	}
	_, _, more := next()
	return !more
}

func checkHops(t *testing.T, h Hops, v uint32) {
	t.Helper()
	size := len(h)
	var copies Hops
	at := 0
	for one := range h.All() {
		want := decoded[nexthop](t, one.b)
		if one.Index() != int(want.Index) || one.Flags() != want.Flags || one.Weight() != int(want.Hops)+1 || len(one.b) != int(want.Len) ||
			!bytes.Equal(one.b, h[at:at+len(one.b)]) {
			t.Fatalf("hop %x is %d, %d, %d", one.b, one.Index(), one.Flags(), one.Weight())
		}
		at = min(at+align(len(one.b)), size)
		was := bytes.Clone(one.b)
		var mine Hop
		copies, mine = one.AppendTo(copies, func(uint16) bool { return true })
		if !sameAttrs(one.Attrs(), mine.Attrs()) || !mine.Attrs().Whole() || len(copies)%4 != 0 {
			t.Fatalf("%x copied as %x", was, mine.b)
		}
		mine.SetIndex(int(int32(v)))
		mine.SetFlags(uint8(v))
		want.Len, want.Index, want.Flags = uint16(len(mine.b)), int32(v), uint8(v)
		if got := decoded[nexthop](t, mine.b); got != want || !bytes.Equal(one.b, was) {
			t.Fatalf("changed to %+v, want %+v", got, want)
		}
	}
	rest := h[at:]
	if whole := len(rest) < rtnhSize; whole != h.Whole() {
		t.Fatalf("whole: %t, %x is left", h.Whole(), rest)
	}
	if n := len(rest); n >= rtnhSize {
		if l := int(binary.NativeEndian.Uint16(rest)); l >= rtnhSize && l <= n {
			t.Fatalf("%x is not read", rest)
		}
	}
}

func checkSock(t *testing.T, b []byte) {
	t.Helper()
	s, ok := sockOf(b)
	if ok != (len(b) >= binary.Size(sockMsg{})) {
		t.Fatalf("a socket of %d bytes: %t", len(b), ok)
	}
	if !ok {
		return
	}
	want := decoded[sockMsg](t, b)
	end := func(a [16]byte, port [2]byte) netip.AddrPort {
		ip := netip.AddrFrom4([4]byte(a[:4]))
		if want.Family != unix.AF_INET {
			ip = netip.AddrFrom16(a).Unmap()
		}
		return netip.AddrPortFrom(ip, uint16(port[0])<<8|uint16(port[1]))
	}
	if s.State() != want.State || s.Device() != want.If || s.UID() != want.UID || s.Inode() != want.Inode || s.Port() != s.Local().Port() ||
		s.Cookie() != uint64(want.Cookie[0])|uint64(want.Cookie[1])<<32 || s.Local() != end(want.Src, want.Sport) || s.Peer() != end(want.Dst, want.Dport) {
		t.Fatalf("%x is %v, %v", b, s.Local(), s.Peer())
	}
	if only := Attrs(b[diagMsgSize:]).Get(skV6Only); s.V6Only() != (len(only) > 0 && only[0] != 0) {
		t.Fatalf("for IPv6 only: %t", s.V6Only())
	}
}

// FuzzSockDiag reads any answer of sock_diag as package syscall does.
func FuzzSockDiag(f *testing.F) {
	message := func(typ uint16, seq uint32, body []byte) []byte { return appendMessage(nil, typ, 2, seq, body) }
	socket := make([]byte, diagMsgSize)
	socket[4], socket[5] = 0x1f, 0x90
	some := append(message(sockDiagByFamily, 1, socket), message(sockDiagByFamily, 1, append(socket, 8, 0, 1, 0, 1, 2, 3, 4))...)
	for _, b := range [][]byte{some, message(sockDiagByFamily, 1, socket[:70]), message(sockDiagByFamily, 9, socket),
		append(bytes.Clone(some), message(unix.NLMSG_DONE, 1, make([]byte, 4))...), message(unix.NLMSG_ERROR, 1, []byte{0xfe, 0xff, 0xff, 0xff}),
		appendMessage(nil, sockDiagByFamily, unix.NLM_F_DUMP_INTR, 1, socket), appendMessage(nil, unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, 9, nil),
		message(unix.NLMSG_ERROR, 1, nil), message(unix.NLMSG_NOOP, 1, nil), some[:100], {15, 0, 0, 0}} {
		fuzz.Add(f, b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		d := SockDiag{seq: 1}
		var got, want [][]byte
		done, err := d.take(b, func(s Sock) { got = append(got, bytes.Clone(s.b)) })
		all, bad := parseMessages(b)
		ended, interrupted, status := false, false, error(nil)
		for _, m := range all {
			if m.Header.Seq != 1 {
				continue
			}
			interrupted = interrupted || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch {
			case m.Header.Type == unix.NLMSG_DONE:
				ended = true
			case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) < 4:
				ended, status = true, errShort
			case m.Header.Type == unix.NLMSG_ERROR:
				ended, status = true, errnoOf(m.Data)
			case m.Header.Type == sockDiagByFamily && len(m.Data) >= binary.Size(sockMsg{}):
				want = append(want, m.Data)
			}
			if ended {
				break
			}
		}
		if bad && !ended {
			ended, status = true, errShort
		}
		if done != ended || err != status || d.Interrupted() != interrupted || len(got) != len(want) {
			t.Fatalf("done %v, %v, %d sockets; package syscall: %v, %v, %d\n%x", done, err, len(got), ended, status, len(want), b)
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("socket %d is %x, want %x", i, got[i], want[i])
			}
		}
	})
}

// parseMessages is syscall.ParseNetlinkMessage, message by message, so that those
// before a malformed one count.
func parseMessages(b []byte) (all []syscall.NetlinkMessage, malformed bool) {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlMsghdr {
			return all, true
		}
		n := binary.NativeEndian.Uint32(b)
		end := min((uint64(n)+3)&^3, uint64(len(b)))
		// The package wants the padding of the last message to be there.
		one := append(bytes.Clone(b[:end]), make([]byte, 3)...)
		m, err := syscall.ParseNetlinkMessage(one[:(end+3)&^3])
		if err != nil || len(m) != 1 || uint64(n) > uint64(len(b)) {
			return all, true
		}
		all = append(all, m[0])
		b = b[end:]
	}
	return all, false
}

// TestBodies: bodies are what package encoding/binary makes of the structures.
func TestBodies(t *testing.T) {
	encoded := func(v any) []byte {
		var b bytes.Buffer
		if err := binary.Write(&b, binary.NativeEndian, v); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	link := LinkHeader{Index: -2, Flags: 0x01020304, Change: 0x11121314}
	address := AddrHeader{Family: 10, PrefixLen: 64, Scope: 253, Flags: 0x280, Index: 0x01020304}
	route := RouteHeader{Family: 2, DstLen: 32, SrcLen: 24, Table: 254, Protocol: 4, Scope: 253, Type: 1, Flags: 0x01020304}
	for name, both := range map[string][2][]byte{
		"link":    {link.Body(), encoded(unix.IfInfomsg{Index: -2, Flags: 0x01020304, Change: 0x11121314})},
		"address": {address.Body(), encoded(unix.IfAddrmsg{Family: 10, Prefixlen: 64, Flags: 0x80, Scope: 253, Index: 0x01020304})},
		"route":   {route.Body(), encoded(unix.RtMsg{Family: 2, Dst_len: 32, Src_len: 24, Table: 254, Protocol: 4, Scope: 253, Type: 1, Flags: 0x01020304})},
	} {
		if !bytes.Equal(both[0], both[1]) {
			t.Errorf("%s: %x, want %x", name, both[0], both[1])
		}
	}
}

// TestMessages: a message is what its type says, and nothing if it is too short.
func TestMessages(t *testing.T) {
	for _, tt := range []struct {
		typ               uint16
		size              int
		link, addr, route bool
	}{
		{unix.RTM_NEWLINK, unix.SizeofIfInfomsg, true, false, false},
		{unix.RTM_DELLINK, unix.SizeofIfInfomsg, true, false, false},
		{unix.RTM_NEWADDR, unix.SizeofIfAddrmsg, false, true, false},
		{unix.RTM_DELADDR, unix.SizeofIfAddrmsg, false, true, false},
		{unix.RTM_NEWROUTE, unix.SizeofRtMsg, false, false, true},
		{unix.RTM_DELROUTE, unix.SizeofRtMsg, false, false, true},
		{unix.RTM_NEWNEIGH, 64, false, false, false},
	} {
		for _, short := range []int{0, 1} {
			m := Message{Type: tt.typ, Body: make([]byte, tt.size-short)}
			_, link := m.Link()
			_, addr := m.Addr()
			_, route := m.Route()
			if whole := short == 0; link != (tt.link && whole) || addr != (tt.addr && whole) || route != (tt.route && whole) {
				t.Errorf("type %d of %d bytes: link %t, address %t, route %t", tt.typ, len(m.Body), link, addr, route)
			}
		}
	}
}
