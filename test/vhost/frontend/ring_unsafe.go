// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Flags of a descriptor.
const (
	DescNext     = 1
	DescWrite    = 2
	DescIndirect = 4
)

const (
	descLen     = 16
	noInterrupt = 1 // flag of the available ring
	noNotify    = 1 // flag of the used ring
	maxIndirect = 64
)

// Seg is a buffer, or a part of one, in the guest's memory.
type Seg struct {
	Addr  uint64 // of the guest
	Len   uint32 // in bytes
	Write bool   // for the device to write to
}

// Ring is the driver's side of a split virtqueue. One goroutine uses it at a time.
type Ring struct {
	Size   uint16 // entries
	Desc   uint64 // guest address of the descriptors
	Avail  uint64 // of the available ring
	Used   uint64 // of the used ring
	KickFD int    // event descriptor for the device
	CallFD int    // event descriptor for the driver

	mem      *Memory
	eventIdx bool
	inOrder  bool
	tables   uint64 // of Size indirect tables of maxIndirect, zero without

	descs     unsafe.Pointer
	availRing unsafe.Pointer
	usedRing  unsafe.Pointer
	availIdx  *uint32 // flags and index
	usedIdx   *uint32
	usedEvent *uint32
	availEvnt *uint32

	free, last uint16 // list of free descriptors
	numFree    int
	count      []uint16 // by head: descriptors of its chain
	order      []uint16 // heads as made available, for in-order rings
	first      uint16   // of order: the next to be used

	next      uint16 // available index, not yet published
	published uint16
	kicked    uint16 // published when a kick was considered last
	seen      uint16 // used index
	flags     uint32 // of the available ring

	inBatch  bool   // in order: the entry that is looked at was read already
	batchEnd uint16 // head that ends the batch
	batchLen uint32

	// Kicks, Calls and Suppressed count kicks sent, calls waited for and
	// kicks that the device did not want.
	Kicks, Calls, Suppressed uint64
}

// NewRing makes a ring of size entries in m, for these negotiated features.
func NewRing(m *Memory, size uint16, features uint64) (*Ring, error) {
	r := &Ring{Size: size, mem: m, KickFD: -1, CallFD: -1, count: make([]uint16, size), order: make([]uint16, size)}
	n := uint64(size)
	var errs [4]error
	r.Desc, errs[0] = m.Alloc(n*descLen, 16)
	r.Avail, errs[1] = m.Alloc(4+2*n+4, 4)
	r.Used, errs[2] = m.Alloc(4+8*n+4, 4)
	if features&FIndirectDesc != 0 {
		r.tables, errs[3] = m.Alloc(n*maxIndirect*descLen, 16)
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	r.eventIdx, r.inOrder = features&FEventIdx != 0, features&FInOrder != 0
	r.descs = unsafe.Pointer(&m.base[r.Desc])
	r.availRing, r.usedRing = unsafe.Pointer(&m.base[r.Avail+4]), unsafe.Pointer(&m.base[r.Used+4])
	r.availIdx, r.usedIdx = m.word(r.Avail), m.word(r.Used)
	r.usedEvent, r.availEvnt = m.word(r.Avail+4+2*n), m.word(r.Used+4+8*n)
	for _, fd := range []*int{&r.KickFD, &r.CallFD} {
		var err error
		if *fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			r.Close()
			return nil, fmt.Errorf("eventfd: %w", err)
		}
	}
	r.Reset()
	return r, nil
}

// Close closes the event descriptors.
func (r *Ring) Close() {
	for _, fd := range []int{r.KickFD, r.CallFD} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// Reset makes the ring empty, as a driver does that begins anew.
func (r *Ring) Reset() {
	for _, part := range [][]byte{r.mem.At(r.Desc, uint64(r.Size)*descLen), r.mem.At(r.Avail, 8+2*uint64(r.Size)), r.mem.At(r.Used, 8+8*uint64(r.Size))} {
		clear(part)
	}
	for i := range r.Size {
		r.desc(i).next = i + 1
	}
	r.free, r.last, r.numFree = 0, r.Size-1, int(r.Size)
	r.next, r.published, r.kicked, r.seen, r.first, r.flags, r.inBatch = 0, 0, 0, 0, 0, 0, false
	clear(r.count)
}

// desc is a descriptor as it lies in memory.
type desc struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16
}

func (r *Ring) desc(i uint16) *desc { return (*desc)(unsafe.Add(r.descs, uintptr(i)*descLen)) }

// NumFree is how many descriptors are free.
func (r *Ring) NumFree() int { return r.numFree }

// Index is the available index of what was published: 16 bits that wrap.
func (r *Ring) Index() uint16 { return r.published }

// UsedIndex is the device's index as it stands in memory.
func (r *Ring) UsedIndex() uint16 { return uint16(atomic.LoadUint32(r.usedIdx) >> 16) }

// Outstanding is how many buffers the device has not given back.
func (r *Ring) Outstanding() uint16 { return r.next - r.seen }

// Add makes a chain of segs, through an indirect table if that is wanted and
// negotiated, and returns its head. It is the device's with the next Publish.
func (r *Ring) Add(segs []Seg, indirect bool) (head uint16, ok bool) {
	indirect = indirect && r.tables != 0 && len(segs) <= maxIndirect
	need := len(segs)
	if indirect {
		need = 1
	}
	if need > r.numFree || need == 0 {
		return 0, false
	}
	head = r.free
	if indirect {
		table := r.tables + uint64(head)*maxIndirect*descLen
		r.fill(table, segs)
		d := r.desc(head)
		r.free = d.next
		d.addr, d.len, d.flags = table, uint32(len(segs)*descLen), DescIndirect
	} else {
		for i := range segs {
			d := r.desc(r.free)
			d.addr, d.len, d.flags = segs[i].Addr, segs[i].Len, segs[i].flags()
			if i < len(segs)-1 {
				d.flags |= DescNext
			}
			r.free = d.next
		}
	}
	r.numFree -= need
	r.count[head] = uint16(need)
	r.MakeAvailable(head)
	return head, true
}

