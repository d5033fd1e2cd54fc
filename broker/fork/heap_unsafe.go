// SPDX-License-Identifier: Apache-2.0

package fork

import (
	"cmp"
	"os"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A child of clone(2) has a copy of all memory, and has to be kept from showing it to
// a guest whose namespace it joins. And as long as it is there, or until they are
// written once more, the parent's pages are write-protected: each costs it a page fault
// and, where its threads run on several processors, an interrupt to all of them. So
// a child gets nothing of Go's heap but the pages of what its list points to, and
// of the stack that it runs on.

// WithoutHeap has the child get no more of the heap than it needs. It is for parents
// that are not confined: their filters forbid what it takes.
func (l *List) WithoutHeap() { l.bare = true }

// arenaSize is what Go's heap grows by, and is aligned to, on all 64-bit machines.
const arenaSize = 64 << 20

// span is memory from an address on.
type span struct{ from, size uintptr }

// need notes that the child reads or writes memory.
func (l *List) need(p unsafe.Pointer, size uintptr) {
	if p != nil && size > 0 {
		l.needs = append(l.needs, span{uintptr(p), size})
	}
}

// needVector notes strings with their final NUL, and the pointers to them.
func (l *List) needVector(v []*byte) {
	l.need(unsafe.Pointer(unsafe.SliceData(v)), uintptr(len(v))*unsafe.Sizeof(uintptr(0)))
	for _, s := range v {
		if s != nil {
			l.need(unsafe.Pointer(s), uintptr(len(unix.BytePtrToString(s)))+1)
		}
	}
}

// needAll notes the list itself, and those of its children.
func (l *List) needAll() (all []span) {
	l.need(unsafe.Pointer(l), unsafe.Sizeof(*l))
	l.need(unsafe.Pointer(unsafe.SliceData(l.steps)), uintptr(len(l.steps))*unsafe.Sizeof(Step{}))
	for i := range l.steps {
		s := &l.steps[i]
		l.need(unsafe.Pointer(s.p), 8)
		l.need(unsafe.Pointer(s.q), 8)
		l.need(unsafe.Pointer(s.text), 3)
		l.need(unsafe.Pointer(s.extra), 4)
		if s.exec != nil {
			l.needExec(s.exec)
		}
		if s.list != nil {
			all = append(all, s.list.needAll()...)
		}
	}
	return append(all, l.needs...)
}

func (l *List) needExec(e *Exec) {
	l.need(unsafe.Pointer(e), unsafe.Sizeof(*e))
	l.need(unsafe.Pointer(unsafe.SliceData(e.paths)), uintptr(len(e.paths))*unsafe.Sizeof(e.argv))
	for _, p := range e.paths {
		l.need(unsafe.Pointer(unsafe.SliceData(p)), uintptr(len(p)))
	}
	l.need(unsafe.Pointer(unsafe.SliceData(e.scripts)), uintptr(len(e.scripts))*unsafe.Sizeof(e.argv))
	for _, v := range e.scripts {
		l.needVector(v)
	}
	l.needVector(e.argv)
	l.needVector(e.envv)
}

// page is the size of a page, in bytes.
var page = uintptr(os.Getpagesize())

// pages returns what needAll says as whole pages, in order, no two of which touch.
func (l *List) pages() []span {
	all := l.needAll()
	for i, n := range all {
		from := n.from &^ (page - 1)
		all[i] = span{from, (n.from+n.size+page-1)&^(page-1) - from}
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	merged := all[:0]
	for _, p := range all {
		if last := len(merged) - 1; last >= 0 && p.from <= merged[last].from+merged[last].size {
			merged[last].size = max(merged[last].size, p.from+p.size-merged[last].from)
			continue
		}
		merged = append(merged, p)
	}
	return merged
}

// withhold keeps from children the arena that the list is in, but for what it needs,
// and returns where that is, zero where nothing is kept from them. What lies in
// another arena they have.
func (l *List) withhold() (arena uintptr) {
	if !l.bare {
		return 0
	}
	pages := l.pages()
	arena = uintptr(unsafe.Pointer(l)) &^ (arenaSize - 1)
	advise(arena, arenaSize, unix.MADV_DONTFORK)
	for _, p := range pages {
		if advise(p.from, p.size, unix.MADV_DOFORK) != 0 {
			giveBack(arena)
			return 0
		}
	}
	return arena
}

// keepStack gives children the stack that the caller runs on, of which the runner and
// what that calls take less than a page.
//
//go:nosplit
//go:norace
func keepStack(arena uintptr) {
	var here byte
	at := uintptr(unsafe.Pointer(&here)) &^ (page - 1)
	if arena != 0 && advise(at-page, 3*page, unix.MADV_DOFORK) != 0 {
		giveBack(arena)
	}
}

// giveBack gives children all of an arena again.
//
//go:nosplit
//go:norace
func giveBack(arena uintptr) {
	if arena != 0 {
		advise(arena, arenaSize, unix.MADV_DOFORK)
	}
}

// advise is madvise(2).
//
//go:nosplit
//go:norace
func advise(from, size, advice uintptr) syscall.Errno {
	_, _, errno := syscall.RawSyscall(unix.SYS_MADVISE, from, size, advice)
	return errno
}
