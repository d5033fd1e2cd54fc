// SPDX-License-Identifier: Apache-2.0

package udp

import (
	"syscall"

	"aldente/worker/flow"
	"aldente/worker/packet"
	"aldente/worker/store"
)

const (
	// maxSegments is what every kernel takes in one write, UDP_MAX_SEGMENTS
	// of include/linux/udp.h before Linux 6.10.
	maxSegments = 64
	// maxWrite is the most that one write with UDP_SEGMENT may hold: an IPv4
	// packet less its headers. IPv6 could do with 20 bytes more.
	maxWrite = 65535 - 20 - 8
	// maxDatagram is the longest payload there is, in IPv6.
	maxDatagram = 65535 - 8

	// numBatches is how many flows may collect datagrams at a time.
	numBatches = 16
)

// batch collects datagrams of one flow that will leave in one write: all of
// the same size, but for the last, which may be shorter.
type batch struct {
	flow     uint32 // or None
	bufs     [maxSegments][]byte
	n        int // of bufs
	size     int // of each datagram
	count    int // datagrams
	bytes    int
	closed   bool // the last one is shorter
	ttl, tos uint8
}

func (b *batch) reset() {
	b.flow = store.None
	b.n, b.count, b.bytes, b.closed = 0, 0, 0, false
}

// takes tells whether count datagrams of up to size bytes each can follow.
func (b *batch) takes(n, size, count int, p *packet.Packet) bool {
	fits := size == b.size || count == 1 && n < b.size
	return fits && !b.closed && b.count+count <= maxSegments && b.bytes+n <= maxWrite &&
		b.ttl == p.TTL && b.tos == p.TrafficClass
}

// add appends datagrams of size bytes each, the last may be shorter.
func (b *batch) add(data []byte, size, count int) {
	b.bufs[b.n] = data
	b.n++
	b.count += count
	b.bytes += len(data)
	b.closed = len(data) != count*b.size
}

// collect takes what one frame from the guest carries for a flow with a
// socket: data, to be cut into datagrams of size bytes. data must not change
// before Flush.
func (t *Translator) collect(i uint32, c *conn, p *packet.Packet, data []byte, size int) {
	if len(data) == 0 {
		t.alone(i, c, p, data)
		return
	}
	for len(data) > 0 && c.state == stateOpen {
		part := data[:min(len(data), size*max(1, min(maxSegments, maxWrite/size)))]
		data = data[len(part):]
		if size > maxWrite || c.single != 0 && size >= int(c.single) {
			for len(part) > 0 && c.state == stateOpen {
				one := part[:min(size, len(part))]
				part = part[len(one):]
				t.alone(i, c, p, one)
			}
			continue
		}
		t.join(i, c, p, part, size)
	}
}

// alone writes one datagram at once, after what was collected before it.
func (t *Translator) alone(i uint32, c *conn, p *packet.Packet, data []byte) {
	if c.batch != 0 {
		t.flushBatch(&t.batches[c.batch-1])
	}
	if c.state == stateOpen {
		t.setHeader(i, c, p.TTL, p.TrafficClass)
		t.writeOne(i, c, data)
	}
}

// join adds to the flow's batch what fits there, and begins a new one
// otherwise.
func (t *Translator) join(i uint32, c *conn, p *packet.Packet, data []byte, size int) {
	count := (len(data) + size - 1) / size
	if count == 1 {
		size = len(data)
	}
	if c.batch != 0 {
		b := &t.batches[c.batch-1]
		if b.takes(len(data), size, count, p) {
			b.add(data, size, count)
			return
		}
		t.flushBatch(b)
		if c.state != stateOpen {
			return
		}
	}
	b := &t.batches[t.nextBatch]
	t.flushBatch(b)
	if c.state != stateOpen {
		return
	}
	c.batch = uint8(t.nextBatch + 1)
	t.nextBatch = (t.nextBatch + 1) % numBatches
	b.flow, b.size, b.ttl, b.tos = i, size, p.TTL, p.TrafficClass
	b.add(data, size, count)
}

