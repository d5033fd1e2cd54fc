// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// stage is a flow that is looked at.
type stage struct {
	look  int // where it is
	lane  int // the socket to its destination, until the lane has it
	reads int // of it that are still to come
}

// stageFlow has a flow looked at whose socket is a descriptor. It returns where.
func (w *world) stageFlow(o *ipc.Open, a *ipc.Opened, fd int) int {
	if w.r.IntN(2) == 0 { // nothing is known yet, and then it is
		var rec [ipc.OpenedSize]byte
		(&ipc.Opened{Token: o.Token, Flags: ipc.OpenedWait}).Encode(rec[:])
		w.tell(rec[:], -1)
		a.Flags |= ipc.OpenedLate
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	a.Flags |= ipc.OpenedStaged
	w.opens = append(w.opens, open{at: w.now + int64(w.r.IntN(50))*ms, Open: *o, stage: &stage{look: pair[1], lane: fd, reads: w.r.IntN(3)}})
	return pair[0]
}

// switchFlow reads what of a flow is looked at, as much as there is now or only some,
// writes it to its socket, and gives the lane that. Or it ends the flow.
func (w *world) switchFlow(o *open) {
	s := o.stage
	if s.reads--; s.reads >= 0 {
		o.at = w.now + int64(w.r.IntN(20))*ms
		w.opens = append(w.opens, *o)
		return
	}
	defer unix.Close(s.look)
	count, b := 0, make([]byte, 1<<16)
	for w.r.IntN(4) > 0 {
		n, err := unix.Read(s.look, b)
		if err != nil || n == 0 && o.Proto == ipc.ProtoTCP {
			break
		}
		k, err := unix.Write(s.lane, b[:n])
		switch {
		case o.Proto == ipc.ProtoUDP:
			count++
			if err != nil {
				w.t.Fatalf("a datagram that was looked at is not taken: %v", err)
			}
		case err == nil:
			count += k
		}
		if err != nil || k < n {
			break // the lane sends the rest again
		}
	}
	var rec [ipc.SwitchSize]byte
	(&ipc.Switch{Token: o.Token, Count: uint32(count)}).Encode(rec[:])
	send(w.t, w.broker, rec[:], s.lane)
}

// TestSwitchMoves: to the logs of flows, one that was looked at is the same flow with its
// second socket.
func TestSwitchMoves(t *testing.T) {
	e := newEnds(32)
	e.opened(7, 1000)
	e.moved(7, 9)
	e.moved(40, 9) // beyond what is remembered
	e.closed(7)
	if e.n != 0 || e.token[9] != 1000 {
		t.Fatalf("%d ends are told, the flow is %d", e.n, e.token[9])
	}
	e.closed(9)
	if e.n != 1 {
		t.Fatalf("%d ends are told", e.n)
	}
	f := newFlowLog()
	f.open[7] = told{began: 5}
	f.moved(7, 9)
	f.moved(8, 10) // of no flow that was told of
	if _, ok := f.open[9]; !ok || len(f.open) != 1 {
		t.Fatalf("%v", f.open)
	}
}
