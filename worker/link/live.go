// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

// The blocks of draft-ietf-opsawg-pcapng: a type, the length of all, the body,
// options, the length once more. All is little-endian: some readers take options for it
// whatever the section's byte order is.
const (
	blockSection    = 0x0a0d0d0a
	blockInterface  = 1
	blockStatistics = 5
	blockPacket     = 6

	sectionMagic = 0x1a2b3c4d
	packetHead   = 28 // of a packet's block, before its bytes
)

// Options of all blocks, and of each kind.
const (
	optionEnd     = 0
	optionComment = 1

	sectionProgram = 4 // shb_userappl

	interfaceName        = 2 // if_name
	interfaceDescription = 3 // if_description
	interfaceResolution  = 9 // if_tsresol
	nanoseconds          = 9 // decimal places

	packetFlags = 2 // epb_flags
	packetLost  = 4 // epb_dropcount

	statisticsStart    = 2 // isb_starttime
	statisticsReceived = 4 // isb_ifrecv
	statisticsDropped  = 5 // isb_ifdrop
)

// liveRoom is more than all that is written beside a frame's own bytes: its block, and
// one of statistics before it, with comments of commentSize bytes each.
const (
	liveRoom    = 640
	commentSize = 160
)

// Way is where a frame goes, as epb_flags has it: as the guest sees it.
type Way uint8

// Ways.
const (
	ToGuest   Way = 1
	FromGuest Way = 2
)

// Note is what there is to tell of a frame, in parts that are put together only where
// somebody looks; empty: nothing.
type Note [3]string

// Live is a capture that somebody looks at while it goes on, by a pipe. It is like
// Capture in what frames look like and in what happens where nobody reads: they are
// left out whole, and that is told in the stream. It allocates its memory when it is
// started for the first time.
type Live struct {
	gather
	to    LiveTo
	state liveState
	cut   cutter

	now      int64 // of the frame that is being recorded, nanoseconds since 1970
	began    int64
	way      Way
	note     Note
	size     int    // of the frame that is being recorded
	received uint64 // frames that were wanted
	dropped  uint64 // of them, left out
	left     uint64 // of those, since the last frame that was recorded
}

// liveState is how far a capture has come.
type liveState uint8

const (
	liveNone   liveState = iota // there is none
	liveGoes                    // frames are recorded
	liveEnds                    // what is gathered is the last
	liveIsOver                  // nothing more is written, the pipe is still open
)

// LiveTo says where a capture goes, and what is wanted.
type LiveTo struct {
	FD     int32  // a pipe, which does not block
	Filter Filter // of all frames
	Drops  bool   // of them, only those with a Note
	Snap   uint32 // bytes that are wanted of each, zero: all
	Name   string // of the interface
}

// Start begins a capture. Preconditions: there is none.
func (c *Live) Start(to LiveTo) {
	if c.buf == nil {
		c.buf = make([]byte, captureSize)
	}
	*c = Live{gather: gather{fd: to.FD, buf: c.buf}, to: to, state: liveGoes, began: time.Now().UnixNano()}
	b := c.begins(blockSection)
	b = u32(b, sectionMagic)
	b = u16(u16(b, 1), 0)                            // version
	b = binary.LittleEndian.AppendUint64(b, 1<<64-1) // of unknown length
	b = textOption(b, sectionProgram, Note{"aldente"}, commentSize)
	c.ends(u32(b, optionEnd))
	b = c.begins(blockInterface)
	b = u32(u16(u16(b, pcapEthernet), 0), to.Snap)
	b = textOption(b, interfaceName, Note{to.Name}, commentSize)
	b = textOption(b, interfaceDescription, Note{"the guest's link: outbound is what the guest sends"}, commentSize)
	b = append(option(b, interfaceResolution, 1), nanoseconds, 0, 0, 0)
	c.ends(u32(b, optionEnd))
	c.Flush()
}

// None tells whether there is no capture.
func (c *Live) None() bool { return c.state == liveNone }

// Ending tells whether no more is recorded.
func (c *Live) Ending() bool { return c.state == liveEnds }

// Over tells whether nothing more is written. The pipe is the caller's to close, with
// Gone behind that.
func (c *Live) Over() bool { return c.state == liveIsOver }

// FD is the pipe.
func (c *Live) FD() int32 { return c.fd }

// Drop ends the capture at once.
func (c *Live) Drop() { c.state = liveIsOver }

// Gone says that the pipe is closed.
func (c *Live) Gone() { c.state = liveNone }

// Wants tells whether a frame would be recorded that begins with headers, with a note
// or without.
func (c *Live) Wants(headers []byte, noted bool) bool {
	return c.state == liveGoes && (noted || !c.to.Drops) && c.to.Filter.match(headers)
}

