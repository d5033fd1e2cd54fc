// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"aldente/worker/packet"
	"aldente/worker/vhost"
	"aldente/worker/vhostuser"
)

// Watcher reports descriptors that a link has beside its own.
type Watcher interface {
	// WatchLink has the link's Ready called with sub, which is not zero, each time
	// that the descriptor becomes readable.
	WatchLink(fd int32, sub uint32) syscall.Errno
	// UnwatchLink ends that.
	UnwatchLink(fd int32)
	// NewInflight is vhostuser.Config's.
	NewInflight(bytes, queues, ring, payload int) error
	// SetMTU tells that the guest was told of an MTU, in bytes of IP packet, which
	// counts until the link ends.
	SetMTU(mtu int)
	// Short has Expire called in ShortFor.
	Short()
	// Unknown tells of a request of the front end's that was refused since it is not known,
	// once for each.
	Unknown(request uint32)
}

// Watched is a link with several descriptors.
type Watched interface {
	Link
	// Attach is called once, before any other method.
	Attach(w Watcher)
	// Ready is called for events on a descriptor, that of FD being zero. It tells
	// whether there may be something to receive, and whether there is room again
	// for what could not be sent.
	Ready(sub uint32) (receive, room bool)
	// Up reports once each time that the guest has begun to take frames.
	Up() bool
	// Waiting tells, at the cost of a look at memory, whether the guest has sent something
	// that there may be no event for.
	Waiting() bool
	// Sleep has the guest's next frame make an event, and is to be called before anybody
	// waits for one. It tells whether there is something to receive already.
	Sleep() (receive bool)
	// Expire is called when the Watcher was told that the guest lacks buffers. It tells
	// whether to call it again in ShortFor, and whether there is room by now.
	Expire() (again, room bool)
}

// ShortFor is how long a guest that lacks buffers in one of several queues is waited for:
// once or twice that, in nanoseconds.
const ShortFor = 50_000_000

const (
	// txPieces are the parts in memory that frames of a batch may have together.
	txPieces = 4 * vhost.MaxPieces
	// batchBytes is how much of the guest's memory a batch of frames holds, about.
	batchBytes = 256 << 10
	// rxChains are the chains, and rxPieces their parts, that are taken from a ring
	// before they are needed.
	rxChains = 256
	rxPieces = 2 * vhost.MaxPieces
)

// vhostUser is the device that a front end of vhost-user has for its guest: frames lie
// in the guest's memory, and are told of by rings. All is hostile; package vhost checks
// what it reads there, vhostuser what the front end says.
//
// What is taken from a ring is given back in the same order: a frame of the guest's
// when its batch has ended, a buffer for a frame when it is filled. While messages of
// the front end are handled, nothing is in our hands.
type vhostUser struct {
	fd       int32
	mtu      int
	err      error // once set, nothing is read or written any more
	session  *vhostuser.Session
	remains  *vhostuser.Remains // of all sessions
	watcher  Watcher
	mem      vhost.Memory
	inflight vhostuser.Inflight
	features uint64
	header   int // bytes of struct virtio_net_hdr

	messages bool // the front end may have said something
	awake    bool // kicks were not asked for since there was something
	up       bool // the guest takes frames, and nobody has been told
	rx       [vhostuser.MaxPairs]rxQueue
	tx       [vhostuser.MaxPairs]txQueue
	active   []uint8 // pairs by which the guest takes frames
	spaces   [vhostuser.MaxPairs]uint8

	// Of frames from the guest.
	arena  *vhost.Arena
	chains [MaxFrames]taken
	n      int // of chains
	nextTx int // queue that has its turn

	// Of frames to the guest.
	head     [vnetLen + packet.MaxHeaders]byte
	pad      [minWire]byte
	cut      cutter
	none     packet.Offload
	reserved *rxQueue
	bounce   []byte // what is reserved where the guest has to be helped, else nil
	spare    []byte // memory for that, nil: it was not needed yet
	room     [vhost.MaxPieces][]byte
	steer    steering

	counters Counters
}

// vnetLen is the length of struct virtio_net_hdr with the count of buffers, which
// rings of old times have without it.
const vnetLen = packet.OffloadSize + 2

// taken is a chain of a batch, and where it goes back to.
type taken struct {
	vhost.Chain
	q *txQueue
}

// queue is what both directions have.
type queue struct {
	vhost.Ring
	started, enabled bool
	polled           bool  // the guest does not kick
	kick             int32 // that is watched, -1: none
	call             int32
	owed             bool // a call
}

