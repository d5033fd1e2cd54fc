// SPDX-License-Identifier: Apache-2.0

// Package reader reads files that the caller has named, again and again, for a process
// that may open none any more. A child, cloned before this process is confined, waits
// for a byte from a pipe, reads the files in their order, and writes what is in them to
// another pipe. It understands nothing of what it reads: it is a list of system calls
// (package fork).
package reader

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
	"aldente/policy"
)

// Name is what the process is called.
const Name = "aldente-reader"

// patience is how long the child may take. A file system that does not answer ends
// what it is good for. A variable for tests.
var patience = 5 * time.Second

// errGone is that there is no child any more that could read.
var errGone = errors.New("the process that reads files is gone (start the instance again)")

// Flags of openat(2). Nothing that is opened is waited for, or becomes a terminal.
const flags = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY

// nofollow are the flags in addition where this process may do more than it is going
// to: the last step is not to be a link, which another user could have put there.
func nofollow(guarded bool) int {
	if guarded {
		return unix.O_NOFOLLOW
	}
	return 0
}

// File is what one file holds, or why that is not known.
type File struct {
	Text []byte // as it was when it was read
	Err  error  // why there is none
}

// Read reads a regular file of at most max bytes. Guarded is set while this process may
// do more than later: then no link is followed.
func Read(path string, max int, guarded bool) ([]byte, error) {
	fd, err := unix.Open(path, flags|nofollow(guarded), 0)
	if err != nil {
		return nil, explained(err, guarded)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("is no regular file, and is read more than once (write it to a file)")
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(max)+1))
	if err == nil && len(b) > max {
		err = tooLarge(max)
	}
	return b, err
}

func tooLarge(max int) error { return fmt.Errorf("is larger than %d bytes", max) }

func explained(err error, guarded bool) error {
	if guarded && errors.Is(err, unix.ELOOP) {
		return errors.New("is a link, which is not followed as root (name the file itself)")
	}
	return err
}

// Reader has files read.
type Reader struct {
	max     int
	files   int
	guarded bool
	child   *fork.List

	mu      sync.Mutex
	request *os.File
	answer  *os.File
}

// New starts the child, as who this process is now. max bounds the size of a file,
// in bytes.
func New(paths []string, max int, guarded bool) (*Reader, error) {
	for i, p := range paths {
		var err error
		if paths[i], err = filepath.Abs(p); err != nil {
			return nil, err
		}
	}
	var request, answer [2]int
	if err := unix.Pipe2(request[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	if err := unix.Pipe2(answer[:], unix.O_CLOEXEC); err != nil {
		unix.Close(request[0])
		unix.Close(request[1])
		return nil, os.NewSyscallError("pipe2", err)
	}
	l := list(paths, request[0], answer[1], max, guarded)
	_, errno := l.Start(0, nil)
	unix.Close(request[0])
	unix.Close(answer[1])
	if errno != 0 {
		unix.Close(request[1])
		unix.Close(answer[0])
		return nil, fmt.Errorf("a process to read files: %w", os.NewSyscallError("clone", errno))
	}
	r := &Reader{max: max, files: len(paths), guarded: guarded, child: l}
	for _, end := range []struct {
		to   **os.File
		fd   int
		name string
	}{{&r.request, request[1], "requests"}, {&r.answer, answer[0], "answers"}} {
		_ = unix.SetNonblock(end.fd, true) // so that there is a time for it
		*end.to = os.NewFile(uintptr(end.fd), end.name)
	}
	return r, nil
}

// list is what the child does.
func list(paths []string, request, answer, max int, guarded bool) *fork.List {
	l := fork.New(answer, 1)
	l.WithoutHeap()
	// What ends this program's process group must not end this process before; and a
	// pipe that nobody reads is an error, not a signal.
	l.Try(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, fork.Pointer(&[8]byte{255, 255, 255, 255, 255, 255, 255, 255}), nil, 8)
	from := uintptr(0)
	for _, fd := range slices.Sorted(slices.Values([]int{request, answer})) {
		if uintptr(fd) > from {
			l.Must(unix.SYS_CLOSE_RANGE, from, uintptr(fd)-1, 0)
		}
		from = uintptr(fd) + 1
	}
	l.Must(unix.SYS_CLOSE_RANGE, from, fork.AllFDs, 0)
	l.Try(unix.SYS_SETSID)
	l.Try(unix.SYS_CHDIR, "/")
	l.Try(unix.SYS_PRCTL, unix.PR_SET_NAME, Name)
	l.Must(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	l.PassCapabilities(1 << unix.CAP_DAC_READ_SEARCH) // what root reads, root reads again
	l.OnlyCapabilities()
	l.Must(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	// Where there are no filters it goes without, as all others do, who report it.
	if prog, err := policy.Program(policy.FilterReader); err == nil {
		l.Try(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, fork.Filter(prog))
	}
	const file, size, rest = fork.Slot(0), fork.Slot(1), fork.Slot(2)
	text, more := make([]byte, max+1), make([]byte, 1)
	again := l.Label()
	l.At(again)
	l.Await(request)
	for _, path := range paths {
		next, shut := l.Label(), l.Label()
		l.Note(unix.SYS_OPENAT, fork.AtFDCWD, path, flags|nofollow(guarded), 0).Into(file).Else(next)
		l.Note(unix.SYS_READ, file, text, len(text)).Into(size).Else(shut)
		l.Note(unix.SYS_READ, file, more, len(more)).Into(rest).Else(shut)
		l.Tell(size, nil)
		l.Tell(rest, nil)
		l.Must(unix.SYS_WRITE, answer, text, size)
		l.At(shut)
		l.Try(unix.SYS_CLOSE, file)
		l.At(next)
	}
	l.Jump(again)
	return l
}

// Read has the files read. The error is that they cannot be, by this child.
func (r *Reader) Read() ([]File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.request == nil {
		return nil, errGone
	}
	all, err := r.read()
	if err != nil {
		r.close() // what comes later would be taken for the next answer
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("the file system has not answered within %v, and is not asked again (start the instance again)", patience)
		}
	}
	return all, err
}

func (r *Reader) read() ([]File, error) {
	end := time.Now().Add(patience)
	if err := errors.Join(r.request.SetDeadline(end), r.answer.SetDeadline(end)); err != nil {
		return nil, err
	}
	if _, err := r.request.Write([]byte{0}); err != nil {
		return nil, errGone
	}
	all := make([]File, r.files)
	for i := range all {
		if err := r.file(&all[i]); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// file reads the answer about one file.
func (r *Reader) file(f *File) error {
	size, err := r.child.Read(r.answer)
	if err != nil {
		return gone(err)
	}
	if size.Failed != nil {
		f.Err = explained(size.Failed.Errno, r.guarded)
		return nil
	}
	rest, err := r.child.Read(r.answer)
	if err != nil || rest.Failed != nil || size.Result < 0 || int(size.Result) > r.max+1 {
		return gone(err)
	}
	f.Text = make([]byte, size.Result)
	if _, err := io.ReadFull(r.answer, f.Text); err != nil {
		return gone(err)
	}
	switch {
	case len(f.Text) > r.max:
		f.Err = tooLarge(r.max)
	case rest.Result != 0:
		f.Err = errors.New("was read in part only, as if it were being written (try again)")
	}
	return nil
}

// gone is why an answer does not come to its end.
func gone(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return errGone
}

// Close ends the child.
func (r *Reader) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.close()
}

func (r *Reader) close() {
	if r.request == nil {
		return
	}
	r.request.Close()
	r.answer.Close()
	r.request, r.answer = nil, nil
}
