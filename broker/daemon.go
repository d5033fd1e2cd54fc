// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/broker/output"
)

// readyEnv tells a process that it is the one in the background, and names the
// descriptor on which the one in the foreground waits. A Go program cannot
// fork and go on, so the background is a second process from the start.
const readyEnv = "ALDENTE_READY_FD"

// readyFD returns the descriptor of readyEnv, or -1, and clears the variable
// for those started from here.
func readyFD() int {
	v, ok := os.LookupEnv(readyEnv)
	os.Unsetenv(readyEnv)
	fd, err := strconv.Atoi(v)
	if !ok || err != nil || fd < 3 {
		return -1
	}
	unix.CloseOnExec(fd)
	return fd
}

// background starts this program again in a session of its own and waits until
// it is ready. It returns the status to exit with: zero only if all that was
// asked for works now.
func background(cfg *cli.Config) (int, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 1, err
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP)
	files, at := passOnFiles(w.Fd(), cfg.FD, cfg.ViaSecretFD)
	pid, _, err := syscall.StartProcess("/proc/self/exe", os.Args, &syscall.ProcAttr{
		Env:   append(os.Environ(), readyEnv+"="+strconv.Itoa(at)),
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 1, fmt.Errorf("cannot start in the background: %w", err)
	}
	w.Close()
	// Whoever ends us means the one that we wait for, in a session of its own.
	go func() {
		for s := range signals {
			_ = unix.Kill(pid, s.(syscall.Signal))
		}
	}()
	var b [1]byte
	if n, _ := r.Read(b[:]); n == 1 {
		return 0, nil
	}
	// It ended, and has said why.
	var ws syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(pid, &ws, 0, nil); err != syscall.EINTR {
			break
		}
	}
	switch {
	case ws.Exited() && ws.ExitStatus() != 0:
		return ws.ExitStatus(), nil
	case ws.Signaled():
		return 128 + int(ws.Signal()), nil
	}
	return 1, nil
}

// passOnFiles returns the descriptors of the process in the background:
// standard streams, those that options name (or -1) under their own numbers, and ready
// under the first number that is free.
func passOnFiles(ready uintptr, named ...int) (files []uintptr, at int) {
	const none = ^uintptr(0)
	files, at = []uintptr{0, 1, 2}, 3
	for slices.Contains(named, at) {
		at++
	}
	for len(files) <= max(slices.Max(named), at) {
		files = append(files, none)
	}
	for _, fd := range named {
		if fd > 2 {
			files[fd] = uintptr(fd)
		}
	}
	files[at] = ready
	return files, at
}

// leave lets go of the caller's working directory and returns what is to take
// the place of its standard streams.
func leave() (null int, err error) {
	if err := unix.Chdir("/"); err != nil {
		return -1, err
	}
	return unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
}

// ready tells the process in the foreground that all is set up, and lets go of
// the caller's standard streams.
func ready(fd, null int) error {
	for stream := range 3 {
		if err := unix.Dup3(null, stream, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	unix.Close(null)
	_, err := unix.Write(fd, []byte{0})
	unix.Close(fd)
	return err
}

// tidyDescriptors makes everything the caller left open private to this
// process, and fills standard streams that are closed, so that no later
// descriptor is taken for one. It returns what the caller left open: a number
// that an option names may be among it.
func tidyDescriptors() (inherited []int) {
	for fd := range 3 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == unix.EBADF {
			unix.Open(os.DevNull, unix.O_RDWR, 0) // takes the lowest free number
		}
	}
	// Without package os, which may make descriptors of its own.
	dir, err := unix.Open("/proc/self/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
		return nil
	}
	defer unix.Close(dir)
	defer unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	buf := make([]byte, 4096)
	for {
		n, err := unix.ReadDirent(dir, buf)
		if err != nil || n <= 0 {
			return inherited
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			if fd, err := strconv.Atoi(name); err == nil && fd > 2 && survivesExec(fd) {
				inherited = append(inherited, fd)
			}
		}
	}
}

// survivesExec tells whether a descriptor would be there after an execve(2). The runtime's
// own would not: it has its poller as soon as the initialisation of any package reads a
// file. What has come to this process by an execve(2) would.
func survivesExec(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil && flags&unix.FD_CLOEXEC == 0
}

// closeInherited closes what the caller left open, save what is wanted.
func closeInherited(inherited []int, wanted ...int) {
	for _, fd := range inherited {
		if !slices.Contains(wanted, fd) {
			unix.Close(fd)
		}
	}
}

// openPID opens the file of -P, which takes the caller's privileges. It stays as it
// is until all is set up.
func (in *instance) openPID() error {
	path := in.cfg.PIDFile
	if path == "" {
		return nil
	}
	in.undo.making.Lock()
	defer in.undo.making.Unlock()
	fd, err := output.Open(path, output.Options{
		Flags:   unix.O_WRONLY | unix.O_NOFOLLOW,
		Guarded: guarded(in.cfg),
		Waiting: func() { in.log.Warn("PID file: waiting for somebody to read it", "path", path) },
	})
	if err != nil {
		return fmt.Errorf("PID file %s: %w%s", path, err, output.Hint(err))
	}
	in.pidFile = fd
	// One that says something is another instance's until this one is ready.
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && output.Regular(fd) && st.Size == 0 {
		in.undo.add(path, &st)
	}
	return nil
}

// writePID writes the process number, as shells and daemons read it.
func (in *instance) writePID(pid int) error {
	if in.pidFile < 0 {
		return nil
	}
	defer unix.Close(in.pidFile)
	_ = unix.Ftruncate(in.pidFile, 0) // no regular file, no length
	text := append(strconv.AppendInt(nil, int64(pid), 10), '\n')
	if n, err := unix.Write(in.pidFile, text); n < len(text) {
		return fmt.Errorf("PID file %s: %w", in.cfg.PIDFile, cmp.Or(err, error(unix.ENOSPC)))
	}
	return nil
}
