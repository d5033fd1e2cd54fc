// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"io"
	"math/rand/v2"
	"syscall"

	"aldente/ipc"
	"aldente/worker/arp"
	"aldente/worker/flow"
	"aldente/worker/kernel"
	"aldente/worker/link"
	"aldente/worker/ndp"
	"aldente/worker/store"
)

// turn waits for events and does all that they call for.
func (l *Lane) turn() {
	l.tick()
	l.figures.turnEnds(l.now)
	began := l.now
	n := l.wait()
	l.tick()
	l.figures.woke = l.now
	l.busy = l.now-began < kernel.RawWait*1e6
	_, first := l.poll.At(0)
	soon := l.now-began < l.spinFor() && l.oneConversation(n, first)
	l.moved = 0
	l.wheel.Advance(l.now, l.fire) // first: timers are set relative to it
	l.readable, l.hungUp = false, false
	for k := range n {
		events, token := l.poll.At(k)
		owner, _, _ := flow.SplitToken(token)
		if owner != flow.OwnerTCP && owner != flow.OwnerLane {
			l.tcp.Beside()
		}
		l.table.ready[owner](token, events)
		if l.live != nil {
			l.live.verdict = link.Note{} // it was that event's
		}
	}
	if l.readable || l.more || l.watching != nil && l.watching.Waiting() {
		l.receive()
	}
	l.continueWork()
	l.finish()
	if l.figures.owed {
		l.answerAsked()
	}
	l.conversing = soon && l.small()
}

// ready is called for events on the lane's own descriptors.
func (l *Lane) ready(token uint64, events uint32) {
	if token == tokenControl {
		l.broker()
		return
	}
	if token != tokenLink {
		_, _, index := flow.SplitToken(token)
		if index < indexKicks {
			l.liveReady(token, events)
		} else if l.watching != nil {
			l.kicked(index - indexKicks)
		}
		return
	}
	if l.watching != nil {
		l.kicked(0)
		return
	}
	l.writable(events)
	l.readable = events&^flow.Writable != 0
	l.hungUp = events&(flow.HungUp|flow.PeerClosed) != 0
}

// kicked takes an event of a link that has several descriptors.
func (l *Lane) kicked(sub uint32) {
	receive, room := l.watching.Ready(sub)
	l.readable = l.readable || receive
	if room {
		l.table.resume()
	}
}

// wait waits for events and returns their number.
func (l *Lane) wait() int {
	timeout, mark := l.timeout(), l.bypass.MarkTimeout()
	if l.conversing && timeout != 0 && mark <= 0 && l.spins.pay() {
		n := l.spin()
		if l.spins.done(n > 0 || l.more); n > 0 || l.more {
			return n
		}
	}
	switch {
	case timeout != 0 && l.rest():
		timeout = 0
	case timeout != 0 && mark > 0:
		return l.poll.WaitShortly(mark)
	}
	return l.poll.Wait(timeout, l.busy)
}

// rest has the link's events reported, of which there are none while the lane is at
// work. It tells whether there is something to receive already.
func (l *Lane) rest() bool {
	if l.watching == nil || !l.watching.Sleep() {
		return false
	}
	l.more = true
	return true
}

// timeout is how long to wait, in milliseconds; -1: no reason to wake up.
func (l *Lane) timeout() int {
	if l.more || l.table.pending() {
		return 0
	}
	longest := 1 << 30
	if l.ends != nil && l.ends.n > 0 {
		longest = endsRetry
	}
	next := l.wheel.Next()
	switch {
	case next == store.NoTimer && longest == endsRetry:
		return endsRetry
	case next == store.NoTimer:
		return -1
	case next <= l.now:
		return 0
	}
	return int(min((next-l.now+store.Tick-1)/store.Tick, int64(longest)))
}

// continueWork continues what the last turn left for the sake of fairness.
func (l *Lane) continueWork() {
	if l.bypass.MarkTimeout() > 0 {
		l.bypass.ExpireMarks()
	}
	l.table.poll()
	l.table.sweep()
	if l.freed || l.guest.Shares.Returned() {
		l.freed = false
		l.table.freed() // whoever waits for that has work in the next turn
	}
	l.watchShortage()
	l.awaitPace()
}

// finish sends what the turn has collected: requests to the broker, frames
// that the link has gathered.
func (l *Lane) finish() {
	if l.channel.n > 0 && !l.channel.flush() || l.ends != nil && !l.ends.flush(l.channel.fd) {
		l.err = io.EOF
	}
	if l.capture != nil {
		l.capture.Flush()
		if news := l.capture.Warning(); news != "" {
			logf(levelWarning, "%s", news)
		}
	}
	if l.live != nil {
		l.live.flush()
	}
	if l.link == nil {
		return
	}
	if l.faulted {
		l.faulted = false
		l.linkGone(errFault)
		return
	}
	if err := l.link.Flush(); err != nil {
		l.linkGone(err)
		return
	}
	if b := l.link.WantWrite(); b != l.blocked {
		l.blocked = b
		l.check(l.poll.Change(l.link.FD(), tokenLink, l.linkEvents()))
	}
}

// linkEvents is what is to be reported of the link.
func (l *Lane) linkEvents() uint32 {
	if l.blocked {
		return flow.Readable | flow.PeerClosed | flow.Writable
	}
	return flow.Readable | flow.PeerClosed
}

// check drops a link that cannot be watched.
func (l *Lane) check(e syscall.Errno) {
	if e != 0 {
		l.linkGone(e)
	}
}

