// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"syscall"
	"testing"

	"aldente/ipc"
	"aldente/worker/packet"
)

// What a router would say in place of an error number, in both families.
func TestUnreachable(t *testing.T) {
	for e, codes := range map[syscall.Errno][2]uint8{
		syscall.EACCES:        {13, 1},
		syscall.EPERM:         {13, 1},
		syscall.ECONNREFUSED:  {3, 4},
		syscall.ENETUNREACH:   {0, 0},
		syscall.ENETDOWN:      {0, 0},
		syscall.EAFNOSUPPORT:  {0, 0},
		syscall.EADDRNOTAVAIL: {0, 0},
		syscall.EHOSTUNREACH:  {1, 3},
		syscall.EHOSTDOWN:     {1, 3},
		syscall.ETIMEDOUT:     {1, 3},
	} {
		if typ, code, ok := Unreachable(e, true); typ != 3 || code != codes[0] || !ok {
			t.Errorf("%v: ICMP %d %d %v", e, typ, code, ok)
		}
		if typ, code, ok := Unreachable(e, false); typ != 1 || code != codes[1] || !ok {
			t.Errorf("%v: ICMPv6 %d %d %v", e, typ, code, ok)
		}
	}
	for _, e := range []syscall.Errno{0, syscall.EMFILE, syscall.EINVAL} {
		if _, _, ok := Unreachable(e, true); ok {
			t.Errorf("a router has a message for %v", e)
		}
	}
}

// What an entry of an error queue means to the guest.
func TestMessage(t *testing.T) {
	type message struct {
		typ, code uint8
		info      uint32
	}
	none := message{255, 255, 0}
	for _, tt := range []struct {
		name   string
		e      SocketError
		v4, v6 message
	}{
		{"too big", SocketError{Origin: OriginICMP, Type: 3, Code: 4, Info: 0x11400}, message{3, 4, 0x1400}, none},
		{"too big 6", SocketError{Origin: OriginICMP6, Type: 2, Info: 1280}, none, message{2, 0, 1280}},
		{"bad option", SocketError{Origin: OriginICMP, Type: 12, Info: 20}, message{12, 0, 20 << 24}, none},
		{"bad header 6", SocketError{Origin: OriginICMP6, Type: 4, Code: 1, Info: 40}, none, message{4, 1, 40}},
		{"expired", SocketError{Origin: OriginICMP, Type: 11, Code: 1, Info: 9}, message{11, 1, 0}, none},
		{"expired 6", SocketError{Origin: OriginICMP6, Type: 3, Info: 9}, none, message{3, 0, 0}},
		{"unreachable", SocketError{Origin: OriginICMP, Type: 3, Code: 1, Info: 9}, message{3, 1, 0}, none},
		{"unreachable 6", SocketError{Origin: OriginICMP6, Type: 1, Code: 4, Info: 9}, none, message{1, 4, 0}},
		{"of the other family", SocketError{Origin: OriginICMP, Errno: syscall.ECONNREFUSED, Type: 3, Code: 3}, message{3, 3, 0}, message{1, 4, 0}},
		{"of the other family 6", SocketError{Origin: OriginICMP6, Errno: syscall.EHOSTUNREACH, Type: 1, Code: 3}, message{3, 1, 0}, message{1, 3, 0}},
		{"source quench", SocketError{Origin: OriginICMP, Type: 4}, none, none},
		{"echo reply 6", SocketError{Origin: OriginICMP6, Type: 129}, none, none},
		{"our own limit", SocketError{Origin: OriginLocal, Errno: syscall.EMSGSIZE, Info: 1400}, message{3, 4, 1400}, message{2, 0, 1400}},
		{"refused here", SocketError{Origin: OriginLocal, Errno: syscall.EACCES}, message{3, 13, 0}, message{1, 1, 0}},
		{"time stamp", SocketError{Origin: 4}, none, none},
	} {
		for _, v4 := range []bool{true, false} {
			want := tt.v6
			if v4 {
				want = tt.v4
			}
			got := none
			if typ, code, info, ok := tt.e.Message(v4); ok {
				got = message{typ, code, info}
			}
			if got != want {
				t.Errorf("%s, IPv4 %v: %v, want %v", tt.name, v4, got, want)
			}
		}
	}
}

