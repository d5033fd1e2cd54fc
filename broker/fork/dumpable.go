// SPDX-License-Identifier: Apache-2.0

package fork

import (
	"sync"

	"golang.org/x/sys/unix"
)

// dumping has whoever makes a child now wait for who does already.
var dumping sync.Mutex

// Dumpable lets this process write the user namespace maps of children that it
// makes from now on, and open their namespaces. The files in /proc of a process
// that cannot be dumped are root's, and a child inherits that until it executes
// something. This process cannot where it was told so, and where its program is
// one that its user may not read. The function returned restores what was, and has to
// be called: somebody else who makes a child waits for that.
func Dumpable() (restore func()) {
	dumping.Lock()
	was, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || was == 1 {
		return dumping.Unlock
	}
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	return func() {
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
		dumping.Unlock()
	}
}
