// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/foreign"
	"aldente/ipc/sock"
)

// Where the system listens for log lines. Variables for tests.
var (
	journalSocket = "/run/systemd/journal/socket"
	syslogSocket  = "/dev/log"
)

// daemon is the facility, as syslog(3) numbers them.
const daemon = 3

// Bounds on what the journal gets of one event, in bytes: a datagram that is too
// large for the socket would be lost.
const (
	maxJournalText  = 16 << 10
	maxJournalValue = 4 << 10
	maxJournalName  = 64 // the journal's own
	maxJournal      = 48 << 10
)

// dial connects a socket to one that takes datagrams.
func dial(path string) (int, error) {
	fd, err := sock.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err := sock.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// orElse sends to the journal, and what that does not take to another. Without a
// journal, all goes there.
func orElse(j *journal, other func(*event)) func(*event) {
	if j == nil {
		return other
	}
	return func(e *event) {
		if j.send(e) != nil {
			other(e)
		}
	}
}

// system is the system log: the journal, and what listens at /dev/log for what that
// does not take. Either may be missing. Lines that neither takes, of a daemon that is
// slow or gone, are counted, and told of once there is room.
type system struct {
	journal *journal
	syslog  int // -1: none
	tag     string
	lost    uint64
}

// openSystem connects to the system log; nil: there is none.
func openSystem(tag string) *system {
	fd, err := dial(syslogSocket)
	if err != nil {
		fd = -1
	}
	j := openJournal(tag)
	if j == nil && fd < 0 {
		return nil
	}
	return &system{journal: j, syslog: fd, tag: tag}
}

// write sends an event. Without a system log it is dropped.
func (s *system) write(e *event) {
	switch {
	case s == nil:
		return
	case s.lost > 0 && s.send(newEvent(slog.LevelWarn, "the system log did not take lines", slog.Uint64("count", s.lost))):
		s.lost = 0
	}
	if !s.send(e) {
		s.lost++
	}
}

// send sends an event: to syslogd as it reads from /dev/log, RFC 3164.
func (s *system) send(e *event) bool {
	if s.journal != nil && s.journal.send(e) == nil {
		return true
	}
	if s.syslog < 0 {
		return false
	}
	b := fmt.Appendf(nil, "<%d>%s %s[%d]: ", daemon<<3|severity(e.level), time.Now().Format(time.Stamp), s.tag, os.Getpid())
	_, err := unix.Write(s.syslog, append(b, e.line[:len(e.line)-1]...))
	return err == nil
}

// journal is a connection to systemd's journal, by its own protocol: fields, one
// datagram for each event.
type journal struct {
	fd  int
	tag string
	buf []byte
}

// openJournal connects to the journal; nil: there is none.
func openJournal(tag string) *journal {
	fd, err := dial(journalSocket)
	if err != nil {
		return nil
	}
	return &journal{fd: fd, tag: tag}
}

func (j *journal) send(e *event) error {
	b := appendField(j.buf[:0], "MESSAGE", e.line[:min(len(e.line)-1, maxJournalText)])
	b = fmt.Appendf(b, "PRIORITY=%d\nSYSLOG_FACILITY=%d\nSYSLOG_IDENTIFIER=%s\nSYSLOG_PID=%d\n", severity(e.level), daemon, j.tag, os.Getpid())
	for _, a := range e.attrs {
		b = appendAttrField(b, a)
	}
	j.buf = b
	n, err := unix.Write(j.fd, b)
	if err == nil && n < len(b) {
		err = unix.EMSGSIZE
	}
	return err
}

// appendAttrField appends an attribute, unless the datagram would get too long.
// Whoever shows a field is to find no command for a terminal in it.
func appendAttrField(b []byte, a slog.Attr) []byte {
	v := []byte(foreign.Text(a.Value.Resolve().String()))
	v = v[:min(len(v), maxJournalValue)]
	name := fieldName(a.Key)
	if len(b)+len(name)+len(v)+10 > maxJournal {
		return b
	}
	return appendField(b, name, v)
}

// appendField appends a field in the form for text or, if the value has line breaks,
// in that for any bytes: the name, the length in 64 bits little-endian, the value.
func appendField(b []byte, name string, value []byte) []byte {
	b = append(b, name...)
	if bytes.IndexByte(value, '\n') < 0 {
		b = append(b, '=')
	} else {
		b = binary.LittleEndian.AppendUint64(append(b, '\n'), uint64(len(value)))
	}
	return append(append(b, value...), '\n')
}

// fieldName is the name of the field for an attribute: capital letters, digits and
// underscores, as the journal wants it.
func fieldName(key string) string {
	name := "ALDENTE_" + strings.Map(func(c rune) rune {
		switch {
		case 'a' <= c && c <= 'z':
			return c - 'a' + 'A'
		case 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
			return c
		}
		return '_'
	}, key)
	return name[:min(len(name), maxJournalName)]
}
