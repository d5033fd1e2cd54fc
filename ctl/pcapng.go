// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"time"
)

// Blocks and options of draft-ietf-opsawg-pcapng that are looked at. The worker writes
// in this machine's byte order, with times in nanoseconds.
const (
	blockSection    = 0x0a0d0d0a
	blockStatistics = 5
	blockPacket     = 6

	sectionMagic = 0x1a2b3c4d
	minBlock     = 12
	maxBlock     = 1 << 20
	// Of a packet's block before its bytes, of statistics before options.
	packetHead     = 28
	statisticsHead = 20

	optionEnd     = 0
	optionComment = 1
	optionFlags   = 2
	optionLost    = 4 // of a packet
	optionDropped = 5 // of statistics

	directionOut = 2 // of optionFlags, in the two lowest bits
)

// errNoCapture is that a stream is not what a worker of ours writes.
var errNoCapture = errors.New("what comes is no capture of ours")

// blockReader reads a stream block by block. What it reads was written by a worker,
// which its guest may have taken over.
type blockReader struct {
	in      *bufio.Reader
	block   []byte
	started bool
	lost    uint64 // frames that were left out, as far as that was told
}

// next returns the next block, valid until the one after it, io.EOF after the last.
func (r *blockReader) next() ([]byte, error) {
	head, err := r.in.Peek(8)
	if err != nil {
		if err == io.EOF && len(head) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	size := binary.NativeEndian.Uint32(head[4:])
	section := binary.NativeEndian.Uint32(head) == blockSection
	if size < minBlock || size > maxBlock || size%4 != 0 || section == r.started {
		return nil, errNoCapture
	}
	r.started = true
	if uint32(cap(r.block)) < size {
		r.block = make([]byte, size)
	}
	b := r.block[:size]
	if _, err := io.ReadFull(r.in, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if binary.NativeEndian.Uint32(b[size-4:]) != size || section && (size < 28 || binary.NativeEndian.Uint32(b[8:]) != sectionMagic) {
		return nil, errNoCapture
	}
	return b, nil
}

// frame is what a block has of a frame, nil if it is of another kind. How many frames
// were left out it notes.
func (r *blockReader) frame(b []byte) (*shownFrame, error) {
	switch binary.NativeEndian.Uint32(b) {
	case blockStatistics:
		if len(b) < statisticsHead+4 {
			return nil, errNoCapture
		}
		return nil, eachOption(b[statisticsHead:len(b)-4], func(code uint16, v []byte) {
			if code == optionDropped && len(v) == 8 {
				r.lost = binary.NativeEndian.Uint64(v)
			}
		})
	case blockPacket:
	default:
		return nil, nil
	}
	if len(b) < packetHead+4 {
		return nil, errNoCapture
	}
	captured := binary.NativeEndian.Uint32(b[20:])
	rest := b[packetHead : len(b)-4]
	if captured > maxBlock || padded(int(captured)) > len(rest) {
		return nil, errNoCapture
	}
	ns := uint64(binary.NativeEndian.Uint32(b[12:]))<<32 | uint64(binary.NativeEndian.Uint32(b[16:]))
	f := &shownFrame{
		Time: time.Unix(0, int64(ns)).UTC(), Direction: "in", Length: binary.NativeEndian.Uint32(b[24:]),
		Bytes: rest[:captured],
	}
	return f, eachOption(rest[padded(int(captured)):], func(code uint16, v []byte) {
		switch {
		case code == optionComment:
			f.Comment = string(v)
		case code == optionFlags && len(v) == 4 && binary.NativeEndian.Uint32(v)&3 == directionOut:
			f.Direction = "out"
		case code == optionLost && len(v) == 8:
			f.LeftOut = binary.NativeEndian.Uint64(v)
		}
	})
}

// padded is a length with what fills it up.
func padded(n int) int { return (n + 3) &^ 3 }

// eachOption calls do for each option.
func eachOption(b []byte, do func(code uint16, v []byte)) error {
	for len(b) >= 4 {
		code, size := binary.NativeEndian.Uint16(b), int(binary.NativeEndian.Uint16(b[2:]))
		b = b[4:]
		if code == optionEnd {
			return nil
		}
		if padded(size) > len(b) {
			return errNoCapture
		}
		do(code, b[:size])
		b = b[padded(size):]
	}
	return nil
}
