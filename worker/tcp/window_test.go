// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"fmt"
	"testing"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// fill sends until the window is closed, in segments of n bytes. The last may
// be smaller.
func (p *peer) fill(n uint32) {
	p.t.Helper()
	c := p.conn()
	for c.rcvEdge != c.rcvNxt {
		p.send(0, int(min(n, c.rcvEdge-c.rcvNxt)))
	}
}

// The host does not read: what was granted is kept, then the window is closed.
func TestWindowCloses(t *testing.T) {
	for _, n := range []uint32{1460, 1, 127, 129, 4000, 65280} {
		for _, scale := range []int8{4, -1} {
			e := newEnv(t)
			p := newPeer(e, guestPort)
			syn := p.syn()
			syn.WScale = scale
			p.dial(syn)
			p.s.txRoom = 10
			edge, sent := uint32(0), uint32(0)
			for p.conn().rcvEdge != p.conn().rcvNxt {
				k := min(n, p.conn().rcvEdge-p.conn().rcvNxt)
				p.send(0, int(k))
				sent += k
				if sent > 70000 {
					t.Fatalf("segments of %d: %d bytes taken from the guest", n, sent)
				}
				frames := e.take()
				f := &frames[len(frames)-1].tcp
				if f.Ack-guestISN-1 != sent {
					t.Fatalf("segments of %d: %d bytes sent, %d acknowledged", n, sent, f.Ack-guestISN-1)
				}
				// Rounding to the scale may take back less than its unit.
				right := f.Ack - guestISN + uint32(f.Window)<<p.conn().rcvScale
				if right+1<<p.conn().rcvScale <= edge {
					t.Fatalf("segments of %d: right edge moved from %d to %d", n, edge, right)
				}
				edge = max(edge, right)
			}
			p.s.free(1 << 20)
			e.settle()
			if p.s.txTotal != int(sent) || e.pool.Used() != 0 {
				t.Errorf("segments of %d: %d of %d bytes to the host", n, p.s.txTotal, sent)
			}
			if w := p.window(); w < 65280 {
				t.Errorf("segments of %d: window %d after all was taken", n, w)
			}
		}
	}
}

// A small window reopens only by a step worth sending for.
func TestWindowReopens(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.txRoom = 0
	p.fill(1460)
	e.take()
	step := int(p.conn().step())
	if step < 2*1460 {
		t.Fatalf("step of %d", step)
	}
	freed := 0
	for range step / 100 {
		p.s.free(100)
		freed += 100
		e.settle()
		if len(e.frames) > 0 {
			break
		}
	}
	if freed < step-300 {
		t.Errorf("window update after %d bytes, a step is %d", freed, step)
	}
	p.s.free(300)
	e.settle()
	if w := p.window(); int(w) < step {
		t.Errorf("window of %d", w)
	}
	// A probe is answered with what there is, which is less than a step more.
	p.fill(1460)
	e.take()
	p.s.free(step - 1000)
	e.settle()
	p.want()
	p.raw(packet.TCP{Flags: packet.ACK, Seq: p.seq - 1, Ack: p.ack, Window: p.win})
	if w := p.window(); w != 0 {
		t.Errorf("window of %d", w)
	}
	p.raw(packet.TCP{Flags: packet.ACK, Seq: p.seq, Ack: p.ack, Window: p.win, Payload: stream(p.sent, 1)})
	if w := p.window(); w != 0 {
		t.Errorf("window of %d", w)
	}
}

// Bytes in the window are taken, whatever its last announcement said.
func TestSegmentAcrossEdge(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.txRoom = 0
	p.send(0, 60000)
	p.want("A 1 ack 60001")
	edge := p.conn().rcvEdge
	p.send(packet.FIN, 8000)
	f := p.want(fmt.Sprint("A 1 ack ", edge-guestISN))
	if f[0].tcp.Window != 0 || p.conn().has(flagGuestFIN) || p.conn().has(flagEarlyFIN) {
		t.Error("taken beyond the window")
	}
}

// A batch may hold more segments of a flow than one write takes, and the
// socket may take any part of them.
func TestManySegmentsOneBatch(t *testing.T) {
	for _, room := range []int{0, 1, 99, 100, 6399, 6400, 6401, 12799, -1} {
		e := newEnv(t)
		p := dial(e)
		p.s.txRoom = room
		for range 200 {
			p.add(0, 100)
		}
		p.end()
		p.want("A 1 ack 20001")
		p.s.free(7)
		e.settle()
		p.s.free(50000)
		e.settle()
		if p.s.txTotal != 20000 {
			t.Errorf("room %d: %d bytes to the host", room, p.s.txTotal)
		}
	}
}

