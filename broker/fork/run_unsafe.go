// SPDX-License-Identifier: Apache-2.0

package fork

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Exec is how a command is looked for, as execvp(3) does.
type Exec struct {
	paths   [][]byte  // candidates, with their final NUL
	scripts [][]*byte // what becomes of each if the kernel does not know its header: a shell's arguments
	argv    []*byte
	envv    []*byte
	missing uintptr // exit status if there is none
}

// Exec becomes the first of the candidates that can be executed, and ends with
// the exit status missing if there is none. A file without a header that the
// kernel knows is given to shell, with the arguments behind the first.
func (l *List) Exec(shell string, candidates, args, env []string, missing int) error {
	e := &Exec{missing: uintptr(missing)}
	var err error
	if e.argv, err = Strings(args...); err != nil {
		return fmt.Errorf("argument with a NUL byte: %w", err)
	}
	if e.envv, err = Strings(env...); err != nil {
		return fmt.Errorf("environment with a NUL byte: %w", err)
	}
	for _, path := range candidates {
		script, err := Strings(append([]string{shell, path}, args[1:]...)...)
		if err != nil {
			return fmt.Errorf("command with a NUL byte: %w", err)
		}
		e.paths, e.scripts = append(e.paths, cstring(path)), append(e.scripts, script)
	}
	l.add(Step{op: opExec, exec: e})
	return nil
}

// Strings are arguments or an environment for execve(2), which Vector makes an
// argument of a step.
func Strings(s ...string) ([]*byte, error) { return syscall.SlicePtrFromStrings(s) }

// Addr is a place in memory that a call gets the address of.
type Addr struct {
	p    unsafe.Pointer
	size uintptr // of what is there

	strings []*byte // what Vector points to
	behind  *Addr   // what Filter points to
}

// Pointer is the address of what p points to, which has no pointers, as an argument.
func Pointer[T any](p *T) Addr { return Addr{p: unsafe.Pointer(p), size: unsafe.Sizeof(*p)} }

// Vector is the address of Strings, as an argument.
func Vector(v []*byte) Addr {
	return Addr{p: unsafe.Pointer(unsafe.SliceData(v)), strings: v}
}

// Filter is the address of a program for seccomp(2), as an argument.
func Filter(program []unix.SockFilter) Addr {
	a := Pointer(&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	a.behind = &Addr{p: unsafe.Pointer(&program[0]), size: uintptr(len(program)) * unsafe.Sizeof(program[0])}
	return a
}

// argument is the number that stands for an argument, and keeps what it points to.
func (l *List) argument(a any, isSlot uint8, i int) (uintptr, uint8) {
	switch v := a.(type) {
	case nil:
		return 0, isSlot
	case int:
		return uintptr(v), isSlot
	case uintptr:
		return v, isSlot
	case Slot:
		return uintptr(v), isSlot | 1<<i
	case string:
		return l.argument(cstring(v), isSlot, i)
	case []byte:
		return l.argument(Addr{p: unsafe.Pointer(unsafe.SliceData(v)), size: uintptr(len(v))}, isSlot, i)
	case Addr:
		l.keep = append(l.keep, v)
		l.need(v.p, v.size)
		l.needVector(v.strings)
		if v.behind != nil {
			l.need(v.behind.p, v.behind.size)
		}
		return uintptr(v.p), isSlot
	}
	panic(fmt.Sprintf("fork: argument of type %T", a))
}

// cstring returns s with the final NUL that system calls want.
func cstring(s string) []byte { return append([]byte(s), 0) }

// Start makes the child and returns its process identifier. With CLONE_PIDFD among
// flags, pidfd is where its descriptor is put: in memory of the heap's.
func (l *List) Start(flags uintptr, pidfd *int32) (int, syscall.Errno) {
	l.close()
	l.keep = append(l.keep, pidfd)
	return start(l, flags, uintptr(unsafe.Pointer(pidfd)))
}

// run works a list off. It never returns. What it may not do, the package's comment
// says.
//
//go:nosplit
//go:norace
func run(l *List) {
	for pc := 0; ; {
		s := &l.steps[pc]
		pc++
		var r uintptr
		var errno syscall.Errno
		switch s.op {
		case opCall:
			r, errno = call(l, s)
		case opSet:
			r = value(l, s, 0)
			if s.into == 0 {
				l.status = r
			}
		case opJump:
			pc = int(s.miss)
			continue
		case opSame:
			if *s.p != *s.q {
				errno = syscall.EINVAL
			}
		case opAwait:
			await(l, s.args[0])
		case opTell:
			tell(l, int32(pc-1), s)
		case opClone:
			r, errno = clone(s.nr, uintptr(unsafe.Pointer(s.extra)))
			if errno == 0 && r == 0 {
				l, pc = s.list, 0
				continue
			}
		case opNest:
			nest(l, s.args[0])
		case opDigits:
			digits(l.slots[s.args[0]%slots], s.text)
		case opRaise, opPass, opOnly:
			change(&l.caps, s.op, uint32(s.args[0]))
		case opExec:
			errno = execute(s.exec)
			if errno == syscall.ENOENT {
				l.failed = s.exec.missing
			}
		case opExit:
			exit(s.args[0])
		}
		if s.into != 0 {
			l.slots[(s.into-1)%slots] = r
		}
		if s.errno != 0 {
			l.slots[(s.errno-1)%slots] = uintptr(errno)
		}
		if errno == 0 || errno == s.allow {
			continue
		}
		switch s.act {
		case actQuit:
			exit(uintptr(errno))
		case actFail:
			report(l, int32(pc-1), errno)
			exit(l.failed)
		case actNote:
			report(l, int32(pc-1), errno)
		}
		if s.miss != 0 {
			pc = int(s.miss)
		}
	}
}

//go:nosplit
//go:norace
func call(l *List, s *Step) (uintptr, syscall.Errno) {
	r, _, errno := syscall.RawSyscall6(s.nr, value(l, s, 0), value(l, s, 1), value(l, s, 2), value(l, s, 3), value(l, s, 4), 0)
	return r, errno
}

// value is an argument's number.
//
//go:nosplit
//go:norace
func value(l *List, s *Step, i uint) uintptr {
	v := s.args[i]
	if s.isSlot>>i&1 != 0 {
		v = l.slots[v%slots]
	}
	return v
}

//go:nosplit
//go:norace
func await(l *List, fd uintptr) {
	for {
		n, _, errno := syscall.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&l.buf)), 1)
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 || n != 1 {
			exit(uintptr(errno))
		}
		return
	}
}

