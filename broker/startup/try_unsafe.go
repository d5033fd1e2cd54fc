// SPDX-License-Identifier: Apache-2.0

package startup

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
)

// try makes n processes at the same time, each the child of the one before, as
// user and group given (-1: as we are), and returns how many it got.
//
//go:noinline
//go:norace
func try(n, uid, gid int) int {
	fork.Before()
	pid, errno := fork.Clone(0, 0)
	if errno != 0 || pid != 0 {
		fork.After()
		if errno != 0 {
			return 0
		}
		return status(pid)
	}
	fork.InChild()
	if uid >= 0 {
		// Root may change to anybody; without root, uid is ours.
		fork.Call(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid), 0, 0)
		fork.Call(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid), 0, 0)
	}
	for made := 1; made < n; made++ {
		pid, errno := fork.Clone(0, 0)
		switch {
		case errno != 0:
			fork.Exit(uintptr(made))
		case pid != 0:
			var ws uint32
			fork.Call(unix.SYS_WAIT4, pid, uintptr(unsafe.Pointer(&ws)), 0, 0, 0)
			fork.Exit(uintptr(ws >> 8 & 0xff))
		}
	}
	fork.Exit(uintptr(n))
	return 0
}

// status waits for a child and returns its exit status.
func status(pid uintptr) int {
	var ws syscall.WaitStatus
	for {
		_, err := syscall.Wait4(int(pid), &ws, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || !ws.Exited() {
			return 0
		}
		return ws.ExitStatus()
	}
}