// writable drains the link's backlog and lets the translators go on.
func (l *Lane) writable(events uint32) {
	if events&flow.Writable == 0 || l.link == nil || !l.link.Writable() {
		return
	}
	l.table.resume()
}

// receive takes frames from the guest, batch by batch, for a bounded number
// of batches: sockets and timers have a turn then. Whole frames may wait in
// the batch's memory, which no event announces: more remembers.
//
// Payload leaves with its batch. What is owed to the guest goes with it, or once
// for all batches of the turn where each frame costs the other end a wake-up.
func (l *Lane) receive() {
	l.more = false
	left, frames := l.guest.ReceiveBatches, 0
	for more := true; more && l.link != nil; left-- {
		if left == 0 {
			l.more = true
			break
		}
		var err error
		l.batch.Whole = l.watched()
		more, err = l.link.Receive(l.batch)
		frames += len(l.batch.Frames)
		for k := range l.batch.Frames {
			l.frame(&l.batch.Frames[k])
		}
		if l.guest.CostlyFrames {
			l.tcp.Write()
			l.udp.Flush()
		} else {
			l.table.flush()
		}
		if err != nil {
			l.linkGone(err)
		} else if l.watching != nil && l.watching.Up() {
			l.solicited = 0
			l.solicit()
			l.table.resume()
		}
	}
	if l.hungUp && frames == 0 && !l.more {
		l.linkGone(link.ErrHungUp) // of datagrams no end is read
	}
	l.tcp.Flush()
}

// linkGone drops the link. Flows stay: a new client may come for them.
func (l *Lane) linkGone(err error) {
	if l.link == nil {
		return
	}
	code := uint32(ipc.EventLinkFailed)
	if l.guest.Clients {
		code = ipc.EventLinkClosed
	}
	logf(levelInfo, "link closed cause=%q", err.Error())
	l.poll.Remove(l.link.FD())
	l.link.Close()
	l.linksGone.Add(l.link.Counters())
	l.last, l.link, l.direct, l.watching = l.link, nil, nil, nil
	l.wheel.Cancel(l.timer + timerProbe)
	l.wheel.Cancel(l.timer + timerShort)
	l.wheel.Cancel(l.timer + timerCarrier)
	l.leases = leases{} // another guest may come
	l.blocked, l.more = false, false
	var rec [ipc.EventSize]byte
	(&ipc.Event{Code: code}).Encode(rec[:])
	l.channel.send(rec[:])
}

// probeEvery is how long nothing is sent to a guest before something is, so that its end
// shows, in nanoseconds.
const probeEvery = 2_000_000_000

// probe asks the guest for its hardware address, unless something else was sent to it.
func (l *Lane) probe() {
	if l.link == nil {
		return
	}
	if l.link.Counters().Sent == l.probed && l.link.CanSend() {
		n := arp.Request(&l.guest, l.out)
		if n == 0 {
			n = ndp.Solicit(&l.guest, l.out)
		}
		l.sendOwn(n)
	}
	l.probed = l.link.Counters().Sent
	l.wheel.Set(l.timer+timerProbe, l.now+probeEvery)
}

// expire does what one of the lane's own timers is for.
func (l *Lane) expire(id uint32) {
	switch id - l.timer {
	case timerRA:
		l.advertise()
	case timerSolicit:
		l.solicit()
	case timerStats:
		l.tellStats()
	case timerProbe:
		l.probe()
	case timerPace:
		l.paced()
	case timerShort:
		l.short()
	case timerGroups:
		l.askGroups()
	case timerCarrier:
		l.carrierDue()
	case timerAnswer: // the turn's end tries again
	}
}

// solicit makes the guest known before it speaks: it is asked for its hardware
// address, so that connections from outside need not wait for it, and told of
// the router. Three times within seconds, for a guest that is still starting.
func (l *Lane) solicit() {
	if l.link == nil {
		return
	}
	g := &l.guest
	if g.MAC.IsZero() || l.solicited == 0 {
		if g.Has(ipc.FlagIPv4) {
			l.sendOwn(arp.Request(g, l.out))
		}
		if g.Has(ipc.FlagIPv6 | ipc.FlagNDP) {
			l.sendOwn(ndp.Solicit(g, l.out))
		}
	}
	if l.solicited == 0 {
		if g.Clients {
			l.sendOwn(arp.Announce(g, l.out))
		}
		l.advertise()
	}
	if l.solicited++; l.solicited < 4 && g.MAC.IsZero() {
		l.wheel.Set(l.timer+timerSolicit, l.now+int64(l.solicited)*1e9)
	}
}

// advertise sends an unsolicited router advertisement and plans the next, RFC
// 4861 section 6.2.4.
func (l *Lane) advertise() {
	g := &l.guest
	if !g.Has(ipc.FlagIPv6 | ipc.FlagRA) {
		return
	}
	l.sendOwn(ndp.Advertise(g, l.out))
	wait := ndp.Next(g, rand.Uint64())
	if wait == 0 {
		return
	}
	if l.advertised < advertiseAgain {
		l.advertised++
		wait = advertiseSoon
	} else {
		g.Withdrawn = flow.Withdrawn{} // it was told often enough
	}
	l.wheel.Set(l.timer+timerRA, l.now+wait)
}

// sendOwn sends the first n bytes of out, a whole frame; none if n is zero.
func (l *Lane) sendOwn(n int) {
	if n > 0 {
		l.Send(&l.none, l.out[:n], nil)
	}
}
