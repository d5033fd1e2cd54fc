// SPDX-License-Identifier: Apache-2.0

package tun

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// filtered calls f while a filter is attached to a tap, which lets everything through.
func filtered(fd int, f func() error) error {
	all := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1}
	program := unix.SockFprog{Len: 1, Filter: &all}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNATTACHFILTER, uintptr(unsafe.Pointer(&program))); e != 0 {
		return e
	}
	err := f()
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNDETACHFILTER, uintptr(unsafe.Pointer(&program))); e != 0 {
		return e
	}
	return err
}
