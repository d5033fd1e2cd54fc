// SPDX-License-Identifier: Apache-2.0

package vhost

import "encoding/binary"

// descriptor is one, as it was read.
type descriptor struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16
}

// readDescriptor reads one, each byte once.
func readDescriptor(table []byte, i int) descriptor {
	b := table[i*descSize : (i+1)*descSize]
	rest := binary.LittleEndian.Uint64(b[8:])
	return descriptor{binary.LittleEndian.Uint64(b), uint32(rest), uint16(rest >> 32), uint16(rest >> 48)}
}

// walk collects the pieces of a chain.
func (r *Ring) walk(c *Chain, a *Arena) bool {
	table, i, indirect := r.desc, int(c.head), false
	first := len(a.pieces)
	c.Len = 0
	for left := min(r.s.Size, MaxPieces); ; left-- {
		if left == 0 {
			return r.refuse(a, first, "a chain without end, or of more than %d descriptors", MaxPieces)
		}
		d := readDescriptor(table, i)
		if d.flags&descIndirect != 0 {
			if table = r.table(&d, indirect); table == nil {
				return r.refuse(a, first, "")
			}
			i, left, indirect = 0, len(table)/descSize+1, true
			continue
		}
		if d.flags&descWrite != 0 != r.s.Writable {
			return r.refuse(a, first, "a buffer of the wrong direction")
		}
		if !r.pieces(c, a, first, &d) {
			return false
		}
		if d.flags&descNext == 0 {
			break
		}
		if i = int(d.next); i >= len(table)/descSize {
			return r.refuse(a, first, "descriptor %d follows, of %d", i, len(table)/descSize)
		}
	}
	c.Pieces = a.pieces[first:len(a.pieces):len(a.pieces)]
	c.at = a.at[first:len(a.at):len(a.at)]
	return true
}

// refuse gives back the room that a chain has taken so far. The ring is of no use, for
// the reason that is given or for one that is known.
func (r *Ring) refuse(a *Arena, first int, format string, args ...any) bool {
	a.drop(first)
	if format != "" {
		_ = r.broken(format, args...)
	}
	return false
}

// table finds a table of descriptors, virtio 1.3 section 2.7.5.3. It is valid until the
// next one is looked for.
func (r *Ring) table(d *descriptor, within bool) []byte {
	switch {
	case !r.s.Indirect:
		_ = r.broken("a table of descriptors, which was not agreed on")
	case within:
		_ = r.broken("a table of descriptors within another")
	case d.flags&descNext != 0:
		_ = r.broken("a descriptor behind a table of them")
	case d.len == 0 || d.len%descSize != 0 || d.len > MaxPieces*descSize:
		_ = r.broken("a table of descriptors of %d bytes", d.len)
	default:
		if t := r.mem.table(d.addr, int(d.len)); t != nil {
			return t
		}
		_ = r.broken("a table of descriptors outside the guest's memory, at %#x", d.addr)
	}
	return nil
}

// pieces adds what a descriptor describes, which may lie in several regions.
func (r *Ring) pieces(c *Chain, a *Arena, first int, d *descriptor) bool {
	addr, n := d.addr, uint64(d.len)
	if uint64(c.Len)+n > maxChainLen {
		return r.refuse(a, first, "a chain of more than %d bytes", maxChainLen)
	}
	c.Len += int(n)
	for n > 0 {
		b := r.mem.at(addr, n)
		switch {
		case b == nil:
			return r.refuse(a, first, "a buffer outside the guest's memory, at %#x", addr)
		case len(a.pieces)-first == MaxPieces:
			return r.refuse(a, first, "a chain of more than %d pieces", MaxPieces)
		case len(a.pieces) == cap(a.pieces) && first == 0:
			return r.refuse(a, first, "a chain of more than %d pieces", cap(a.pieces))
		case len(a.pieces) == cap(a.pieces):
			return r.refuse(a, first, "") // later there is room
		}
		a.pieces = append(a.pieces, b)
		a.at = append(a.at, addr)
		addr += uint64(len(b))
		n -= uint64(len(b))
	}
	return true
}
