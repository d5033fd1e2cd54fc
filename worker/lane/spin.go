// SPDX-License-Identifier: Apache-2.0

package lane

// Where somebody asks and is answered at once, most of the time goes into waking
// a processor that has just fallen asleep. So after an event that came within
// spinTime, the next is looked for as long without sleeping. Not so where bulk is
// moved or several flows have events at a time: others need the processor then,
// and there is more to do per wake-up anyway.
const (
	spinTime          = 50_000 // nanoseconds
	conversationBytes = 4 << 10
	regular           = 8 // events of a conversation in a row: more than a short connection has
)

// oneConversation tells whether the n events of this turn, the first of which has
// this token, belong to the conversation of the last ones: between the guest and a
// socket, or between two sockets.
func (l *Lane) oneConversation(n int, token uint64) bool {
	if n != 1 {
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

// spin looks for events for spinTime and returns their number.
func (l *Lane) spin() int {
	for end := l.now + spinTime; l.now < end; l.tick() {
		if n := l.poll.Wait(0, false); n > 0 {
			return n
		}
	}
	return 0
}
