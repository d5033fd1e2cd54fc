// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"aldente/worker/packet"
)

// RFC 2018 section 4: the block that holds the segment just received first,
// then those reported most recently.
func TestSACKGenerated(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	for _, step := range []struct {
		off, n int
		want   string
	}{
		{1000, 100, "A 1 ack 1 [1001,1101)"},
		{3000, 100, "A 1 ack 1 [3001,3101) [1001,1101)"},
		{5000, 100, "A 1 ack 1 [5001,5101) [3001,3101) [1001,1101)"},
		{2000, 100, "A 1 ack 1 [2001,2101) [5001,5101) [3001,3101) [1001,1101)"},
		{4000, 100, "A 1 ack 1 [4001,4101) [2001,2101) [5001,5101) [3001,3101)"},
		{1100, 100, "A 1 ack 1 [1001,1201) [4001,4101) [2001,2101) [5001,5101)"},
		{1100, 50, "A 1 ack 1 [1001,1201) [4001,4101) [2001,2101) [5001,5101)"},
		{1200, 900, "A 1 ack 1 [1001,2101) [4001,4101) [5001,5101) [3001,3101)"},
		{0, 500, "A 1 ack 501 [1001,2101) [4001,4101) [5001,5101) [3001,3101)"},
		{500, 500, "A 1 ack 2101 [4001,4101) [5001,5101) [3001,3101)"},
		{2100, 2500, "A 1 ack 4601 [5001,5101)"},
		{4600, 400, "A 1 ack 5101"},
	} {
		p.at(step.off, step.n, 0)
		p.want(step.want)
	}
	if p.s.txTotal != 5100 || e.pool.Used() != 0 {
		t.Errorf("%d bytes to the host, %d chunks", p.s.txTotal, e.pool.Used())
	}
}

// Each segment out of order has its ACK, though they come in one batch: a guest
// without SACK counts them.
func TestDuplicateAcksInBatch(t *testing.T) {
	for _, sack := range []bool{true, false} {
		e := newEnv(t)
		p := newPeer(e, guestPort)
		syn := p.syn()
		syn.SACKPermitted = sack
		p.dial(syn)
		p.seq += 100
		p.sent += 100
		for range 4 {
			p.add(0, 100)
		}
		p.end()
		want := []string{"A 1 ack 1", "A 1 ack 1", "A 1 ack 1", "A 1 ack 1"}
		if sack {
			want = []string{"A 1 ack 1 [101,201)", "A 1 ack 1 [101,301)", "A 1 ack 1 [101,401)", "A 1 ack 1 [101,501)"}
		}
		p.want(want...)
	}
}

// Data towards the guest must not take the place of duplicate ACKs and SACK.
func TestDuplicateAcksBesidesData(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	e.room = 0
	p.s.say(10)
	e.settle()
	e.room = -1
	p.at(100, 100, 0)
	p.want("A 1 ack 1 [101,201)", "A 1+10 ack 1")
	// In order, and there is more to report.
	e.room = 0
	p.s.say(10)
	e.settle()
	e.room = -1
	p.send(0, 50)
	p.want("A 11+10 ack 51", "A 21 ack 51 [101,201)")
}

// The set of ranges is bounded: what finds no place is sent again.
func TestTooManyHoles(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	for k := range maxRanges + 10 {
		p.at(100+200*k, 100, 0)
	}
	if n := e.tr.Stats.Dropped; n != 10 {
		t.Errorf("%d segments dropped", n)
	}
	e.take()
	p.send(0, 100+200*(maxRanges+10))
	p.want("A 1 ack 14901")
}

// With no set left for a flow, the stream is still right.
func TestNoSetLeft(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	e.tr.sets, e.tr.freeSets = nil, nil
	p.at(100, 100, 0)
	p.want("A 1 ack 1")
	p.s.say(8 * 1460)
	e.settle()
	e.take()
	for k := range uint32(3) {
		p.acks(1, 0xffff, 1461, 1461+1460*(k+1))
	}
	p.want("A 1+1460 ack 1") // as if the guest had no SACK
	p.send(0, 200)
	p.want("A 11681 ack 201")
}

// The guest's SACK: each hole is sent once, and what arrived is not.
func TestSACKUsed(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.say(10 * 1000)
	e.settle()
	e.take()
	p.acks(1, 0xffff, 1001, 2001)
	p.acks(1, 0xffff, 1001, 2001) // nothing new: not a duplicate
	p.acks(1, 0xffff, 1001, 3001)
	p.want()
	p.acks(1, 0xffff, 5001, 6001, 1001, 3001)
	p.want("A 1+1000 ack 1", "A 3001+1460 ack 1", "A 4461+540 ack 1")
	p.acks(1, 0xffff, 9001, 9501, 5001, 6001, 1001, 3001)
	p.want("A 6001+1460 ack 1", "A 7461+1460 ack 1", "A 8921+80 ack 1")
	p.acks(1, 0xffff, 9001, 10001, 5001, 6001, 1001, 3001)
	p.want()
	p.acks(6001, 0xffff, 9001, 10001)
	p.want()
	p.acks(10001, 0xffff)
	e.advance(60 * second)
	p.want()
	if n := e.tr.Stats.Timeouts; n != 0 {
		t.Errorf("%d time-outs", n)
	}
}

