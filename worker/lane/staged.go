// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"fmt"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/link"
)

// switchFlow gives a flow that was looked at the socket to its destination, or ends it.
// To the logs of flows it is the same flow.
func (l *Lane) switchFlow(rec []byte, fd int32) error {
	s := &l.switched // on the stack it would not stay
	if err := s.Decode(rec); err != nil {
		return err
	}
	if s.Errno != 0 && fd >= 0 {
		return fmt.Errorf("%w: an end with a descriptor", ipc.ErrMalformed)
	}
	if l.live != nil {
		l.live.verdict = verdictOf(&ipc.Opened{Errno: s.Errno})
	}
	old := int32(-1)
	switch owner, _, _ := flow.SplitToken(s.Token); owner {
	case flow.OwnerTCP:
		old = l.tcp.Switch(fd, s)
	case flow.OwnerUDP:
		old = l.udp.Switch(fd, s)
	default:
		return fmt.Errorf("%w: a switch for nobody, token %x", ipc.ErrMalformed, s.Token)
	}
	if l.live != nil {
		l.live.verdict = link.Note{}
	}
	if old >= 0 {
		if l.ends != nil {
			l.ends.moved(old, fd)
		}
		if l.flows != nil {
			l.flows.moved(old, fd)
		}
		l.Close(old)
	}
	return nil
}

// moved notes that a flow has another socket.
func (e *ends) moved(from, to int32) {
	if int(from) < len(e.token) && int(to) < len(e.token) {
		e.token[to], e.token[from] = e.token[from], 0
	}
}

// moved notes that a flow has another socket.
func (f *flowLog) moved(from, to int32) {
	if t, ok := f.open[from]; ok {
		delete(f.open, from)
		f.open[to] = t
	}
}
