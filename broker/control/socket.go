// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
	"aldente/broker/output"
	"aldente/ipc/sock"
)

// Whoever starts an instance in place of one that ends may be faster than that: its
// socket answers for a moment more, and then is removed. One that nobody removes is
// ours to replace after that.
const (
	handOverPause = 10 * time.Millisecond
	handOverTries = 50 // for an instance to end
	removalTries  = 10 // for its socket to go
)

// backlog is how many clients may wait for their turn.
const backlog = 64

// bind makes the socket and returns it with what removes it, see remover. What is at
// path stays, unless it is the socket of an instance that has ended. Messages name the
// option that path is of.
func bind(path, option string) (fd int, r *remover, err error) {
	dir, name := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	folder, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, nil, fmt.Errorf("control socket %s: %w%s", path, err, output.Hint(err))
	}
	defer unix.Close(folder)
	if err := vacate(folder, name, path, option); err != nil {
		return -1, nil, err
	}
	fd, err = sock.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, fmt.Errorf("socket: %w", err)
	}
	old := unix.Umask(0o177)
	err = sock.Bind(fd, &unix.SockaddrUnix{Name: path})
	unix.Umask(old)
	if err != nil {
		unix.Close(fd)
		return -1, nil, fmt.Errorf("cannot bind control socket %s: %w%s", path, err, output.Hint(err))
	}
	if r, err = newRemover(folder, name); err == nil {
		err = sock.Listen(fd, backlog)
	}
	if err != nil {
		_ = unix.Unlinkat(folder, name, 0)
		unix.Close(fd)
		return -1, nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return fd, r, nil
}

// vacate makes room at a path.
func vacate(folder int, name, path, option string) error {
	for tries := 0; ; tries++ {
		var st unix.Stat_t
		err := unix.Fstatat(folder, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return fmt.Errorf("control socket %s: %w%s", path, err, output.Hint(err))
		case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
			return fmt.Errorf("control socket %s: there is a file of that name, which is no socket (remove it, or name another path with %s)", path, option)
		}
		used := inUse(path)
		if tries < removalTries || used && tries < handOverTries {
			time.Sleep(handOverPause)
			continue
		}
		if used {
			return fmt.Errorf("control socket %s is already in use (name another path with %s)", path, option)
		}
		if err := unix.Unlinkat(folder, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("control socket %s is left over and cannot be removed: %w%s", path, err, output.Hint(err))
		}
		return nil
	}
}

// inUse tells whether a socket at path belongs to a living process. The probe is of a
// type that no stream socket can be connected from: whoever listens there does not
// take it for a client.
func inUse(path string) bool {
	fd, err := sock.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	err = sock.Connect(fd, &unix.SockaddrUnix{Name: path})
	return !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED)
}

// mostNames is how many names are tried for a status socket: who takes them may be
// instances with the same process number in PID namespaces of their own, or anybody.
const mostNames = 16

// bindAbstract makes a status socket for a process number and returns its name,
// without the NUL. What clients see as its owner is who this process is now.
func bindAbstract(pid int) (fd int, name string, err error) {
	fd, err = sock.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, "", err
	}
	for n := range mostNames {
		name = api.Prefix + strconv.Itoa(pid)
		if n > 0 {
			name += "-" + strconv.Itoa(n)
		}
		if err = sock.Bind(fd, &unix.SockaddrUnix{Name: "@" + name}); !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if err == nil {
		err = sock.Listen(fd, backlog)
	}
	if err != nil {
		unix.Close(fd)
		return -1, "", err
	}
	return fd, name, nil
}
