// SPDX-License-Identifier: Apache-2.0

// Package fork is fork(2) for a program that has several threads. It is for children
// that have to join namespaces, which the kernel allows to single-threaded processes
// only and package syscall does not offer.
//
// What a child does is a list of steps: a system call, its arguments, and what its
// failure means. The parent lays the list out (List), one runner works it off in the
// child (run), and which step failed the parent reads from a pipe, by name (Report).
//
// The child has only the thread that made it: a lock that another thread held is
// held for ever, and the scheduler, the collector and the stack's growth are not
// there. So between clone(2) and execve(2) nothing may allocate, grow the stack
// or lock. That is held by the runner, and by nobody else. The function run and
// all that it calls are nosplit, so that they neither ask for more stack nor are
// pre-empted. They are norace, since the race detector is a runtime too. They
// write numbers only, never pointers, of which the collector would have to know.
// Everything else happens before, in the parent, where it may allocate as it
// likes. Memory that steps point to is kept by the list, and is the heap's,
// which does not move.
package fork

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Raw values that golang.org/x/sys does not name for all architectures.
const (
	CloseRangeCloexec = 1 << 2              // CLOSE_RANGE_CLOEXEC, include/uapi/linux/close_range.h
	AllFDs            = uintptr(^uint32(0)) // the last descriptor, for close_range(2)
	AtFDCWD           = ^uintptr(99)        // AT_FDCWD, -100
)

// Slot is where a step puts the result of its call, for later steps: as an argument
// it stands for that number.
type Slot uint8

// slots is how many there are. A power of two, so that no index is out of range.
const slots = 4

// Label is a place in a list that steps lead to.
type Label int32

// The actions on an error.
const (
	actFail   = iota // report, and end with the list's status
	actQuit          // end with the error's number as status
	actNote          // report, and go on
	actIgnore        // go on
)

// The kinds of steps.
const (
	opCall   = iota
	opSet    // a slot to a number
	opJump   // to a label
	opSame   // fails unless two numbers are equal
	opAwait  // for a byte from a descriptor; ends if there is none
	opTell   // a report that is no failure
	opClone  // another child, which goes on with a list of its own
	opNest   // another child, which goes on with this one; we wait for it and end as it does
	opDigits // an error's number as text
	opRaise  // all capabilities that are permitted become effective, in the copy
	opPass   // those of a set that are permitted become inheritable, in the copy
	opOnly   // those that are inheritable, and no others, in the copy
	opExec   // as execvp(3)
	opExit
)

// Step is one of a list. The methods say more about it, right after it was added.
type Step struct {
	op     uint8
	act    uint8
	isSlot uint8         // a bit for each argument that is a slot's number
	into   Slot          // where the result goes, plus one
	errno  Slot          // where the error's number goes, plus one
	allow  syscall.Errno // an error that is none
	miss   int32         // label to go on at after an error that does not end the child, 0: the next step
	nr     uintptr
	args   [5]uintptr
	p, q   *uint64
	text   *[3]byte
	extra  *int32
	list   *List
	exec   *Exec
	phase  string
}

// List is what a child does, in order.
type List struct {
	steps  []Step
	labels []int32 // where they are in steps; the first is none
	phase  string
	keep   []any // what the steps point to
	needs  []span
	bare   bool // the child gets no more of the heap than it needs

	// What the child writes to, besides what steps point to.
	slots    [slots]uintptr
	status   uintptr // descriptor for reports
	failed   uintptr // exit status
	caps     capabilities
	record   record
	buf      [1]byte
	wait     uint32
	mask     [8]byte // signals that are blocked but for the time of clone(2)
	action   sigaction
	standard sigaction // of SIG_DFL
	mute     bool      // nobody reads reports
	closed   bool      // the list has its end
}

// sigaction is the kernel's struct sigaction, and room: the handler comes first on all
// machines.
type sigaction [8]uint64

// sigIgn is SIG_IGN as a handler, asm-generic/signal-defs.h.
const sigIgn = 1

// capabilities are the arguments of capget(2) and capset(2).
type capabilities struct {
	header unix.CapUserHeader
	data   [2]unix.CapUserData
}

// record is a Report as it crosses the pipe.
type record struct{ step, errno, result, extra int32 }

// RecordSize is the size of what one report takes in the pipe, in bytes.
const RecordSize = 16

// New begins a list. Its child writes reports to the descriptor status, or to nobody
// if that is negative, and ends with the exit status failed where it cannot go on.
//
//go:noinline
func New(status, failed int) *List { // not inlined: a list is the heap's, where it does not move
	l := &List{labels: make([]int32, 1), status: uintptr(status), failed: uintptr(failed), mute: status < 0}
	l.caps.header.Version = unix.LINUX_CAPABILITY_VERSION_3
	return l
}

// Phase names what the steps that follow are for.
func (l *List) Phase(name string) { l.phase = name }

func (l *List) add(s Step) *Step {
	s.phase = l.phase
	l.steps = append(l.steps, s)
	return &l.steps[len(l.steps)-1]
}

// Must is a call that the child cannot do without. Arguments are numbers, slots,
// strings and bytes, of which the call gets the address, Pointer, or nil for zero.
func (l *List) Must(nr uintptr, args ...any) *Step { return l.call(actFail, nr, args) }

