// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"fmt"
	"io"
	"syscall"

	"aldente/ipc"
	"aldente/worker/flow"
	"aldente/worker/link"
)

// broker takes records from the broker.
func (l *Lane) broker() {
	if !l.channel.receive(l.take) && l.err == nil {
		l.err = io.EOF
	}
}

// record takes one record from the broker while the lane runs.
func (l *Lane) record(rec []byte, fd int32) {
	kind, err := ipc.ToWorker.Check(rec, fd >= 0, ipc.Running)
	if err == nil {
		err = l.handle(kind, rec, fd)
	}
	if err != nil {
		l.err = err
	}
}

// handle does what a record says that may come now.
func (l *Lane) handle(kind ipc.Kind, rec []byte, fd int32) error {
	switch kind {
	case ipc.KindOpened:
		return l.opened(rec, fd)
	case ipc.KindLink:
		return l.newLink(rec, fd)
	case ipc.KindListener:
		return l.listen(rec, fd)
	case ipc.KindUnlisten:
		return l.unlisten(rec)
	case ipc.KindRetarget:
		return l.retarget(rec)
	case ipc.KindRevoke:
		return l.revoke(rec)
	case ipc.KindRevokeFlows:
		return l.revokeFlows(rec)
	case ipc.KindConfig:
		return l.reconfigure(rec)
	case ipc.KindGone:
		return l.addressesGone(rec)
	case ipc.KindCapture:
		return l.newCapture(rec, fd)
	case ipc.KindAsk:
		return l.ask(rec)
	case ipc.KindSwitch:
		return l.switchFlow(rec, fd)
	case ipc.KindLive:
		return l.lookAt(rec, fd)
	case ipc.KindIncoming:
		return l.incoming(rec, fd)
	}
	return fmt.Errorf("%w: nobody takes kind %#x", ipc.ErrMalformed, uint16(kind))
}

func (l *Lane) opened(rec []byte, fd int32) error {
	o := &l.answer // on the stack it would not stay, by way of an interface
	if err := o.Decode(rec); err != nil {
		return err
	}
	if o.Errno != 0 && fd >= 0 {
		return fmt.Errorf("%w: a refusal with a descriptor", ipc.ErrMalformed)
	}
	if o.Flags&ipc.OpenedLate == 0 {
		l.channel.outstanding--
	}
	if o.Flags&ipc.OpenedWait != 0 {
		if o.Errno != 0 || fd >= 0 {
			return fmt.Errorf("%w: an answer that says both", ipc.ErrMalformed)
		}
		return nil // another comes
	}
	answers := o.Flags&ipc.OpenedAnswers != 0 // a second socket of a flow's: another is what was asked for
	if answers && (o.Errno != 0 || o.Flags&ipc.OpenedLate == 0) {
		return fmt.Errorf("%w: a socket for answers that is an answer", ipc.ErrMalformed)
	}
	if o.Errno == 0 && fd < 0 {
		// The descriptor did not fit into our table.
		o.Errno = uint16(syscall.EMFILE)
	}
	if syscall.Errno(o.Errno) == syscall.EMFILE {
		l.table.evict()
	}
	owner, _, _ := flow.SplitToken(o.Token)
	if owner >= flow.Owners || l.table.owner[owner] == nil {
		return fmt.Errorf("%w: an answer for nobody, token %x", ipc.ErrMalformed, o.Token)
	}
	if answers {
		l.table.owner[owner].Opened(o.Token, fd, o)
		return nil
	}
	if l.flows != nil {
		l.flows.answer(l.now, fd, o)
	}
	l.figures.answered(o.Token, l.now)
	if l.ends != nil {
		l.ends.opened(fd, o.Token)
	}
	if l.live != nil {
		l.live.verdict = verdictOf(o)
	}
	l.table.owner[owner].Opened(o.Token, fd, o)
	if l.live != nil {
		l.live.verdict = link.Note{}
	}
	return nil
}

