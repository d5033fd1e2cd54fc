// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// maxClosers is how many threads may close descriptors beside us.
const maxClosers = 4

// closing are the descriptors that somebody else closes.
var closing struct {
	sync.Mutex
	waiting []int
	closers int
}

// discard closes a descriptor, of which nothing is known. To close a file of a
// file system in user space is to ask that, and to close a socket may be to wait for its
// peer, as its owner has wanted it. So another thread does it, unless the kernel
// says that the file is one of memory. Where as many threads already wait as may,
// the descriptor stays open until then. Negative: none.
func discard(fd int) {
	if fd < 0 {
		return
	}
	if isMemory(fd) || isEvent(fd) {
		closeFD(fd)
		return
	}
	closing.Lock()
	defer closing.Unlock()
	closing.waiting = append(closing.waiting, fd)
	if closing.closers < maxClosers {
		closing.closers++
		go closeWaiting()
	}
}

func closeWaiting() {
	closing.Lock()
	defer closing.Unlock()
	for len(closing.waiting) > 0 {
		fd := closing.waiting[0]
		closing.waiting = closing.waiting[1:]
		closing.Unlock()
		closeFD(fd)
		closing.Lock()
	}
	closing.closers--
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
func isEvent(fd int) bool {
	var tooShort [4]byte
	if _, err := unix.Preadv2(fd, nil, -1, unix.RWF_NOWAIT); err != nil {
		return false
	}
	_, err := unix.Preadv2(fd, [][]byte{tooShort[:]}, -1, unix.RWF_NOWAIT)
	return err == unix.EINVAL
}

func closeFD(fd int) { _ = unix.Close(fd) }

// What a front end makes us allocate, in bytes and about; and how much of that may be
// garbage. The collector is off in a worker, since frames leave none.
const (
	messageCost = 512
	slotCost    = 512
	maxGarbage  = 32 << 20
)

var garbage int

// spend notes what was allocated, and has it collected where it has become much.
func spend(bytes int) {
	if garbage += bytes; garbage > maxGarbage {
		garbage = 0
		runtime.GC()
	}
}
