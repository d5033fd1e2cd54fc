// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Region is a piece of the guest's memory.
type Region struct {
	Guest  uint64 // address as the guest has it
	Size   uint64 // in bytes
	Offset uint64 // into the file
	FD     int    // the file, a memfd

	next uint64 // where Alloc goes on, from Guest
}

// Memory is all memory of a guest. In this process it lies in one piece, holes
// included, so that a guest's address is an offset.
type Memory struct {
	Regions []*Region // by address

	base []byte
	last int // region that Alloc took from
}

// page is what regions and their places are multiples of.
const page = 4096

// NewMemory makes a region of each size, rounded up to pages, in a file each. hole
// is what is left out between two, rounded up as well; zero makes them adjacent. The
// second region begins within its file, as QEMU's may.
func NewMemory(hole uint64, sizes ...uint64) (*Memory, error) {
	up := func(n uint64) uint64 { return (n + page - 1) &^ (page - 1) }
	m := &Memory{}
	var end uint64
	for i, size := range sizes {
		r := &Region{Guest: end, Size: up(size)}
		if i > 0 {
			r.Guest = end + up(hole)
			r.Offset = uint64(i%2) * 16 * page
		} else {
			r.next = page // no buffer at address zero
		}
		end = r.Guest + r.Size
		m.Regions = append(m.Regions, r)
	}
	var err error
	if m.base, err = unix.Mmap(-1, 0, int(end), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE); err != nil {
		return nil, fmt.Errorf("%d bytes of addresses: %w", end, err)
	}
	for i, r := range m.Regions {
		if r.FD, err = Memfd(r.Offset + r.Size); err != nil {
			m.Regions = m.Regions[:i]
			break
		}
		if err = mapAt(m.base[r.Guest:r.Guest+r.Size], r.FD, r.Offset); err != nil {
			break
		}
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// Memfd makes a memory file of size bytes.
func Memfd(size uint64) (int, error) {
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("memfd: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("memfd of %d bytes: %w", size, err)
	}
	return fd, nil
}

// mapAt maps a file in the place of b.
func mapAt(b []byte, fd int, offset uint64) error {
	_, err := unix.MmapPtr(fd, int64(offset), unsafe.Pointer(unsafe.SliceData(b)), uintptr(len(b)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED)
	if err != nil {
		return fmt.Errorf("mapping %d bytes: %w", len(b), err)
	}
	return nil
}

// Close gives the memory back. Nothing may use it any more.
func (m *Memory) Close() {
	for _, r := range m.Regions {
		unix.Close(r.FD)
	}
	m.Regions = nil
	_ = unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(m.base)), uintptr(len(m.base)))
}

// Alloc takes n bytes, from one region after the other, and returns their guest
// address. align is a power of two. What it returns is never given back.
func (m *Memory) Alloc(n, align uint64) (uint64, error) {
	for range m.Regions {
		m.last = (m.last + 1) % len(m.Regions)
		if a, ok := m.Regions[m.last].alloc(n, align); ok {
			return a, nil
		}
	}
	return 0, fmt.Errorf("no %d bytes left in the guest's memory", n)
}

// AllocIn is Alloc from the region of that number.
func (m *Memory) AllocIn(region int, n, align uint64) (uint64, error) {
	if a, ok := m.Regions[region].alloc(n, align); ok {
		return a, nil
	}
	return 0, fmt.Errorf("no %d bytes left in region %d of the guest's memory", n, region)
}

func (r *Region) alloc(n, align uint64) (uint64, bool) {
	at := (r.Guest+r.next+align-1)&^(align-1) - r.Guest
	if at > r.Size || n > r.Size-at {
		return 0, false
	}
	r.next = at + n
	return r.Guest + at, true
}

// At is the memory at a guest address.
func (m *Memory) At(guest, n uint64) []byte { return m.base[guest : guest+n : guest+n] }

// User is the front-end's address of a guest's.
func (m *Memory) User(guest uint64) uint64 {
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(m.base)))) + guest
}

// word is the aligned word of 32 bits at a guest address.
func (m *Memory) word(guest uint64) *uint32 { return (*uint32)(unsafe.Pointer(&m.base[guest])) }

// Describe is a region as messages have it.
func (m *Memory) Describe(r *Region) (b []byte) {
	return DescribeRegion(r.Guest, r.Size, m.User(r.Guest), r.Offset)
}

// DescribeRegion is a region of these addresses as messages have it.
func DescribeRegion(guest, size, user, offset uint64) (b []byte) {
	for _, v := range []uint64{guest, size, user, offset} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}
