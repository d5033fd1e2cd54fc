// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

// The file format of draft-ietf-opsawg-pcap: version 2.4 with microseconds, in
// the writer's byte order.
const (
	pcapMagic    = 0xa1b2c3d4
	pcapEthernet = 1
	pcapHeader   = 24
	pcapRecord   = 16
	pcapSnap     = 256 << 10

	captureSize  = 256 << 10
	captureFlush = 64 << 10
)

// Capture writes frames to a pcap file. They look as on the wire: super-frames
// are cut and checksums completed. Frames are gathered in a bounded buffer; the
// first write that fails ends the capture, so that the file never holds half
// a record followed by another.
type Capture struct {
	fd     int32
	failed unix.Errno
	buf    []byte
	n      int
	cut    cutter
}

// NewCapture starts a capture to an empty file, or goes on with one that has
// its header. It owns the file from then on.
func NewCapture(fd int32, goOn bool) *Capture {
	c := &Capture{fd: fd, buf: make([]byte, captureSize)}
	if goOn {
		return c
	}
	h := c.buf[:pcapHeader]
	binary.NativeEndian.PutUint32(h[0:], pcapMagic)
	binary.NativeEndian.PutUint16(h[4:], 2)
	binary.NativeEndian.PutUint16(h[6:], 4)
	binary.NativeEndian.PutUint32(h[16:], pcapSnap)
	binary.NativeEndian.PutUint32(h[20:], pcapEthernet)
	c.n = pcapHeader
	c.Flush()
	return c
}

// Frame records one frame. o may be nil. A super-frame that cannot be cut is
// recorded as it is.
func (c *Capture) Frame(now time.Time, o *packet.Offload, headers, payload []byte) {
	if c.failed != 0 {
		return
	}
	if o == nil || o.GSOType == packet.GSONone || !c.cut.start(o, headers, payload, MaxFrame) {
		if b := c.record(now, len(headers)+len(payload)); b != nil {
			n := copy(b, headers)
			copy(b[n:], payload)
			if o != nil && o.GSOType == packet.GSONone {
				complete(b, nil, o)
			}
		}
		return
	}
	for c.cut.more() {
		b := c.record(now, c.cut.hlen+min(c.cut.size, len(c.cut.payload)))
		if b == nil {
			return
		}
		copy(b[c.cut.hlen:], c.cut.next(b))
	}
}

// record makes room for a frame of size bytes and writes what precedes it. It
// returns nil when the capture has ended or no buffer holds such a frame.
func (c *Capture) record(now time.Time, size int) []byte {
	if c.n >= captureFlush || c.n+pcapRecord+size > len(c.buf) {
		c.Flush()
	}
	if c.failed != 0 || pcapRecord+size > len(c.buf) {
		return nil
	}
	h := c.buf[c.n : c.n+pcapRecord]
	binary.NativeEndian.PutUint32(h[0:], uint32(now.Unix()))
	binary.NativeEndian.PutUint32(h[4:], uint32(now.Nanosecond()/1000))
	binary.NativeEndian.PutUint32(h[8:], uint32(size))
	binary.NativeEndian.PutUint32(h[12:], uint32(size))
	c.n += pcapRecord + size
	return c.buf[c.n-size : c.n : c.n]
}

// Flush writes what is gathered. It is to be called when the lane goes idle.
// It returns the error that ended the capture, if one did.
func (c *Capture) Flush() error {
	for done := 0; done < c.n && c.failed == 0; {
		n, e := write(c.fd, c.buf[done:c.n])
		if e == 0 && n == 0 {
			e = unix.EIO
		}
		c.failed = e
		done += n
	}
	c.n = 0
	if c.failed != 0 {
		return c.failed
	}
	return nil
}

// Close flushes and closes the file.
func (c *Capture) Close() error {
	err := c.Flush()
	closeFD(c.fd)
	return err
}
