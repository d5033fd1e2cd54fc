// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"bytes"
	"encoding/binary"
	"syscall"
	"testing"

	"aldente/worker/flow"
	"aldente/worker/packet"
)

// uncut marks an IPv4 packet as one that nobody may cut.
func uncut(frame []byte) []byte {
	b := bytes.Clone(frame)
	ip := b[packet.EthernetLen:]
	ip[6] |= 0x40
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], packet.Checksum(ip[:20]))
	return b
}

// TestDF: what the guest lets nobody cut leaves so, and what anybody may cut too; before
// the socket has come and afterwards, alone and with others.
func TestDF(t *testing.T) {
	long := bytes.Repeat([]byte("x"), 1400)
	for _, remote := range []packet.Addr{remote4, remote6} {
		r := newRig(t)
		option, whole := flow.OptionDiscover6, r.frame(remote, 1000, 2000, long)
		if remote.Is4() {
			option, whole = flow.OptionDiscover4, uncut(whole)
		}
		r.input(whole, 0)
		s := r.answer(r.oneOpen())
		is := func(when string, want int) {
			t.Helper()
			if v, ok := s.Options[option]; !ok || v != want {
				t.Errorf("%v, %s: %v", remote, when, s.Options)
			}
		}
		is("one that has waited", flow.DiscoverDo)
		if !remote.Is4() {
			continue // all of IPv6 are such, but for what came in fragments
		}
		r.input(r.frame(remote, 1000, 2000, long), 0)
		r.Flush()
		is("one that may be cut", flow.DiscoverNot)
		r.say(remote, "short")
		r.input(whole, 0)
		r.Flush()
		is("one that may not", flow.DiscoverDo)
		// None leaves with the mark of the one before.
		s.Writes = nil
		r.input(whole, 0)
		r.input(r.frame(remote, 1000, 2000, long), 0)
		r.Flush()
		if is("both", flow.DiscoverNot); len(s.Writes) != 2 {
			t.Errorf("%d writes", len(s.Writes))
		}
		r.input(whole, 0)
		r.input(uncut(r.frame(remote, 1000, 2000, []byte("short"))), 0)
		r.input(r.frame(remote, 1000, 2000, []byte("short")), 0)
		r.Flush()
		is("short ones behind it", flow.DiscoverDo)
		r.check()
	}
}

// TestDFTooLong: the guest is told once of each datagram that is longer than its path takes.
func TestDFTooLong(t *testing.T) {
	r := newRig(t)
	datagram := uncut(r.frame(remote4, 1000, 2000, make([]byte, 1400)))
	r.input(datagram, 0)
	s := r.answer(r.oneOpen())
	s.Writes = nil
	s.WriteErrs = []syscall.Errno{syscall.EMSGSIZE}
	s.Errors = []flow.SocketError{{Origin: flow.OriginLocal, Errno: syscall.EMSGSIZE, Info: 1280, Buf: make([]byte, 1400), N: 1400}}
	r.input(datagram, 0)
	r.Flush()
	if e := r.errors(); len(e) != 1 || e[0].typ != 3 || e[0].code != 4 || e[0].info != 1280 || len(s.Writes) != 0 {
		t.Errorf("%+v, %d writes", e, len(s.Writes))
	}
}

// TestDFLong: what is longer than any Ethernet takes is cut by the host, and the guest is
// told what the path takes, so that it cuts the next by itself.
func TestDFLong(t *testing.T) {
	for _, remote := range []packet.Addr{remote4, remote6} {
		r := newRig(t)
		datagram := r.frame(remote, 1000, 2000, make([]byte, 8000))
		if remote.Is4() {
			datagram = uncut(datagram)
		}
		r.input(datagram, 0)
		s := r.answer(r.oneOpen())
		s.Writes = nil
		s.WriteErrs = []syscall.Errno{syscall.EMSGSIZE}
		s.Errors = []flow.SocketError{{Origin: flow.OriginLocal, Errno: syscall.EMSGSIZE, Info: 1500, Buf: make([]byte, 1400), N: 1400}}
		r.input(datagram, 0)
		r.Flush()
		if e := r.errors(); len(e) != 1 || e[0].info != 1500 || len(s.Writes) != 1 {
			t.Errorf("%v: %+v, %d writes", remote, e, len(s.Writes))
		}
		r.check()
	}
}