func TestTwoFlowsOneBatch(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	q := newPeer(e, guestPort+1)
	q.dial(q.syn())
	p.s.txRoom, q.s.txRoom = 500, 1500
	for range 20 {
		p.add(0, 100)
		q.add(0, 100)
		q.add(0, 100)
	}
	p.end()
	p.s.free(1e6)
	q.s.free(1e6)
	e.settle()
	if p.s.txTotal != 2000 || q.s.txTotal != 4000 {
		t.Errorf("%d and %d bytes", p.s.txTotal, q.s.txTotal)
	}
}

// A flow that moves much gets a larger window, up to a bound, while the pool
// has plenty.
func TestWindowGrows(t *testing.T) {
	for kind, want := range map[uint8]uint32{ipc.LinkTap: 3 << 19, ipc.LinkStream: 4 << 20} {
		e := newEnv(t, withLink(kind))
		p := dial(e)
		for range 10000 {
			p.send(0, 1460)
		}
		if c := p.conn(); c.windowLimit() != want-roundingSlack {
			t.Errorf("link %d: %d chunks set aside", kind, c.reserved)
		}
	}
	e := newEnv(t, withChunks(20))
	p := dial(e)
	for range 4000 {
		p.send(0, 1460)
	}
	if c := p.conn(); int(c.reserved) > 15 {
		t.Errorf("%d of 20 chunks set aside for one flow", c.reserved)
	}
}

func TestGuestWindow(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.acks(1, 200) // 3200 bytes
	p.s.say(10000)
	e.settle()
	p.want("A 1+1460 ack 1", "A 1461+1460 ack 1") // no small segment behind them
	p.acks(2921, 200)
	p.want("A 2921+1460 ack 1", "A 4381+1460 ack 1")
	p.acks(2921, 100) // shrunk, RFC 9293 section 3.8.6
	p.want()
	p.acks(5841, 10) // a window smaller than a segment, and nothing in flight
	p.want("A 5841+160 ack 1")
	p.acks(6001, 0xffff)
	p.want("A 6001+1460 ack 1", "A 7461+1460 ack 1", "A 8921+1080 ack 1")
}

// An older segment does not set the window, RFC 9293 section 3.10.7.4.
func TestGuestWindowOld(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.send(0, 100)
	e.take()
	p.acks(1, 100)
	p.raw(packet.TCP{Flags: packet.ACK, Seq: p.seq - 50, Ack: p.ack, Window: 7})
	if w := p.conn().sndWnd; w != 1600 {
		t.Errorf("window %d", w)
	}
}

func TestGuestZeroWindow(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.acks(1, 0)
	p.s.say(1000)
	e.settle()
	p.want()
	e.advance(1200 * ms)
	p.want("A 0 ack 1") // a probe: before the window, so it has to be answered
	p.acks(1, 0)
	var at []int64
	for k := range 4000 {
		e.advance(second)
		if frames, got := p.got(); len(frames) > 0 {
			if got[0] != "A 0 ack 1" || len(got) > 1 {
				t.Fatalf("probe %q", got)
			}
			at = append(at, int64(k))
			p.acks(1, 0) // as long as the guest answers
		}
	}
	if gap := at[len(at)-1] - at[len(at)-2]; gap < 58 || gap > 70 {
		t.Errorf("probes every %d s in the end", gap)
	}
	p.acks(1, 0xffff)
	p.want("A 1+1000 ack 1")
	p.acks(1001, 0xffff)
	e.advance(600 * second)
	p.want()
}

// What was in flight when the window closed may be lost; it is sent again when
// the window opens, also if data come with that news.
func TestGuestWindowReopensWithLoss(t *testing.T) {
	for _, n := range []int{0, 10} {
		e := newEnv(t)
		p := dial(e)
		p.s.say(1000)
		e.settle()
		p.want("A 1+1000 ack 1")
		p.win = 0
		p.acks(1, 0)
		p.want()
		p.win = 0xffff
		p.send(0, n)
		frames, got := p.got()
		if len(frames) == 0 || len(frames[0].tcp.Payload) != 1000 {
			t.Errorf("%d bytes with the window: %q", n, got)
		}
		e.advance(2 * second)
		if len(e.take()) == 0 {
			t.Errorf("%d bytes with the window: no retransmission", n)
		}
	}
}

// A guest that is gone while its window is closed is not probed for ever.
func TestGuestZeroWindowDead(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.acks(1, 0)
	p.s.say(1000)
	e.settle()
	e.advance(3600 * second)
	if p.conn() != nil || !p.s.aborted {
		t.Fatal("still there after an hour")
	}
	frames := e.take()
	if frames[len(frames)-1].tcp.Flags&packet.RST == 0 {
		t.Error("not reset")
	}
	p.gone()
}

