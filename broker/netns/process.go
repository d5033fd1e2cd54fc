// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is a handle of one process, whoever gets its number after it.
type process struct {
	pid   int
	dir   int // its directory in /proc, empty once it has ended
	pidfd int // -1: /proc does not count processes as we do
}

// hold takes hold of a process. Both descriptors are of the same one, if anything
// can be opened below the directory after that: it has been alive in between.
func hold(pid int) (*process, error) {
	dir, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	p := &process{pid, dir, -1}
	if self, err := os.Readlink("/proc/self"); err == nil && self == strconv.Itoa(os.Getpid()) {
		if p.pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

func (p *process) close() {
	if p == nil {
		return
	}
	unix.Close(p.dir)
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
	}
}

// procEntry returns the process of a path /proc/PID/ns/NAME, and ns/NAME; zero of
// any other. Other entries, such as descriptors, may vanish before it does.
func procEntry(path string) (pid int, name string) {
	parts := strings.Split(filepath.Clean(path), "/")
	if len(parts) != 5 || parts[0] != "" || parts[1] != "proc" || parts[3] != "ns" {
		return 0, ""
	}
	pid, err := strconv.Atoi(parts[2])
	if err != nil || pid <= 0 {
		return 0, ""
	}
	return pid, "ns/" + parts[4]
}
