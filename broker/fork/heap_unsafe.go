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

// early lies in the arena that the heap begins in. That may be a short one, since the
// runtime begins at a place in it that is chance; it goes on right behind that.
var early = new([64]byte)

// arenas are those that the heap is in, of a process whose heap is not longer than one:
// where it begins, the next, and the list's, which is one of these or all that is known.
type arenas [3]uintptr

// withhold keeps the heap from children, but for what the list needs, and returns where it
// is, zeros where nothing is kept from them. What lies in other arenas they have.
func (l *List) withhold() (heap arenas) {
	if !l.bare {
		return heap
	}
	pages := l.pages()
	begin := uintptr(unsafe.Pointer(early)) &^ (arenaSize - 1)
	heap = arenas{begin, begin + arenaSize, uintptr(unsafe.Pointer(l)) &^ (arenaSize - 1)}
	for _, a := range heap {
		advise(a, arenaSize, unix.MADV_DONTFORK) // where it is refused, or nothing there, nothing is kept back
	}
	for _, p := range pages {
		if advise(p.from, p.size, unix.MADV_DOFORK) != 0 {
			giveBack(&heap)
			return arenas{}
		}
	}
	return heap
}

// keepStack gives children the stack that the caller runs on, of which the runner and
// what that calls take less than a page.
//
//go:nosplit
//go:norace
func keepStack(heap *arenas) {
	var here byte
	at := uintptr(unsafe.Pointer(&here)) &^ (page - 1)
	if heap[0] != 0 && advise(at-page, 3*page, unix.MADV_DOFORK) != 0 {
		giveBack(heap)
	}
}

// giveBack gives children all of the heap again.
//
//go:nosplit
//go:norace
func giveBack(heap *arenas) {
	for i := range heap {
		if heap[i] != 0 {
			advise(heap[i], arenaSize, unix.MADV_DOFORK)
		}
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
