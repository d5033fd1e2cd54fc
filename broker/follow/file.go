// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links in a row are followed, as the kernel does.
const maxLinks = 40

// What may give a file another content, and a name in a folder another file.
const (
	ofFile   = unix.IN_MODIFY | unix.IN_CLOSE_WRITE
	inFolder = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_CREATE | unix.IN_DELETE | unix.IN_ONLYDIR
)

// File has the watcher told when a file may have changed: itself, what its path leads to,
// and each folder in which a symbolic link stands on the way. So it is noticed when
// another file takes its place, as a resolver's configuration is written. Where a link
// comes to lead elsewhere, that is noticed, and what happens there later is if it is one of
// also, whose folder is there already: a confined process can watch no other folders. It must
// be called before this process confines itself.
func (w *Watcher) File(path string, also ...string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	names := map[string]bool{"": true} // of events that count; those of the file itself have none
	watched := 0
	add := func(path string, mask uint32) {
		if _, err := unix.InotifyAddWatch(fd, path, mask); err == nil {
			watched++
		}
	}
	add(path, ofFile) // a file that is mounted there is in no folder
	for at, n := path, 0; n < maxLinks; n++ {
		dir := filepath.Dir(at)
		names[filepath.Base(at)] = true
		add(dir, inFolder)
		to, err := os.Readlink(at)
		if err != nil {
			break
		}
		if at = to; !filepath.IsAbs(to) {
			at = filepath.Join(dir, to)
		}
	}
	known := watched
	for _, other := range also {
		names[filepath.Base(other)] = true
		add(filepath.Dir(other), inFolder)
	}
	if known == 0 {
		f.Close()
		return fmt.Errorf("%s cannot be watched", path)
	}
	w.mu.Lock()
	w.file = f
	w.mu.Unlock()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			if named(buf[:n], names) {
				w.Mark()
			}
		}
	}()
	return nil
}

// named tells whether one of the events that the kernel has written, inotify(7), is of one
// of the names, or tells that some were lost.
func named(b []byte, names map[string]bool) bool {
	for len(b) >= unix.SizeofInotifyEvent {
		mask, size := binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[12:])
		b = b[unix.SizeofInotifyEvent:]
		if mask&unix.IN_Q_OVERFLOW != 0 || uint64(size) > uint64(len(b)) || names[unix.ByteSliceToString(b[:size])] {
			return true
		}
		b = b[size:]
	}
	return false
}
