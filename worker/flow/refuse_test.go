// SPDX-License-Identifier: Apache-2.0

package flow

import (
	"slices"
	"syscall"
	"testing"

	"aldente/worker/packet"
)

// lastErrno is the largest error number of Linux, EHWPOISON.
const lastErrno = 133

// What is said of each error number, in both families. What is not listed here
// resets a connection and says nothing of a datagram.
func TestRefuse(t *testing.T) {
	var seen []syscall.Errno
	for _, tt := range []struct {
		want   Refusal // Type is added
		code6  uint8
		errnos []syscall.Errno
	}{
		{Refusal{Again: true}, 0, []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM}},
		{Refusal{Again: true, Reset: true}, 0, []syscall.Errno{syscall.EAGAIN}},
		{Refusal{Told: true, Code: 13}, 1, []syscall.Errno{syscall.EACCES, syscall.EPERM}},
		{Refusal{Told: true, Reset: true, Code: 3}, 4, []syscall.Errno{syscall.ECONNREFUSED}},
		{Refusal{Told: true, Code: 0}, 0, []syscall.Errno{
			syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EAFNOSUPPORT, syscall.EADDRNOTAVAIL}},
		{Refusal{Told: true, Code: 1}, 3, []syscall.Errno{syscall.EHOSTUNREACH, syscall.EHOSTDOWN, syscall.ETIMEDOUT}},
	} {
		for _, e := range tt.errnos {
			seen = append(seen, e)
			v4, v6 := tt.want, tt.want
			if v6.Code = tt.code6; v4.Told {
				v4.Type, v6.Type = packet.ICMPDestUnreachable, packet.ICMPv6DestUnreachable
			}
			if got := Refuse(e, true); got != v4 {
				t.Errorf("%v: %+v", e, got)
			}
			if got := Refuse(e, false); got != v6 {
				t.Errorf("%v by IPv6: %+v", e, got)
			}
		}
	}
	for e := syscall.Errno(0); e <= lastErrno+1; e++ {
		for _, v4 := range []bool{true, false} {
			got := Refuse(e, v4)
			if !slices.Contains(seen, e) && got != (Refusal{Reset: true}) {
				t.Errorf("%v, IPv4 %t: %+v", e, v4, got)
			}
			typ, code, ok := Unreachable(e, v4)
			if typ != got.Type || code != got.Code || ok != got.Told {
				t.Errorf("%v, IPv4 %t: %d/%d %t for messages, %+v for refusals", e, v4, typ, code, ok, got)
			}
		}
	}
	if got := Refuse(^syscall.Errno(0), true); got != (Refusal{Reset: true}) {
		t.Errorf("no error number at all: %+v", got)
	}
}