// More holes than are repaired at a time follow with the next acknowledgments.
func TestSACKManyHoles(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.say(24 * 1460)
	e.settle()
	e.take()
	at := func(k uint32) uint32 { return 1 + k*1460 }
	for k := uint32(1); k < 24; k += 8 { // every other segment is lost
		p.acks(1, 0xffff, at(k), at(k+1), at(k+2), at(k+3), at(k+4), at(k+5), at(k+6), at(k+7))
	}
	next := uint32(0) // first hole that has not come again
	for turn := 0; next < 24; turn++ {
		if turn > 40 {
			t.Fatalf("segment %d is not repaired", next)
		}
		for _, f := range e.take() {
			if k := (f.tcp.Seq - p.irs) / 1460; k != next || len(f.tcp.Payload) != 1460 {
				t.Fatalf("segment %d+%d, %d expected", k, len(f.tcp.Payload), next)
			}
			next += 2
		}
		p.acks(at(next), 0xffff)
	}
	if n := e.tr.Stats.Retransmits; n != 12 {
		t.Errorf("%d retransmissions", n)
	}
	if p.conn().sndUna != p.conn().sndMax || e.tr.Stats.Timeouts != 0 {
		t.Error("not recovered")
	}
}

// SACK news count on segments with data too, and when the window moves: RFC
// 6675 section 2.
func TestSACKBesidesData(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.say(10 * 1000)
	e.settle()
	e.take()
	for k := range uint32(3) {
		s := packet.TCP{Flags: packet.ACK, Seq: p.seq, Ack: p.ack, Window: uint16(60000 + k), Payload: stream(p.sent, 10), NumSACK: 1}
		s.SACK[0] = packet.SACKBlock{Left: p.irs + 1461, Right: p.irs + 1461 + 1460*(k+1)}
		p.sent += 10
		p.seq += 10
		p.raw(s)
	}
	_, got := p.got()
	if !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "A 1+1460 ") }) {
		t.Errorf("%q", got)
	}
}

// Blocks that cannot be are ignored.
func TestSACKNonsense(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.say(10 * 1000)
	e.settle()
	e.take()
	for range 5 {
		p.acks(1, 0xffff, 2001, 1001, 1, 1001, 9001, 10002, 5001, 5001)
	}
	p.want()
	if len(e.tr.freeSets) != len(e.tr.sets) {
		t.Error("a set is in use")
	}
	p.acks(10001, 0xffff)
	e.advance(60 * second)
	p.want()
}

func TestFastRetransmit(t *testing.T) {
	e := newEnv(t)
	p := newPeer(e, guestPort)
	syn := p.syn()
	syn.SACKPermitted = false
	p.dial(syn)
	p.s.say(10 * 1460)
	e.settle()
	e.take()
	e.advance(50 * ms)
	p.acks(1461, 0xffff)
	p.acks(1461, 0xffff)
	p.acks(1461, 0xfffe) // a window update, not a duplicate
	p.acks(1461, 0xfffe)
	p.want()
	p.acks(1461, 0xfffe)
	p.want("A 1461+1460 ack 1")
	p.acks(1461, 0xfffe)
	p.acks(1461, 0xfffe)
	p.want()
	p.acks(4381, 0xfffe) // partial: the next hole, RFC 6582
	p.want("A 4381+1460 ack 1")
	p.acks(14601, 0xfffe)
	e.advance(60 * second)
	p.want()
	if e.tr.Stats.Timeouts != 0 || p.conn().has(flagRecovery) {
		t.Error("not recovered")
	}
	if c := p.conn(); c.srtt != 0 {
		t.Errorf("round trip of %d µs from what was sent twice", c.srtt)
	}
}

// RFC 6298: doubled each time, from a measured start.
func TestRetransmissionTimeout(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.say(100)
	e.settle()
	e.advance(20 * ms)
	p.acks(101, 0xffff) // a sample of 20 ms
	e.take()
	p.s.say(5000)
	e.settle()
	p.want("A 101+1460 ack 1", "A 1561+1460 ack 1", "A 3021+1460 ack 1", "A 4481+620 ack 1")
	at := e.now
	for k := range 9 {
		for len(e.frames) == 0 {
			e.advance(10 * ms)
		}
		frames, got := p.got()
		if got[0] != "A 101+1460 ack 1" {
			t.Fatalf("%q", got)
		}
		due := min(200*ms<<k, 60*second)
		if d := e.now - at; d < due || d > due+due/8+due/8+20*ms {
			t.Errorf("time-out %d after %d ms, due after %d", k, d/ms, due/ms)
		}
		at = e.now
		_ = frames
	}
	p.acks(5101, 0xffff)
	e.advance(600 * second)
	p.want()
}

