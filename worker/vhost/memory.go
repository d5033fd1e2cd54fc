// SPDX-License-Identifier: Apache-2.0

// Package vhost reads and writes the memory that a virtual machine shares with us,
// and the rings of descriptors in it: split virtqueues, virtio 1.3 section 2.7, from
// the device's side.
//
// All of it is hostile, and changes while it is looked at. What decides something is
// read once, then checked: indexes, addresses, lengths, flags. Nothing here makes a
// system call, and after set-up nothing allocates. Memory whose file has shrunk faults;
// that ends in a panic which the lane catches (debug.SetPanicOnFault).
package vhost

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// MaxRegions is how many parts the guest's memory may have: as many slots as Linux
// has for a machine in KVM, which QEMU follows.
const MaxRegions = 509

// ErrMemory means that memory was described that cannot be. Errors that say what is
// wrong wrap it.
var ErrMemory = errors.New("guest's memory")

// Region is a part of the guest's memory, mapped here, readable and writable. All of it is
// whole pages of 4 KiB.
type Region struct {
	Guest uint64 // address as the guest has it, in descriptors
	User  uint64 // address as the front end has it, of rings
	Mem   []byte // its length is the region's, above zero
}

// Memory is all of a guest's memory.
type Memory struct {
	guest []Region // by Guest
	user  []Region // by User
	last  Region   // of guest, where an address was found last
	log   []byte   // bits of pages, nil: nothing is logged

	joined [MaxPieces * descSize]byte // a table of descriptors that lies in several regions
}

// Set replaces all regions. None may be empty, overlap another or reach the end of the
// addresses, neither as the guest has them nor as the front end has them. After
// an error all is as before.
func (m *Memory) Set(all []Region) error {
	if len(all) > MaxRegions {
		return fmt.Errorf("%w: %d regions, of at most %d", ErrMemory, len(all), MaxRegions)
	}
	guest, user := slices.Clone(all), slices.Clone(all)
	slices.SortFunc(guest, func(a, b Region) int { return cmp.Compare(a.Guest, b.Guest) })
	slices.SortFunc(user, func(a, b Region) int { return cmp.Compare(a.User, b.User) })
	for i := range guest {
		g, u := &guest[i], &user[i]
		switch {
		case len(g.Mem) == 0:
			return fmt.Errorf("%w: a region of no size at %#x", ErrMemory, g.Guest)
		case (g.Guest|g.User|uint64(len(g.Mem)))%pageSize != 0 || !aligned(g.Mem, 8):
			return fmt.Errorf("%w: the region at %#x, or %#x, of %#x bytes is not of whole pages", ErrMemory, g.Guest, g.User, len(g.Mem))
		case g.Guest+uint64(len(g.Mem)) < g.Guest, u.User+uint64(len(u.Mem)) < u.User:
			return fmt.Errorf("%w: the region at %#x goes round", ErrMemory, g.Guest)
		case i > 0 && guest[i-1].Guest+uint64(len(guest[i-1].Mem)-1) >= g.Guest:
			return fmt.Errorf("%w: two regions have guest address %#x", ErrMemory, g.Guest)
		case i > 0 && user[i-1].User+uint64(len(user[i-1].Mem)-1) >= u.User:
			return fmt.Errorf("%w: two regions have user address %#x", ErrMemory, u.User)
		}
	}
	m.guest, m.user, m.last = guest, user, Region{}
	return nil
}

// SetLog says where pages are marked that are written to: a bit for each 4 KiB from
// guest address zero on, the lowest of a byte first. nil: nowhere. The memory begins
// at a boundary of four bytes; of a part of four bytes at its end, nothing is used.
func (m *Memory) SetLog(bits []byte) {
	m.log = nil
	if aligned(bits, 4) {
		m.log = bits[:len(bits)&^3]
	}
}

// find returns the last region that begins at or before an address.
func find(all []Region, addr uint64, at func(*Region) uint64) *Region {
	lo, hi := 0, len(all)
	for lo < hi {
		if mid := int(uint(lo+hi) / 2); at(&all[mid]) <= addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return nil
	}
	return &all[lo-1]
}

func guestAddr(r *Region) uint64 { return r.Guest }
func userAddr(r *Region) uint64  { return r.User }

// from is the memory of a region from an address on, nil: none. Preconditions:
// it begins at or before it.
func (r *Region) from(base, addr uint64) []byte {
	if off := addr - base; off < uint64(len(r.Mem)) {
		return r.Mem[off:]
	}
	return nil
}

// User returns n bytes at an address of the front end's, within one region; nil if they
// are not all there.
func (m *Memory) User(addr, n uint64) []byte {
	r := find(m.user, addr, userAddr)
	if r == nil {
		return nil
	}
	if b := r.from(r.User, addr); uint64(len(b)) >= n {
		return b[:n:n]
	}
	return nil
}

// at returns the beginning of n bytes, above zero, at an address of the guest's: as many as the region has
// that it is in, or nil if there is none.
func (m *Memory) at(addr, n uint64) []byte {
	off := addr - m.last.Guest
	if off >= uint64(len(m.last.Mem)) {
		r := find(m.guest, addr, guestAddr)
		if r == nil {
			return nil
		}
		if off = addr - r.Guest; off >= uint64(len(r.Mem)) {
			return nil
		}
		m.last = *r
	}
	end := min(off+n, uint64(len(m.last.Mem)))
	return m.last.Mem[off:end:end]
}

// table returns a table of descriptors of n bytes, above zero and not more than there is room for where
// it lies in several regions: then it is joined. nil: it is not all there.
func (m *Memory) table(addr uint64, n int) []byte {
	b := m.at(addr, uint64(n))
	if len(b) == n || b == nil {
		return b
	}
	for have := 0; have < n; {
		if b = m.at(addr+uint64(have), uint64(n-have)); b == nil {
			return nil
		}
		have += copy(m.joined[have:n], b)
	}
	return m.joined[:n]
}

// mark notes that n bytes at a guest's address were written to.
func (m *Memory) mark(addr, n uint64) {
	if m.log == nil || n == 0 {
		return
	}
	last := (addr + n - 1) / pageSize
	for page := addr / pageSize; page <= last && page/8 < uint64(len(m.log)); page++ {
		orByte(m.log, page/8, 1<<(page%8))
	}
}

const pageSize = 4096