// Whom an error comes from, as the guest sees it.
func TestOffender(t *testing.T) {
	our4, our6 := packet.AddrFrom4([4]byte{192, 0, 2, 1}), packet.Addr{0: 0xfe, 1: 0x80, 15: 1}
	remote4, peer4 := packet.AddrFrom4([4]byte{198, 51, 100, 1}), packet.AddrFrom4([4]byte{10, 0, 0, 9})
	remote6, router4 := packet.Addr{0: 0x20, 1: 1, 15: 9}, packet.AddrFrom4([4]byte{203, 0, 113, 7})
	lo4 := packet.AddrFrom4([4]byte{127, 0, 0, 1})
	local4, local6 := packet.AddrFrom4([4]byte{169, 254, 169, 254}), packet.Addr{0: 0xfe, 1: 0x80, 15: 7}
	g := &Guest{}
	g.Our4, g.Our6 = our4, our6
	for _, tt := range []struct {
		name                   string
		by, peer, remote, want packet.Addr
	}{
		{"the peer itself, by the name that the guest has for it", peer4, peer4, remote4, remote4},
		{"a router", router4, peer4, remote4, router4},
		{"the host", packet.Addr{}, peer4, remote4, our4},
		{"the host, IPv6", packet.Addr{}, remote6, remote6, our6},
		{"the host's loopback", lo4, peer4, remote4, our4},
		{"a router of the other family", router4, remote6, remote6, our6},
		{"the host, to a link-local remote", packet.Addr{}, local4, local4, our4},
		{"the host, to a link-local remote, IPv6", packet.Addr{}, local6, local6, our6},
	} {
		if got := g.Offender(tt.by, tt.peer, tt.remote); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	// Errors reach who is behind the guest only from an address that routers forward.
	global, remoteLL := packet.Addr{0: 0xfc, 15: 1}, packet.Addr{0: 0xfe, 1: 0x80, 15: 9}
	g.Our6, g.OurLL6 = global, our6
	for remote, want := range map[packet.Addr]packet.Addr{remote6: global, remoteLL: our6} {
		if got := g.Offender(packet.Addr{}, packet.Addr{}, remote); got != want {
			t.Errorf("%v: %v, want %v", remote, got, want)
		}
	}
	g = &Guest{} // without an address of ours, the remote has to do
	if got := g.Offender(packet.Addr{}, peer4, remote4); got != remote4 {
		t.Errorf("%v", got)
	}
	if m, ok := g.Error(syscall.EHOSTUNREACH, peer4, remote4); !ok || m != (ICMPError{Type: 3, Code: 1, Src: remote4}) {
		t.Errorf("%+v %v", m, ok)
	}
}

// queue plays a socket with an error queue.
type queue struct {
	Errors
	errors  []SocketError
	end     syscall.Errno // when nothing is left
	pending syscall.Errno // SO_ERROR
}

func (q *queue) RecvError(_ int32, e *SocketError) syscall.Errno {
	if len(q.errors) == 0 {
		return q.end
	}
	buf := e.Buf
	*e, q.errors = q.errors[0], q.errors[1:]
	e.Buf, e.N = buf, copy(buf, e.Buf)
	return 0
}

func (q *queue) TakeError(int32) syscall.Errno { return q.pending }

func TestDrain(t *testing.T) {
	remote, router := packet.AddrFrom4([4]byte{198, 51, 100, 1}), packet.AddrFrom4([4]byte{203, 0, 113, 7})
	entry := SocketError{Origin: OriginICMP, Errno: syscall.EHOSTUNREACH, Type: 3, Code: 1, Offender: router, Buf: []byte("question")}
	local := SocketError{Origin: OriginLocal, Errno: syscall.EMSGSIZE, Info: 1400, Offender: router, Buf: []byte("long")}
	stamp := SocketError{Origin: 4}
	endless := make([]SocketError, MaxErrors+1)
	for _, tt := range []struct {
		name  string
		queue queue
		told  string
		whole bool
	}{
		{"nothing", queue{end: syscall.EAGAIN}, "", true},
		{"two, and a time stamp", queue{errors: []SocketError{entry, stamp, local}, end: syscall.EAGAIN, pending: syscall.EHOSTUNREACH}, "3/1 question;3/4 long;", true},
		{"one without details", queue{end: syscall.EAGAIN, pending: syscall.ECONNREFUSED}, "3/3 ;", true},
		{"no error queue", queue{end: syscall.EBADF}, "", false},
		{"more than a socket can hold", queue{errors: endless, end: syscall.EAGAIN}, "", false},
	} {
		g := &Guest{}
		told := ""
		q := ErrorQueue{SocketError{Buf: make([]byte, 100)}}
		whole := q.Drain(&tt.queue, 3, g, remote, remote, func(m ICMPError, quote []byte) {
			told += string('0'+m.Type) + "/" + string('0'+m.Code) + " " + string(quote) + ";"
			if want := router; m.Src != want && m.Type == 3 && m.Code == 1 {
				t.Errorf("%s: from %v", tt.name, m.Src)
			}
		})
		if told != tt.told || whole != tt.whole {
			t.Errorf("%s: told %q, whole %v", tt.name, told, whole)
		}
	}
}

// How the guest sees who speaks to the host, and what takes the bypass.
func TestInboundSource(t *testing.T) {
	v4 := func(b byte) packet.Addr { return packet.AddrFrom4([4]byte{192, 0, 2, b}) }
	v6 := func(b byte) packet.Addr { return packet.Addr{0: 0x20, 1: 1, 15: b} }
	lo4, lo6 := packet.AddrFrom4([4]byte{127, 0, 0, 1}), packet.Addr{15: 1}
	plain := &Guest{Seen4: v4(5), Seen6: v6(5), SeenLL6: packet.Addr{0: 0xfe, 1: 0x80, 15: 5}}
	plain.Addr4, plain.Addr6, plain.Our4, plain.Our6 = v4(2), v6(2), v4(1), v6(1)
	mapped := *plain
	mapped.MapHostLoopback4, mapped.MapHostLoopback6, mapped.MapGuestAddr4, mapped.MapGuestAddr6 = v4(7), v6(7), v4(8), v6(8)
	for _, tt := range []struct {
		from, plain, mapped packet.Addr
	}{
		{v4(99), v4(99), v4(99)},
		{v6(99), v6(99), v6(99)},
		{lo4, v4(1), v4(7)},
		{lo6, v6(1), v6(7)},
		{packet.AddrFrom4([4]byte{127, 0, 0, 2}), v4(1), v4(1)},
		{v4(2), v4(1), v4(8)},
		{v6(2), v6(1), v6(8)},
		{v4(5), v4(1), v4(1)},
		{v6(5), v6(1), v6(1)},
		{plain.SeenLL6, v6(1), v6(1)},
		{packet.AddrFrom4([4]byte{}), v4(1), v4(1)},
	} {
		if got := plain.InboundSource(tt.from); got != tt.plain {
			t.Errorf("%v: %v, want %v", tt.from, got, tt.plain)
		}
		if got := mapped.InboundSource(tt.from); got != tt.mapped {
			t.Errorf("%v with mappings: %v, want %v", tt.from, got, tt.mapped)
		}
	}
	far := v4(99)
	for _, tt := range []struct {
		flags uint8
		peer  *packet.Addr
		want  bool
	}{
		{0, &lo4, false}, {ipc.ListenerMayBypass, &lo4, true}, {ipc.ListenerMayBypass, &lo6, true},
		{ipc.ListenerMayBypass, &far, false}, {ipc.ListenerNamespace, &far, true},
	} {
		if TakesBypass(tt.flags, tt.peer) != tt.want {
			t.Errorf("flags %d, from %v", tt.flags, *tt.peer)
		}
	}
	if n := plain.LinkMTU(); n != 65520 {
		t.Errorf("MTU %d without one given", n)
	}
	if plain.MTU = 1500; plain.LinkMTU() != 1500 {
		t.Errorf("MTU %d", plain.LinkMTU())
	}
}
