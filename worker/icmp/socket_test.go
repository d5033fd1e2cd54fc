// SPDX-License-Identifier: Apache-2.0

package icmp

import (
	"syscall"
	"testing"

	"aldente/worker/flow"
)

// TestReadErrors: an error that a read meets is told, and what comes after it read,
// unless the error queue has no end.
func TestReadErrors(t *testing.T) {
	r := newRig(t)
	s, token := r.connect(remote4)
	s.ReadErr = syscall.EHOSTUNREACH
	s.Errors = []flow.SocketError{{Origin: flow.OriginICMP, Type: 3, Code: 1, Offender: router4, Buf: message(8, 0, hostID, 1, "")}}
	r.Ready(token, flow.Readable)
	if e := r.errors(); len(e) != 1 || e[0].qseq != 1 || e[0].code != 1 {
		t.Errorf("errors %+v", e)
	}
	s.ReadErr = 0
	s.Receive(reply(remote4, 2, "x"), 0)
	r.advance(0.002)
	if got := r.received(); len(got) != 1 || got[0].seq != 2 {
		t.Errorf("received %+v", got)
	}
	s.ReadErr, s.Errors = syscall.EHOSTUNREACH, make([]flow.SocketError, flow.MaxErrors+1)
	r.Ready(token, flow.Readable)
	if s.Closes != 1 || r.Len() != 0 {
		t.Errorf("closed %d times, %d flows", s.Closes, r.Len())
	}
}

// TestWriteToBrokenQueue is the same for a request that meets such an error.
func TestWriteToBrokenQueue(t *testing.T) {
	r := newRig(t)
	s, _ := r.connect(remote4)
	s.WriteErrs, s.Errors = []syscall.Errno{syscall.EHOSTUNREACH}, make([]flow.SocketError, flow.MaxErrors+1)
	r.ping(remote4, 2, "x")
	if s.Closes != 1 || r.Len() != 0 || len(s.Writes) != 0 || r.Stats.Broken != 1 {
		t.Errorf("closed %d times, %d flows, stats %+v", s.Closes, r.Len(), r.Stats)
	}
}

// TestTrafficClass: the guest's TTL and TOS are those of the request.
func TestTrafficClass(t *testing.T) {
	r := newRig(t)
	s, _ := r.connect(remote4)
	frame := r.frame(remote4, guestID, 2, "x")
	frame[15], frame[22] = 0x48, 7 // TOS, TTL
	frame[24], frame[25] = 0, 0    // checksum
	sum := uint32(0)
	for i := 14; i < 34; i += 2 {
		sum += uint32(frame[i])<<8 | uint32(frame[i+1])
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	frame[24], frame[25] = byte(^sum>>8), byte(^sum)
	r.input(frame)
	if w := s.Writes; len(w) != 1 || w[0].TOS != 0x48 || w[0].TTL != 7 {
		t.Errorf("%+v", w)
	}
}

// TestReadyTooEarly: what is said of a socket that is not there yet is nothing.
func TestReadyTooEarly(t *testing.T) {
	r := newRig(t)
	r.ping(remote4, 1, "x")
	o := r.oneOpen()
	r.Ready(o.Token, flow.Readable|flow.Failed)
	if s := r.answer(o); len(s.Writes) != 1 || r.Len() != 1 {
		t.Errorf("%d writes, %d flows", len(s.Writes), r.Len())
	}
}
