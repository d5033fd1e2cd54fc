// SPDX-License-Identifier: Apache-2.0

package link

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Raw calls, so that the Go scheduler is not told of them: the descriptors are
// non-blocking, and its bookkeeping costs as much as a small frame.

func read(fd int32, b []byte) (int, unix.Errno) {
	for {
		n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if e == 0 {
			return int(n), 0
		}
		if e != unix.EINTR {
			return 0, e
		}
	}
}

func write(fd int32, b []byte) (int, unix.Errno) {
	for {
		n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if e == 0 {
			return int(n), 0
		}
		if e != unix.EINTR {
			return 0, e
		}
	}
}

func writev(fd int32, v []unix.Iovec) (int, unix.Errno) {
	for {
		n, _, e := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(v))), uintptr(len(v)))
		if e == 0 {
			return int(n), 0
		}
		if e != unix.EINTR {
			return 0, e
		}
	}
}

// recvmmsg receives messages into what they point to, and returns their number.
func recvmmsg(fd int32, m []message) (int, unix.Errno) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)), unix.MSG_DONTWAIT, 0, 0)
		if e == 0 {
			return int(n), 0
		}
		if e != unix.EINTR {
			return 0, e
		}
	}
}

// setCarrier takes the carrier of a tap away, or gives it back. It needs no privilege, and
// fails for what is no tap.
func setCarrier(fd int32, on bool) {
	var v int32
	if on {
		v = 1
	}
	unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETCARRIER, uintptr(unsafe.Pointer(&v)))
}

func closeFD(fd int32) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// iovec points v at b, which must not move until the call is over: it is on
// the heap or mapped, as everything that comes through an interface is.
func iovec(v *unix.Iovec, b []byte) {
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
}

// bytesOf is what iovec was given.
func bytesOf(v *unix.Iovec) []byte { return unsafe.Slice(v.Base, int(v.Len)) }