// newLink takes over the guest's side: the tap at start, or a client of the
// stream socket.
func (l *Lane) newLink(rec []byte, fd int32) error {
	var k ipc.Link
	if err := k.Decode(rec); err != nil {
		return fmt.Errorf("link record: %w", err)
	}
	if l.link != nil {
		l.Close(fd)
		return nil
	}
	l.guest.MTU = l.mtu
	l.link = link.New(&k, fd, l.guest.LinkMTU(), l.last)
	l.direct, _ = l.link.(flow.Direct)
	if l.watching, _ = l.link.(link.Watched); l.watching != nil {
		l.watching.Attach(l)
	}
	l.check(l.poll.Add(l.link.FD(), tokenLink, l.linkEvents()))
	l.solicited = 0
	l.solicit()
	l.askGroups()
	if l.guest.SilentEnd {
		l.probed = l.link.Counters().Sent
		l.wheel.Set(l.timer+timerProbe, l.now+probeEvery)
	}
	return nil
}

func (l *Lane) newCapture(rec []byte, fd int32) error {
	var k ipc.Capture
	if err := k.Decode(rec); err != nil {
		return fmt.Errorf("capture record: %w", err)
	}
	if k.Flags&ipc.CaptureMark != 0 {
		l.mark = fd
		return nil
	}
	l.capture = link.NewCapture(link.CaptureTo{
		FD: fd, Mark: l.mark, GoOn: k.Flags&ipc.CaptureAppend != 0, Room: k.Room,
	})
	return nil
}

func (l *Lane) listen(rec []byte, fd int32) error {
	var k ipc.Listener
	if err := k.Decode(rec, ipc.KindListener); err != nil {
		return fmt.Errorf("listener record: %w", err)
	}
	if k.Proto == ipc.ProtoTCP {
		l.tcp.AddListener(&k, fd)
	} else {
		l.udp.AddListener(&k, fd)
	}
	return nil
}

// incoming takes a connection that the broker has accepted.
func (l *Lane) incoming(rec []byte, fd int32) error {
	k := &l.connection // on the stack it would not stay
	if err := k.Decode(rec); err != nil {
		return err
	}
	if l.flows != nil && fd >= 0 {
		l.flows.accepted(l.now, fd, k.Peer, k.Port)
	}
	l.tcp.Incoming(k, fd)
	return nil
}

func (l *Lane) unlisten(rec []byte) error {
	var k ipc.Listener
	if err := k.Decode(rec, ipc.KindUnlisten); err != nil {
		return err
	}
	if k.Proto == ipc.ProtoTCP {
		l.tcp.RemoveListener(k.ID)
	} else {
		l.udp.RemoveListener(k.ID)
	}
	return nil
}

// retarget has what comes by a listener go elsewhere: its rule is another now.
func (l *Lane) retarget(rec []byte) error {
	var k ipc.Listener
	if err := k.Decode(rec, ipc.KindRetarget); err != nil {
		return err
	}
	if k.Proto == ipc.ProtoTCP {
		l.tcp.RetargetListener(&k)
	} else {
		l.udp.RetargetListener(&k)
	}
	return nil
}

// revokeFlows ends flows that the egress rules do not allow any more, since they were
// changed. Those that have ended meanwhile nobody knows.
func (l *Lane) revokeFlows(rec []byte) error {
	r := &l.revoked // on the stack it would not stay, by way of an interface
	if err := r.Decode(rec); err != nil {
		return err
	}
	for _, token := range r.Tokens[:r.N] {
		owner, _, _ := flow.SplitToken(token)
		if owner >= flow.Owners || l.table.owner[owner] == nil {
			return fmt.Errorf("%w: the end of a flow that nobody has, token %x", ipc.ErrMalformed, token)
		}
		l.table.owner[owner].RevokeFlow(token)
	}
	return nil
}

// revoke ends flows that the egress rules do not allow any more.
func (l *Lane) revoke(rec []byte) error {
	var r ipc.Revoke
	if err := r.Decode(rec); err != nil {
		return err
	}
	if r.Proto == ipc.ProtoUDP {
		l.udp.Revoke(r.Addr, r.Port)
	} else {
		l.icmp.Revoke(r.Addr)
	}
	return nil
}
