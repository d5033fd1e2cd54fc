// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/link"
	"aldente/worker/packet"
)

// TestChecksumsUntold: what libkrun passes on is taken by links that carry the frame
// alone, however long it is; a checksum that is neither right nor left to hardware is
// not. A capture has the checksum that the frame was to get.
func TestChecksumsUntold(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkStream, 1500, true)
	w.calm = true
	w.turn()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(fds[0], true)
	unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, 1<<20)
	defer unix.Close(fds[0])
	w.l.capture = link.NewCapture(link.CaptureTo{FD: int32(fds[1]), Mark: -1, Room: -1})
	defer func() { w.l.capture = nil }()
	buf := make([]byte, 1<<20)
	for k, n := range []int{10, 1400, 20000, 65000} {
		e := packet.Ends{SrcMAC: guestMAC, DstMAC: ourMAC, Src: guest4, Dst: remote4, TTL: 64}
		if k%2 == 1 {
			e.Src, e.Dst = guest6, remote6
		}
		frame := make([]byte, packet.MaxHeaders+n)
		var o packet.Offload
		h := packet.PutUDP(frame, &e, 4000, uint16(5000+k), n, &o)
		frame = frame[:h+n]
		bad, queued := w.l.Stats.BadChecksums, w.l.udp.Len()
		unix.Read(fds[0], buf)
		w.put(frame)
		if w.l.Stats.BadChecksums != bad {
			t.Fatalf("%d bytes: %d wrong checksums", n, w.l.Stats.BadChecksums-bad)
		}
		whole := bytes.Clone(frame)
		packet.CompleteChecksum(whole, &o)
		if m, err := unix.Read(fds[0], buf); err != nil || !bytes.Contains(buf[:m], whole) {
			t.Errorf("%d bytes: not recorded as it is to be: %d, %v", n, m, err)
		}
		frame[len(frame)-1] ^= 8 // which nobody can see
		w.put(frame)
		frame[h-1] ^= 8 // neither complete nor to be completed
		w.put(frame)
		if w.l.Stats.BadChecksums != bad+1 || w.l.udp.Len() != queued {
			t.Errorf("%d bytes: %d wrong checksums, want 1", n, w.l.Stats.BadChecksums-bad)
		}
	}
}
