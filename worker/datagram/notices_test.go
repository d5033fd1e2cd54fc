// SPDX-License-Identifier: Apache-2.0

package datagram

import (
	"bytes"
	"syscall"
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/flow/flowtest"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// errorQueue is one of a socket.
type errorQueue struct {
	left    int
	pending syscall.Errno
}

func (q *errorQueue) RecvError(int32, *flow.SocketError) syscall.Errno {
	if q.left == 0 {
		return syscall.EAGAIN
	}
	q.left--
	return 0
}

func (q *errorQueue) TakeError(int32) (e syscall.Errno) {
	e, q.pending = q.pending, 0
	return e
}

// Messages quote what they are about; of what a router says nothing, neither do we.
func TestNotices(t *testing.T) {
	our, guest, remote := packet.AddrFrom4([4]byte{10, 0, 0, 1}), packet.AddrFrom4([4]byte{10, 0, 0, 2}), packet.AddrFrom4([4]byte{192, 0, 2, 9})
	g := flow.Guest{Config: ipc.Config{OurMAC: packet.MAC{2}, Our4: our}, MAC: packet.MAC{4}}
	host := flowtest.New()
	k := store.MakeKey(&remote, &guest, 53, 1000)
	var frames [][]byte
	n := NewNotices(host, &g, make([]byte, BufferSize+packet.MaxHeaders), func(b []byte, e *packet.Ends, of *store.Key, payload []byte) int {
		if *of != k || e.Src != guest || e.Dst != remote {
			t.Errorf("quoted: %+v", *e)
		}
		return packet.PutUDPFull(b, e, 1000, 53, payload)
	}, func(message []byte) { frames = append(frames, bytes.Clone(message)) })
	n.Errno(syscall.EINVAL, &k, remote, []byte("x"))
	n.Refused(flow.Refuse(syscall.EMFILE, true), &k, []byte("x"))
	if len(frames) != 0 {
		t.Errorf("%d messages of what a router says nothing", len(frames))
	}
	s := host.Socket()
	s.Errors = []flow.SocketError{{Origin: flow.OriginICMP, Type: 11, Offender: remote, Buf: []byte("third")}}
	n.Errno(syscall.EHOSTUNREACH, &k, remote, []byte("first"))
	n.Refused(flow.Refuse(syscall.EACCES, true), &k, []byte("second"))
	if !n.Drain(s.FD, &k, remote) {
		t.Error("the queue cannot be emptied")
	}
	want := []struct {
		typ, code uint8
		src       packet.Addr
		quoted    string
	}{{3, 1, our, "first"}, {3, 13, our, "second"}, {11, 0, remote, "third"}}
	if len(frames) != len(want) {
		t.Fatalf("%d messages", len(frames))
	}
	for i, w := range want {
		var p packet.Packet
		if err := p.Decode(frames[i]); err != nil {
			t.Fatal(err)
		}
		b := p.Payload()
		if p.Src != w.src || p.Dst != guest || p.TTL != GuestTTL || b[0] != w.typ || b[1] != w.code || !bytes.HasSuffix(b, []byte(w.quoted)) {
			t.Errorf("message %d: from %v, %d/%d, %q", i, p.Src, b[0], b[1], b)
		}
	}
}
