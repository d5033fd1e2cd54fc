// SPDX-License-Identifier: Apache-2.0

package tcp

import (
	"syscall"

	"aldente/ipc"
	"aldente/worker/flow"
)

// A connection may be looked at before it goes on (ipc.OpenedStaged). Its socket leads
// to whoever looks then. What the guest sends is kept, as if the host took nothing, and
// a copy is written there: ipc.MaxStaged bytes at most, in order. Nothing is read. When
// the socket to the destination comes, it is known how many bytes were sent by that
// already. They leave the queue, the rest goes on as ever. So no byte is lost and none
// is sent twice, whatever the guest has sent meanwhile.

// copyOut writes what was not written to the one who looks. An error there is no end:
// whoever has looked at enough closes its end, and the broker says what becomes of the
// flow.
func (t *Translator) copyOut(i uint32, c *conn) {
	if c.over() {
		return
	}
	most := min(c.queued(), ipc.MaxStaged)
	for c.copied < most {
		bufs, _ := t.gather(c, c.hostSeq+c.copied, int(most-c.copied))
		n, e := t.env.Copyv(c.fd, bufs)
		if e == syscall.EAGAIN && !t.awaitStaged(i, c) {
			t.sendRST(i, c)
			t.abort(i, c)
			return
		}
		if e != 0 {
			return
		}
		c.copied += uint32(n)
	}
	if c.has(flagGuestFIN) && c.copied == c.queued() && !c.copiedEnd {
		c.copiedEnd = true // to whoever looks there is nothing more to come
		t.env.ShutdownWrite(c.fd)
	}
}

// awaitStaged has the lane report when there is room again. It does so under a token of
// its own: what is reported late, when the connection has its socket, is not about that.
func (t *Translator) awaitStaged(i uint32, c *conn) bool {
	if c.has(flagAwaitRoom) {
		return true // edges are reported until the socket is closed
	}
	c.set(flagAwaitRoom)
	return t.env.Watch(c.fd, flow.Token(flow.OwnerTCPStaged, t.flows.Gen(i), i), flow.Writable) == 0
}

// StagedReady takes the readiness of the socket to whoever looks: that there is room
// again is all that counts.
func (t *Translator) StagedReady(token uint64, events uint32) {
	_, gen, i := flow.SplitToken(token)
	if events&flow.Writable == 0 || !t.flows.Live(i, gen) {
		return
	}
	if c := t.flows.At(i); c.has(flagStaged) {
		t.copyOut(i, c)
	}
}

// Switch gives a connection that is looked at the socket to its destination, or ends
// it. It returns the socket that the connection had until then, which the caller
// closes, or -1.
func (t *Translator) Switch(fd int32, s *ipc.Switch) (old int32) {
	_, gen, i := flow.SplitToken(s.Token)
	if !t.flows.Live(i, gen) || !t.flows.At(i).has(flagStaged) {
		if fd >= 0 {
			t.env.Abort(fd) // nobody waits for it any more
		}
		return -1
	}
	c := t.flows.At(i)
	if t.batch.of(i) {
		t.writeBatch()
	}
	if e := syscall.Errno(s.Errno); e != 0 || fd < 0 || s.Count > c.copied {
		if fd >= 0 {
			t.env.Abort(fd)
		}
		how := ipc.EndReset
		if e == syscall.EACCES {
			how = ipc.EndRefused
		}
		c.ends(how)
		t.sendRST(i, c)
		t.abort(i, c)
		return -1
	}
	old, c.fd = c.fd, fd
	c.clear(flagStaged | flagAwaitRoom)
	c.set(flagWritable)
	if t.env.Watch(fd, t.token(i), flow.Readable) != 0 {
		t.sendRST(i, c)
		t.abort(i, c)
		return old
	}
	if c.has(flagKeepAlive) {
		t.env.Option(fd, flow.OptionKeepAlive, 1)
	}
	t.env.Wrote(int(s.Count))
	t.took(c, int(s.Count))
	t.freeTaken(c)
	t.drain(i, c)
	if c.state == stateOpen {
		t.windowUpdate(i, c)
		t.touch(i, c)
		t.arm(i, c)
	}
	return old
}
