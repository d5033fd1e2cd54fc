// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"syscall"

	"aldente/worker/flow"
)

const (
	// maxSegments and maxWrite bound what one write with UDP_SEGMENT carries:
	// UDP_MAX_SEGMENTS of older kernels, and the payload of an IPv4 packet.
	maxSegments = 64
	maxWrite    = 65507
	// maxSegment is the largest datagram that travels with others. Larger ones
	// gain nothing, and the kernel refuses them on links with a smaller MTU.
	maxSegment = 16 << 10
)

// forward writes datagrams to one of a flow's sockets, those of equal size
// together.
func (t *Translator) forward(f *dflow, side int, d []flow.Datagram) {
	to := &f.sides[side]
	for len(d) > 0 {
		first := &d[0]
		n := 1
		switch {
		case first.Truncated:
			t.Stats.Dropped++
		case first.Segment > 0 && first.Segment < first.N:
			t.writeSegments(to, first.Buf[:first.N], first.Segment)
		default:
			n = t.gather(d)
			t.writeAll(to, first.N, n)
		}
		d = d[n:]
	}
}

// gather puts datagrams from the first on into vec that may travel as one: of
// the same size, but for the last, which may be shorter. It returns how many.
func (t *Translator) gather(d []flow.Datagram) int {
	size, total := d[0].N, d[0].N
	t.vec = append(t.vec[:0], d[0].Buf[:size])
	if size == 0 || size > maxSegment {
		return 1
	}
	n := 1
	for n < len(d) && n < maxSegments && d[n].Segment == 0 && !d[n].Truncated &&
		d[n].N > 0 && d[n].N <= size && total+d[n].N <= maxWrite {
		t.vec = append(t.vec, d[n].Buf[:d[n].N])
		total += d[n].N
		n++
		if d[n-1].N < size {
			break
		}
	}
	return n
}

// writeAll writes the n datagrams in vec, whose size is that of the first.
func (t *Translator) writeAll(to *dside, size, n int) {
	if n > 1 {
		if !t.segment(to, size) {
			for k := range t.vec {
				t.write(to, t.vec[k:k+1], 1)
			}
			return
		}
	} else if int(to.segment) != 0 && size > int(to.segment) {
		t.segment(to, 0) // or it would be cut
	}
	t.write(to, t.vec, n)
}

// writeSegments writes what UDP_GRO has joined.
func (t *Translator) writeSegments(to *dside, b []byte, size int) {
	most := min(maxWrite/size, maxSegments) * size
	joined := size <= maxSegment && t.segment(to, size)
	if !joined {
		most = size
		if int(to.segment) != 0 && size > int(to.segment) {
			t.segment(to, 0)
		}
	}
	for len(b) > 0 {
		part := b[:min(most, len(b))]
		b = b[len(part):]
		t.vec = append(t.vec[:0], part)
		t.write(to, t.vec, (len(part)+size-1)/size)
	}
}

// segment sets UDP_SEGMENT where it is not set so.
func (t *Translator) segment(to *dside, size int) bool {
	if int(to.segment) == size {
		return true
	}
	if t.env.Option(to.fd, flow.OptionUDPSegment, size) != 0 {
		return false
	}
	to.segment = uint16(size)
	return true
}

// write writes n datagrams with one call. What a socket has no room for is
// lost, as it would be on a link; an error that waited on it is not that of
// this write.
func (t *Translator) write(to *dside, bufs [][]byte, n int) {
	for try := range 2 {
		var e syscall.Errno
		if len(bufs) == 1 {
			_, e = t.env.Write(to.fd, bufs[0])
		} else {
			_, e = t.env.Writev(to.fd, bufs)
		}
		if e == 0 {
			t.Stats.Datagrams += uint64(n)
			return
		}
		if try > 0 || e == syscall.EAGAIN {
			break
		}
	}
	t.Stats.Dropped += uint64(n)
}