// The guest drops a segment older than what it has, and the acknowledgment in
// it: while data are sent again, others must not be.
func TestAckWhileRetransmitting(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.say(1000)
	e.settle()
	p.want("A 1+1000 ack 1")
	e.room = 1
	e.advance(1200 * ms)
	p.want("A 1+1000 ack 1") // the first acknowledgment was lost
	e.room = 0
	e.advance(2400 * ms) // rewound, and not sent
	e.room = -1
	p.send(0, 10)
	p.want("A 1+1000 ack 11", "A 1001 ack 11")
	p.s.fail(syscall.ECONNRESET)
	e.settle()
	p.want("RA 1001 ack 11")
}

// What was sent twice tells nothing about the round trip, RFC 6298 section 3.
func TestKarn(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.say(100)
	e.settle()
	e.advance(1500 * ms)
	p.want("A 1+100 ack 1", "A 1+100 ack 1")
	p.acks(101, 0xffff)
	if c := p.conn(); c.srtt != 0 {
		t.Errorf("round trip of %d µs", c.srtt)
	}
	p.s.say(100)
	e.settle()
	e.advance(10 * ms)
	p.acks(201, 0xffff)
	if c := p.conn(); c.srtt < 10000 || c.srtt > 10010 || c.rttvar < 5000 || c.rttvar > 5010 {
		t.Errorf("round trip of %d µs, variation %d", c.srtt, c.rttvar)
	}
	for range 100 {
		p.s.say(100)
		e.settle()
		e.advance(30 * ms)
		p.acks(uint32(p.s.rxEnd)+1, 0xffff)
	}
	if c := p.conn(); c.srtt < 29900 || c.srtt > 30010 || c.rttvar > 500 {
		t.Errorf("round trip of %d µs, variation %d", c.srtt, c.rttvar)
	}
}

// A guest that does not answer any more is given up.
func TestRetransmissionGivesUp(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.say(100)
	e.settle()
	e.advance(3600 * second)
	frames := e.take()
	if last := &frames[len(frames)-1].tcp; last.Flags&packet.RST == 0 {
		t.Error("not reset")
	}
	if !p.s.aborted {
		t.Error("the host's side was not reset")
	}
	p.gone()
}

// After a time-out, all that is missing is sent again, slowly at first.
func TestGoBackN(t *testing.T) {
	e := newEnv(t)
	p := dial(e)
	p.s.say(60 * 1460)
	p.s.fin()
	e.settle()
	e.take()
	e.advance(1200 * ms)
	frames := e.take()
	n := uint32(0)
	for _, f := range frames {
		n += uint32(len(f.tcp.Payload))
	}
	if n < 1460 || n > 20000 {
		t.Fatalf("%d bytes after a time-out", n)
	}
	// What the guest has already makes it repeat itself: no news of a loss.
	for range 4 {
		p.acks(1, 0xffff)
	}
	p.want()
	next := 1 + n
	for k := 0; next < 60*1460+2; k++ {
		if k > 100 {
			t.Fatal("no progress")
		}
		p.acks(next, 0xffff)
		for _, f := range e.take() {
			if f.tcp.Seq-p.irs != next {
				t.Fatalf("segment at %d, %d expected", f.tcp.Seq-p.irs, next)
			}
			next += uint32(len(f.tcp.Payload))
			if f.tcp.Flags&packet.FIN != 0 {
				next++
			}
		}
	}
	p.acks(next, 0xffff)
	if n := e.tr.Stats.Timeouts; n != 1 {
		t.Errorf("%d time-outs", n)
	}
}

// Without SO_PEEK_OFF all works the same.
func TestWithoutPeekOff(t *testing.T) {
	for _, open := range []func(*env) *peer{dial, accept} {
		e := newEnv(t, withoutPeekOff)
		p := open(e)
		p.s.say(4000)
		e.settle()
		p.want("A 1+1460 ack 1", "A 1461+1460 ack 1", "A 2921+1080 ack 1")
		p.acks(1461, 0xffff)
		e.advance(1500 * ms)
		p.want("A 1461+1460 ack 1", "A 2921+1080 ack 1")
		p.s.say(20000)
		p.s.fin()
		e.settle()
		for p.ack != p.irs+24002 {
			f := e.take()
			if len(f) == 0 {
				t.Fatal("no progress")
			}
			s := &f[len(f)-1].tcp
			p.acks(s.Seq-p.irs+uint32(len(s.Payload))+uint32(s.Flags&packet.FIN), 0xffff)
		}
		p.send(packet.FIN, 1)
		if p.s.skips == 0 {
			t.Error("peeked by other means")
		}
		e.advance(3 * second)
		e.tr.RemoveListener(1)
		p.gone()
	}
}
