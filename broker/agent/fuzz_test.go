// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/rtnl"
	"aldente/fuzz"
)

// FuzzBodies has the agent bind any address or route to an interface. What it
// accepts is bound to that interface and to no other, as package syscall reads
// it, and otherwise unchanged; it is described without control characters.
func FuzzBodies(f *testing.F) {
	gateway := defaultRoute(netip.MustParseAddr("192.0.2.1"))
	hop := append(binary.NativeEndian.AppendUint32([]byte{16, 0, 0, 1}, 9), rtnl.AppendAttr(nil, unix.RTA_GATEWAY, []byte{192, 0, 2, 1})...)
	many := rtnl.AppendAttr(make([]byte, unix.SizeofRtMsg), unix.RTA_MULTIPATH, append(bytes.Clone(hop), hop...))
	for _, b := range [][]byte{addressBody(netip.MustParsePrefix("192.0.2.2/24"), 0, 0), addressBody(netip.MustParsePrefix("fe80::1/64"), 253, 0),
		gateway, defaultRoute(netip.MustParseAddr("fe80::1")), many, many[:40], {2, 24}, nil,
		append(bytes.Clone(gateway), 8, 0, 1, 0, 10, 0, 0, 0), rtnl.AppendAttr(bytes.Clone(gateway), unix.RTA_DST, make([]byte, 16)),
		rtnl.AppendAttr(make([]byte, unix.SizeofRtMsg), unix.RTA_MULTIPATH, []byte{3, 0, 0, 0, 0, 0, 0, 0}),
		rtnl.AppendAttr(make([]byte, unix.SizeofRtMsg), unix.RTA_MULTIPATH, []byte{9, 0, 0, 0, 0, 0, 0, 0, 1})} {
		fuzz.Add(f, b, uint8(7))
	}
	f.Fuzz(func(t *testing.T, b []byte, index uint8) {
		if len(b) > 4096 {
			return
		}
		address := bytes.Clone(b)
		if a, err := bindAddress(address, int(index)); (err == nil) != (len(b) >= unix.SizeofIfAddrmsg) {
			t.Fatal(err)
		} else if err == nil {
			if binary.NativeEndian.Uint32(address[4:]) != uint32(index) || !bytes.Equal(address[:4], b[:4]) || !bytes.Equal(address[8:], b[8:]) {
				t.Fatalf("%x bound to %d is %x", b, index, address)
			}
			printable(t, addressString(a))
		}
		r, err := bindRoute(bytes.Clone(b), int(index))
		if err != nil {
			return
		}
		body := r.Body()
		checkRoute(t, b, body, uint32(index))
		printable(t, routeString(r))
		again, _ := rtnl.RouteOf(bytes.Clone(body))
		all := []route{{Route: r}, {Route: again, onLink: true}}
		if !forceOnLink(all) || !bytes.Equal(all[0].Body(), body) || all[1].Flags()&unix.RTNH_F_ONLINK == 0 {
			t.Fatalf("%x, %x", all[0].Body(), all[1].Body())
		}
		for _, r := range routeRequests(all) {
			if v4 := body[0] == unix.AF_INET; v4 != (r.Flags&unix.NLM_F_APPEND != 0) {
				t.Fatalf("flags %#x for family %d", r.Flags, body[0])
			}
		}
	})
}

// sizeofRtnexthop is the size of struct rtnexthop, whose second half is the index.
const sizeofRtnexthop = 8

// checkRoute verifies that each path of a route leads by the interface.
func checkRoute(t *testing.T, was, body []byte, index uint32) {
	t.Helper()
	hops := []byte(rtnl.Attrs(body[unix.SizeofRtMsg:]).Get(unix.RTA_MULTIPATH))
	if hops == nil {
		if !bytes.HasPrefix(body, was) || len(body) < len(was)+8 || binary.NativeEndian.Uint32(body[len(body)-4:]) != index {
			t.Fatalf("%x bound to %d is %x", was, index, body)
		}
		m := syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWROUTE}, Data: body}
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			t.Fatalf("%v: %x", err, body)
		}
		if last := attrs[len(attrs)-1]; last.Attr.Type != unix.RTA_OIF || binary.NativeEndian.Uint32(last.Value) != index {
			t.Fatalf("%+v", attrs)
		}
		return
	}
	for len(hops) >= sizeofRtnexthop {
		if binary.NativeEndian.Uint32(hops[4:]) != index {
			t.Fatalf("path %x in %x, want interface %d", hops, body, index)
		}
		hops = hops[min((int(binary.NativeEndian.Uint16(hops))+3)&^3, len(hops)):]
	}
	if len(body) != len(was) {
		t.Fatalf("%x bound to %d is %x", was, index, body)
	}
}

func printable(t *testing.T, s string) {
	t.Helper()
	for _, c := range s {
		if c < ' ' || c > '~' {
			t.Fatalf("%q", s)
		}
	}
}

// A route whose paths were cut short was accepted, and took in the attribute that
// binds it to the interface.
func TestBindRouteCutShort(t *testing.T) {
	hop := binary.NativeEndian.AppendUint32([]byte{16, 0, 0, 1}, 9)
	hop = rtnl.AppendAttr(hop, unix.RTA_GATEWAY, []byte{192, 0, 2, 1})
	body := rtnl.AppendAttr(make([]byte, unix.SizeofRtMsg), unix.RTA_MULTIPATH, append(bytes.Clone(hop), hop...))
	odd := append(make([]byte, unix.SizeofRtMsg), 5, 0, unix.RTA_DST, 0, 10)
	for name, b := range map[string][]byte{"cut": body[:40], "not padded": odd} {
		if bound, err := bindRoute(bytes.Clone(b), 7); err == nil {
			t.Errorf("%s: accepted as %x", name, bound.Body())
		}
	}
	if _, err := bindRoute(body, 7); err != nil {
		t.Errorf("whole: %v", err)
	}
}
