// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/output"
)

// file is a log file that is kept below a size by dropping its older half. While
// it takes no more, lines are counted, and it is told elsewhere, once.
type file struct {
	what    string // for messages
	path    string
	fd      int
	regular bool // a file that can be cut
	size    int64
	max     int64
	lost    int // lines since the last one that was written

	elsewhere func(*event)
}

// openFile opens a file to write lines to, at most max bytes. flags are O_TRUNC, or
// zero to go on at its end.
func openFile(what, path string, flags int, max int64, guarded bool) (*file, error) {
	// Non-blocking: a FIFO that nobody reads is not to hold us up.
	fd, err := output.Open(path, output.Options{
		Flags:   flags | unix.O_RDWR | unix.O_APPEND | unix.O_NONBLOCK,
		Guarded: guarded,
	})
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w%s", what, path, err, output.Hint(err))
	}
	l := &file{what: what, path: path, fd: fd, regular: output.Regular(fd), max: max, elsewhere: toStderr}
	if n := output.SizeLimit(); l.regular && n >= 0 && n < max {
		if l.max = n; n < minFile {
			return nil, fmt.Errorf("%s %s: the limit on file sizes (ulimit -f) is %d bytes: raise it", what, path, n)
		}
	}
	var st unix.Stat_t
	if l.regular && unix.Fstat(fd, &st) == nil {
		l.size = st.Size
	}
	return l, nil
}

// minFile is the size below which a log file makes no sense, in bytes.
const minFile = 4096

// stamp is the form of the time before each line.
const stamp = "2006-01-02 15:04:05.000 "

// levels are how lines of a file begin, behind the time.
var levels = map[int]string{3: "error: ", 4: "warning: ", 6: "info: ", 7: "debug: "}

func (l *file) write(e *event) {
	now := time.Now().Format(stamp)
	line := append(append([]byte(now), levels[severity(e.level)]...), e.line...)
	if l.regular && l.size+int64(len(line))+64 > l.max {
		l.rotate()
	}
	if l.lost > 0 && l.append(fmt.Appendf(nil, "%swarning: lines are missing here count=%d\n", now, l.lost)) == nil {
		l.lost = 0
	}
	err := l.append(line)
	if err == nil {
		return
	}
	if l.lost++; l.lost == 1 {
		l.elsewhere(newEvent(slog.LevelWarn, l.what+": lines are lost until there is room",
			slog.String("path", l.path), slog.Any("error", err)))
	}
}

// append writes all of b or, to a file, nothing.
func (l *file) append(b []byte) error {
	n, err := l.put(b)
	if n < len(b) && err == nil {
		err = unix.ENOSPC
	}
	if err != nil && l.regular && n > 0 && unix.Ftruncate(l.fd, l.size) == nil {
		n = 0
	}
	l.size += int64(n)
	return err
}

func (l *file) put(b []byte) (int, error) {
	for {
		n, err := unix.Write(l.fd, b)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// rotate keeps the newer half, from the first whole line on.
func (l *file) rotate() {
	keep := make([]byte, l.max/2)
	n, err := unix.Pread(l.fd, keep, max(l.size-int64(len(keep)), 0))
	keep = keep[:max(n, 0)]
	if err != nil {
		keep = nil
	}
	if i := bytes.IndexByte(keep, '\n'); i >= 0 {
		keep = keep[i+1:]
	}
	if unix.Ftruncate(l.fd, 0) == nil {
		l.size = 0
		_ = l.append(keep) // what does not fit is old
	}
}
