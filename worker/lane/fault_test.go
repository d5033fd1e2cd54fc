// SPDX-License-Identifier: Apache-2.0

package lane

import (
	"errors"
	"math/rand/v2"
	"runtime/debug"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// TestMemoryGoneInACall: what a system call finds of a guest's memory that is not there
// ends the link, and no more.
func TestMemoryGoneInACall(t *testing.T) {
	gone, err := unix.Mmap(-1, 0, 1<<16, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(gone)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	unix.Write(pair[1], make([]byte, 100))
	fd := int32(pair[0])
	for name, call := range map[string]func(l *Lane) syscall.Errno{
		"write":   func(l *Lane) syscall.Errno { _, e := l.Write(fd, gone[:8]); return e },
		"writev":  func(l *Lane) syscall.Errno { _, e := l.Writev(fd, [][]byte{gone[:8], gone[8:16]}); return e },
		"recvmsg": func(l *Lane) syscall.Errno { _, e := l.RecvPieces(fd, [][]byte{gone[:8]}, unix.MSG_PEEK); return e },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkVhostUser, 1500, true)
			w.turn()
			if w.l.link == nil {
				t.Fatal("no link")
			}
			if e := call(w.l); e != syscall.EFAULT {
				t.Fatal(e)
			}
			w.l.finish() // as a turn ends
			if w.l.link != nil || w.l.err != nil {
				t.Errorf("link %v, lane %v", w.l.link, w.l.err)
			}
			unix.Close(w.peer)
			w.connectLink()
			if w.turn(); w.l.link == nil {
				t.Error("the next one is not taken")
			}
		})
	}
}

// TestMemoryShrinks: a file of memory that shrinks makes a fault where a ring is looked
// at, which the lane can catch, and nothing else.
func TestMemoryShrinks(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)), ipc.LinkVhostUser, 1500, true)
	w.turn()
	for _, r := range w.machine.Mem.Regions {
		if err := unix.Ftruncate(r.FD, 0); err != nil {
			t.Fatal(err)
		}
	}
	w.machine.Rings[1].ForceKick()
	err := func() (err error) {
		defer func() {
			if fault := recover(); fault != nil {
				err = memoryFault(fault)
			}
		}()
		w.l.turn()
		return nil
	}()
	if !errors.Is(err, errFault) {
		t.Errorf("a look at memory that is gone: %v", err)
	}
	for name := range fixtures { // its lane is not to be used again
		if fixtures[name].l == w.l {
			delete(fixtures, name)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("another panic is taken for a fault of memory")
		}
	}()
	memoryFault(errors.New("another"))
}
