// SPDX-License-Identifier: Apache-2.0

// Package audit records where a guest has connected, so that rules can be made of it:
// each destination once, a line of JSON each.
//
// What a guest can have written is bounded, by number and by bytes, and the record
// says when there was more.
package audit

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/output"
)

// Bounds on what one run records.
const (
	MaxEntries = 4096    // destinations
	MaxBytes   = 4 << 20 // of lines
	maxNames   = 16384   // addresses whose names are known
)

// Entry is a line of a record.
type Entry struct {
	Time     time.Time `json:"time"`               // when it was seen
	Name     string    `json:"name,omitempty"`     // by which the guest has asked for the address; empty: it has not
	Address  string    `json:"address,omitempty"`  // as the host has it; empty: the name was asked for, and no more
	Protocol string    `json:"protocol,omitempty"` // tcp, udp or icmp
	Port     uint16    `json:"port,omitempty"`     // of tcp and udp
	Verdict  string    `json:"verdict,omitempty"`  // what the rules say: allowed, denied, or refused: denied, and by this rule in spite of --audit
	Rule     string    `json:"rule,omitempty"`     // that says so; empty: none fits
	Count    uint64    `json:"count"`              // connections and flows; with More, of those that came after the line before
	More     bool      `json:"more,omitempty"`     // what this is about has a line before
	Capped   string    `json:"capped,omitempty"`   // there was more, and why it is not here
}

// Verdicts.
const (
	Allowed = "allowed"
	Denied  = "denied"
	Refused = "refused"
)

// Flow is a socket that the guest has asked for.
type Flow struct {
	Protocol string         // tcp, udp or icmp
	To       netip.AddrPort // where it leads, on the host
	Name     string         // that a rule by name has for the address; empty: none
	Verdict  string         // of the rules
	Rule     string         // that says so, empty: none fits
}

type key struct {
	name     string
	protocol string
	to       netip.AddrPort
}

// Log is the record of an instance. Its methods may be called at any time.
type Log struct {
	mu      sync.Mutex
	fd      int
	size    int // bytes written
	entries map[key]*Entry
	order   []key
	names   map[netip.Addr]string
	aged    []netip.Addr // of names, a ring
	oldest  int          // in it, once it is full
	capped  bool
	broken  error // why nothing is written any more
	now     func() time.Time
}

// Open opens the file of a record, to go on at its end. Guarded is as in
// output.Options.
func Open(path string, guarded bool) (*Log, error) {
	fd, err := output.Open(path, output.Options{Flags: unix.O_WRONLY | unix.O_APPEND | unix.O_NONBLOCK, Guarded: guarded})
	if err != nil {
		return nil, fmt.Errorf("--audit %s: %w%s", path, err, output.Hint(err))
	}
	return newLog(fd), nil
}

func newLog(fd int) *Log {
	return &Log{fd: fd, entries: map[key]*Entry{}, names: map[netip.Addr]string{}, now: time.Now}
}

// Named notes that the guest was told addresses of a name.
func (l *Log) Named(name string, addrs []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addrs {
		if _, known := l.names[a]; !known {
			if len(l.aged) < maxNames {
				l.aged = append(l.aged, a)
			} else {
				delete(l.names, l.aged[l.oldest])
				l.aged[l.oldest] = a
				l.oldest = (l.oldest + 1) % maxNames
			}
		}
		l.names[a] = name
	}
}

// Asked notes a name that the guest has asked for.
func (l *Log) Asked(name, verdict, rule string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.note(key{name: name}, verdict, rule)
}

// Note notes a flow.
func (l *Log) Note(f *Flow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := key{f.Name, f.Protocol, f.To}
	if k.name == "" {
		k.name = l.names[f.To.Addr()]
	}
	l.note(k, f.Verdict, f.Rule)
}

func (l *Log) note(k key, verdict, rule string) {
	if e := l.entries[k]; e != nil {
		e.Count++
		return
	}
	if l.capped {
		return
	}
	e := &Entry{Time: l.now().UTC().Truncate(time.Second), Name: k.name, Protocol: k.protocol, Verdict: verdict, Rule: rule, Count: 1}
	if k.to.IsValid() {
		e.Address, e.Port = k.to.Addr().String(), k.to.Port()
	}
	if len(l.order) == MaxEntries {
		l.cap(fmt.Sprintf("%d destinations are recorded, and there were more", MaxEntries))
		return
	}
	if !l.write(e, MaxBytes/2) {
		return
	}
	e.Count = 0
	l.entries[k] = e
	l.order = append(l.order, k)
}

// cap ends the record of what is new, and says so.
func (l *Log) cap(why string) {
	l.capped = true
	l.append(&Entry{Time: l.now().UTC().Truncate(time.Second), Capped: why})
}

// write appends a line if it fits below most bytes. It reports false if there is no
// more to be written.
func (l *Log) write(e *Entry, most int) bool {
	b, err := json.Marshal(e)
	if err != nil {
		return false
	}
	if l.size+len(b)+1 > most {
		if !l.capped {
			l.cap(fmt.Sprintf("%d bytes are written, and there was more", l.size))
		}
		return false
	}
	return l.append(e)
}

func (l *Log) append(e *Entry) bool {
	if l.broken != nil {
		return false
	}
	b, err := json.Marshal(e)
	if err != nil {
		return false
	}
	b = append(b, '\n')
	n, err := unix.Write(l.fd, b)
	l.size += max(n, 0)
	if err == nil && n < len(b) {
		err = unix.ENOSPC
	}
	l.broken = err
	return err == nil
}

// Close writes how often what is recorded was used after its line, and ends the record.
// The error is why something is missing.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.order {
		if e := l.entries[k]; e.Count > 0 {
			e.More, e.Time = true, l.now().UTC().Truncate(time.Second)
			if !l.write(e, MaxBytes) {
				break
			}
		}
	}
	if l.fd >= 0 {
		unix.Close(l.fd)
		l.fd = -1
	}
	return l.broken
}
