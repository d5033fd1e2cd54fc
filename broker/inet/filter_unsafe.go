// SPDX-License-Identifier: Apache-2.0

package inet

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// memInfoDrops is the place of the counter in what SO_MEMINFO returns.
const memInfoDrops = unix.SK_MEMINFO_DROPS

func memInfo(fd int, info *[memInfoDrops + 1]uint32) bool {
	n := uint32(unsafe.Sizeof(*info))
	_, _, e := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(info)), uintptr(unsafe.Pointer(&n)), 0)
	return e == 0 && n == uint32(unsafe.Sizeof(*info))
}
