// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// maxClosers is how many threads may close descriptors beside us.
	maxClosers = 4
	// maxWaiting is with how many that wait to be closed no more are taken.
	maxWaiting = 256
)

// Remains are what sessions leave behind: descriptors that are still to be closed, and
// garbage. Sessions that follow each other share them; the zero value has none.
type Remains struct {
	mu      sync.Mutex
	waiting []int // descriptors that somebody else closes
	closers int   // who do
	garbage int   // bytes, since the last collection
}

// discard closes a descriptor, of which nothing is known. To close a file of a
// file system in user space is to ask that, and to close a socket may be to wait for its
// peer, as its owner has wanted it. So another thread does it, unless the kernel
// says that the file is one of memory. Where as many threads already wait as may,
// the descriptor stays open until then. Negative: none.
func (r *Remains) discard(fd int) {
	if fd < 0 {
		return
	}
	if isMemory(fd) || isEvent(fd) {
		closeFD(fd)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = append(r.waiting, fd)
	if r.closers < maxClosers {
		r.closers++
		go r.closeWaiting()
	}
}

func (r *Remains) closeWaiting() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.waiting) > 0 {
		fd := r.waiting[0]
		r.waiting = r.waiting[1:]
		r.mu.Unlock()
		closeFD(fd)
		r.mu.Lock()
	}
	r.closers--
}

// full tells whether so many descriptors wait to be closed that no more are to come.
func (r *Remains) full() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.waiting) >= maxWaiting
}

// isMemory tells whether a descriptor is a memfd, or a file of tmpfs or hugetlbfs.
// Only they have seals, and no file system is asked.
func isMemory(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	return err == nil
}

// isEvent tells whether a descriptor is an eventfd. A file system in user space may
// let whoever asks for a file's status, or polls it, wait for as long as it likes.
// These reads ask nobody. The kernel itself refuses the second one, by EOPNOTSUPP, for
// files that cannot promise not to block; an eventfd refuses it, by EINVAL, since its
// number is longer. To read nothing works with all that can be read. So nothing is
// taken of an eventfd.
//
// Of what promises that, files without page cache refuse so few bytes as well, and
// sockets that are not connected: these have a type, which the kernel's own files
// have not. Timers have none either, but nobody can write to them, be it nothing.
func isEvent(fd int) bool {
	var tooShort [4]byte
	if _, err := unix.Preadv2(fd, nil, -1, unix.RWF_NOWAIT); err != nil {
		return false
	}
	if _, err := unix.Preadv2(fd, [][]byte{tooShort[:]}, -1, unix.RWF_NOWAIT); err != unix.EINVAL {
		return false
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != 0 {
		return false
	}
	_, err := unix.Writev(fd, nil)
	return err == nil
}

func closeFD(fd int) { _ = unix.Close(fd) }

// What a front end makes us allocate, in bytes and about; and how much of that may be
// garbage. The collector is off in a worker, since frames leave none.
const (
	messageCost = 512
	slotCost    = 512
	maxGarbage  = 32 << 20
)

// spend notes what was allocated, and has it collected where it has become much.
func (r *Remains) spend(bytes int) {
	if r.garbage += bytes; r.garbage > maxGarbage {
		r.garbage = 0
		runtime.GC()
	}
}
