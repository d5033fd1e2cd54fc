// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// news reads a message of the lane's for the flow log, "" if there is none: a record
// each.
func news(t *testing.T, fd int) (all []string) {
	t.Helper()
	b := make([]byte, ipc.MaxRecord)
	n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
	if err == unix.EAGAIN {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	kind, err := ipc.FromWorker.Check(b[:n], false, ipc.Running)
	if err != nil {
		t.Fatal(err)
	}
	size := map[ipc.Kind]int{ipc.KindAccepted: ipc.AcceptedSize, ipc.KindEnded: ipc.EndedSize}[kind]
	for b = b[:n]; len(b) > 0; b = b[size:] {
		var a ipc.Accepted
		var e ipc.Ended
		switch {
		case a.Decode(b[:size]) == nil:
			all = append(all, fmt.Sprintf("%d by %d from %v:%d", a.Token, a.Listener, packet.Addr(a.Addr), a.Port))
		case e.Decode(b[:size]) == nil:
			all = append(all, fmt.Sprintf("%d %v %d/%d %d/%d", e.Token, e.How, e.Sent, e.SentPackets, e.Received, e.ReceivedPackets))
		default:
			t.Fatalf("%x", b[:size])
		}
	}
	return all
}

// TestEnds: of each socket of a flow the end is told once, with what its translator has
// said of it, and of none without a flow.
func TestEnds(t *testing.T) {
	ours, theirs, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ours)
	defer unix.Close(theirs)
	e := newEnds(16)
	moved := &flow.Traffic{Sent: 1, SentPackets: 2, Received: 3, ReceivedPackets: 4}
	e.opened(5, 50)
	e.ended(5, ipc.EndReset, moved)
	e.closed(5)
	e.closed(5) // somebody else's by now
	e.opened(6, 60)
	e.closed(6) // nobody has said anything
	e.opened(7, 70)
	e.opened(8, 80)
	e.ended(7, ipc.EndIdle, moved)
	e.closed(8) // of another than was spoken of
	e.ended(7, ipc.EndIdle, moved)
	e.closed(7)
	e.closed(9)       // no flow's
	e.opened(-1, 1)   // no descriptor
	e.opened(16, 160) // one that cannot be
	e.closed(16)
	e.closed(-1)
	e.accepted(5, 51, 3, remote4, 999)
	e.ended(5, ipc.EndClosed, moved)
	e.closed(5)
	if !e.flush(int32(theirs)) {
		t.Fatal("the broker is gone")
	}
	for _, want := range []string{
		"[50 reset 1/2 3/4 60 unused 0/0 0/0 80 unused 0/0 0/0 70 idle 1/2 3/4]",
		"[51 by 3 from " + fmt.Sprint(remote4) + ":999]", "[51 closed 1/2 3/4]", "[]",
	} {
		if got := fmt.Sprint(news(t, ours)); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	unix.Close(ours)
	e.opened(5, 50)
	e.closed(5)
	if e.flush(int32(theirs)) {
		t.Error("a broker that is gone takes it")
	}
	ours = -1
}

// TestEndsOfTwoSockets: a flow past the link has two, and what it has carried belongs to
// that of which there is a line.
func TestEndsOfTwoSockets(t *testing.T) {
	e := newEnds(8)
	e.opened(3, 30)
	e.opened(4, 40)
	e.ended(4, ipc.EndIdle, &flow.Traffic{Sent: 5, Received: 6})
	e.closed(3)
	e.closed(4)
	want := []ipc.Ended{{Token: 30, How: ipc.EndUnused}, {Token: 40, How: ipc.EndIdle, Sent: 5, Received: 6}}
	for k, w := range want {
		var got ipc.Ended
		if e.n != len(want) || got.Decode(e.queue[k].rec[:ipc.EndedSize]) != nil || got != w {
			t.Errorf("%d records: %+v, want %+v", e.n, got, w)
		}
	}
}

// TestEndsWaitForTheBroker: what a full channel does not take comes when there is room,
// in its order, without an event, and more than may wait is lost.
func TestEndsWaitForTheBroker(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkTap, 1500, true)
	w.calm = true
	w.turn()
	e := w.l.ends
	for k := range uint64(maxEnds + 10) {
		e.opened(60000, k+1)
		e.closed(60000)
	}
	if e.n != maxEnds {
		t.Fatalf("%d wait, want %d", e.n, maxEnds)
	}
	if !e.flush(w.l.channel.fd) || e.n == 0 || e.n == maxEnds {
		t.Fatalf("%d wait beside a full channel", e.n)
	}
	if got := w.l.timeout(); got < 0 || got > endsRetry {
		t.Errorf("the lane sleeps for %d ms", got)
	}
	next := uint64(1)
	for tries := 0; e.n > 0 && tries < 10000; tries++ {
		for got := news(t, w.broker); got != nil; got = news(t, w.broker) {
			for _, s := range got {
				if want := fmt.Sprintf("%d unused 0/0 0/0", next); s != want {
					t.Fatalf("%q, want %q", s, want)
				}
				next++
			}
		}
		w.l.turn()
	}
	for got := news(t, w.broker); got != nil; got = news(t, w.broker) {
		next += uint64(len(got))
	}
	if next != maxEnds+1 {
		t.Errorf("up to %d came, want %d", next-1, maxEnds)
	}
}
