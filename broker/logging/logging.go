// SPDX-License-Identifier: Apache-2.0

// Package logging writes the program's log: to standard error, to a file of bounded
// size, and in the background to the system log.
package logging

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"aldente/broker/foreign"
)

// handler writes records as the original does: the message as it is, with
// attributes behind it, to whichever output is current. Before the program
// goes to the background that is standard error; after, a file or the system
// log.
type handler struct {
	out   *Output
	level slog.Level
	attrs string
}

// Output is shared by all handlers derived from one.
type Output struct {
	mu    sync.Mutex
	write func(level slog.Level, line []byte)
	later func(level slog.Level, line []byte) // once standard error is gone, nil: no other
	file  *file                               // -l, nil: none
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	line := append([]byte(nil), foreign.Text(r.Message)...)
	line = append(line, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		line = appendAttr(line, a)
		return true
	})
	line = append(line, '\n')
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	h.out.write(r.Level, line)
	return nil
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	b := []byte(n.attrs)
	for _, a := range attrs {
		b = appendAttr(b, a)
	}
	n.attrs = string(b)
	return &n
}

func (h *handler) WithGroup(string) slog.Handler { return h }

func appendAttr(b []byte, a slog.Attr) []byte {
	v := a.Value.Resolve().String()
	b = append(b, ' ')
	b = append(b, a.Key...)
	b = append(b, '=')
	for _, c := range v {
		if c == ' ' || c == '"' || c == utf8.RuneError || !unicode.IsPrint(c) {
			return strconv.AppendQuote(b, v)
		}
	}
	return append(b, v...)
}

// Options say where lines go.
type Options struct {
	Level   slog.Level // the least that shows
	File    string     // -l, empty: standard error
	Size    int64      // bytes that the file may have
	Guarded bool       // see output.Options
}

// New makes the program's log, and what its lines go by. Errors show on standard
// error too.
func New(o Options) (*slog.Logger, *Output, error) {
	out := &Output{write: toStderr}
	if o.File != "" {
		f, err := openFile(o.File, o.Size, o.Guarded)
		if err != nil {
			return nil, nil, err
		}
		out.file = f
		out.write = func(l slog.Level, line []byte) {
			f.write(line)
			if l >= slog.LevelError {
				toStderr(l, line)
			}
		}
	}
	return slog.New(&handler{out: out, level: o.Level}), out, nil
}

// toStderr writes to standard error, as the journal wants it if that is where it
// leads: each line behind its level, sd-daemon(3).
func toStderr(level slog.Level, line []byte) {
	if !stderrIsJournal() {
		os.Stderr.Write(line)
		return
	}
	var b []byte
	for l := range bytes.Lines(line) {
		b = append(fmt.Appendf(b, "<%d>", severity(level)), l...)
	}
	os.Stderr.Write(b)
}

// stderrIsJournal tells whether the service manager has connected standard error
// to the journal, systemd.exec(5).
var stderrIsJournal = sync.OnceValue(func() bool {
	var st unix.Stat_t
	return unix.Fstat(2, &st) == nil && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
})

// Complain tells why the program ends, where there is no log yet.
func Complain(err error) { toStderr(slog.LevelError, []byte(err.Error()+"\n")) }

// Prepare opens what Detach will need: files, which a confined process cannot. tag
// is what the system log knows the program by.
func (o *Output) Prepare(tag string) { o.later = newSyslog(tag) }

// Detach is called when standard error is about to be closed: the system log takes
// over, also to tell of a log file that takes no more.
func (o *Output) Detach() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.later == nil {
		return
	}
	if o.file == nil {
		o.write = o.later
	} else {
		o.file.elsewhere = o.later
	}
}

// newSyslog connects to the system log, RFC 3164 as syslogd reads it from
// /dev/log. Without one, lines are dropped.
func newSyslog(tag string) func(slog.Level, []byte) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: "/dev/log"})
	}
	if err != nil {
		return func(slog.Level, []byte) {}
	}
	const daemon = 3 << 3
	return func(level slog.Level, line []byte) {
		b := fmt.Appendf(nil, "<%d>%s %s[%d]: ", daemon|severity(level), time.Now().Format(time.Stamp), tag, os.Getpid())
		unix.Write(fd, append(b, line[:len(line)-1]...))
	}
}

// severity is a level as syslog(3) numbers them.
func severity(level slog.Level) int {
	switch {
	case level >= slog.LevelError:
		return 3
	case level >= slog.LevelWarn:
		return 4
	case level >= slog.LevelInfo:
		return 6
	}
	return 7
}
