// SPDX-License-Identifier: Apache-2.0

package lane

// Where somebody asks and is answered at once, most of the time goes into waking
// a processor that has just fallen asleep. So after an event that came within
// spinTime, the next is looked for as long without sleeping. Not so where bulk is
// moved or several flows have events at a time: others need the processor then,
// and there is more to do per wake-up anyway.
//
// Behind a virtual machine's memory somebody has to be woken for each frame, by whom
// the guest's program is woken then: two processors that sleep, where one was.
const (
	spinTime          = 50_000  // nanoseconds
	spinTimeWatched   = 100_000 // where the link is a watched one
	conversationBytes = 4 << 10
	regular           = 8 // events of a conversation in a row: more than a short connection has
)

// mostSkipped is how many times at most nobody spins after spins that have found nothing.
const mostSkipped = 63

// spins are those of late. Where the way to the partner and back takes longer, as between
// virtual machines, spinning keeps a processor from whoever could answer, and then the lane
// sleeps all the same. So after each spin for nothing twice as many chances are let go by.
type spins struct{ skip, after uint8 }

// pay tells whether to spin.
func (s *spins) pay() bool {
	if s.skip == 0 {
		return true
	}
	s.skip--
	return false
}

// done notes whether a spin has found something.
func (s *spins) done(found bool) {
	if found {
		s.after = 0
		return
	}
	s.after = min(2*s.after+1, mostSkipped)
	s.skip = s.after
}

// spinFor is how long to look for events without sleeping, in nanoseconds.
func (l *Lane) spinFor() int64 {
	if l.watching != nil {
		return spinTimeWatched
	}
	return spinTime
}

// oneConversation tells whether the n events of this turn, the first of which has
// this token, belong to the conversation of the last ones: between the guest and a
// socket, or between two sockets.
func (l *Lane) oneConversation(n int, token uint64) bool {
	switch n {
	case 0:
		return l.more && l.same == regular // the guest's, which no event has told of
	case 1:
	default:
		return false
	}
	switch token {
	case tokenLink:
	case l.partners[0], l.partners[1]:
		l.same = min(l.same+1, regular)
	default:
		l.partners = [2]uint64{token, l.partners[0]}
		l.same = 0
	}
	return l.same == regular
}

// small tells whether this turn moved as little as a conversation does. What is
// more belongs to bulk, small pieces of which are no conversation.
func (l *Lane) small() bool {
	if l.moved > conversationBytes {
		l.same = 0
		return false
	}
	return true
}

// spin looks for events for that long and returns their number; and for frames in the memory
// of a guest, which is not asked to tell of them: then more is set.
func (l *Lane) spin() int {
	for end := l.now + l.spinFor(); l.now < end; l.tick() {
		if l.watching != nil && l.watching.Waiting() {
			l.more = true
			return 0
		}
		if n := l.poll.Wait(0, false); n > 0 {
			return n
		}
	}
	return 0
}
