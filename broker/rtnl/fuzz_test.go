// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"bytes"
	"encoding/binary"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/fuzz"
)

// FuzzNetlink reads any bytes as messages and as attributes, as package syscall
// does, and finds again what it wrote itself.
func FuzzNetlink(f *testing.F) {
	c := Conn{seq: 6}
	message := c.append(nil, Request{Type: unix.RTM_NEWADDR, Flags: unix.NLM_F_CREATE, Body: []byte{2, 24, 128, 0, 2}}, unix.NLM_F_ACK)
	message = c.append(message, Request{Type: unix.RTM_NEWROUTE, Body: bytes.Repeat([]byte{1}, 12)}, 0)
	for _, b := range [][]byte{message, message[:30], {16, 0, 0, 0}, {0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0},
		AppendAttr(AppendAttrUint32(nil, 3, 7), 1|0x8000, []byte("lo")), {5, 0, 1, 0, 9}, {3, 0, 1, 0}, {4, 0, 1, 0}, {}} {
		fuzz.Add(f, b, uint16(3))
	}
	f.Fuzz(func(t *testing.T, b []byte, typ uint16) {
		if len(b) > 60000 {
			return
		}
		checkMessages(t, b)
		checkAttrs(t, b)
		typ &= AttrMask
		made := AppendAttrUint32(AppendAttr(nil, typ, b), typ+1, 77)
		if got := Attrs(made).Get(typ); !bytes.Equal(got, b) {
			t.Fatalf("wrote %x, found %x", b, got)
		}
		if got, ok := Attrs(made).Uint32((typ + 1) & AttrMask); typ != AttrMask && (!ok || got != 77) {
			t.Fatalf("second attribute: %d, %v", got, ok)
		}
		c := Conn{}
		for range 2 {
			one := c.append(nil, Request{Type: typ, Flags: 1 << 9, Body: b}, unix.NLM_F_ACK)
			all, err := syscall.ParseNetlinkMessage(one)
			if err != nil || len(all) != 1 || !bytes.HasPrefix(all[0].Data, b) || all[0].Header.Seq != c.seq || all[0].Header.Type != typ {
				t.Fatalf("%v, %+v", err, all)
			}
		}
	})
}

func checkMessages(t *testing.T, b []byte) {
	t.Helper()
	for {
		h, body, rest, ok := nextMessage(b)
		n := uint64(0)
		if len(b) >= unix.SizeofNlMsghdr {
			n = uint64(binary.NativeEndian.Uint32(b))
		}
		if want := n >= unix.SizeofNlMsghdr && n <= uint64(len(b)); ok != want {
			t.Fatalf("a message: %v, of %x", ok, b)
		}
		if !ok {
			return
		}
		padded := append(bytes.Clone(b[:n]), make([]byte, -n&3)...)
		all, err := syscall.ParseNetlinkMessage(padded)
		if err != nil || len(all) != 1 || !bytes.Equal(all[0].Data, body) || all[0].Header.Type != h.typ || all[0].Header.Flags != h.flags || all[0].Header.Seq != h.seq {
			t.Fatalf("%v, %+v and %x; package syscall: %+v", err, h, body, all)
		}
		if len(rest) >= len(b) || len(body) >= 4 && (errnoOf(body) != nil) != (int32(binary.NativeEndian.Uint32(body)) < 0) {
			t.Fatalf("status %v of %x", errnoOf(body), body)
		}
		b = rest
	}
}

func checkAttrs(t *testing.T, b []byte) {
	t.Helper()
	// The package reads attributes behind struct rtmsg.
	m := syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWROUTE}, Data: append(make([]byte, unix.SizeofRtMsg), b...)}
	var all []syscall.NetlinkRouteAttr
	err := error(unix.EINVAL)
	if len(b)%4 == 0 { // else it panics: it wants the padding behind the last one
		all, err = syscall.ParseNetlinkRouteAttr(&m)
	}
	n := 0
	copied := Attrs(b).AppendTo(nil, func(uint16) bool { return true })
	for rest := Attrs(b); ; n++ {
		typ, val, next, ok := rest.next()
		if !ok {
			if err == nil && len(rest) >= 4 {
				t.Fatalf("ends at %x, package syscall does not", rest)
			}
			break
		}
		if len(next) >= len(rest) {
			t.Fatalf("no progress at %x", rest)
		}
		if err == nil && (n >= len(all) || all[n].Attr.Type&AttrMask != typ || !bytes.Equal(all[n].Value, val)) {
			t.Fatalf("attribute %d: type %d, %x; package syscall: %+v", n, typ, val, all)
		}
		if first := Attrs(b).Get(typ); n == 0 && !bytes.Equal(first, val) {
			t.Fatalf("found %x, want %x", first, val)
		}
		if len(copied) < 4+len(val) || !bytes.Equal(copied[:4+len(val)], rest[:4+len(val)]) {
			t.Fatalf("attribute %d of %x is copied as %x", n, b, copied)
		}
		copied = copied[align(4+len(val)):]
		rest = next
	}
	if len(copied) != 0 {
		t.Fatalf("%x is left of the copy of %x", copied, b)
	}
	if err == nil && n != len(all) {
		t.Fatalf("%d attributes, package syscall finds %d", n, len(all))
	}
	if whole := len(b)%4 == 0 && err == nil; whole != Attrs(b).Whole() {
		t.Fatalf("whole: %t, package syscall: %t, %x", Attrs(b).Whole(), whole, b)
	}
	count := 0
	for range Attrs(b).All() {
		count++
	}
	if count != n {
		t.Fatalf("%d of %d attributes", count, n)
	}
}
