// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"time"

	"aldente/ipc"
	"aldente/worker/packet"
)

const (
	initialRTO   = int64(time.Second) // RFC 6298 section 2.1
	minRTO       = int64(200 * time.Millisecond)
	maxRTO       = int64(60 * time.Second)
	maxRetries   = 12                      // without an acknowledgment: about six minutes
	timeWait     = int64(2 * time.Second)  // the link is one hop: a lost ACK is seen long before
	keepIdle     = int64(2 * time.Hour)    // RFC 9293 section 3.8.4
	keepInterval = int64(75 * time.Second) // between probes
	keepProbes   = 9                       // unanswered before the guest counts as gone
	synAckTries  = 5                       // repetitions of a SYN-ACK

	// detachedIdle is how long the host may take nothing of what a guest has
	// said that is done with the connection. A host's own kernel, too, gives up
	// after minutes on such a connection of a program that is gone
	// (tcp_orphan_retries, tcp(7)). Otherwise a peer could keep it for as long
	// as it likes.
	detachedIdle = int64(5 * time.Minute)
	neverExpires = int64(1<<63 - 1)
)

// rto is the retransmission time-out in nanoseconds, with its back-off.
func (c *conn) rto() int64 {
	d := initialRTO
	if c.srtt != 0 {
		d = max(int64(c.srtt+4*c.rttvar)*1000, minRTO)
	}
	return min(d<<min(c.retries, 10), maxRTO)
}

// startRTO starts the retransmission timer unless it runs.
func (t *Translator) startRTO(c *conn) {
	if c.rtoAt == 0 {
		c.rtoAt = t.env.Now() + c.rto()
	}
}

// arm sets the wheel for the flow's next deadline. A timer that would only
// fire too early is left alone: expire looks again. One that is due soon is not: while
// it is set, each sleep of the lane has the kernel program the processor's timer, which
// costs more than all that the wheel does, and it would end one of them for nothing.
func (t *Translator) arm(i uint32, c *conn) {
	at := neverExpires
	switch c.state {
	case stateOpen:
		at = t.keepAt(c)
		if c.deqAt != 0 {
			at = min(at, c.deqAt)
		}
		if c.ackAt != 0 {
			at = min(at, c.ackAt)
		}
	case stateEnded:
		return
	case stateOpening, stateConnecting:
		return // the host's kernel gives up in its own time
	}
	if c.rtoAt != 0 {
		at = min(at, c.rtoAt)
	}
	if at != neverExpires && (c.timerAt == 0 || at < c.timerAt || at > c.timerAt && c.timerAt <= t.env.Now()+ackDelay) {
		c.timerAt = at
		t.wheel.Set(t.timer+i, at)
	}
}

func (t *Translator) keepAt(c *conn) int64 {
	if c.has(flagDetached) {
		return c.seenAt + detachedIdle
	}
	if at := c.seenAt + keepIdle; at > t.env.Now() {
		return at
	}
	return t.env.Now() + keepInterval
}

// expire does what is due.
func (t *Translator) expire(i uint32, c *conn) {
	now := t.env.Now()
	if c.has(flagDetached) && now >= c.seenAt+detachedIdle {
		c.ends(ipc.EndTimeout)
		t.abort(i, c) // nobody is to be asked whether it lives
		return
	}
	if c.rtoAt != 0 && now >= c.rtoAt {
		c.rtoAt = 0
		t.timedOut(i, c)
	} else if c.state == stateOpen && now < c.seenAt+keepIdle {
		c.probes = 0
	} else if c.state == stateOpen {
		// Counted, not timed: the wheel may have been late.
		if c.probes++; c.probes > keepProbes {
			c.ends(ipc.EndTimeout)
			t.sendRST(i, c)
			t.abort(i, c)
			return
		}
		t.probe(i, c)
	}
	if c.state == stateOpen && c.ackAt != 0 && now >= c.ackAt {
		t.ackLate(i, c)
	}
	if c.state == stateOpen && c.deqAt != 0 && now >= c.deqAt {
		c.deqAt = 0
		t.dequeue(c, 1)
	}
	t.arm(i, c)
}

// timedOut handles the retransmission timer.
func (t *Translator) timedOut(i uint32, c *conn) {
	c.retries = min(c.retries+1, 200)
	switch c.state {
	case stateTimeWait:
		t.end(i, c)
		return
	case stateSynSent, stateSynAckSent:
		limit := uint8(synAckTries)
		if c.state == stateSynSent {
			limit = max(t.g.SYNRetry, 1)
		}
		if c.retries > limit {
			c.ends(ipc.EndTimeout)
			t.abort(i, c)
			return
		}
		if c.either {
			t.eitherFamily(i, c)
		}
		t.sendSYN(i, c)
		t.startRTO(c)
		return
	case stateOpen:
	default:
		return
	}
	if c.retries > maxRetries && t.env.Now()-c.seenAt > 2*maxRTO {
		c.ends(ipc.EndTimeout)
		t.sendRST(i, c)
		t.abort(i, c)
		return
	}
	if c.sndUna == c.sndMax {
		// Nothing in flight: the guest's window is closed. It may stay so
		// for as long as the guest answers, RFC 9293 section 3.8.6.1.
		if c.sndWnd == 0 {
			t.probe(i, c)
			t.startRTO(c)
		}
		return
	}
	t.Stats.Timeouts++
	t.rewind(i, c)
}

// rewind starts over from the oldest byte not acknowledged, slowly, RFC 6298
// section 5.4 and RFC 5681 section 3.1. What the guest reported by SACK is
// forgotten: it may have thrown it away (RFC 2018 section 8).
func (t *Translator) rewind(i uint32, c *conn) {
	t.putSet(&c.sacked)
	c.clear(flagRecovery | flagTimedRTT)
	c.dupAcks = 0
	c.sndNxt = c.sndUna
	c.cwnd = max(2*uint32(c.mss), 16<<10)
	if c.sndWnd == 0 {
		// One segment into a closed window, which doubles as a probe.
		if end := t.resend(i, c, c.sndUna, c.sndUna+min(uint32(c.mss), c.sndMax-c.sndUna)); end == c.sndUna {
			t.startRTO(c)
		}
		return
	}
	t.push(i, c)
	t.startRTO(c)
}

// probe makes the guest tell where it is: a segment before its window.
func (t *Translator) probe(i uint32, c *conn) {
	t.begin(i, c, packet.ACK, c.sndUna-1)
	t.fields.Window = t.advertise(c)
	t.emit(nil)
}

// finish ends the flow if both directions are done.
func (t *Translator) finish(i uint32, c *conn) {
	if c.over() || !c.has(flagGuestFIN) || !c.has(flagShutdown) || !c.has(flagFINSent) || !after(c.sndUna, c.finSeq) {
		return
	}
	if c.has(flagAckNow | flagAckLater) {
		t.sendAck(i, c)
	}
	t.dequeue(c, 0)
	if !c.has(flagHostFirst) {
		t.end(i, c)
		return
	}
	// The guest's last FIN may come again, RFC 9293 section 3.6.1.
	c.state = stateTimeWait
	c.rtoAt = t.env.Now() + timeWait
	c.deqAt, c.ackAt = 0, 0
	c.timerAt = 0 // what was set for data is not to wake the lane, which has other connections by then
	t.mark(i, c)
	t.arm(i, c)
}