// WantsLate is Wants for a frame of which there was nothing to tell at first.
func (c *Live) WantsLate(headers []byte) bool { return c.to.Drops && c.Wants(headers, true) }

// Frame records one that is wanted, as cutter.record tells. now is in nanoseconds since
// 1970. o may be nil.
func (c *Live) Frame(now int64, way Way, note *Note, o *packet.Offload, headers, payload []byte) {
	c.now, c.way, c.note = now, way, *note
	left := uint64(c.cut.record(c, o, headers, payload))
	c.left += left
	c.dropped += left
	c.received += left
}

// begin makes room for a frame of size bytes, with what comes before it.
func (c *Live) begin(size int) []byte {
	if c.due(size + liveRoom) {
		c.Flush()
	}
	if c.state != liveGoes || !c.fits(size+liveRoom) {
		return nil
	}
	if c.left > 0 {
		c.statistics()
	}
	c.received++
	c.size = size
	return c.buf[c.n+packetHead : c.n+packetHead+size]
}

// end writes the block around it.
func (c *Live) end() {
	captured := c.size
	if c.to.Snap > 0 {
		captured = min(captured, int(c.to.Snap))
	}
	b := c.begins(blockPacket)
	b = c.stamp(u32(b, 0), c.now)
	b = u32(u32(b, uint32(captured)), uint32(c.size))
	b = pad(b[:packetHead+captured])
	b = u32(option(b, packetFlags, 4), uint32(c.way))
	if c.left > 0 {
		b = binary.LittleEndian.AppendUint64(option(b, packetLost, 8), c.left)
		c.left = 0
	}
	if c.note[0] != "" {
		b = textOption(b, optionComment, c.note, commentSize)
	}
	c.ends(u32(b, optionEnd))
}

// statistics writes how many frames there were, and how many were left out.
func (c *Live) statistics() {
	now := time.Now().UnixNano()
	b := c.begins(blockStatistics)
	b = c.stamp(u32(b, 0), now)
	b = c.stamp(option(b, statisticsStart, 8), c.began)
	b = binary.LittleEndian.AppendUint64(option(b, statisticsReceived, 8), c.received)
	b = binary.LittleEndian.AppendUint64(option(b, statisticsDropped, 8), c.dropped)
	if c.dropped > 0 {
		var digits [20]byte
		n := strconv.AppendUint(digits[:0], c.dropped, 10)
		at := len(b)
		b = append(option(b, optionComment, 0), n...)
		b = append(b, " frames were left out, which nobody has read as fast as they came"...)
		binary.LittleEndian.PutUint16(b[at+2:], uint16(len(b)-at-4))
		b = pad(b)
	}
	c.ends(u32(b, optionEnd))
}

// Flush writes what is gathered, as far as there is room for it. It is to be called
// once each turn. Where nobody reads any more, the capture is over.
func (c *Live) Flush() {
	if c.state != liveGoes && c.state != liveEnds {
		return
	}
	e := c.push()
	c.release(c.done)
	c.stalled = e
	if e != 0 && e != unix.EAGAIN || e == 0 && c.state == liveEnds {
		c.state = liveIsOver
	}
}

// End records no more. What is gathered is still to be written, and statistics behind
// it.
func (c *Live) End() {
	if c.state == liveGoes {
		c.state = liveEnds
		if c.fits(liveRoom) {
			c.statistics()
		}
		c.Flush()
	}
}

// begins starts a block, which must fit, at the end of what is gathered.
func (c *Live) begins(typ uint32) []byte {
	return u32(u32(c.buf[c.n:c.n:len(c.buf)], typ), 0)
}

// ends completes it.
func (c *Live) ends(b []byte) {
	size := uint32(len(b) + 4)
	b = u32(b, size)
	binary.LittleEndian.PutUint32(b[4:], size)
	c.n += len(b)
}

// stamp appends a time as blocks have it: the upper half first.
func (c *Live) stamp(b []byte, ns int64) []byte {
	return u32(u32(b, uint32(ns>>32)), uint32(ns))
}

func u16(b []byte, v uint16) []byte { return binary.LittleEndian.AppendUint16(b, v) }
func u32(b []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(b, v) }

// option begins an option of size bytes.
func option(b []byte, code uint16, size int) []byte { return u16(u16(b, code), uint16(size)) }

// textOption appends one with a text, of which most bytes are written at most.
func textOption(b []byte, code uint16, text Note, most int) []byte {
	at := len(b)
	b = option(b, code, 0)
	for _, part := range text {
		b = append(b, part[:min(len(part), most)]...)
		most -= min(len(part), most)
	}
	binary.LittleEndian.PutUint16(b[at+2:], uint16(len(b)-at-4))
	return pad(b)
}

// pad fills up to four bytes. Blocks begin at a multiple of that.
func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
