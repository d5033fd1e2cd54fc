// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Names of the filters. Each is a list in policy/calls.
const (
	FilterWorkerStart      = "worker-start"
	FilterWorker           = "worker"
	FilterWorkerVhostStart = "worker-vhost-start"
	FilterWorkerVhost      = "worker-vhost"
	FilterNamesStart       = "names-start"
	FilterNames            = "names"
	FilterAgent            = "agent"
	FilterBroker           = "broker"
	FilterBrokerVhost      = "broker-vhost"
	FilterRemover          = "remover"
	FilterReader           = "reader"
)

// FiltersOf returns the names of a process's two filters in a mode of Arguments, and in
// those of workers of its broker's.
func FiltersOf(mode string) (start, running, broker string) {
	switch mode {
	case ModeVhostUser:
		return FilterWorkerVhostStart, FilterWorkerVhost, FilterBrokerVhost
	case ModeNames:
		return FilterNamesStart, FilterNames, ""
	}
	return FilterWorkerStart, FilterWorker, FilterBroker
}

// selfPlaceholder is calls.Self: the constant that stands for the process
// identifier in a compiled filter. A test keeps the two equal.
const selfPlaceholder = 0x53454c46

// The same for calls.OwnUID and calls.OwnGID.
const (
	uidPlaceholder = 0x5f554944
	gidPlaceholder = 0x5f474944
)

// sizeofFilter is the size of struct sock_filter, include/uapi/linux/filter.h.
const sizeofFilter = 8

// Load confines all threads of the process to a filter's list, from now on and
// on top of any filter loaded before. A forbidden call ends the process, or raises
// SIGSYS in a build with the debugfilter tag.
//
// Preconditions: no_new_privs on the calling thread; the others get it here.
func Load(name string) error {
	prog, err := program(name)
	if err != nil {
		return err
	}
	bind(prog, unix.Getpid, unix.Getuid, unix.Getgid)
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	tid, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	switch {
	case errno != 0:
		return fmt.Errorf("seccomp filter %s: %w", name, errno)
	case tid != 0:
		return fmt.Errorf("seccomp filter %s: thread %d is under another filter", name, tid)
	}
	return nil
}

// Seccomp loads a filter and reports it as a layer.
func Seccomp(name string) Layer {
	l := Layer{Name: "seccomp " + name, State: InForce, Detail: filterAction}
	switch err := Load(name); {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		l.State, l.Detail = Missing, "kernel without seccomp filters"
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
		// Not the kernel's lack: it has no room for the filter at the moment.
		l.State, l.Detail = Missing, err.Error()+": memory or a limit has run out, see ulimit -a"
	case err != nil:
		l.State, l.Detail = Missing, err.Error()
	case DebugFilter:
		l.State = Missing // captured code could go on after the signal
	}
	return l
}

// Program returns a filter for a process that loads it by itself, which names neither
// process, user nor group.
func Program(name string) ([]unix.SockFilter, error) { return program(name) }

// program returns the compiled filter for the running architecture.
func program(name string) ([]unix.SockFilter, error) {
	raw, err := filters.ReadFile("filters/" + name + filterSuffix + "_" + runtime.GOARCH + ".bpf")
	if err != nil {
		return nil, fmt.Errorf("seccomp filter %s: none for %s", name, runtime.GOARCH)
	}
	return decode(raw, binary.NativeEndian)
}

// decode reads struct sock_filter, which is in the byte order of the architecture that
// a filter is for.
func decode(raw []byte, order binary.ByteOrder) ([]unix.SockFilter, error) {
	if len(raw) == 0 || len(raw)%sizeofFilter != 0 || len(raw)/sizeofFilter > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("seccomp filter of %d bytes", len(raw))
	}
	prog := make([]unix.SockFilter, len(raw)/sizeofFilter)
	for i := range prog {
		b := raw[i*sizeofFilter:]
		prog[i] = unix.SockFilter{
			Code: order.Uint16(b),
			Jt:   b[2],
			Jf:   b[3],
			K:    order.Uint32(b[4:]),
		}
	}
	return prog, nil
}

// bind puts the numbers of the process, its real user and its real group where the
// list says calls.Self, calls.OwnUID and calls.OwnGID. They are not known when
// filters are compiled. Nothing is asked for that a list does not name: a filter in
// force may forbid it.
func bind(prog []unix.SockFilter, pid, uid, gid func() int) {
	for i := range prog {
		if prog[i].Code != unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K {
			continue
		}
		switch prog[i].K {
		case selfPlaceholder:
			prog[i].K = uint32(pid())
		case uidPlaceholder:
			prog[i].K = uint32(uid())
		case gidPlaceholder:
			prog[i].K = uint32(gid())
		}
	}
}

// CallName returns the name of a system call of the running architecture, or
// "call N" for a number that has none.
func CallName(nr int) string {
	prefix := fmt.Sprintf("%d ", nr)
	for line := range strings.Lines(callNames) {
		if name, ok := strings.CutPrefix(line, prefix); ok {
			return strings.TrimSpace(name)
		}
	}
	return fmt.Sprintf("call %d", nr)
}