type txQueue struct {
	queue
	pair uint8 // its number
}

// NewVhostUser returns the link of a UNIX stream socket to a front end. mtu is the
// largest IP packet on it, in bytes. last is the link before, closed, whose memory
// may serve it; or nil.
func NewVhostUser(last Link, fd int32, mtu int) Link {
	v, ok := last.(*vhostUser)
	if !ok {
		v = &vhostUser{arena: vhost.NewArena(txPieces), remains: new(vhostuser.Remains)}
	}
	*v = vhostUser{fd: fd, mtu: mtu, remains: v.remains, arena: v.arena, spare: v.spare, rx: v.rx, header: packet.OffloadSize}
	v.arena.Reset()
	for i := range v.rx {
		v.rx[i] = rxQueue{queue: queue{kick: -1, call: -1}, stash: v.rx[i].stash}
		v.tx[i] = txQueue{queue: queue{kick: -1, call: -1}, pair: uint8(i)}
	}
	v.active = v.spaces[:0]
	v.session = vhostuser.New(fd, vhostuser.Config{Features: vhostuser.Features, MTU: mtu, NewInflight: v.newInflight, Remains: v.remains}, v)
	return v
}

func (v *vhostUser) FD() int32           { return v.fd }
func (v *vhostUser) WantWrite() bool     { return false }
func (v *vhostUser) Counters() *Counters { return &v.counters }

func (v *vhostUser) newInflight(bytes, queues, ring, payload int) error {
	return v.watcher.NewInflight(bytes, queues, ring, payload)
}

// Attach implements Watched.
func (v *vhostUser) Attach(w Watcher) { v.watcher = w }

// Up implements Watched.
func (v *vhostUser) Up() bool {
	up := v.up
	v.up = false
	return up
}

func (v *vhostUser) Close() {
	v.letGo()
	v.session.Close()
	for i := range v.rx {
		v.watch(&v.rx[i].queue, -1, 0)
		v.watch(&v.tx[i].queue, -1, 0)
	}
	if v.err == nil {
		v.err = ErrClosed
	}
	closeFD(v.fd)
}

// queueAt is queue i as the front end counts them.
func (v *vhostUser) queueAt(i int) *queue {
	if i%2 == 0 {
		return &v.rx[i/2].queue
	}
	return &v.tx[i/2].queue
}

// Ready implements Watched: sub is 1 for the kick of queue 0.
func (v *vhostUser) Ready(sub uint32) (receive, room bool) {
	switch {
	case sub == 0:
		v.messages = true
		return true, false
	case sub%2 == 0:
		return true, false
	case int(sub)/2 < len(v.rx):
		return false, v.roomAgain(&v.rx[sub/2])
	}
	return false, false
}

