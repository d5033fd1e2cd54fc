// SPDX-License-Identifier: Apache-2.0

// Package output opens the files that the program writes by a name that its caller
// gave: log, packet capture, PID file.
package output

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxLinks bounds the links of a path, as the kernel's MAXSYMLINKS does.
const maxLinks = 40

// retry is how often it is looked whether a FIFO has a reader.
const retry = 20 * time.Millisecond

// mode is that of new files.
const mode = 0o600

// Options says how to open a file.
type Options struct {
	Flags int // of open(2), besides O_CREAT and O_CLOEXEC
	// Guarded is set while this process may do more than later: as root that is
	// going to be another user. Then no link is followed that another user could
	// have put there, and no file is taken that has another name as well.
	Guarded bool
	// Waiting, if set, is called once if the file is a FIFO without a reader, for
	// which Open then waits. Without it, that is an error (ENXIO) where Flags has
	// O_NONBLOCK.
	Waiting func()
}

// Open opens or creates a file and returns its descriptor. With O_TRUNC in Flags a
// regular file is emptied.
func Open(path string, o Options) (int, error) {
	flags := o.Flags &^ unix.O_TRUNC
	if o.Waiting != nil {
		flags |= unix.O_NONBLOCK
	}
	for told := false; ; {
		fd, err := open(path, flags|unix.O_CREAT|unix.O_CLOEXEC, o.Guarded)
		if errors.Is(err, unix.ENXIO) && o.Waiting != nil && isFIFO(path) {
			if !told {
				o.Waiting()
				told = true
			}
			time.Sleep(retry)
			continue
		}
		if err == nil && o.Flags&unix.O_TRUNC != 0 {
			err = empty(fd)
		}
		if err != nil {
			return -1, err
		}
		return fd, nil
	}
}

// Regular tells whether a descriptor is one of a regular file.
func Regular(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

func isFIFO(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO
}

func empty(fd int) error {
	if !Regular(fd) {
		return nil
	}
	if err := unix.Ftruncate(fd, 0); err != nil {
		unix.Close(fd)
		return err
	}
	return nil
}

func open(path string, flags int, guarded bool) (int, error) {
	if !guarded {
		return retryOpen(unix.AT_FDCWD, path, flags)
	}
	return walk(path, flags)
}

func retryOpen(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// walk opens a path step by step, each link judged by who could have put it there.
func walk(path string, flags int) (int, error) {
	start := "."
	if strings.HasPrefix(path, "/") {
		start = "/"
	}
	dir, err := retryOpen(unix.AT_FDCWD, start, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer func() { unix.Close(dir) }()
	rest := strings.Split(path, "/")
	for links := 0; ; {
		for len(rest) > 1 && (rest[0] == "" || rest[0] == ".") {
			rest = rest[1:]
		}
		last := len(rest) == 1
		if last && rest[0] == "" {
			return -1, unix.EISDIR
		}
		target, err := follow(dir, rest[0])
		if err != nil {
			return -1, err
		}
		switch {
		case target != "" && last && flags&unix.O_NOFOLLOW != 0:
			return -1, unix.ELOOP
		case target != "" && last && isProc(dir):
			return retryOpen(dir, rest[0], flags) // an open file, as /dev/stderr leads to
		case target != "":
			if links++; links > maxLinks {
				return -1, unix.ELOOP
			}
			rest = append(strings.Split(target, "/"), rest[1:]...)
			if !strings.HasPrefix(target, "/") {
				continue
			}
			root, err := retryOpen(unix.AT_FDCWD, "/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
			if err != nil {
				return -1, err
			}
			unix.Close(dir)
			dir = root
		case last:
			return take(dir, rest[0], flags)
		default:
			next, err := retryOpen(dir, rest[0], unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
			if err != nil {
				return -1, err
			}
			unix.Close(dir)
			dir, rest = next, rest[1:]
		}
	}
}

// follow returns where a link in the directory leads, "" if there is none of that
// name. A link that another user may have put there is an error.
func follow(dir int, name string) (target string, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if err == unix.ENOENT {
			return "", nil
		}
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", nil
	}
	var d unix.Stat_t
	if err := unix.Fstat(dir, &d); err != nil {
		return "", err
	}
	if !trusted(st.Uid) || !trusted(d.Uid) || d.Mode&0o022 != 0 && d.Mode&unix.S_ISVTX == 0 {
		return "", fmt.Errorf("%q is a link that another user could have put there: name the file itself, "+
			"or run as that user", name)
	}
	var b [unix.PathMax]byte
	n, err := unix.Readlinkat(dir, name, b[:])
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// isProc tells whether a directory is one of procfs, whose links lead elsewhere
// than to what they say.
func isProc(dir int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(dir, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

// trusted: root, and who we are.
func trusted(uid uint32) bool { return uid == 0 || int(uid) == unix.Geteuid() }

// take opens the last step.
func take(dir int, name string, flags int) (int, error) {
	fd, err := retryOpen(dir, name, flags|unix.O_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink > 1 {
		unix.Close(fd)
		return -1, fmt.Errorf("%q is known by %d names, of which another user could have made one: name a new file", name, st.Nlink)
	}
	return fd, nil
}

// Hint says what to do about an error of Open, or of a socket bound at a path, where
// it alone does not; empty if it does.
func Hint(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT):
		return " (create the directory first)"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return " (name one that this user may write)"
	case errors.Is(err, unix.EROFS):
		return " (name one on another file system)"
	}
	return ""
}

// SizeLimit is how large a file of this process may become, in bytes; negative: any
// size.
func SizeLimit() int64 {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_FSIZE, &r) != nil || r.Cur > math.MaxInt64 {
		return -1
	}
	return int64(r.Cur)
}
