// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// pollInterval is how often a path is looked up of which the kernel reports no
// events: in procfs, or in a folder that cannot be watched.
const pollInterval = 1000 // milliseconds

// Watcher tells when a namespace's process has ended or its path is gone.
type Watcher struct {
	gone chan struct{}
	done chan struct{} // closed when run has ended
	once sync.Once
	stop int // eventfd

	fd      int // inotify or pidfd, -1: poll the path
	dir     int // O_PATH of the path's directory, -1 if a process is watched
	base    string
	inotify bool

	polls error       // why the path is polled, though not in procfs
	path  string      // absolute
	was   unix.Stat_t // what was there, if polls is set
}

// Watch starts watching what the namespace was found by. It takes no time
// while nothing happens.
func (n *Namespace) Watch() (*Watcher, error) {
	w := &Watcher{gone: make(chan struct{}), done: make(chan struct{}), fd: -1, dir: -1}
	var err error
	switch pid, name := procEntry(n.path); {
	case n.proc != nil && (n.pid != 0 || pid == n.proc.pid):
		err = w.watchProcess(n.proc, name)
	case n.pid != 0:
		err = w.watchPID(n.pid)
	default:
		err = w.watchPath(n.path)
	}
	if err != nil {
		w.closeAll()
		return nil, err
	}
	if w.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		w.closeAll()
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	go w.run()
	return w, nil
}

// Polls says why the path is looked up once a second where the kernel should
// have told of its end; nil if that is not so.
func (w *Watcher) Polls() error { return w.polls }

// Gone is closed once, as soon as the namespace's process or path is gone.
func (w *Watcher) Gone() <-chan struct{} { return w.gone }

// Close stops watching. Gone is not closed by it.
func (w *Watcher) Close() {
	w.once.Do(func() {
		unix.Write(w.stop, binary.NativeEndian.AppendUint64(nil, 1))
		<-w.done
		unix.Close(w.stop)
	})
}

func (w *Watcher) watchPID(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	w.fd = fd
	return nil
}

// watchProcess watches a process by the handle that its namespaces were found by:
// by its entry there if by nothing better.
func (w *Watcher) watchProcess(p *process, name string) (err error) {
	if p.pidfd >= 0 {
		w.fd, err = unix.FcntlInt(uintptr(p.pidfd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	}
	w.base = "ns/net"
	if name != "" {
		w.base = name
	}
	w.dir, err = unix.FcntlInt(uintptr(p.dir), unix.F_DUPFD_CLOEXEC, 0)
	return err
}

func (w *Watcher) watchPath(path string) error {
	dir := filepath.Dir(path)
	w.base = filepath.Base(path)
	var err error
	if w.dir, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(w.dir, &fs); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if fs.Type == unix.PROC_SUPER_MAGIC {
		return nil
	}
	if w.polls = w.notify(dir); w.polls == nil {
		return nil
	}
	if w.fd >= 0 {
		unix.Close(w.fd)
	}
	w.fd, w.inotify = -1, false
	if w.path, err = filepath.Abs(path); err != nil {
		w.path = "" // the directory has to do
	}
	if err := unix.Fstatat(w.dir, w.base, &w.was, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// notify has the kernel tell of what happens in a directory. The error says what
// the user can do about it.
func (w *Watcher) notify(dir string) (err error) {
	if w.fd, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		return fmt.Errorf("inotify: %w%s", err, instanceHint(err))
	}
	w.inotify = true
	_, err = unix.InotifyAddWatch(w.fd, dir,
		unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_ONLYDIR)
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("watch %s: %w (the folder may be searched, but not read)", dir, err)
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("watch %s: %w (no watch is left: see sysctl fs.inotify.max_user_watches, or in a"+
			" container user.max_inotify_watches)", dir, err)
	case err != nil:
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	return nil
}

func instanceHint(err error) string {
	if errors.Is(err, unix.EMFILE) {
		return " (no instance is left: see sysctl fs.inotify.max_user_instances, or in a container" +
			" user.max_inotify_instances)"
	}
	return ""
}

// run waits on a thread of its own, which the kernel wakes up only for events.
func (w *Watcher) run() {
	defer close(w.done)
	defer w.closeAll()
	if w.dir >= 0 && w.missing() {
		close(w.gone)
		return
	}
	fds := []unix.PollFd{{Fd: int32(w.stop), Events: unix.POLLIN}, {Fd: int32(w.fd), Events: unix.POLLIN}}
	timeout := -1
	if w.fd < 0 {
		timeout = pollInterval
	}
	for {
		fds[0].Revents, fds[1].Revents = 0, 0
		_, err := unix.Poll(fds, timeout)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return // impossible with valid descriptors; the namespace then counts as there
		case fds[0].Revents != 0:
			return
		case w.isGone(fds[1].Revents != 0):
			close(w.gone)
			return
		}
	}
}

// isGone decides after a wake-up.
func (w *Watcher) isGone(event bool) bool {
	switch {
	case w.fd < 0:
		return w.missing()
	case !event:
		return false
	case w.inotify:
		return w.deleted()
	}
	return true // pidfd: readable when the process has ended
}

// missing looks the path up. Where that is all there is, something else in its
// place counts too: what was mounted there has gone, or the name was made anew.
// The directory itself may have been renamed, or unmounted while we hold it; where
// its path cannot be walked any more, that is no sign.
func (w *Watcher) missing() bool {
	var st unix.Stat_t
	absent := func(err error) bool {
		return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ESRCH)
	}
	err := unix.Fstatat(w.dir, w.base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if w.polls == nil || err != nil {
		return absent(err)
	}
	if st.Dev != w.was.Dev || st.Ino != w.was.Ino {
		return true
	}
	return w.path != "" && absent(unix.Fstatat(unix.AT_FDCWD, w.path, &st, unix.AT_SYMLINK_NOFOLLOW))
}

// deleted reads the events and tells whether one of them is about our path. The
// name decides, not a second look: the same name may be made anew at once, for
// another namespace.
func (w *Watcher) deleted() bool {
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(w.fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return false
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			mask := binary.NativeEndian.Uint32(b[4:])
			size := int(binary.NativeEndian.Uint32(b[12:])) + unix.SizeofInotifyEvent
			if size > len(b) {
				return false
			}
			name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:size], []byte{0})
			b = b[size:]
			switch {
			case mask&(unix.IN_DELETE_SELF|unix.IN_UNMOUNT|unix.IN_IGNORED) != 0:
				return true
			case mask&(unix.IN_DELETE|unix.IN_MOVED_FROM) != 0 && string(name) == w.base:
				return true
			case mask&unix.IN_MOVE_SELF != 0: // the path leads elsewhere now
				return true
			case mask&unix.IN_Q_OVERFLOW != 0 && w.missing():
				return true
			}
		}
	}
}

func (w *Watcher) closeAll() {
	for _, fd := range []int{w.fd, w.dir} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
