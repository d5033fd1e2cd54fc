// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"aldente/broker/rulesfile"
	"aldente/fuzz"
)

// record opens a record and returns what is in it once it is closed.
func record(t *testing.T, do func(l *Log)) []Entry {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit")
	l, err := Open(path, false)
	if err != nil {
		t.Fatal(err)
	}
	l.now = func() time.Time { return time.Unix(1e9, 5) }
	do(l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 || st.Size() > MaxBytes {
		t.Errorf("%v, %v", st, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all, bad, err := Read(bytes.NewReader(b))
	if err != nil || bad != 0 {
		t.Fatalf("%d bad lines, %v: %.300s", bad, err, b)
	}
	return all
}

func flowTo(proto, to, verdict string) *Flow {
	return &Flow{Protocol: proto, To: netip.MustParseAddrPort(to), Verdict: verdict, Rule: "--deny any"}
}

// TestRecord: each destination has one line when it is seen first, by the name that the
// guest has for it, and one more with how often it was used after that.
func TestRecord(t *testing.T) {
	all := record(t, func(l *Log) {
		l.Named("files.test", []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")})
		l.Note(flowTo("tcp", "192.0.2.1:443", Denied))
		l.Note(flowTo("tcp", "192.0.2.1:443", Denied))
		l.Note(flowTo("tcp", "192.0.2.1:443", Denied))
		l.Note(flowTo("tcp", "[2001:db8::1]:443", Denied))
		l.Note(flowTo("tcp", "192.0.2.1:80", Denied))
		l.Note(flowTo("udp", "192.0.2.2:123", Allowed))
		l.Note(flowTo("icmp", "192.0.2.2:0", Refused))
		l.Note(&Flow{Protocol: "tcp", To: netip.MustParseAddrPort("192.0.2.1:443"), Name: "other.test", Verdict: Allowed})
		l.Asked("asked.test", Denied, "--deny any")
	})
	var got []string
	for _, e := range all {
		got = append(got, fmt.Sprint(e.Name, " ", e.Address, " ", e.Protocol, " ", e.Port, " ", e.Verdict, " ", e.Count, " ", e.More))
		if e.Time.Unix() != 1e9 {
			t.Errorf("%v", e.Time)
		}
	}
	want := []string{
		"files.test 192.0.2.1 tcp 443 denied 1 false", "files.test 2001:db8::1 tcp 443 denied 1 false", "files.test 192.0.2.1 tcp 80 denied 1 false",
		" 192.0.2.2 udp 123 allowed 1 false", " 192.0.2.2 icmp 0 refused 1 false", "other.test 192.0.2.1 tcp 443 allowed 1 false",
		"asked.test   0 denied 1 false", "files.test 192.0.2.1 tcp 443 denied 2 true",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("recorded\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestRecordBounded: whatever a guest connects to, a record stays within its bounds, and
// says that there was more.
func TestRecordBounded(t *testing.T) {
	for name, note := range map[string]func(l *Log, i int){
		"addresses": func(l *Log, i int) {
			l.Note(flowTo("tcp", fmt.Sprintf("10.%d.%d.%d:443", i>>16, i>>8&255, i&255), Denied))
		},
		"names": func(l *Log, i int) {
			name := fmt.Sprintf("%0243d.example", i)
			l.Named(name, []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})})
			l.Asked(name, Denied, "--deny any")
		},
	} {
		all := record(t, func(l *Log) {
			for range 2 {
				for i := range 5 * MaxEntries {
					note(l, i)
				}
			}
			if len(l.entries) > MaxEntries || len(l.names) > maxNames || len(l.aged) > maxNames || len(l.names) != len(l.aged) {
				t.Errorf("%s: %d entries, %d names", name, len(l.entries), len(l.names))
			}
		})
		capped, first := 0, 0
		for _, e := range all {
			if e.Capped != "" {
				capped++
			} else if !e.More {
				first++
			}
		}
		if capped != 1 || first != MaxEntries {
			t.Errorf("%s: capped %d times behind %d entries", name, capped, first)
		}
	}
}

// TestRecordFull: a file that takes no more is told of in the end, and nothing waits.
func TestRecordFull(t *testing.T) {
	l, err := Open("/dev/full", false)
	if err != nil {
		t.Skip(err)
	}
	for range 3 {
		l.Note(flowTo("tcp", "192.0.2.1:443", Denied))
	}
	if err := l.Close(); err == nil {
		t.Error("nothing is said of it")
	}
}

// TestRecordGoesOn: a second run writes behind the first.
func TestRecordGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	for range 2 {
		l, err := Open(path, false)
		if err != nil {
			t.Fatal(err)
		}
		l.Note(flowTo("tcp", "192.0.2.1:443", Denied))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b, _ := os.ReadFile(path)
	if all, bad, err := Read(bytes.NewReader(b)); len(all) != 2 || bad != 0 || err != nil {
		t.Errorf("%d entries, %d bad, %v", len(all), bad, err)
	}
}

func entry(name, addr, proto string, port uint16, verdict string, count uint64) Entry {
	return Entry{Name: name, Address: addr, Protocol: proto, Port: port, Verdict: verdict, Rule: "--deny host", Count: count}
}

// TestSuggest: names rather than addresses, wildcards where they are asked for, and
// nothing besides.
func TestSuggest(t *testing.T) {
	entries := []Entry{
		entry("b.cdn.test", "192.0.2.1", "tcp", 443, Denied, 2),
		entry("a.cdn.test", "192.0.2.2", "tcp", 443, Denied, 1),
		entry("a.cdn.test", "192.0.2.3", "tcp", 443, Denied, 1),
		entry("a.cdn.test", "192.0.2.2", "tcp", 80, Denied, 1),
		entry("a.test", "192.0.2.4", "tcp", 443, Denied, 1),
		entry("b.test", "192.0.2.4", "tcp", 443, Denied, 1),
		entry("", "2001:db8::1", "udp", 123, Denied, 1),
		entry("", "192.0.2.9", "icmp", 0, Allowed, 7),
		entry("", "127.0.0.1", "tcp", 5432, Refused, 1),
		{Name: "asked.test", Count: 1},
		{Capped: "4096 destinations\x1b"},
	}
	head := "# Made of a record of --audit: look at it before it is used.\n# The record is not whole: 4096 destinations.\n"
	rest := "# allow tcp:127.0.0.1:5432 # 1 connection, refused by --deny host\nallow icmp:192.0.2.9 # 7 connections\n" +
		"allow udp:[2001:db8::1]:123 # 1 connection\ndeny any\n"
	for wildcards, names := range map[int]string{
		0: "allow tcp:a.test:443 # 1 connection, 1 address\nallow tcp:b.test:443 # 1 connection, 1 address\n" +
			"allow tcp:a.cdn.test:80 # 1 connection, 1 address\nallow tcp:a.cdn.test:443 # 2 connections, 2 addresses\n" +
			"allow tcp:b.cdn.test:443 # 2 connections, 1 address\n",
		2: "allow tcp:*.cdn.test:443 # 4 connections, 3 addresses: a.cdn.test b.cdn.test\n" +
			"allow tcp:a.test:443 # 1 connection, 1 address\nallow tcp:b.test:443 # 1 connection, 1 address\n" +
			"allow tcp:a.cdn.test:80 # 1 connection, 1 address\n",
	} {
		got := string(Suggest(entries, wildcards))
		if !sameLines(got, head+names+rest) {
			t.Errorf("wildcards %d:\n%s\nwant\n%s", wildcards, got, head+names+rest)
		}
		if !strings.HasSuffix(got, "\ndeny any\n") {
			t.Error("the last rule is not to deny any")
		}
		if _, errs := rulesfile.Parse("f", []byte(got)); errs != nil {
			t.Error(errs)
		}
	}
}

// sameLines compares texts but for the order of lines, which the names decide.
func sameLines(a, b string) bool {
	count := map[string]int{}
	for l := range strings.Lines(a) {
		count[l]++
	}
	for l := range strings.Lines(b) {
		count[l]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

// wide tells whether a destination has the name of a set.
func wide(dest string) bool {
	_, where, _ := strings.Cut(dest, ":")
	where, _, _ = strings.Cut(where, ":")
	return slices.Contains([]string{"any", "host", "link-local", "private", "metadata"}, where)
}

// FuzzSuggest: whatever is in a file, what is suggested is the text of a rules file whose
// last rule denies any, and no rule of it is anything but one destination.
func FuzzSuggest(f *testing.F) {
	line, _ := json.Marshal(entry("a.test", "192.0.2.1", "tcp", 443, Denied, 1))
	for _, s := range []string{
		string(line) + "\n" + string(line), `{"name":"a b","address":"::1","protocol":"tcp","port":1}`, `{"name":"a\nallow any","address":"::1","protocol":"tcp","port":1}`,
		`{"name":"any","address":"::1","protocol":"tcp","port":1}`, `{"name":"10.0.0.0","address":"::1","protocol":"tcp","port":1}`, `{"capped":"x\nallow any"}`, `{"capped":"` + strings.Repeat("x", 2000) + `"}`, `{"address":"::1","protocol":"tcp","port":1,"verdict":"refused","rule":"\nallow any"}`, "{}\n\n[",
	} {
		fuzz.Add(f, append([]byte{2}, s...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &fuzz.Source{B: b}
		wildcards := s.Byte()
		entries, _, err := Read(bytes.NewReader(b[min(1, len(b)):]))
		if err != nil {
			return
		}
		got := Suggest(entries, int(wildcards))
		rules, errs := rulesfile.Parse("f", got)
		if len(got) <= rulesfile.MaxSize && errs != nil && len(rules) < rulesfile.MaxRules {
			t.Fatalf("%v\n%s", errs, got)
		}
		for i, r := range rules {
			if last := i == len(rules)-1; len(got) <= rulesfile.MaxSize && last != (r.String() == "deny any") || !last && (r.Verb != "allow" || wide(r.Arg)) {
				t.Fatalf("rule %d of %d: %s\n%s", i, len(rules), r, got)
			}
		}
	})
}
