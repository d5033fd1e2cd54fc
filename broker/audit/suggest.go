// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"aldente/broker/rulesfile"
)

// Bounds on a record that is read.
const (
	maxRecord = 64 << 20 // bytes
	maxLine   = 16 << 10
)

// Read reads a record. Lines that are none of Entry are counted: the last of a run
// that was killed may be one.
func Read(r io.Reader) (all []Entry, bad int, err error) {
	s := bufio.NewScanner(io.LimitReader(r, maxRecord+1))
	s.Buffer(nil, maxLine)
	n := 0
	for s.Scan() {
		if n += len(s.Bytes()) + 1; n > maxRecord {
			return nil, 0, fmt.Errorf("more than %d bytes", maxRecord)
		}
		if len(bytes.TrimSpace(s.Bytes())) == 0 {
			continue
		}
		var e Entry
		if json.Unmarshal(s.Bytes(), &e) != nil || !e.sound() {
			bad++
			continue
		}
		all = append(all, e)
	}
	if err := s.Err(); err != nil {
		return nil, 0, err
	}
	if len(all) == 0 {
		return nil, bad, errors.New("no line of it is one of a record of --audit")
	}
	return all, bad, nil
}

// sound tells whether an entry says something that rules can be made of. The file may
// be anybody's.
func (e *Entry) sound() bool {
	if e.Capped != "" {
		return true
	}
	if e.Name == "" && e.Address == "" || !plainName(e.Name) {
		return false
	}
	if _, err := netip.ParseAddr(e.Name); err == nil {
		e.Name = "" // no rule can be by such a name
	}
	if e.Address == "" {
		return e.Protocol == "" && e.Port == 0
	}
	a, err := netip.ParseAddr(e.Address)
	if err != nil || a.Zone() != "" {
		return false
	}
	switch e.Protocol {
	case "tcp", "udp":
		return e.Port != 0
	case "icmp":
		return e.Port == 0
	}
	return false
}

// plainName tells whether a name consists of what names consist of.
func plainName(s string) bool {
	return len(s) <= 253 && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.'
	})
}

// wanted is what one rule would be for.
type wanted struct {
	where    string // a name, or an address
	name     bool
	protocol string
	port     uint16
}

// tally is what was seen of it.
type tally struct {
	count   uint64
	addrs   map[string]bool
	verdict string
	rule    string
	names   []string // that a wildcard stands for
}

// Suggest makes the text of a rules file of a record: names rather than addresses, and
// nothing else is allowed. Where so many names or more have all but their first label in
// common, one wildcard stands for them; zero: never.
func Suggest(entries []Entry, wildcards int) []byte {
	seen := map[wanted]*tally{}
	capped := ""
	for i := range entries {
		e := &entries[i]
		if e.Capped != "" {
			capped = e.Capped
			continue
		}
		if e.Address == "" {
			continue // asked for, and not used
		}
		w := wanted{cmp.Or(e.Name, e.Address), e.Name != "", e.Protocol, e.Port}
		t := seen[w]
		if t == nil {
			t = &tally{addrs: map[string]bool{}}
			seen[w] = t
		}
		t.count += e.Count
		t.addrs[e.Address] = true
		if t.verdict != Refused { // which is worth telling whatever else was
			t.verdict, t.rule = e.Verdict, e.Rule
		}
	}
	if wildcards > 0 {
		gather(seen, wildcards)
	}
	return print(seen, capped)
}

// gather puts wildcards in the place of names.
func gather(seen map[wanted]*tally, least int) {
	groups := map[wanted][]wanted{}
	for w, t := range seen {
		_, suffix, ok := strings.Cut(w.where, ".")
		if !w.name || !ok || !strings.Contains(suffix, ".") || t.verdict == Refused {
			continue // no wildcard is for all of a top-level domain
		}
		g := w
		g.where = "*." + suffix
		groups[g] = append(groups[g], w)
	}
	for g, members := range groups {
		if len(members) < least {
			continue
		}
		all := &tally{addrs: map[string]bool{}}
		for _, w := range members {
			t := seen[w]
			all.count += t.count
			maps.Copy(all.addrs, t.addrs)
			all.names = append(all.names, w.where)
			delete(seen, w)
		}
		slices.Sort(all.names)
		seen[g] = all
	}
}

// print is the text of the file.
func print(seen map[wanted]*tally, capped string) []byte {
	var b bytes.Buffer
	b.WriteString("# Made of a record of --audit: look at it before it is used.\n")
	if capped != "" {
		writeLine(&b, "# The record is not whole: "+oneLine(capped)+".")
	}
	order := slices.SortedFunc(maps.Keys(seen), func(x, y wanted) int {
		return cmp.Or(cmp.Compare(b2i(!x.name), b2i(!y.name)), strings.Compare(reversed(x.where), reversed(y.where)),
			strings.Compare(x.protocol, y.protocol), cmp.Compare(x.port, y.port))
	})
	for _, w := range order {
		t := seen[w]
		line := rulesfile.Rule{Verb: "allow", Arg: w.String()}.String() + " # " + counted(t.count, "connection")
		if w.name {
			line += ", " + counted(uint64(len(t.addrs)), "address")
		}
		if len(t.names) > 0 {
			line += ": " + strings.Join(t.names[:min(len(t.names), 8)], " ")
			if len(t.names) > 8 {
				line += fmt.Sprintf(" and %d more", len(t.names)-8)
			}
		}
		if t.verdict == Refused {
			line = "# " + line + ", refused by " + oneLine(t.rule)
		}
		writeLine(&b, line)
	}
	b.WriteString("deny any\n")
	return b.Bytes()
}

// writeLine writes as much of a line as a rules file takes. What is too long is a comment,
// or ends in one.
func writeLine(b *bytes.Buffer, line string) {
	b.WriteString(line[:min(len(line), rulesfile.MaxLine)] + "\n")
}

// String is the destination of the rule.
func (w *wanted) String() string {
	s := w.protocol + ":"
	if w.name && !strings.Contains(w.where, ".") {
		return fmt.Sprintf("%s%s.:%d", s, w.where, w.port) // with a dot, so that it is no set
	}
	if w.port == 0 {
		return s + w.where
	}
	if strings.Contains(w.where, ":") {
		return fmt.Sprintf("%s[%s]:%d", s, w.where, w.port)
	}
	return fmt.Sprintf("%s%s:%d", s, w.where, w.port)
}

// oneLine leaves out what ends a line, or is for a terminal.
func oneLine(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c >= 0x7f {
			return -1
		}
		return c
	}, s)
}

func counted(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	if strings.HasSuffix(what, "s") {
		what += "e"
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// reversed has the labels of a name from the last to the first, so that names of one
// domain stand together.
func reversed(name string) string {
	labels := strings.Split(name, ".")
	slices.Reverse(labels)
	return strings.Join(labels, ".")
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
