// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
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

	captureSize  = ipc.CaptureBuffer
	captureFlush = 64 << 10
)

// quiet is how long nothing more is said of a capture that stops and goes on
// again and again, in seconds.
const quiet = 60

// CaptureTo says where a capture goes. The descriptors are non-blocking and the
// capture's from then on.
type CaptureTo struct {
	FD   int32 // the file, open for appending, or a pipe
	Mark int32 // eventfd to which bytes of whole records are added as they are written, -1: none
	GoOn bool  // the file has its header, and whole records
	Room int64 // bytes that may be written, negative: any number
}

// Capture writes frames to a pcap file or a pipe. They look as on the wire:
// super-frames are cut and checksums completed. Frames are gathered in a bounded
// buffer. What cannot be written now, because the disk is full or nobody reads
// the pipe, is tried again once each turn. Frames that come meanwhile and do not
// fit into the buffer are left out whole. So what is written never holds half a
// record followed by another.
type Capture struct {
	gather // what it begins with is a record's beginning
	to     CaptureTo
	header bool // the file's header is what is gathered first
	full   bool // no more is recorded, what is gathered is still to be written
	ended  bool
	cut    cutter

	now     time.Time // when the frame came that is being recorded
	left    uint64    // frames left out since the last news of that, super-frames counting once
	warned  bool      // there was news of this stall
	seen    int64     // when the last frame came, in seconds
	next    int64     // no news of a stall before
	warning string
}

// NewCapture starts a capture.
func NewCapture(to CaptureTo) *Capture {
	c := &Capture{to: to, gather: gather{fd: to.FD, buf: make([]byte, captureSize)}}
	if to.Room >= 0 && to.Room < pcapHeader {
		c.full = true
	}
	if to.GoOn || c.full {
		return c
	}
	h := c.buf[:pcapHeader]
	binary.NativeEndian.PutUint32(h[0:], pcapMagic)
	binary.NativeEndian.PutUint16(h[4:], 2)
	binary.NativeEndian.PutUint16(h[6:], 4)
	binary.NativeEndian.PutUint32(h[16:], pcapSnap)
	binary.NativeEndian.PutUint32(h[20:], pcapEthernet)
	c.n, c.header = pcapHeader, true
	c.Flush()
	return c
}

// Frame records one frame, as cutter.record tells. o may be nil.
func (c *Capture) Frame(now time.Time, o *packet.Offload, headers, payload []byte) {
	if c.full {
		return
	}
	c.now = now
	c.cut.record(c, o, headers, payload)
}

// begin makes room for a frame of size bytes and writes what precedes it. It
// returns nil when the frame is left out.
func (c *Capture) begin(size int) []byte {
	c.seen = c.now.Unix()
	if c.to.Room >= 0 && int64(c.n+pcapRecord+size) > c.to.Room {
		c.full = true
		return nil
	}
	if c.due(pcapRecord + size) {
		c.Flush()
	}
	if c.full || !c.fits(pcapRecord+size) {
		c.leaveOut()
		return nil
	}
	h := c.buf[c.n : c.n+pcapRecord]
	binary.NativeEndian.PutUint32(h[0:], uint32(c.seen))
	binary.NativeEndian.PutUint32(h[4:], uint32(c.now.Nanosecond()/1000))
	binary.NativeEndian.PutUint32(h[8:], uint32(size))
	binary.NativeEndian.PutUint32(h[12:], uint32(size))
	c.n += pcapRecord + size
	return c.buf[c.n-size : c.n : c.n]
}

// end has nothing left to do: the record is as long as it was said to be.
func (c *Capture) end() {}

// Flush writes what is gathered, as far as there is room for it. It is to be
// called once each turn.
func (c *Capture) Flush() {
	if c.ended {
		return
	}
	e := c.push()
	c.written()
	if e != 0 {
		c.stop(e)
		return
	}
	if c.stalled != 0 {
		c.stalled = 0
		c.goOn()
	}
	if c.full {
		c.finish("its size is reached (--pcap-size)")
	}
}

// written lets go of the whole records that were written, and marks them.
func (c *Capture) written() {
	whole := c.done
	if c.done < c.n {
		for whole = 0; whole+c.recordAt(whole) <= c.done; {
			whole += c.recordAt(whole)
		}
	}
	if whole == 0 {
		return
	}
	if c.to.Room >= 0 {
		c.to.Room -= int64(whole)
	}
	if c.to.Mark >= 0 {
		var b [8]byte
		binary.NativeEndian.PutUint64(b[:], uint64(whole))
		write(c.to.Mark, b[:])
	}
	c.release(whole)
	c.header = false
}

// recordAt returns the size of what begins at p in the buffer.
func (c *Capture) recordAt(p int) int {
	if p == 0 && c.header {
		return pcapHeader
	}
	return pcapRecord + int(binary.NativeEndian.Uint32(c.buf[p+8:]))
}

// stop notes why the rest has to wait, or ends the capture where waiting does not
// help.
func (c *Capture) stop(e unix.Errno) {
	switch e {
	case unix.EAGAIN: // news only if frames have to be left out for it
	case unix.ENOSPC, unix.EDQUOT:
		if c.stalled == 0 {
			c.warned = c.tell(e.Error() + ": goes on when there is room")
		}
	default:
		c.finish(e.Error())
		return
	}
	c.stalled = e
}

// leaveOut counts a frame that is not recorded.
func (c *Capture) leaveOut() {
	c.left++
	if c.stalled == unix.EAGAIN && !c.warned {
		c.warned = c.tell("frames are left out, since they are not read as fast as they come")
	}
}

// goOn tells that all frames are recorded again.
func (c *Capture) goOn() {
	if c.warned {
		c.warning = fmt.Sprintf("packet capture: goes on, %d frames were left out", c.left)
		c.left, c.warned = 0, false
	}
}

// tell makes news of a stall, unless there was some not long ago.
func (c *Capture) tell(text string) bool {
	if c.seen < c.next {
		return false
	}
	c.warning, c.next = "packet capture: "+text, c.seen+quiet
	return true
}

// finish ends the capture for good.
func (c *Capture) finish(why string) {
	c.full, c.ended, c.n, c.done = true, true, 0, 0
	c.warning = "packet capture ended: " + why
	closeFD(c.to.FD)
}

// Close writes what is gathered, as far as that goes, and closes the file.
func (c *Capture) Close() {
	c.Flush()
	if !c.ended {
		c.ended, c.full = true, true
		closeFD(c.to.FD)
	}
}

// Warning returns what there is to tell about the capture, and forgets it.
func (c *Capture) Warning() string {
	n := c.warning
	c.warning = ""
	return n
}
