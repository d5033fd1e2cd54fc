// SPDX-License-Identifier: Apache-2.0

package link

import (
	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

// gather is a bounded buffer of records, and where they go as far as that takes
// them.
type gather struct {
	fd   int32
	buf  []byte
	n    int // bytes gathered
	done int // of them, written already

	stalled unix.Errno // why nothing can be written at the moment
}

// push writes what is gathered, and returns why something is left.
func (g *gather) push() unix.Errno {
	for g.done < g.n {
		n, e := write(g.fd, g.buf[g.done:g.n])
		if e == 0 && n == 0 {
			e = unix.EIO
		}
		g.done += n
		if e != 0 {
			return e
		}
	}
	return 0
}

// release lets go of the first k bytes, which are written.
func (g *gather) release(k int) {
	copy(g.buf, g.buf[k:g.n])
	g.n, g.done = g.n-k, g.done-k
}

// fits tells whether there is room for size bytes more.
func (g *gather) fits(size int) bool { return g.n+size <= len(g.buf) }

// due tells whether something is to be written before size bytes more come. Where
// that has failed, it is tried again once each turn.
func (g *gather) due(size int) bool {
	return g.stalled == 0 && (g.n >= captureFlush || !g.fits(size))
}

// recorder takes frames as they look on the wire, one after the other.
type recorder interface {
	// begin returns room for a frame of size bytes, nil: it is left out.
	begin(size int) []byte
	// end is called when the frame is there.
	end()
}

// record gives r a frame, or those that a super-frame stands for, with checksums
// completed. o may be nil. A super-frame that cannot be cut is recorded as it is. It
// returns how many frames were left out: without room for one, those behind it are.
func (c *cutter) record(r recorder, o *packet.Offload, headers, payload []byte) (left int) {
	if o == nil || o.GSOType == packet.GSONone || !c.start(o, headers, payload, MaxFrame) {
		b := r.begin(len(headers) + len(payload))
		if b == nil {
			return 1
		}
		n := copy(b, headers)
		copy(b[n:], payload)
		if o != nil && o.GSOType == packet.GSONone {
			complete(b, nil, o)
		}
		r.end()
		return 0
	}
	for c.more() {
		b := r.begin(c.hlen + min(c.size, len(c.payload)))
		if b == nil {
			return c.segments()
		}
		copy(b[c.hlen:], c.next(b))
		r.end()
	}
	return 0
}
