// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"

	"aldente/worker/vhost"
)

// maxSlots is how many regions there may be at a time, as many as the kernel's vhost has.
const maxSlots = 509

// pageSize is what addresses, sizes and offsets of regions are multiples of, with
// every monitor and on every machine.
const pageSize = 4096

// mapping is a part of a passed file in our memory. The zero value is none.
type mapping struct {
	all  []byte // as it was mapped
	used []byte // what was asked for
}

// mapShared maps size bytes of a file from offset on, readable and writable, and never
// executable. The file is one of memory: others could let us wait for whoever
// serves them when a page is touched. The error says what is wrong with it.
func mapShared(fd int, offset, size uint64) (mapping, error) {
	if !isMemory(fd) {
		return mapping{}, malformed("memory is shared by a memfd or a file of tmpfs or hugetlbfs, and this is none")
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return mapping{}, malformed("fstat: %v", err)
	}
	end, carry := bits.Add64(offset, size, 0)
	switch {
	case size == 0 || offset%pageSize != 0:
		return mapping{}, malformed("memory of %d bytes at %#x of a file", size, offset)
	case st.Mode&unix.S_IFMT != unix.S_IFREG || carry != 0 || end > uint64(max(st.Size, 0)):
		return mapping{}, malformed("memory up to %#x of a file of %d bytes", end, st.Size)
	}
	// A file of huge pages is mapped by whole ones, which its block size tells.
	unit := uint64(pageSize)
	if b := uint64(st.Blksize); b > unit && b&(b-1) == 0 {
		unit = b
	}
	start := offset &^ (unit - 1)
	length := (end - start + unit - 1) &^ (unit - 1)
	if length < size || length > 1<<47 {
		return mapping{}, malformed("memory of %#x bytes", size)
	}
	b, err := unix.Mmap(fd, int64(start), int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return mapping{}, malformed("memory of %#x bytes cannot be mapped: %v", size, err)
	}
	return mapping{b, b[offset-start : end-start : end-start]}, nil
}

func (m *mapping) unmap() {
	if m.all != nil {
		_ = unix.Munmap(m.all)
	}
	*m = mapping{}
}

// slot is a region and its mapping.
type slot struct {
	guest, user, size uint64
	mapping
}

func unmap(slots []slot) {
	for i := range slots {
		slots[i].unmap()
	}
}

// region decodes the description of a region.
func region(b []byte) (r slot, offset uint64, err error) {
	r, offset = slot{guest: u64(b), size: u64(b[8:]), user: u64(b[16:])}, u64(b[24:])
	_, guestOver := bits.Add64(r.guest, r.size, 0)
	_, userOver := bits.Add64(r.user, r.size, 0)
	switch {
	case r.size == 0:
		err = malformed("region at %#x: empty", r.guest)
	case guestOver != 0 || userOver != 0:
		err = malformed("region at %#x, or %#x, of %#x bytes: beyond the last address", r.guest, r.user, r.size)
	case (r.guest|r.user|r.size|offset)%pageSize != 0:
		err = malformed("region at %#x, or %#x, of %#x bytes at %#x of its file: not of whole pages", r.guest, r.user, r.size, offset)
	}
	return r, offset, err
}

// overlaps tells whether two regions have an address in common.
func (r *slot) overlaps(o *slot) bool {
	return r.guest-o.guest < o.size || o.guest-r.guest < r.size || r.user-o.user < o.size || o.user-r.user < r.size
}

// add maps a region beside others.
func add(slots []slot, b []byte, fd int) ([]slot, error) {
	r, offset, err := region(b)
	if err != nil {
		return slots, err
	}
	if i := slices.IndexFunc(slots, func(o slot) bool { return r.overlaps(&o) }); i >= 0 {
		return slots, malformed("regions at %#x and at %#x overlap", slots[i].guest, r.guest)
	}
	if r.mapping, err = mapShared(fd, offset, r.size); err != nil {
		return slots, err
	}
	return append(slots, r), nil
}

func (s *Session) setMemTable(b []byte) error {
	n := u32(b)
	b = b[8:]
	if int(n) != len(s.fds) || int(n)*regionLen != len(b) {
		return malformed("%d regions in %d bytes with %d descriptors", n, len(b), len(s.fds))
	}
	var slots []slot
	for i := range s.fds {
		var err error
		if slots, err = add(slots, b[i*regionLen:], s.fds[i]); err != nil {
			unmap(slots)
			return err
		}
	}
	return s.changeMemory(slots, s.memory)
}

func (s *Session) getMaxMemSlots([]byte) error { return s.answer(maxSlots) }

func (s *Session) addMemReg(b []byte) error {
	switch {
	case len(s.fds) != 1:
		return malformed("no descriptor")
	case len(s.memory) == maxSlots:
		return malformed("more than %d regions", maxSlots)
	}
	slots, err := add(slices.Clip(s.memory), b[8:], s.fds[0])
	if err != nil {
		return err
	}
	return s.changeMemory(slots, nil)
}

// remMemReg takes a region away. Older monitors pass its descriptor once more.
func (s *Session) remMemReg(b []byte) error {
	r, _, err := region(b[8:])
	if err != nil {
		return err
	}
	i := slices.IndexFunc(s.memory, func(o slot) bool {
		return o.guest == r.guest && o.user == r.user && o.size == r.size
	})
	if i < 0 {
		return malformed("no region at %#x, or %#x, of %#x bytes", r.guest, r.user, r.size)
	}
	gone := s.memory[i]
	return s.changeMemory(slices.Concat(s.memory[:i], s.memory[i+1:]), []slot{gone})
}

// changeMemory has the device go over to other slots, and unmaps those that are
// gone. What may start now, does.
func (s *Session) changeMemory(slots, gone []slot) error {
	s.memory = slots
	s.config.Remains.spend(len(slots) * slotCost)
	regions := make([]vhost.Region, 0, len(slots))
	for i := range slots {
		regions = append(regions, vhost.Region{Guest: slots[i].guest, User: slots[i].user, Mem: slots[i].used})
	}
	err := s.dev.SetMemory(regions)
	unmap(gone)
	if err != nil {
		return malformed("memory: %v", err)
	}
	return s.startAll()
}
