// SPDX-License-Identifier: Apache-2.0

// Package link is the guest's side of the worker: the descriptor that Ethernet
// frames come from and go to. A tap carries super-frames with their offload
// metadata; QEMU's stream socket carries plain frames, so what its guest cannot
// do in hardware is done here in software.
//
// Every descriptor must be non-blocking and is owned by its link from then on.
// No call blocks, and after a link was made nothing allocates.
package link

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"aldente/worker/packet"
)

// Bounds on one frame, Ethernet header included, in bytes. Without metadata beside
// it none is longer to the guest than MaxFrame; a super-frame is, by its headers.
// From the guest it is as long as IP's length fields allow: libkrun passes on what
// its guest has left for hardware to cut, without a word that it is to be cut.
const (
	MinFrame = packet.EthernetLen
	MaxFrame = 65535

	maxReceived = packet.EthernetLen + ipv6Len + 65535

	// minWire is the least an Ethernet carries, without its check sequence
	// (IEEE 802.3 clause 4.2.3.3). Shorter frames are padded with zeros.
	minWire = 60
)

// MaxFrames bounds the frames of one batch.
const MaxFrames = 256

const batchSize = 256<<10 + 64<<10

// ErrClosed means that the other side is gone, or is not to be talked to any
// more: the caller closes the link. Errors that say why wrap it.
var ErrClosed = errors.New("link closed")

// ErrHungUp means that the other side has closed the link.
var ErrHungUp error = &closedError{"the other side has closed it"}

// ErrLength is returned for a stream frame whose length prefix is out of range.
// There is no way to find the next frame then.
var ErrLength error = &closedError{"frame length out of range"}

// ErrBroken is returned when the kernel refuses a descriptor for good.
var ErrBroken error = &closedError{"descriptor not usable any more"}

type closedError struct{ why string }

func (e *closedError) Error() string { return "link closed: " + e.why }
func (e *closedError) Unwrap() error { return ErrClosed }

// ended is why there is no more to be done with a descriptor: a call has failed with e, or
// found the end, e being zero.
func ended(e unix.Errno) error {
	if e == 0 {
		return ErrHungUp
	}
	return fmt.Errorf("%w: %w", ErrClosed, e)
}

// Frame is one frame, or super-frame, from the guest. Nothing in it is to be
// trusted but this: with OffloadNeedsChecksum the checksum field lies within
// Data, and with a GSO type GSOSize is not zero. HdrLen is the length of all
// headers where checksum start and GSO type tell it, and zero otherwise.
type Frame struct {
	Offload packet.Offload // see above; of a link without: zero but for OffloadUntold
	Data    []byte         // from the Ethernet header on, at least MinFrame bytes
	// More is the rest of a TCP segment whose headers are all in Data
	// (packet.TCPHeaders), in memory that the guest may write to at any time: it is
	// passed on, summed or copied, and nothing is decided by it. Nil: there is none.
	More [][]byte
}

// Batch holds frames that came together, and their memory. It serves one link
// at a time: a stream keeps the beginning of its next frame there.
type Batch struct {
	Frames []Frame // valid until the next Receive, More until the next Receive or Flush

	// Whole asks for frames of which all is in Data, for who looks at their payload.
	Whole bool

	frames [MaxFrames]Frame
	buf    []byte
}

// NewBatch returns an empty batch.
func NewBatch() *Batch { return &Batch{buf: make([]byte, batchSize)} }

func (b *Batch) reset() { b.Frames = b.frames[:0] }

func (b *Batch) full() bool { return len(b.Frames) == MaxFrames }

// add appends a frame without offload. Preconditions: the batch is not full.
func (b *Batch) add(data []byte) *Frame {
	n := len(b.Frames)
	b.Frames = b.frames[:n+1]
	f := &b.Frames[n]
	f.Offload = packet.Offload{}
	f.Data, f.More = data, nil
	return f
}

// Counters count since the link was made. Frames are those on the wire: a
// super-frame that was cut counts with each of its segments.
type Counters struct {
	Received      uint64 // frames from the guest
	ReceivedBytes uint64 // of Received
	Malformed     uint64 // frames from the guest that were not passed on
	Sent          uint64 // frames to the guest, those still queued included
	SentBytes     uint64 // of Sent
	Dropped       uint64 // not sent because the guest's side is full or down
	Refused       uint64 // not sent because it cannot be a frame of this link
}

// Add adds what another link has counted.
func (c *Counters) Add(o *Counters) {
	c.Received += o.Received
	c.ReceivedBytes += o.ReceivedBytes
	c.Malformed += o.Malformed
	c.Sent += o.Sent
	c.SentBytes += o.SentBytes
	c.Dropped += o.Dropped
	c.Refused += o.Refused
}

// Link is the guest's side, one connection of it.
type Link interface {
	// FD is the descriptor, for epoll, level-triggered.
	FD() int32

	// Receive fills b with what is there, at most MaxFrames frames. With
	// more, the next call may find more at once, in memory that the kernel
	// has handed over already: the caller must not wait for the descriptor
	// before it. Any error wraps ErrClosed; frames that came before it are
	// in b all the same.
	Receive(b *Batch) (more bool, err error)

	// Send takes one frame or super-frame: headers, then payload, which may
	// be empty. A super-frame's headers are exactly those of all its layers,
	// or the whole of it with HdrLen set. o may be nil. Both slices are free
	// for reuse when it returns. It reports false if the frame was dropped,
	// wholly or, of a super-frame, in some of its segments.
	Send(o *packet.Offload, headers, payload []byte) bool

	// CanSend tells whether the guest's side takes frames at present. Small
	// frames may be sent all the same, and are queued as long as they fit.
	CanSend() bool

	// Flush ends a batch: frames that Send only gathered are written.
	Flush() error

	// Writable is to be called on EPOLLOUT. It writes what is queued and
	// reports true when nothing is left.
	Writable() bool

	// WantWrite tells whether Writable needs to be called.
	WantWrite() bool

	// Counters are the link's own, updated as it goes.
	Counters() *Counters

	// Close closes the descriptor. The link is of no use afterwards.
	Close()
}

// Plug is a link that can be taken from its guest and given back, as a cable is.
type Plug interface {
	// SetCarrier tells the guest's kernel whether there is a network at the other end.
	// Frames go both ways all the same, as far as the kernel sends any.
	SetCarrier(on bool)
}