// flushBatch writes what a batch holds, and empties it.
func (t *Translator) flushBatch(b *batch) {
	if b.flow == store.None {
		return
	}
	i := b.flow
	c := t.flows.At(i)
	c.batch = 0
	bufs, count, size := b.bufs[:b.n], b.count, b.size
	b.reset()
	t.setHeader(i, c, b.ttl, b.tos)
	if count == 1 {
		t.writeOne(i, c, bufs[0])
		return
	}
	if !c.bulk {
		t.isBulk(c)
	}
	e := syscall.EINVAL
	if t.setSegment(c, size) {
		e = t.write(i, c, bufs)
	}
	switch e {
	case 0:
		t.Stats.ToHost += uint64(count)
	case syscall.EINVAL, syscall.EMSGSIZE, syscall.EIO:
		// Larger than the path's MTU, or a device that cannot: from now on
		// datagrams of this size go alone.
		if c.state == stateOpen {
			c.single = uint16(size)
			t.setSegment(c, 0)
			t.writeEach(i, c, bufs, size)
		}
	default:
		t.Stats.WriteFailed += uint64(count)
	}
}

// writeEach writes datagram by datagram.
func (t *Translator) writeEach(i uint32, c *conn, bufs [][]byte, size int) {
	for _, b := range bufs {
		for len(b) > 0 && c.state == stateOpen {
			one := b[:min(size, len(b))]
			b = b[len(one):]
			t.writeOne(i, c, one)
		}
	}
}

// writeOne writes one datagram.
func (t *Translator) writeOne(i uint32, c *conn, data []byte) {
	if c.segment != 0 && len(data) > int(c.segment) {
		t.setSegment(c, 0)
	}
	t.one[0] = data
	if e := t.write(i, c, t.one[:]); e == 0 {
		t.Stats.ToHost++
	} else {
		t.failed(i, c, e, data)
	}
}

// failed notes that a datagram could not be sent, and tells the guest where
// the error queue did not.
func (t *Translator) failed(i uint32, c *conn, e syscall.Errno, data []byte) {
	t.Stats.WriteFailed++
	if c.state == stateOpen {
		t.reportErrno(i, c, e, data)
	}
}

// write writes one datagram or one batch. An error that an earlier datagram
// has caused is reported to the guest and is no reason not to send this one.
func (t *Translator) write(i uint32, c *conn, bufs [][]byte) syscall.Errno {
	for again := true; ; again = false {
		var e syscall.Errno
		switch {
		case len(bufs) == 0: // writev would not send an empty datagram
			_, e = t.env.Write(c.fd, nil)
		case len(bufs) == 1:
			_, e = t.env.Write(c.fd, bufs[0])
		default:
			_, e = t.env.Writev(c.fd, bufs)
		}
		switch e {
		case 0, syscall.EAGAIN, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINVAL, syscall.EPERM:
			return e
		}
		if !again || !t.drainErrors(i, c) {
			return e
		}
	}
}

// setHeader gives the socket the TTL and traffic class of the guest's packet.
func (t *Translator) setHeader(i uint32, c *conn, ttl, tos uint8) {
	if c.ttl == ttl && c.tos == tos {
		return
	}
	optTTL, optTOS := flow.OptionHopLimit, flow.OptionTrafficClass
	if c.peer.Is4() {
		optTTL, optTOS = flow.OptionTTL, flow.OptionTOS
	}
	if c.ttl != ttl {
		t.env.Option(c.fd, optTTL, int(ttl))
		c.ttl = ttl
	}
	if c.tos != tos {
		t.env.Option(c.fd, optTOS, int(tos))
		c.tos = tos
	}
}

// setSegment sets UDP_SEGMENT, if it is not what it should be already.
func (t *Translator) setSegment(c *conn, size int) bool {
	if int(c.segment) == size {
		return true
	}
	if t.env.Option(c.fd, flow.OptionUDPSegment, size) != 0 {
		return false
	}
	c.segment = uint16(size)
	return true
}
