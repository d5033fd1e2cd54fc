// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// Program is one of those that are supervised.
type Program struct {
	File string        // name of its file
	Name string        // what the log calls it
	From ipc.Direction // of its records
}

// Programs.
var (
	Worker = Program{"aldente-worker", "worker", ipc.FromWorker}
	Names  = Program{"aldente-names", "names", ipc.FromNames}
)

// libexecDir is where installed programs lie, set when building with
// -ldflags "-X aldente/broker/supervise.libexecDir=/usr/libexec/aldente".
var libexecDir = ""

// Find returns a program: beside the running executable, else in
// the libexec directory. No search path and no environment variable is
// consulted: what is started here gets the guest's traffic.
func (p *Program) Find() (string, error) {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("own executable: %w", err)
	}
	return find(p.File, filepath.Dir(self), libexecDir)
}

func find(program string, dirs ...string) (string, error) {
	var where []string
	unusable := ""
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		path := filepath.Join(dir, program)
		switch err := unix.Access(path, unix.X_OK); err {
		case nil:
			return path, nil
		case unix.EACCES:
			unusable = cmp.Or(unusable, path)
		}
		where = append(where, dir)
	}
	if unusable != "" {
		return "", fmt.Errorf("%s cannot be executed by this user: it has to be executable (chmod 755), on a file system without noexec", unusable)
	}
	return "", fmt.Errorf("%s is not installed: it belongs into %s (make all builds all programs, make install installs them)",
		program, strings.Join(where, " or "))
}

// firstSpare is above every descriptor that a worker's are moved to.
const firstSpare = 10

// openProgram opens a program without reading it, so that each
// process runs the same file even if a newer one is installed meanwhile.
func openProgram(path string) (int, error) { return openSpare(path, unix.O_PATH) }

// openSpare opens a file on a descriptor from firstSpare on.
func openSpare(path string, flags int) (int, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err == nil && fd < firstSpare {
		low := fd
		fd, err = unix.FcntlInt(uintptr(low), unix.F_DUPFD_CLOEXEC, firstSpare)
		unix.Close(low)
	}
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}