// Quit is Must for a child whose exit status is all that anybody reads: it is the
// error's number.
func (l *List) Quit(nr uintptr, args ...any) *Step { return l.call(actQuit, nr, args) }

// Note is a call whose failure is told, and no more.
func (l *List) Note(nr uintptr, args ...any) *Step { return l.call(actNote, nr, args) }

// Try is a call whose failure is of no concern.
func (l *List) Try(nr uintptr, args ...any) *Step { return l.call(actIgnore, nr, args) }

func (l *List) call(act uint8, nr uintptr, args []any) *Step {
	s := Step{op: opCall, act: act, nr: nr}
	for i, a := range args {
		s.args[i], s.isSlot = l.argument(a, s.isSlot, i)
	}
	return l.add(s)
}

// Into puts the call's result into a slot.
func (s *Step) Into(slot Slot) *Step { s.into = slot + 1; return s }

// ErrorInto puts the number of the call's error, or zero, into a slot.
func (s *Step) ErrorInto(slot Slot) *Step { s.errno = slot + 1; return s }

// Allow makes an error none.
func (s *Step) Allow(e syscall.Errno) *Step { s.allow = e; return s }

// Else goes on at a label after an error that does not end the child.
func (s *Step) Else(to Label) *Step { s.miss = int32(to); return s }

// Label makes a label. At says where it is.
func (l *List) Label() Label {
	l.labels = append(l.labels, -1)
	return Label(len(l.labels) - 1)
}

// At puts a label before the next step.
func (l *List) At(to Label) { l.labels[to] = int32(len(l.steps)) }

// Jump goes on at a label.
func (l *List) Jump(to Label) { l.add(Step{op: opJump, miss: int32(to)}) }

// Set puts a number, or an address, into a slot.
func (l *List) Set(slot Slot, value any) {
	s := Step{op: opSet, into: slot + 1}
	s.args[0], s.isSlot = l.argument(value, 0, 0)
	l.add(s)
}

// Same fails unless two numbers are equal when the step's turn comes.
func (l *List) Same(p, q *uint64) *Step { return l.add(Step{op: opSame, act: actIgnore, p: p, q: q}) }

// Await waits for a byte from a descriptor, and ends the child if there is none any
// more: whoever was to write it is gone.
func (l *List) Await(fd int) { l.add(Step{op: opAwait, args: [5]uintptr{uintptr(fd)}}) }

// ReportTo has reports go to another descriptor from now on.
func (l *List) ReportTo(fd int) { l.add(Step{op: opSet, args: [5]uintptr{uintptr(fd)}}) }

// Tell reports that the child has come so far, with a slot's number and one from
// memory, nil for none.
func (l *List) Tell(slot Slot, extra *int32) {
	l.add(Step{op: opTell, args: [5]uintptr{uintptr(slot)}, extra: extra})
}

// Clone makes another child, as Start does, that works off a list of its own. The
// result is its process identifier, as it is here.
func (l *List) Clone(flags uintptr, pidfd *int32, child *List) *Step {
	child.close()
	return l.add(Step{op: opClone, nr: flags, extra: pidfd, list: child})
}

// Nest makes another child, which goes on with this list, while this one waits for
// it and then ends with its exit status. If there is no child it ends with status.
func (l *List) Nest(status int) { l.add(Step{op: opNest, args: [5]uintptr{uintptr(status)}}) }

// Digits writes the error number that a slot holds as three digits, if it is one.
func (l *List) Digits(slot Slot, text *[3]byte) {
	l.add(Step{op: opDigits, args: [5]uintptr{uintptr(slot)}, text: text})
}

// Exit ends the child.
func (l *List) Exit(status int) { l.add(Step{op: opExit, args: [5]uintptr{uintptr(status)}}) }

// RaiseCapabilities makes all permitted capabilities effective.
func (l *List) RaiseCapabilities() { l.changeCapabilities(opRaise, 0) }

// PassCapabilities makes all permitted capabilities effective, and those of a
// set that are among them inheritable. They have to be that before the bounding
// set is emptied.
func (l *List) PassCapabilities(set uint32) { l.changeCapabilities(opPass, set) }

// OnlyCapabilities leaves the process those that are inheritable.
func (l *List) OnlyCapabilities() { l.changeCapabilities(opOnly, 0) }

func (l *List) changeCapabilities(op uint8, set uint32) {
	l.Must(unix.SYS_CAPGET, Pointer(&l.caps.header), Pointer(&l.caps.data))
	l.add(Step{op: op, args: [5]uintptr{uintptr(set)}})
	l.Must(unix.SYS_CAPSET, Pointer(&l.caps.header), Pointer(&l.caps.data))
}

// close ends the list.
func (l *List) close() {
	if l.closed {
		return
	}
	l.closed = true
	l.Exit(0)
	for i := range l.steps {
		if m := &l.steps[i].miss; *m != 0 {
			*m = l.labels[*m]
			if *m < 0 {
				panic(fmt.Sprintf("fork: step %d leads to a label that is nowhere", i))
			}
		}
	}
}
