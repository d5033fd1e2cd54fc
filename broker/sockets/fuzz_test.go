// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/egress"
	"aldente/fuzz"
	"aldente/ipc"
)

// FuzzServe sends one message of anything: the factory answers each request in
// order, with a descriptor exactly where it says so and only to where the rules
// lets it, or gives the worker up as malformed, and keeps no descriptor.
func FuzzServe(f *testing.F) {
	event := make([]byte, ipc.EventSize)
	(&ipc.Event{Code: ipc.EventLinkClosed}).Encode(event)
	ended, accepted := make([]byte, ipc.EndedSize), make([]byte, ipc.AcceptedSize)
	(&ipc.Ended{Token: 7, How: ipc.EndReset, Sent: 1}).Encode(ended)
	(&ipc.Accepted{Token: 8, Listener: 1, Port: 9}).Encode(accepted)
	tcp, icmp, far := goodOpen, goodOpen, goodOpen
	tcp.Proto, tcp.DstPort = ipc.ProtoTCP, 1
	icmp.Proto, icmp.DstPort, icmp.SrcPort = ipc.ProtoICMP, 0, 77
	far.Dst = [16]byte{0x20, 1, 15: 1}
	far.Src = [16]byte{0x20, 1, 15: 2}
	for _, b := range [][]byte{encode(goodOpen), bytes.Repeat(encode(goodOpen), 3), event, ended, accepted, bytes.Repeat(ended, 3), bytes.Repeat(accepted, 3), changed(ipc.HeaderSize+9, 0x80),
		encode(tcp), encode(icmp), encode(far), changed(ipc.HeaderSize+12, 1), append(encode(goodOpen), event...),
		bytes.Repeat(encode(goodOpen), ipc.MaxBatch+1), {1, 2, 3}} {
		fuzz.Add(f, b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > 1<<16 {
			return
		}
		before := descriptorCount(t)
		// Nothing may leave the machine.
		w := work(t, egress.Rule{Allow: true, Dest: "127.0.0.0/8"}, egress.Rule{Dest: "any"})
		if _, err := unix.Write(w.worker, b); err != nil {
			t.Fatal(err)
		}
		unix.Shutdown(w.worker, unix.SHUT_WR)
		err := w.end(t)
		if !errors.Is(err, io.EOF) && !errors.Is(err, ipc.ErrMalformed) && err != nil {
			t.Fatalf("%v", err)
		}
		// Those before a malformed one may have been answered.
		n, want := checkAnswers(t, w.worker, b), requests(b)
		if bad := errors.Is(err, ipc.ErrMalformed); n != want && !bad || n >= want && bad && want > 0 {
			t.Fatalf("%d answers to %d requests, %v", n, want, err)
		}
		unix.Close(w.worker)
		w.worker = -1
		if n := descriptorCount(t); n > before {
			t.Fatalf("%d descriptors left", n-before)
		}
	})
}

// requests is the number of requests in a message.
func requests(b []byte) int {
	if len(b) < 2 || binary.LittleEndian.Uint16(b) != uint16(ipc.KindOpen) {
		return 0
	}
	return len(b) / ipc.OpenSize
}

// checkAnswers reads all answers and compares them with what was asked.
func checkAnswers(t *testing.T, worker int, asked []byte) (n int) {
	t.Helper()
	buf := make([]byte, ipc.MaxRecord)
	for ; ; n++ {
		size, fd, err := ipc.Receive(worker, buf, 0)
		if err != nil {
			return n
		}
		var a ipc.Opened
		var r ipc.Open
		if err := errors.Join(a.Decode(buf[:size]), r.Decode(asked[n*ipc.OpenSize:(n+1)*ipc.OpenSize])); err != nil {
			t.Fatal(err)
		}
		if a.Token != r.Token || (a.Errno == 0) != (fd >= 0) {
			t.Fatalf("answer %+v with descriptor %d to %+v", a, fd, r)
		}
		if fd < 0 {
			continue
		}
		if v4 := netip.AddrFrom16(a.Addr).Unmap(); !v4.Is4() || !v4.IsLoopback() {
			t.Fatalf("a socket to %v", v4)
		}
		if proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || proto != int(r.Proto) {
			t.Fatalf("a socket of protocol %d for %d: %v", proto, r.Proto, err)
		}
		unix.Close(fd)
	}
}