// hear takes what the front end says.
func (v *vhostUser) hear() error {
	v.letGo()
	more, err := v.session.Receive()
	v.messages = more
	if err != nil {
		v.err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return v.err
}

// letGo gives back all that is in our hands, and shows the guest what was used: a ring
// that is moved or begun anew goes on from there.
func (v *vhostUser) letGo() {
	v.giveBack()
	v.reserved = nil
	for i := range v.rx {
		q := &v.rx[i]
		q.unstash()
		if q.started {
			q.publish()
		}
	}
}

// broken ends the link where a ring holds what cannot be.
func (v *vhostUser) broken(q *queue) bool {
	err := q.Err()
	if err != nil && v.err == nil {
		v.err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return err != nil
}

// Flush ends a turn: the guest is told of what was moved, once for each queue.
func (v *vhostUser) Flush() error {
	if v.err != nil {
		return v.err
	}
	v.giveBack()
	for i := range v.rx {
		v.rx[i].settle()
		v.tx[i].settle()
	}
	return nil
}

// settle shows what was given back, and calls if that is wanted.
func (q *queue) settle() {
	if !q.started {
		return
	}
	q.publish()
	if q.owed && q.call >= 0 {
		write(q.call, one)
	}
	q.owed = false
}

// publish shows what was given back.
func (q *queue) publish() {
	if q.Publish() {
		q.owed = true
	}
}

// one is the number that is added to an eventfd, in the machine's byte order.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// What the front end says: vhostuser.Device.

// SetFeatures implements vhostuser.Device.
func (v *vhostUser) SetFeatures(f uint64) {
	v.features = f
	v.header = packet.OffloadSize
	if f&(vhostuser.FeatureVersion1|vhostuser.FeatureMrgRxBuf) != 0 {
		v.header = vnetLen
	}
	v.bounce = nil
	if !v.has(vhostuser.FeatureGuestCSum | vhostuser.FeatureGuestTSO4 | vhostuser.FeatureGuestTSO6) {
		if v.spare == nil {
			v.spare = make([]byte, maxPayload)
		}
		v.bounce = v.spare
	}
}

func (v *vhostUser) has(f uint64) bool { return v.features&f == f }

// SetMemory implements vhostuser.Device. Every ring moves, whatever becomes of others:
// where it was is not our memory any more.
func (v *vhostUser) SetMemory(all []vhost.Region) error {
	err := v.mem.Set(all)
	if err != nil {
		_ = v.mem.Set(nil)
	}
	for i := range 2 * len(v.rx) {
		if q := v.queueAt(i); q.started {
			if e := q.Moved(); err == nil {
				err = e
			}
		}
	}
	return err
}

// SetLog implements vhostuser.Device.
func (v *vhostUser) SetLog(l vhostuser.Log) { v.mem.SetLog(l.Bits) }

// SetInflight implements vhostuser.Device.
func (v *vhostUser) SetInflight(f vhostuser.Inflight) { v.inflight = f }

// Start implements vhostuser.Device.
func (v *vhostUser) Start(i int, q *vhostuser.Queue) error {
	r := v.queueAt(i)
	s := vhost.Setup{
		Size: q.Size, Desc: q.Desc, Avail: q.Avail, Used: q.Used, Base: q.Base, Writable: i%2 == 0,
		Indirect: v.has(vhostuser.FeatureIndirectDesc), EventIdx: v.has(vhostuser.FeatureEventIdx),
		LogUsed: q.LogUsed, LogAddr: q.LogAddr, Inflight: v.inflight.Queue(i),
	}
	if r.started {
		s.Base = r.Base()
	}
	if err := r.Ring.Start(&v.mem, &s); err != nil {
		return err
	}
	if i%2 == 0 && v.rx[i/2].stash == nil {
		v.rx[i/2].stash = newStash()
	}
	if i%2 == 0 {
		v.rx[i/2].most = r.Waiting()
	}
	r.started, r.enabled, r.polled = true, q.Enabled, r.kick < 0
	v.awake = true // or nobody asks for its kicks
	r.owed = true  // for what whoever was before us has not called for
	v.reckon()
	return nil
}

// Stop implements vhostuser.Device.
func (v *vhostUser) Stop(i int) (base uint16) {
	q := v.queueAt(i)
	q.settle()
	q.started = false
	v.reckon()
	return q.Base()
}

// Enabled implements vhostuser.Device.
func (v *vhostUser) Enabled(i int, q *vhostuser.Queue) {
	v.queueAt(i).enabled = q.Enabled
	v.reckon()
}

// reckon finds the pairs by which the guest takes frames.
func (v *vhostUser) reckon() {
	before := len(v.active)
	v.active = v.spaces[:0]
	for i := range v.rx {
		if q := &v.rx[i]; q.started && q.enabled {
			v.active = append(v.active, uint8(i))
		} else {
			q.short = false
		}
	}
	v.up = len(v.active) > 0 && (v.up || before == 0)
	if len(v.active) > 1 && !v.CanSend() {
		v.watcher.Short()
	}
}

// Notify implements vhostuser.Device.
func (v *vhostUser) Notify(i int, q *vhostuser.Queue) {
	r := v.queueAt(i)
	// A call by the descriptor of before may have reached nobody: QEMU's, of before a
	// ring starts, leads nowhere. The guest would wait for ever, since with an event
	// index it is called once.
	r.owed = r.owed || r.call != q.Call
	r.call = q.Call
	r.polled = q.Kick < 0
	v.watch(r, q.Kick, uint32(i+1))
}

// watch has a queue's kicks reported. Where that fails, its ring is looked at in
// every turn.
func (v *vhostUser) watch(q *queue, kick int32, sub uint32) {
	if q.kick == kick || v.watcher == nil {
		return
	}
	if q.kick >= 0 {
		v.watcher.UnwatchLink(q.kick)
	}
	q.kick = kick
	if kick >= 0 && v.watcher.WatchLink(kick, sub) != 0 {
		q.kick, q.polled = -1, true
	}
}

// SetMTU implements vhostuser.Device.
func (v *vhostUser) SetMTU(mtu int) { v.watcher.SetMTU(mtu) }

// Unknown implements vhostuser.Device.
func (v *vhostUser) Unknown(request uint32) { v.watcher.Unknown(request) }
