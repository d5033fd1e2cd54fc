// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"aldente/ipc"
	"aldente/worker/flow"
)

// putSearch adds the search list, compressed (RFC 3397). If room is short, it
// holds the domains from the start of the list that fit.
func (r *reply) putSearch(g *flow.Guest) {
	var v [ipc.MaxSearch * (ipc.MaxDomain + 2)]byte
	n := 0
	for i := range min(int(g.NSearch), ipc.MaxSearch) {
		end := putName(v[:], n, name(&g.Search[i]), true)
		if end+2*((end+254)/255) > r.room() {
			break
		}
		n = end
	}
	if n > 0 {
		r.put(optionSearch, v[:n])
	}
}

// putName writes a domain name to b[start:], in the format of RFC 1035
// section 3.1 and, if compress is set, with pointers to the names in b[:start]
// (section 4.1.4). It returns where the name ends; start, if it does not fit b
// or is no domain name.
func putName(b []byte, start int, name []byte, compress bool) int {
	name = trimDot(name)
	if len(name) == 0 || len(name)+2 > 255 || name[len(name)-1] == '.' {
		return start
	}
	n := start
	for len(name) > 0 {
		if compress {
			if at := find(b[:start], name); at >= 0 {
				return putPointer(b, start, n, at)
			}
		}
		size := labelSize(name)
		if size == 0 || size > 63 || n+1+size > len(b) {
			return start
		}
		b[n] = uint8(size)
		n += 1 + copy(b[n+1:], name[:size])
		name = name[min(size+1, len(name)):]
	}
	if n == len(b) {
		return start
	}
	b[n] = 0
	return n + 1
}

func putPointer(b []byte, start, n, at int) int {
	if n+2 > len(b) {
		return start
	}
	b[n], b[n+1] = 0xc0|uint8(at>>8), uint8(at)
	return n + 2
}

// labelSize is the length of the first label of name.
func labelSize(name []byte) int {
	for i, c := range name {
		if c == '.' {
			return i
		}
	}
	return len(name)
}

// find looks for name, or the end of one that is name, among the names in b,
// and returns where it starts, or -1. It is written there without a pointer: not
// every client follows a pointer to a pointer. Pointers reach 16 KiB, more than b
// ever holds.
func find(b, name []byte) int {
	for at := 0; at < len(b); {
		switch {
		case b[at] == 0:
			at++
		case b[at]&0xc0 != 0:
			at += 2
		case same(b, at, name):
			return at
		default:
			at += 1 + int(b[at])
		}
	}
	return -1
}

// same tells whether the name at b[at:] is name, written out to its end.
func same(b []byte, at int, name []byte) bool {
	for {
		size := int(b[at])
		switch {
		case size == 0:
			return len(name) == 0
		case size&0xc0 != 0, labelSize(name) != size, string(b[at+1:at+1+size]) != string(name[:size]):
			return false
		}
		name = name[min(size+1, len(name)):]
		at += 1 + size
	}
}