func (s *Seg) flags() uint16 {
	if s.Write {
		return DescWrite
	}
	return 0
}

// fill writes a table.
func (r *Ring) fill(table uint64, segs []Seg) {
	d := unsafe.Slice((*desc)(unsafe.Pointer(&r.mem.base[table])), len(segs))
	for i := range segs {
		d[i] = desc{segs[i].Addr, segs[i].Len, segs[i].flags() | DescNext, uint16(i + 1)}
	}
	d[len(segs)-1].flags &^= DescNext
}

// MakeAvailable puts any number for a head into the available ring, unpublished.
func (r *Ring) MakeAvailable(head uint16) {
	*(*uint16)(unsafe.Add(r.availRing, uintptr(r.next%r.Size)*2)) = head
	r.order[r.next%r.Size] = head
	r.next++
}

// SetDesc writes any descriptor.
func (r *Ring) SetDesc(i uint16, addr uint64, length uint32, flags, next uint16) {
	*r.desc(i) = desc{addr, length, flags, next}
}

// Publish gives the device what was added.
func (r *Ring) Publish() { r.PublishIndex(r.next) }

// PublishIndex is Publish with any index.
func (r *Ring) PublishIndex(index uint16) {
	r.published = index
	atomic.StoreUint32(r.availIdx, uint32(index)<<16|r.flags)
}

// Kick wakes the device up if it wants that for what was published since the last call.
func (r *Ring) Kick() {
	old := r.kicked
	r.kicked = r.published
	if old == r.published {
		return
	}
	wanted := false
	if r.eventIdx {
		event := uint16(atomic.LoadUint32(r.availEvnt))
		wanted = r.published-event-1 < r.published-old // virtio 1.2, section 2.7.10
	} else {
		wanted = atomic.LoadUint32(r.usedIdx)&noNotify == 0
	}
	if wanted {
		r.ForceKick()
	} else {
		r.Suppressed++
	}
}

var one = binary.NativeEndian.AppendUint64(nil, 1)

// ForceKick wakes the device up.
func (r *Ring) ForceKick() {
	r.Kicks++
	_, _ = call(unix.SYS_WRITE, r.KickFD, one)
}

// UsedElement is the next that the device has used, and whether there is one. The
// number may be anything.
func (r *Ring) UsedElement() (id, length uint32, ok bool) {
	if r.UsedIndex() == r.seen {
		return 0, 0, false
	}
	e := (*[2]uint32)(unsafe.Add(r.usedRing, uintptr(r.seen%r.Size)*8))
	return e[0], e[1], true
}

// ErrUsed means that the device has used what it did not have.
var ErrUsed = errors.New("a buffer that was not available is used")

// TakeUsed returns the next buffer that the device has given back, with the bytes
// written there, and frees its descriptors.
func (r *Ring) TakeUsed() (head uint16, length uint32, ok bool, err error) {
	if r.UsedIndex() == r.seen {
		return 0, 0, false, nil
	}
	id, length := uint32(r.batchEnd), r.batchLen
	if !r.inBatch {
		id, length, _ = r.UsedElement()
	}
	if id >= uint32(r.Size) || r.count[id] == 0 {
		return 0, 0, false, fmt.Errorf("%w: %d at %d", ErrUsed, id, r.seen)
	}
	head = uint16(id)
	if r.inOrder { // one entry may stand for many, of which it names the last
		head = r.order[r.first%r.Size]
		r.first++
		r.batchEnd, r.batchLen, r.inBatch = uint16(id), length, uint32(head) != id
		if r.inBatch {
			length = 0
		}
	}
	if r.count[head] == 0 {
		return 0, 0, false, fmt.Errorf("%w: %d at %d", ErrUsed, head, r.seen)
	}
	r.seen++
	r.release(head)
	return head, length, true, nil
}

// release appends a chain to the free ones: of buffers used in order the
// descriptors then follow each other in the ring, as VIRTIO_F_IN_ORDER wants.
func (r *Ring) release(head uint16) {
	n := r.count[head]
	r.count[head] = 0
	end := head
	for range n - 1 {
		end = r.desc(end).next
	}
	r.desc(r.last).next = head
	if r.numFree == 0 {
		r.free = head
	}
	r.last = end
	r.numFree += int(n)
}

// SuppressCalls asks the device not to call.
func (r *Ring) SuppressCalls() {
	if r.eventIdx {
		return // it calls when it passes the event, which is behind it by now
	}
	r.flags = noInterrupt
	atomic.StoreUint32(r.availIdx, uint32(r.published)<<16|r.flags)
}

// EnableCalls asks for a call after n more buffers, at least one. It reports true
// if there are as many already: no call may come then.
func (r *Ring) EnableCalls(n uint16) bool {
	if r.eventIdx {
		atomic.StoreUint32(r.usedEvent, uint32(r.seen+n-1))
	} else {
		r.flags = 0
		atomic.StoreUint32(r.availIdx, uint32(r.published)<<16)
	}
	return r.UsedIndex()-r.seen >= n
}

// TakeCall forgets calls that came.
func (r *Ring) TakeCall() bool {
	var b [8]byte
	n, _ := call(unix.SYS_READ, r.CallFD, b[:])
	if n == 8 {
		r.Calls++
	}
	return n == 8
}

// call is a read or write that the scheduler is not told of.
func call(trap uintptr, fd int, b []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(trap, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}
