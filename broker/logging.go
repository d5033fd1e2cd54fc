// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
)

// logHandler writes records as the original does: the message as it is, with
// attributes behind it, to whichever output is current. Before the program
// goes to the background that is standard error; after, a file or the system
// log.
type logHandler struct {
	out   *logOutput
	level slog.Level
	attrs string
}

// logOutput is shared by all handlers derived from one.
type logOutput struct {
	mu    sync.Mutex
	write func(level slog.Level, line []byte)
	later func(level slog.Level, line []byte) // once standard error is gone, nil: no other
}

func (h *logHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	line := append([]byte(nil), strings.Map(shown, r.Message)...)
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

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	b := []byte(n.attrs)
	for _, a := range attrs {
		b = appendAttr(b, a)
	}
	n.attrs = string(b)
	return &n
}

func (h *logHandler) WithGroup(string) slog.Handler { return h }

// shown replaces what a terminal might take for a command: some of what is
// logged comes from processes that a guest may have taken over.
func shown(c rune) rune {
	if c == '\n' || c == '\t' || unicode.IsPrint(c) {
		return c
	}
	return '?'
}

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

// newLog makes the program's log. Errors always show; the rest as asked.
func newLog(cfg *cli.Config) (*slog.Logger, *logOutput, error) {
	level := slog.LevelInfo
	switch {
	case cfg.Trace, cfg.Debug:
		level = slog.LevelDebug
	case cfg.Quiet, cfg.Target.Kind == cli.TargetSpawn:
		level = slog.LevelWarn
	}
	out := &logOutput{write: toStderr}
	if cfg.LogFile != "" {
		f, err := openLogFile(cfg.LogFile, cfg.LogSize, noLink(cfg))
		if err != nil {
			return nil, nil, err
		}
		out.write = func(l slog.Level, line []byte) {
			f.write(line)
			if l >= slog.LevelError {
				toStderr(l, line)
			}
		}
	}
	return slog.New(&logHandler{out: out, level: level}), out, nil
}

func toStderr(_ slog.Level, line []byte) { os.Stderr.Write(line) }

// prepare opens what detach will need.
func (o *logOutput) prepare(cfg *cli.Config) {
	if cfg.LogFile == "" {
		o.later = newSyslog(cfg.Personality.String())
	}
}

// detach is called when standard error is about to be closed: without a log
// file, the system log takes over.
func (o *logOutput) detach() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.later != nil {
		o.write = o.later
	}
}

// logFile is a file that is kept below a size by dropping its older half.
type logFile struct {
	f    *os.File
	size int64
	max  int64
}

func openLogFile(path string, max int64, flags int) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR|os.O_APPEND|unix.O_CLOEXEC|flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log file: %w", err)
	}
	return &logFile{f: f, max: max}, nil
}

func (l *logFile) write(line []byte) {
	if l.size+int64(len(line))+32 > l.max {
		l.rotate()
	}
	n, _ := l.f.Write(append([]byte(time.Now().Format("2006-01-02 15:04:05.000 ")), line...))
	l.size += int64(n)
}

// rotate keeps the newer half, from the first whole line on.
func (l *logFile) rotate() {
	keep := make([]byte, l.max/2)
	n, err := l.f.ReadAt(keep, max(l.size-int64(len(keep)), 0))
	if err != nil && err != io.EOF {
		n = 0
	}
	keep = keep[:n]
	for i, c := range keep {
		if c == '\n' {
			keep = keep[i+1:]
			break
		}
	}
	if l.f.Truncate(0) == nil {
		l.size = 0
		n, _ := l.f.Write(keep)
		l.size = int64(n)
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
		severity := 7
		switch {
		case level >= slog.LevelError:
			severity = 3
		case level >= slog.LevelWarn:
			severity = 4
		case level >= slog.LevelInfo:
			severity = 6
		}
		b := fmt.Appendf(nil, "<%d>%s %s[%d]: ", daemon|severity, time.Now().Format(time.Stamp), tag, os.Getpid())
		unix.Write(fd, append(b, line[:len(line)-1]...))
	}
}
