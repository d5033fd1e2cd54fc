// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"bytes"
	"encoding/binary"
	"errors"
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
		typ, val, rest, ok := NextAttr(c.in)
		if ok != c.ok || typ != c.typ || !bytes.Equal(val, c.val) || len(rest) != c.rest {
			t.Errorf("%s: got type %d, value %x, %d left, %v", c.name, typ, val, len(rest), ok)
		}
	}
}

func TestDumpAndGet(t *testing.T) {
	nettest.Host(t)
	c := dial(t)
	found := false
	err := c.Dump(unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg), func(m Message) {
		found = found || bytes.Equal(Attr(m.Body[unix.SizeofIfAddrmsg:], unix.IFA_LOCAL), []byte{127, 0, 0, 1})
	})
	if err != nil {
		t.Fatal(err)
	}
	if !found {
		t.Error("127.0.0.1 is not in the dump")
	}
	lo := make([]byte, unix.SizeofIfInfomsg)
	lo[4] = 1
	b, err := c.Get(unix.RTM_GETLINK, lo)
	if err != nil {
		t.Fatal(err)
	}
	if name := Attr(b[unix.SizeofIfInfomsg:], unix.IFLA_IFNAME); string(name) != "lo\x00" {
		t.Errorf("interface 1 is %q", name)
	}
	binary.NativeEndian.PutUint32(lo[4:], 1<<30)
	if _, err := c.Get(unix.RTM_GETLINK, lo); !errors.Is(err, unix.ENODEV) {
		t.Errorf("interface 1<<30: %v, want ENODEV", err)
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
			body[4] = 1 // lo: asks for no change, so succeeds, given the right to
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
