// SPDX-License-Identifier: Apache-2.0

// Package logging writes the program's log: to standard error, to a file of bounded
// size, and in the background to the system log. An event is one line: what has
// happened, and behind that its values, key=value. The journal gets these as fields
// too.
package logging

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"aldente/broker/foreign"
)

// event is what is logged, as a line and by its parts.
type event struct {
	level slog.Level
	line  []byte      // the message with its values, and a line break
	attrs []slog.Attr // the values
}

// newEvent is an event of our own.
func newEvent(level slog.Level, message string, attrs ...slog.Attr) *event {
	e := &event{level: level, line: []byte(foreign.Text(message)), attrs: attrs}
	for _, a := range attrs {
		e.line = appendAttr(e.line, a)
	}
	e.line = append(e.line, '\n')
	return e
}

// handler writes records as the original does: the message as it is, with
// attributes behind it, to whichever output is current. Before the program
// goes to the background that is standard error; after, a file or the system
// log.
type handler struct {
	out   *Output
	level slog.Leveler
	attrs []slog.Attr // in front of a record's own
}

// Output is shared by all handlers derived from one.
type Output struct {
	mu    sync.Mutex
	write func(*event)
	later func(*event) // once standard error is gone, nil: no other
	file  *file        // -l, nil: none
	tag   string       // what the system log knows the program by
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	attrs := h.attrs[:len(h.attrs):len(h.attrs)]
	r.Attrs(func(a slog.Attr) bool {
		attrs = append(attrs, a)
		return true
	})
	e := newEvent(r.Level, r.Message, attrs...)
	h.out.say(e)
	return nil
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	n.attrs = append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)
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
	Level   slog.Leveler // the least that shows, asked for each line; nil: information
	Tag     string       // what the system log knows the program by
	File    string       // -l, empty: standard error
	Size    int64        // bytes that the file may have
	Guarded bool         // see output.Options
	// Stream keeps to standard error where that leads to the journal. The journal
	// goes by the user of whoever sends, and keeps files of each: it is for a
	// process that is going to be a user of its own.
	Stream bool
}

// New makes the program's log, and what its lines go by. Errors show on standard
// error too.
func New(o Options) (*slog.Logger, *Output, error) {
	if o.Level == nil {
		o.Level = slog.LevelInfo
	}
	stderr := toStderr
	if !o.Stream && stderrIsJournal() {
		stderr = orElse(openJournal(o.Tag), toStderr)
	}
	out := &Output{write: stderr, tag: o.Tag}
	if o.File != "" {
		f, err := openFile("log file", o.File, unix.O_TRUNC, o.Size, o.Guarded)
		if err != nil {
			return nil, nil, err
		}
		f.elsewhere = stderr
		out.file = f
		out.write = func(e *event) {
			f.write(e)
			if e.level >= slog.LevelError {
				stderr(e)
			}
		}
	}
	return slog.New(&handler{out: out, level: o.Level}), out, nil
}

// Flows makes a log of its own, for flows: to a file that of names, which is gone on
// with where it is there already, or without one to the system log. It has to be made
// before this process is confined. That the file takes no more the program's log tells.
// The level of it does not count.
func (o *Output) Flows(of Options) (*slog.Logger, error) {
	out := &Output{}
	if of.File == "" {
		s := openSystem(of.Tag)
		if s == nil {
			return nil, errors.New("flow log: there is no system log (--flow-log FILE: name a file)")
		}
		out.write = s.write
	} else {
		f, err := openFile("flow log", of.File, 0, of.Size, of.Guarded)
		if err != nil {
			return nil, err
		}
		f.elsewhere = o.say
		out.write = f.write
	}
	return slog.New(&handler{out: out, level: slog.LevelInfo}), nil
}

func (o *Output) say(e *event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.write(e)
}

// toStderr writes to standard error, as the journal wants it if that is where it
// leads: each line behind its level, sd-daemon(3).
func toStderr(e *event) {
	if !stderrIsJournal() {
		os.Stderr.Write(e.line)
		return
	}
	var b []byte
	for l := range bytes.Lines(e.line) {
		b = append(fmt.Appendf(b, "<%d>", severity(e.level)), l...)
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
func Complain(err error) {
	toStderr(&event{level: slog.LevelError, line: []byte(err.Error() + "\n")})
}

// Prepare opens what Detach will need: sockets, to which a confined process could
// not connect. The system log is the journal, where that is there.
func (o *Output) Prepare() {
	o.later = openSystem(o.tag).write
}

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
