// SPDX-License-Identifier: Apache-2.0

package startup

import (
	"syscall"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
)

// try makes n processes at the same time, each the child of the one before, as
// user and group given (-1: as we are), and returns how many it got.
func try(n, uid, gid int) int {
	l := fork.New(-1, 0)
	if uid >= 0 {
		// Root may change to anybody; without root, uid is ours.
		l.Try(unix.SYS_SETRESGID, gid, gid, gid)
		l.Try(unix.SYS_SETRESUID, uid, uid, uid)
	}
	for made := 1; made < n; made++ {
		l.Nest(made)
	}
	l.Exit(n)
	pid, errno := l.Start(0, nil)
	if errno != 0 {
		return 0
	}
	return status(pid)
}

// status waits for a child and returns its exit status.
func status(pid int) int {
	var ws syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &ws, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || !ws.Exited() {
			return 0
		}
		return ws.ExitStatus()
	}
}
