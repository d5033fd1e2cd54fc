// SPDX-License-Identifier: Apache-2.0

package tcp

import "time"

// An answer carries the acknowledgment of what it answers. Where a guest asks
// and is answered at once, again and again, the acknowledgment of a small
// segment waits for the answer: RFC 9293 section 3.8.6.3, which allows half a
// second. It waits much shorter, so that a guest that holds back the rest of
// its question until it is acknowledged (RFC 896) hardly notices. A new
// connection is trusted to be of that kind: many have one question.
const (
	ackDelay        = int64(time.Millisecond)
	smallQuery      = 1024 // bytes of a segment that may be a whole question
	maxQuickReplies = 3    // quick answers in a row, after which one more is expected
)

// mayDelay tells whether the acknowledgment of n bytes at rcvNxt may wait: that
// of every second segment may not.
func (c *conn) mayDelay(n int) bool {
	return c.quickReplies >= maxQuickReplies && n <= smallQuery && c.held == 0 && !c.has(flagAckLater)
}

// mayDelayFIN tells whether the acknowledgment of n bytes and a FIN at rcvNxt may
// wait: what a peer says to the end of a short conversation is its own. Only where
// that is still to come.
func (c *conn) mayDelayFIN(n int) bool {
	return c.quickReplies >= maxQuickReplies && n <= smallQuery && c.held == 0 && !c.has(flagHostClosed|flagHostEOF)
}

// In bulk, acknowledgments wait for more to acknowledge: each costs whoever
// reads the link a wake-up, and the guest as much work as a segment. Only while
// the window is far larger, so that a guest that fills it never waits. Not where
// one has waited for nothing several times: such a guest sends less at a time,
// maybe because its send buffer is small.
const (
	bulkAck = 512 << 10 // bytes acknowledged at a time
	maxLate = 3
)

// mayGather tells whether the acknowledgment of n bytes at rcvNxt may wait for
// that of more.
func (c *conn) mayGather(n int) bool {
	room := c.rcvEdge - c.rcvNxt
	if n <= smallQuery || uint32(n) > room || c.windowLimit() < 2*bulkAck || c.late == maxLate || c.held != 0 {
		return false
	}
	if room-uint32(n) > c.windowLimit()-bulkAck {
		return true
	}
	c.late = 0
	return false
}

// noteQuery notes that the guest has sent something small.
func (c *conn) noteQuery(n int, now int64) {
	c.queryAt = 0
	if n <= smallQuery {
		c.queryAt = now
	}
}

// noteReply notes that something is sent to the guest.
func (c *conn) noteReply(now int64) {
	switch {
	case c.queryAt == 0:
	case now-c.queryAt > ackDelay:
		c.quickReplies = 0
	case c.quickReplies < maxQuickReplies:
		c.quickReplies++
	}
	c.queryAt = 0
}

// acked notes that everything received is acknowledged.
func (c *conn) acked() {
	c.clear(flagAckNow | flagAckLater)
	c.ackAt = 0
}

// ackLate sends an acknowledgment that has waited long enough, and has the next
// ones not wait.
func (t *Translator) ackLate(i uint32, c *conn) {
	if c.queryAt == 0 { // the last segment was a large one
		c.late = min(c.late+1, maxLate)
	}
	c.quickReplies, c.queryAt = 0, 0
	t.sendAck(i, c)
}
