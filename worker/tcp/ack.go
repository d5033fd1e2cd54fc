// SPDX-License-Identifier: Apache-2.0

package tcp

import "aldente/worker/packet"

// dupThreshold is how many duplicate acknowledgments mean a loss, RFC 5681
// section 3.2.
const dupThreshold = 3

// ack takes the acknowledgment in a segment with n bytes of payload, which may
// end the flow.
func (t *Translator) ack(i uint32, c *conn, s *packet.TCP, n uint32) {
	wnd := uint32(s.Window) << c.sndScale
	old := c.sndWnd
	// RFC 9293 section 3.10.7.4. Bytes newly acknowledged always bring a window
	// with them, in a segment sent again too: the old one counted from sndUna.
	if after(s.Ack, c.sndUna) || s.Ack == c.sndUna &&
		(before(c.sndWl1, s.Seq) || c.sndWl1 == s.Seq && notAfter(c.sndWl2, s.Ack)) {
		c.sndWnd = wnd
		c.maxWnd = max(c.maxWnd, wnd)
		c.sndWl1, c.sndWl2 = s.Seq, s.Ack
	}
	news := c.has(flagSACK) && s.NumSACK > 0 && t.score(c, s)
	switch {
	case after(s.Ack, c.sndUna):
		t.newAck(i, c, s.Ack)
		t.finish(i, c)
	case s.Ack != c.sndUna:
	case old == 0 && c.sndWnd > 0:
		c.reopened()
	case c.sndUna == c.sndMax:
	case news, s.NumSACK == 0 && n == 0 && s.Flags&packet.FIN == 0 && c.sndWnd == old && old > 0:
		t.dupAck(i, c)
	}
	t.touch(i, c)
}

// reopened goes on after the guest's window was closed: the timer was that of
// probes. What was in flight when it closed may have been thrown away for want
// of room; it is sent when the batch ends, which starts the timer again.
func (c *conn) reopened() {
	c.retries, c.rtoAt = 0, 0
	c.sndNxt = c.sndUna
}

// newAck moves sndUna.
func (t *Translator) newAck(i uint32, c *conn, ack uint32) {
	now := t.env.Now()
	acked := ack - c.sndUna
	if c.has(flagTimedRTT) && atLeast(ack, c.rttSeq) {
		c.clear(flagTimedRTT)
		c.sampleRTT(now - c.rttStart)
	}
	c.sndUna = ack
	c.pieces = min(c.pieces+1, dequeuePieces)
	if before(c.sndNxt, ack) {
		c.sndNxt = ack
	}
	c.dupAcks, c.retries = 0, 0
	if c.sndUna == c.sndMax {
		c.rtoAt = 0
	} else {
		c.rtoAt = now + c.rto()
	}
	if c.sacked != 0 {
		set := &t.sets[c.sacked-1]
		set.advance(ack)
		if set.n == 0 {
			t.putSet(&c.sacked)
		}
	}
	if c.cwnd != noCwnd && !c.has(flagRecovery) {
		if c.cwnd += acked; c.cwnd > 4<<20 {
			c.cwnd = noCwnd
		}
	}
	if c.has(flagRecovery) {
		if atLeast(ack, c.recover) {
			c.clear(flagRecovery)
			return
		}
		// A partial acknowledgment: what follows is lost too, RFC 6582
		// section 3.2, RFC 6675 section 5.
		c.rexNxt = later(c.rexNxt, ack)
		if c.sacked == 0 {
			c.rexNxt = ack
		}
		t.repair(i, c)
	}
}

// score notes what the guest has beyond the acknowledgment, and reports whether
// that was not known: the segment counts as a duplicate acknowledgment then,
// whatever else it says (RFC 6675 section 2). Blocks that cannot be, and
// D-SACKs (RFC 2883), are left out.
func (t *Translator) score(c *conn, s *packet.TCP) bool {
	una := later(c.sndUna, s.Ack)
	news := false
	for _, b := range s.SACK[:s.NumSACK] {
		if !after(b.Right, b.Left) || !after(b.Left, una) || after(b.Right, c.sndMax) {
			continue
		}
		set := t.getSet(&c.sacked)
		if set == nil {
			return true // as without SACK
		}
		if !set.covers(b.Left, b.Right) {
			set.add(b.Left, b.Right)
			news = true
		}
	}
	return news
}

// dupAck counts, and starts fast recovery at the third: RFC 5681 section 3.2,
// RFC 6675 section 5.
func (t *Translator) dupAck(i uint32, c *conn) {
	if c.dupAcks < 255 {
		c.dupAcks++
	}
	if c.has(flagRecovery) {
		t.repair(i, c)
		return
	}
	if c.dupAcks < dupThreshold || before(c.sndNxt, c.sndMax) {
		return
	}
	c.set(flagRecovery)
	c.recover = c.sndMax
	c.rexNxt = c.sndUna
	c.cwnd = max(c.inFlight()/2, 2*maxPayload)
	t.repair(i, c)
}

// repair sends again what the guest misses: with SACK each hole once, a few at
// a time; without, the first segment.
func (t *Translator) repair(i uint32, c *conn) {
	for range 4 {
		left, right := c.sndUna, c.sndUna+uint32(c.mss)
		if c.sacked != 0 {
			var ok bool
			if left, right, ok = t.sets[c.sacked-1].gap(later(c.rexNxt, c.sndUna)); !ok {
				return
			}
		} else if after(c.rexNxt, left) {
			return
		}
		if after(right, c.sndMax) {
			right = c.sndMax
		}
		end := t.resend(i, c, left, right)
		if end == left {
			return
		}
		c.rexNxt = end
	}
}

// resend sends [left, right) once more, as far as one frame goes, and returns
// where it ended.
func (t *Translator) resend(i uint32, c *conn, left, right uint32) uint32 {
	fin := c.has(flagFINSent) && after(right, c.finSeq)
	if fin {
		right = c.finSeq
	}
	n := right - left
	if n > uint32(c.mss) {
		n = min(n-n%uint32(c.mss), t.superPayload(c))
	}
	var b []byte
	if n > 0 {
		if b = t.peek(i, c, left, int(n)); len(b) == 0 {
			return left
		}
	}
	end := left + uint32(len(b))
	fin = fin && end == c.finSeq
	if !t.sendData(i, c, left, b, fin) {
		return left
	}
	if fin {
		end++
	}
	return end
}

// sampleRTT is RFC 6298 section 2, in microseconds.
func (c *conn) sampleRTT(d int64) {
	us := uint32(min(d/1000, 60_000_000)) + 1
	if c.srtt == 0 {
		c.srtt, c.rttvar = us, us/2
		return
	}
	diff := c.srtt - us
	if us > c.srtt {
		diff = us - c.srtt
	}
	c.rttvar += diff/4 - c.rttvar/4
	c.srtt += us/8 - c.srtt/8
}
