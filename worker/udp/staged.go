// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"syscall"

	"aldente/ipc"
	"aldente/worker/datagram"
	"aldente/worker/flow"
	"aldente/worker/packet"
)

// A flow may be looked at before it goes on (ipc.OpenedStaged). Its socket leads to
// whoever looks then. What the guest sends waits in the queue, as if there were no
// socket yet, and a copy of each is written there, ipc.MaxStagedDatagrams at most.
// Nothing is read, and nothing that happens there is reported. When the socket to the destination comes, it is known how many
// datagrams were sent by that already. They leave the queue, the rest goes on. An empty
// datagram among them is lost: whoever reads an empty message takes it for the end.

// stage begins it: the socket to whoever looks has come.
func (t *Translator) stage(c *conn, o *ipc.Opened) {
	c.state = stateStaged
	c.peer, c.localPort = o.Addr, o.LocalPort
	t.queues.Each(&c.queue, t.joined, func(data []byte) { t.copyOut(c, data) })
}

// copyOut writes a copy of a datagram that is in the queue to the one who looks. Where
// that is not taken, none that follows is.
func (t *Translator) copyOut(c *conn, data []byte) {
	if c.copied == ipc.MaxStagedDatagrams || c.notCopied || len(data) == 0 {
		return
	}
	if _, e := t.env.Copy(c.sock.FD, data); e != 0 {
		c.notCopied = true
		return
	}
	c.copied++
}

// awaitStaged queues datagrams and writes copies.
func (t *Translator) awaitStaged(c *conn, p *packet.Packet, data []byte, size int) {
	for more := true; more; more = len(data) > 0 {
		one := data[:min(size, len(data))]
		data = data[len(one):]
		if t.queues.Add(&c.queue, one, datagram.MarkOf(p)) {
			t.copyOut(c, one)
		} else {
			t.Stats.QueueFull++
		}
	}
}

// Switch gives a flow that is looked at the socket to its destination, or ends it. It
// returns the socket that the flow had until then, which the caller closes, or -1.
func (t *Translator) Switch(fd int32, s *ipc.Switch) (old int32) {
	_, gen, i := flow.SplitToken(s.Token)
	if !t.flows.Live(i, gen) || t.flows.At(i).state != stateStaged {
		if fd >= 0 {
			t.env.Close(fd) // nobody waits for it any more
		}
		return -1
	}
	c := t.flows.At(i)
	e := syscall.Errno(s.Errno)
	switch {
	case fd >= 0 && s.Count > uint32(c.copied):
		t.env.Close(fd)
		fallthrough
	case fd < 0:
		if e == 0 {
			e = syscall.EMFILE
		}
		if t.Ended != nil {
			t.Ended(c.sock.FD, ipc.EndRefused, &c.Traffic)
		}
		t.env.Close(c.sock.FD)
		c.sock.FD = -1
		t.refuse(i, c, e, false)
		return -1
	}
	old = c.sock.FD
	c.sock = datagram.NewSocket(fd, 0)
	if t.env.Watch(fd, s.Token, flow.Readable) != 0 {
		t.Stats.NoRoom++
		t.remove(i, c)
		return old
	}
	c.state = stateOpen
	t.Stats.Opened++
	for left := s.Count; left > 0; {
		if n, _ := t.queues.Next(&c.queue, t.joined); n > 0 {
			left--
			t.env.Wrote(n)
			t.Stats.ToHost++
		}
	}
	t.drain(i, c)
	return old
}
