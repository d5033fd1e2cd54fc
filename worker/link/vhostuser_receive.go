// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"

	"aldente/worker/packet"
)

const (
	// headBytes is how much of a frame is copied whose payload stays in the guest's
	// memory: more than all headers of TCP.
	headBytes = 256
	// splitLeast is from which length on it does. Copying less costs no more than
	// one piece more in a system call.
	splitLeast = 2 << 10
)

// Receive takes frames of the guest's from its rings in turn. As long as it finds some, it
// has to be called once more. There are no kicks from then on, until Sleep.
func (v *vhostUser) Receive(b *Batch) (more bool, err error) {
	b.reset()
	if v.err != nil {
		return false, v.err
	}
	if v.messages {
		if v.hear() != nil {
			return false, v.err
		}
	}
	v.giveBack()
	found := v.collect(b)
	v.awake = v.awake || found
	return found || v.messages || v.polls(), v.err
}

// giveBack ends the last batch.
func (v *vhostUser) giveBack() {
	if v.n == 0 {
		return
	}
	for k := range v.chains[:v.n] {
		c := &v.chains[k]
		c.q.Use(&c.Chain, 0)
	}
	v.n = 0
	v.arena.Reset()
	for i := range v.tx {
		if q := &v.tx[i]; q.started {
			q.publish()
		}
	}
}

// collect fills a batch, queue by queue. It reports whether there was anything.
func (v *vhostUser) collect(b *Batch) bool {
	size, off := 0, 0
	for range v.tx {
		q := &v.tx[v.nextTx]
		v.nextTx = (v.nextTx + 1) % len(v.tx)
		if !q.started {
			continue
		}
		for {
			if size >= batchBytes || v.n == len(v.chains) || off+headBytes > len(b.buf) {
				return true
			}
			c := &v.chains[v.n]
			if !q.Pop(&c.Chain, v.arena) {
				break
			}
			next, ok := v.accept(b, q, c, off)
			if !ok {
				q.Unpop(&c.Chain)
				return true
			}
			v.n++
			off, c.q = next, q
			size += c.Len
			q.DisableKicks()
		}
		if v.broken(&q.queue) {
			break
		}
	}
	return v.n > 0
}

// accept adds the frame in a chain to the batch, if it makes sense. Its copy begins at
// off. It returns where the next does, and false where the batch has no room for it.
func (v *vhostUser) accept(b *Batch, q *txQueue, c *taken, off int) (next int, ok bool) {
	size := c.Len - v.header
	if size < MinFrame || size > maxReceived || !q.enabled {
		v.counters.Malformed++
		return off, true
	}
	var raw [vnetLen]byte
	pieces := gatherFrom(raw[:v.header], c.Pieces)
	var o packet.Offload
	decodeVirtio(raw[:], &o)
	o.Flags &^= packet.OffloadDataValid // not the guest's to say
	data := b.buf[off : off+min(size, headBytes) : len(b.buf)]
	pieces = gatherFrom(data, pieces)
	if size > len(data) && (b.Whole || size < splitLeast || packet.TCPHeaders(data) == 0) {
		if off+size > len(b.buf) {
			return off, false
		}
		data = data[:size]
		gatherFrom(data[headBytes:], pieces)
		pieces = nil
	}
	if size == len(data) {
		pieces = nil
	}
	data = data[:len(data):len(data)]
	if !normalise(&o, data) {
		v.counters.Malformed++
		return off, true
	}
	f := b.add(data)
	f.Offload, f.More = o, pieces
	v.counters.Received++
	v.counters.ReceivedBytes += uint64(size)
	if len(v.active) > 1 {
		v.steer.learn(data, q.pair)
	}
	return off + (len(data)+63)&^63, true
}

// gatherFrom fills b with the beginning of pieces, which have as much, and returns the
// rest of them. The first of these is cut where it lies.
func gatherFrom(b []byte, pieces [][]byte) [][]byte {
	for len(b) > 0 {
		n := copy(b, pieces[0])
		b = b[n:]
		if n == len(pieces[0]) {
			pieces = pieces[1:]
		} else {
			pieces[0] = pieces[0][n:]
		}
	}
	return pieces
}

// Waiting implements Watched.
func (v *vhostUser) Waiting() bool {
	if !v.awake {
		return false // there is a kick
	}
	for i := range v.tx {
		if q := &v.tx[i]; q.started && q.Available() {
			return true
		}
	}
	return false
}

// Sleep implements Watched.
func (v *vhostUser) Sleep() (receive bool) {
	if !v.awake {
		return false
	}
	for i := range v.tx {
		if q := &v.tx[i]; q.started && (q.EnableKicks() || q.Err() != nil) {
			receive = true
		}
	}
	v.awake = receive
	return receive
}

// polls tells whether there is a guest that does not kick.
func (v *vhostUser) polls() bool {
	for i := range v.tx {
		if v.tx[i].started && v.tx[i].polled {
			return true
		}
	}
	return false
}

// struct virtio_net_hdr as virtio 1 has it: little-endian.

func decodeVirtio(b []byte, o *packet.Offload) {
	_ = b[packet.OffloadSize-1]
	o.Flags = b[0]
	o.GSOType = b[1]
	o.HdrLen = binary.LittleEndian.Uint16(b[2:])
	o.GSOSize = binary.LittleEndian.Uint16(b[4:])
	o.CsumStart = binary.LittleEndian.Uint16(b[6:])
	o.CsumOffset = binary.LittleEndian.Uint16(b[8:])
}

func encodeVirtio(b []byte, o *packet.Offload, buffers int) {
	_ = b[vnetLen-1]
	b[0] = o.Flags
	b[1] = o.GSOType
	binary.LittleEndian.PutUint16(b[2:], o.HdrLen)
	binary.LittleEndian.PutUint16(b[4:], o.GSOSize)
	binary.LittleEndian.PutUint16(b[6:], o.CsumStart)
	binary.LittleEndian.PutUint16(b[8:], o.CsumOffset)
	binary.LittleEndian.PutUint16(b[10:], uint16(buffers))
}