// With little in it, a small receive buffer may be full.
func TestSmallReceiveBuffer(t *testing.T) {
	for _, opt := range []option{func(*envConfig) {}, withoutPeekOff} {
		e := newEnv(t, opt)
		p := newPeer(e, guestPort)
		p.start(p.syn())
		p.s = e.newSock()
		p.s.rcvBuf = 3000
		p.dialled()
		p.s.say(10000)
		e.settle()
		var got uint32
		for range 100 {
			for _, f := range e.take() {
				got += uint32(len(f.tcp.Payload))
			}
			p.acks(1+got, 0xffff)
			e.advance(100 * ms)
		}
		if got != 10000 {
			t.Errorf("%d of 10000 bytes", got)
		}
	}
}

// An acknowledgment that the link does not take is sent when it does.
func TestAckLinkFull(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	e.room = 0
	p.send(0, 100)
	p.want()
	e.open(-1)
	e.settle()
	p.want("A 1 ack 101")
	// So is the news of a window that opens.
	p.s.txRoom = 0
	p.fill(1460)
	e.take()
	e.room = 0
	p.s.free(1 << 20)
	e.settle()
	p.want()
	e.open(-1)
	e.settle()
	if w := p.window(); w < 65280 {
		t.Errorf("window %d", w)
	}
}

// The link may turn out to be full only when it is written to.
func TestDataLinkFull(t *testing.T) {
	for _, fin := range []bool{false, true} {
		for _, unaware := range []bool{false, true} {
			e := newEnv(t)
			p := dial(e)
			e.room, e.unaware = 0, unaware
			p.s.say(1000)
			if fin {
				p.s.fin()
			}
			e.settle()
			p.want()
			e.open(-1)
			e.settle()
			if fin {
				p.want("FA 1+1000 ack 1")
			} else {
				p.want("A 1+1000 ack 1")
			}
		}
	}
}

// While the link is stalled, flows that come and go leave no trace.
func TestLinkFullFlowsEnd(t *testing.T) {
	e := newEnv(t)
	e.room = 0
	for k := range 1000 {
		p := newPeer(e, uint16(1000+k))
		p.start(p.syn())
		p.s = e.newSock()
		p.s.say(10)
		e.answer(k, ipc.Opened{}, p.s)
		p.ack = p.conn().iss + 1 // the guest knows without having seen it
		p.send(0, 10)
		if n := len(e.tr.ready); n != 1 {
			t.Fatalf("%d flows on the list", n)
		}
		p.raw(packet.TCP{Flags: packet.RST, Seq: p.seq})
	}
	e.empty()
}

func TestIdle(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	before := e.wheel.Next()
	e.advance(600 * second)
	p.want()
	if p.conn() == nil {
		t.Fatal("gone after ten minutes")
	}
	if at := e.wheel.Next(); before == store.NoTimer || at < e.now+3600*second {
		t.Errorf("wakes up in %d s", (at-e.now)/second)
	}
	p.send(0, 10)
	p.want("A 1 ack 11")
}

func TestKeepAlive(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	e.advance(2*3600*second - second)
	p.want()
	for range 902 { // an eighth late at most
		if e.advance(second); len(e.frames) > 0 {
			break
		}
	}
	p.want("A 0 ack 1")
	p.acks(1, 0xffff)
	e.advance(3600 * second)
	p.want()
	if p.conn() == nil {
		t.Fatal("an answer did not count")
	}
	// Now the guest is dead.
	e.advance(5 * 3600 * second)
	_, got := p.got()
	probes := 0
	for _, g := range got {
		if g == "A 0 ack 1" {
			probes++
		}
	}
	if probes != keepProbes || got[len(got)-1] != "RA 1 ack 1" {
		t.Errorf("%q", got)
	}
	if !p.s.aborted {
		t.Error("the host's side was not reset")
	}
	p.gone()
}

// The guest's own keep-alives are answered and passed on by the kernel.
func TestGuestKeepAlive(t *testing.T) {
	for _, b := range [][]byte{nil, {0}} {
		e := newEnv(t)
		p := dial(e)
		p.raw(packet.TCP{Flags: packet.ACK, Seq: p.seq - 1, Ack: p.ack, Window: p.win, Payload: b})
		p.want("A 1 ack 1")
		if !p.s.keepAlive {
			t.Errorf("%d bytes: SO_KEEPALIVE not set", len(b))
		}
	}
}

// Room is reported while it is waited for, and no longer: where it is watched,
// each other event of the socket would report it too.
func TestRoomReports(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	for range 3 {
		p.s.txRoom = 10
		p.send(0, 100)
		e.settle()
		if p.s.events != flow.Readable|flow.Writable {
			t.Errorf("a full socket is watched for %d", p.s.events)
		}
		p.s.free(90)
		e.settle()
		if p.s.events != flow.Readable || p.conn().queued() != 0 {
			t.Errorf("%d bytes queued, the socket is watched for %d", p.conn().queued(), p.s.events)
		}
	}
}