//go:nosplit
//go:norace
func report(l *List, step int32, errno syscall.Errno) {
	l.record.step, l.record.errno = step, int32(errno)
	send(l)
}

//go:nosplit
//go:norace
func tell(l *List, step int32, s *Step) {
	l.record.step, l.record.errno, l.record.result, l.record.extra = step, 0, int32(l.slots[s.args[0]%slots]), 0
	if s.extra != nil {
		l.record.extra = *s.extra
	}
	send(l)
}

//go:nosplit
//go:norace
func send(l *List) {
	if !l.mute {
		syscall.RawSyscall(unix.SYS_WRITE, l.status, uintptr(unsafe.Pointer(&l.record)), RecordSize)
	}
}

// nest returns in the child of a child.
//
//go:nosplit
//go:norace
func nest(l *List, status uintptr) {
	pid, errno := clone(0, 0)
	if errno != 0 {
		exit(status)
	}
	if pid != 0 {
		syscall.RawSyscall6(unix.SYS_WAIT4, pid, uintptr(unsafe.Pointer(&l.wait)), 0, 0, 0, 0)
		exit(uintptr(l.wait >> 8 & 0xff))
	}
}

// digits writes an error's number as three digits.
//
//go:nosplit
//go:norace
func digits(e uintptr, text *[3]byte) {
	text[0], text[1], text[2] = byte('0'+e/100%10), byte('0'+e/10%10), byte('0'+e%10)
}

// change changes the copy of the process's capabilities.
//
//go:nosplit
//go:norace
func change(c *capabilities, op uint8, set uint32) {
	low, high := &c.data[0], &c.data[1]
	switch op {
	case opPass:
		low.Inheritable, high.Inheritable = low.Permitted&set, 0
		fallthrough
	case opRaise:
		low.Effective, high.Effective = low.Permitted, high.Permitted
	case opOnly:
		low.Effective, low.Permitted = low.Inheritable, low.Inheritable
		high.Effective, high.Permitted = high.Inheritable, high.Inheritable
	}
}

// execute tries the candidates and returns the error that tells most.
//
//go:nosplit
//go:norace
func execute(e *Exec) syscall.Errno {
	worst := syscall.ENOENT
	envv := uintptr(unsafe.Pointer(&e.envv[0]))
	for i := range e.paths {
		_, _, errno := syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(&e.paths[i][0])), uintptr(unsafe.Pointer(&e.argv[0])), envv)
		if errno == syscall.ENOEXEC {
			syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(e.scripts[i][0])), uintptr(unsafe.Pointer(&e.scripts[i][0])), envv)
		}
		switch errno {
		case syscall.ENOENT, syscall.ENOTDIR:
		case syscall.EACCES:
			worst = errno
		default:
			return errno
		}
	}
	return worst
}
