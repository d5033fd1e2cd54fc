// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"aldente/worker/datagram"
	"aldente/worker/packet"
	"aldente/worker/store"
)

// numBatches is how many flows may collect datagrams at a time.
const numBatches = 16

// batch collects datagrams of one flow with the same header.
type batch struct {
	datagram.Batch
	flow uint32 // or None
	mark datagram.Mark
	size int // of each, in bytes
}

func (b *batch) reset() {
	b.flow = store.None
	b.Reset()
}

// collect takes what one frame from the guest carries for a flow with a
// socket: data, to be cut into datagrams of size bytes. data must not change
// before Flush.
func (t *Translator) collect(i uint32, c *conn, p *packet.Packet, data []byte, size int) {
	for more := true; more && c.state == stateOpen; more = len(data) > 0 {
		part, alone := c.sock.Cut(data, size)
		if c.group {
			part, alone = data[:min(size, len(data))], true
		}
		data = data[len(part):]
		if alone {
			t.alone(i, c, p, part)
		} else {
			t.join(i, c, p, part, size)
		}
	}
}

// alone writes one datagram at once, after what was collected before it.
func (t *Translator) alone(i uint32, c *conn, p *packet.Packet, data []byte) {
	if c.batch != 0 {
		t.flushBatch(&t.batches[c.batch-1])
	}
	if c.state == stateOpen {
		m := datagram.MarkOf(p)
		t.setHeader(c, &m, len(data))
		t.writeOne(i, c, data)
	}
}

// join adds to the flow's batch what fits there, and begins a new one
// otherwise.
func (t *Translator) join(i uint32, c *conn, p *packet.Packet, data []byte, size int) {
	m := datagram.MarkOf(p)
	if c.batch != 0 {
		b := &t.batches[c.batch-1]
		if b.mark.Goes(&m, min(size, len(data))) && b.Add(data, size) {
			return
		}
		t.flushBatch(b)
		if c.state != stateOpen {
			return
		}
	}
	b := &t.batches[t.nextBatch]
	t.flushBatch(b)
	c.batch = uint8(t.nextBatch + 1)
	t.nextBatch = (t.nextBatch + 1) % numBatches
	b.flow, b.mark, b.size = i, m, min(size, len(data))
	b.Add(data, size)
}

// flushBatch writes what a batch holds, and empties it.
func (t *Translator) flushBatch(b *batch) {
	if b.flow == store.None {
		return
	}
	i := b.flow
	c := t.flows.At(i)
	c.batch, b.flow = 0, store.None
	t.setHeader(c, &b.mark, b.size)
	n := b.Count()
	if n > 1 && !c.bulk {
		t.isBulk(c)
	}
	sent := t.writer.Write(i, &c.sock, &b.Batch)
	t.Stats.ToHost += uint64(sent)
	t.Stats.WriteFailed += uint64(n - sent)
}

// setHeader has datagrams of up to size bytes that follow leave with a mark.
func (t *Translator) setHeader(c *conn, m *datagram.Mark, size int) {
	v4 := c.peer.Is4()
	t.writer.SetHeader(&c.sock, v4, m.TTL, m.Class)
	if !c.group { // nobody could be told what the path takes, RFC 1122 section 3.2.2
		t.writer.SetDF(&c.sock, v4, m.DF, size)
	}
}

// writeOne writes one datagram.
func (t *Translator) writeOne(i uint32, c *conn, data []byte) {
	if c.group && t.hears(&c.peer, c.peerPort) {
		t.echoes.sent(t.seed, c.peer, c.peerPort, data, t.env.Now())
	}
	if t.writer.WriteOne(i, &c.sock, data) {
		t.Stats.ToHost++
	} else {
		t.Stats.WriteFailed++
	}
}
