// SPDX-License-Identifier: Apache-2.0

// Package vhostuser is the back end's side of the vhost-user protocol: a virtual
// machine's monitor, the front end, says over a UNIX socket where its guest's memory
// and rings are and passes their descriptors. All that comes is hostile. What is
// understood is kept, and a Device, which moves the frames, is told of it.
//
// Nothing blocks, but for what a descriptor of a file system in user space can do;
// those are not touched. Messages are rare, so memory may be allocated here.
package vhostuser

import (
	"errors"

	"aldente/worker/vhost"
)

// MaxPairs is how many pairs of queues a device may have. Queue 2n takes frames to
// the guest, queue 2n+1 frames from it.
const (
	MaxPairs  = 16
	MaxQueues = 2 * MaxPairs
)

// MaxRing is the greatest number of descriptors of a ring, virtio 1.2 section 2.7.
const MaxRing = 32768

// ErrClosed means that the front end has closed the connection.
var ErrClosed = errors.New("closed by the front end")

// ErrProtocol means that the front end has said what makes no sense. Errors that say
// what wrap it; the connection is to be closed.
var ErrProtocol = errors.New("vhost-user protocol")

// Log is where pages are marked that were written to, while a machine moves: a bit
// for each 4 KiB from guest address zero.
type Log struct {
	Bits []byte // mapped here; nil: nothing is logged
}

// Inflight is memory that outlives us, in which chains are marked that are in our
// hands. The front end keeps it, and gives it to the next worker.
type Inflight struct {
	Mem    []byte // mapped here, nil: none. Each queue has vhost.InflightSize(Size) bytes of it
	Queues int    // how many have
	Size   int    // of each queue
}

// Queue returns the part of queue i, or nil where it has none.
func (f *Inflight) Queue(i int) []byte {
	n := vhost.InflightSize(f.Size)
	if i >= f.Queues || len(f.Mem) < (i+1)*n {
		return nil
	}
	return f.Mem[i*n : (i+1)*n : (i+1)*n]
}

// Queue is what is known of a queue. The descriptors are the session's, and valid
// until the Device was told of others. A write to an eventfd waits where that is full,
// which only a front end that wants it brings about.
type Queue struct {
	Size      int    // descriptors, a power of two up to MaxRing
	Desc      uint64 // address of the descriptors, as the front end has it
	Used      uint64 // of the used ring
	Avail     uint64 // of the available ring
	LogUsed   bool   // writes to the used ring are logged, too,
	LogAddr   uint64 // from this guest address on
	Base      uint16 // of the available ring: the next entry that is ours
	Kick      int32  // an eventfd, -1: there is none, the ring has to be polled
	Call, Err int32  // eventfds, to the guest and the front end, -1: none
	Started   bool   // the ring runs
	Enabled   bool   // frames may move; otherwise the guest's are taken and dropped
}

// Device is told what the front end says. It is called within Session.Receive and
// Session.Close only. Before that is called, nothing of a mapping may be in use.
type Device interface {
	// SetFeatures tells which were acknowledged, of those offered.
	SetFeatures(f uint64)
	// SetMemory tells of all memory there is. Rings may have started. Earlier
	// mappings are gone when it has returned. Of an error, the front end hears.
	SetMemory(all []vhost.Region) error
	// SetLog tells where pages are marked from now on. The former mapping is gone
	// when it has returned.
	SetLog(l Log)
	// SetInflight is the same of the memory for chains in flight.
	SetInflight(f Inflight)
	// Start begins with a ring, whose memory is there; or tells of new addresses
	// while it runs, q.Started being true. Of an error, the front end hears, and
	// the ring does not run.
	Start(i int, q *Queue) error
	// Stop ends it. Nothing of the ring is touched any more. base is the next
	// entry of the available ring that would have been taken.
	Stop(i int) (base uint16)
	// Enabled says that q.Enabled has changed.
	Enabled(i int, q *Queue)
	// Notify says that q.Kick, q.Call or q.Err are other descriptors. Those that
	// were are closed when it has returned. It comes before Start.
	Notify(i int, q *Queue)
	// SetMTU tells of the largest IP packet that the guest is told it may send.
	SetMTU(mtu int)
	// Unknown tells of a request that is not known or not allowed. It is called
	// once for each.
	Unknown(request uint32)
}

// Config is what a Session offers.
type Config struct {
	Features uint64  // of virtio, Features or fewer
	MAC      [6]byte // of the guest, zero: it has its own
	MTU      int     // of the guest's link, in bytes of IP packet
	// NewInflight has somebody make memory for chains in flight, of so many bytes,
	// and answer the front end, in a payload of that length: a worker can neither
	// make it nor pass its descriptor. nil: the feature is not offered.
	NewInflight func(bytes, queues, ring, payload int) error
	// Remains of sessions before this one, nil: there are none.
	Remains *Remains
}
