// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"context"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"

	"aldente/broker/control/api"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
	}
}

// some flows, of every kind.
func some() []api.Flow {
	return []api.Flow{
		{Protocol: "tcp", Direction: "out", State: "ESTABLISHED", Guest: "192.0.2.2:40000", Remote: "198.51.100.9:443", Age: 12.5, Idle: 0.1, RTT: 0.0123,
			Sent: 4_200, Received: 1_234_567_890, SentPackets: 40, ReceivedPackets: 100_000, Retransmits: 3, Rule: "--allow 198.51.100.0/24:443", Name: "example.org"},
		{Protocol: "tcp", Direction: "in", State: "SYN-SENT", Guest: "[2001:db8:1::2]:80", Remote: "[2001:db8:2::9]:51234", Age: 0.4, Idle: 0.4},
		{Protocol: "udp", Direction: "bypass-out", State: "open", Guest: "127.0.0.1:5353", Remote: "127.0.0.1:53", Age: 70_000, Idle: 4000, RTT: 2, Sent: 99_999, Received: 12},
		{Protocol: "icmp", Direction: "out", State: "open", Guest: "192.0.2.2:7", Remote: "9.9.9.9", Age: 59, Idle: 59, RTT: 0.00035, Sent: 64, Received: 64, Queued: 100_000},
	}
}

func samples() (before, now *Sample) {
	at := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	before, now = &Sample{At: at, Flows: some()}, &Sample{At: at.Add(2 * time.Second), Flows: some()}
	before.Flows[0].Received -= 250_000_000
	before.Flows[0].Age -= 2
	before.Flows[1].Age = 60 // another of the same addresses, before
	before.Flows[1].Sent = 1000
	before.Flows[2].Age -= 2
	before.Flows = before.Flows[:3]
	return before, now
}

// TestTable: the table of flows with and without rates, wide and narrow.
func TestTable(t *testing.T) {
	before, now := samples()
	rows := Rows(before, now)
	Sort(rows, "rate", false)
	var b strings.Builder
	for _, width := range []int{0, 140, 80, 40, 10, 1} {
		l := Layout(rows, Columns, width)
		b.WriteString(l.Head + "\n" + strings.Join(l.Lines, "\n") + "\n\n")
		for _, line := range append(l.Lines, l.Head) {
			if n := ansi.StringWidth(line); width > 0 && n > width {
				t.Errorf("%d wide, not %d: %q", n, width, line)
			}
		}
	}
	golden(t, "table.txt", b.String())
	if l := Layout(Rows(nil, &Sample{Flows: some()[1:]}), Columns, 0); strings.Contains(l.Head, "RULE") {
		t.Errorf("a column of nothing: %q", l.Head)
	}
	if l := Layout(nil, Columns, 80); len(l.Lines) != 0 || !strings.HasPrefix(l.Head, "PROTO") {
		t.Errorf("without rows: %+v", l)
	}
}

// TestRates: a flow that went on, one that follows another of the same addresses, one
// that is new, one that was not seen, a clock that stands still.
func TestRates(t *testing.T) {
	before, now := samples()
	rows := Rows(before, now)
	if r := rows[0]; !r.Known || r.ReceivedRate != 125_000_000 || r.SentRate != 0 {
		t.Errorf("went on: %+v", r)
	}
	if r := rows[1]; !r.Known || r.SentRate != 0 || r.ReceivedRate != 0 {
		t.Errorf("follows another: %+v", r)
	}
	if r := rows[2]; !r.Known || r.SentRate != 0 {
		t.Errorf("idle: %+v", r)
	}
	if r := rows[3]; r.Known {
		t.Errorf("old and not seen before: %+v", r)
	}
	now.Flows[1].Sent = 5000
	if r := Rows(before, now)[1]; r.SentRate != 2500 {
		t.Errorf("new: %+v", r)
	}
	now.At = before.At
	for _, r := range Rows(before, now) {
		if r.Known {
			t.Errorf("no time has passed: %+v", r)
		}
	}
	if r := Rows(nil, now); len(r) != 4 || r[0].Known {
		t.Errorf("one sample: %+v", r)
	}
}

// TestSort: each order, each way.
func TestSort(t *testing.T) {
	if len(Orders) != len(compare) {
		t.Errorf("%d orders, %d comparisons", len(Orders), len(compare))
	}
	for order, want := range map[string]string{
		"rate": "tcp-out", "sent": "udp-bypass-out", "received": "tcp-out", "age": "udp-bypass-out", "idle": "tcp-out", "rtt": "udp-bypass-out",
		"retransmits": "tcp-out", "queued": "icmp-out", "protocol": "icmp-out", "state": "tcp-out", "guest": "udp-bypass-out", "remote": "icmp-out", "rule": "udp-bypass-out",
	} {
		before, now := samples()
		rows := Rows(before, now)
		Sort(rows, order, false)
		if got := rows[0].Protocol + "-" + rows[0].Direction; got != want {
			t.Errorf("%s: first %s, want %s", order, got, want)
		}
		first := compare[order]
		for i := range rows[1:] {
			if first(&rows[i], &rows[i+1]) > 0 {
				t.Errorf("%s: rows %d and %d", order, i, i+1)
			}
		}
		Sort(rows, order, true)
		for i := range rows[1:] {
			if first(&rows[i], &rows[i+1]) < 0 {
				t.Errorf("%s reversed: rows %d and %d", order, i, i+1)
			}
		}
	}
}

// TestFilter: every condition, alone and together.
func TestFilter(t *testing.T) {
	address := func(s string) Filter {
		p, err := ParseAddress(s)
		if err != nil {
			t.Fatal(err)
		}
		return Filter{Address: p}
	}
	for _, tt := range []struct {
		name string
		f    Filter
		want string // which of some
	}{
		{"none", Filter{}, "0123"},
		{"protocol", Filter{Protocol: "TCP"}, "01"},
		{"direction", Filter{Direction: "out"}, "03"},
		{"bypass", Filter{Direction: "bypass"}, "2"},
		{"state", Filter{State: "established"}, "0"},
		{"port", Filter{Port: 53}, "2"},
		{"port of the guest", Filter{Port: 80}, "1"},
		{"address", address("198.51.100.9"), "0"},
		{"prefix", address("192.0.2.0/24"), "03"},
		{"prefix of IPv6", address("2001:db8:2::/48"), "1"},
		{"without port", address("9.9.9.9"), "3"},
		{"mapped", address("::ffff:9.9.9.9"), "3"},
		{"word", Filter{Words: []string{"EXAMPLE"}}, "0"},
		{"not word", Filter{Words: []string{"!tcp"}}, "23"},
		{"words", Filter{Words: []string{"tcp", "!--allow"}}, "1"},
		{"empty words", Filter{Words: []string{"", "!"}}, "0123"},
		{"together", Filter{Protocol: "tcp", Port: 443, Words: []string{"nothing like it"}}, ""},
	} {
		got := ""
		for i, f := range some() {
			if tt.f.Match(&Row{Flow: f}) {
				got += string(rune('0' + i))
			}
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	for _, bad := range []string{"", "host", "1.2.3.4/33", "fe80::1%eth0", "1.2.3.4:80"} {
		if p, err := ParseAddress(bad); err == nil {
			t.Errorf("ParseAddress(%q) = %v", bad, p)
		}
	}
	for _, bad := range []string{"", "0", "-1", "65536", "http"} {
		if p, err := ParsePort(bad); err == nil {
			t.Errorf("ParsePort(%q) = %v", bad, p)
		}
	}
}

// TestUnits: numbers at the edges of their units.
func TestUnits(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{Bytes(0), "0 B"}, {Bytes(999), "999 B"}, {Bytes(1000), "1.0 kB"}, {Bytes(999_949), "1.0 MB"}, {Bytes(99_900), "99.9 kB"}, {Bytes(math.MaxUint64), "18.4 EB"},
		{Bytes(-1), "0 B"}, {Bytes(math.NaN()), "0 B"}, {Bytes(math.Inf(1)), "0 B"},
		{Rate(125), "1.0 kbit/s"}, {Rate(1e9), "8.0 Gbit/s"}, {Rate(1), "8 bit/s"},
		{Short(0), "0"}, {Short(125e6), "1.0G"}, {Count(12_345), "12.3k"},
		{Span(0), "0s"}, {Span(9.94), "9.9s"}, {Span(59.9), "59s"}, {Span(61), "1m01s"}, {Span(3600), "1h00m"}, {Span(90_000), "1d01h"}, {Span(math.Inf(1)), "24855d03h"}, {Span(math.NaN()), "0s"},
		{RTT(0), "-"}, {RTT(0.00035), "350us"}, {RTT(0.0123), "12.3ms"}, {RTT(2), "2.0s"}, {RTT(-1), "-"},
		{Spark([]float64{0, 1, 2, 4, 8}, 5, 0), " ▂▃▅█"}, {Spark([]float64{1, 1}, 4, 8), "  ▂▂"}, {Spark([]float64{9, 8, 8}, 2, 8), "██"},
		{Spark([]float64{math.NaN(), -1, 0}, 3, 0), "   "}, {Spark(nil, 2, 0), "  "}, {Spark([]float64{1}, 0, 0), ""},
	} {
		if tt.got != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
}

// script is an instance that answers with some replies.
type script []api.Reply

func (script) Name() string { return "1" }

func (s script) Ask(_ context.Context, _ api.Request, each func(*api.Reply) error) error {
	for i := range s {
		if err := each(&s[i]); err != nil {
			return err
		}
	}
	return nil
}

// TestLook: what comes in pieces is put together, errors are told, and nothing of what
// a terminal obeys goes on.
func TestLook(t *testing.T) {
	evil := "a\x1b]0;b\x07\u202ec\x9b2J\n" + strings.Repeat("long", 1000)
	s, err := Look(t.Context(), script{
		{Status: &api.StatusReply{Guest: evil, Addresses: []string{evil}, Limits: []api.Limit{{Name: evil}}}},
		{Flows: []api.Flow{{Guest: evil, Age: -1, RTT: 1e300}}},
		{Flows: some(), Counters: &api.CountersReply{Counters: []api.Counter{{Name: "a"}}}},
		{Counters: &api.CountersReply{Counters: []api.Counter{{Name: "b"}}}},
	}, api.Status)
	if err != nil || len(s.Flows) != 5 || len(s.Counters.Counters) != 2 {
		t.Fatal(s, err)
	}
	for _, text := range []string{s.Status.Guest, s.Status.Addresses[0], s.Status.Limits[0].Name, s.Flows[0].Guest} {
		if strings.ContainsAny(text, "\x1b\x07\n\u202e\u009b") || len(text) > maxText+8 || !strings.HasPrefix(text, "a?]0;b??c") {
			t.Errorf("%q", text)
		}
	}
	if f := s.Flows[0]; f.Age != 0 || f.RTT != 0 {
		t.Errorf("%+v", f)
	}
	if _, err := Look(t.Context(), script{{Error: evil}}, api.Flows); err == nil || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("%v", err)
	}
	many := make([]api.Counter, maxCounters/2+1)
	if _, err := Look(t.Context(), script{{Counters: &api.CountersReply{Counters: many}}, {Counters: &api.CountersReply{Counters: many}}}, api.Counters); err == nil {
		t.Error("no bound on counters")
	}
	flows := make([]api.Flow, maxFlows/2+1)
	if _, err := Look(t.Context(), script{{Flows: flows}, {Flows: flows}}, api.Flows); err == nil {
		t.Error("no bound on flows")
	}
	if _, err := Look(t.Context(), failing{}, api.Flows); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

// TestLookAtOlder: an instance that does not know all of it shows the rest.
func TestLookAtOlder(t *testing.T) {
	s, err := Look(t.Context(), older{}, api.Status, api.Flows, api.Counters)
	if err != nil || s.Status == nil || s.Refused != "no such?[2J command" {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := Look(t.Context(), older{}, api.Flows); err == nil {
		t.Error("nothing was answered, and no error")
	}
}

type older struct{ script }

func (older) Ask(_ context.Context, r api.Request, each func(*api.Reply) error) error {
	if r.Command == api.Status {
		return each(&api.Reply{Status: &api.StatusReply{}})
	}
	return Refusal("no such\x1b[2J command")
}

type failing struct{ script }

func (failing) Ask(context.Context, api.Request, func(*api.Reply) error) error {
	return os.ErrDeadlineExceeded
}

// TestTraffic: what is counted on the link, and what goes past it; a worker that was
// replaced counts anew; without counters it is the flows' sum.
func TestTraffic(t *testing.T) {
	counters := func(up, down, dropped float64) *api.CountersReply {
		return &api.CountersReply{Counters: []api.Counter{
			{Name: linkBytes, Labels: map[string]string{"direction": directionUp}, Value: up},
			{Name: linkBytes, Labels: map[string]string{"direction": directionDown}, Value: down},
			{Name: drops[0], Labels: map[string]string{"protocol": "udp"}, Value: dropped},
			{Name: drops[0], Labels: map[string]string{"protocol": "icmp"}, Value: 1},
			{Name: drops[1], Value: 2},
			{Name: rulesRefused, Value: 7},
		}}
	}
	before, now := samples()
	now.Flows[2].Sent += 500 // past the link
	rows := Rows(before, now)
	if up, down := Traffic(before, now, rows); up != 250 || down != 125_000_000 {
		t.Errorf("by flows: %v, %v", up, down)
	}
	before.Counters, now.Counters = counters(1000, 0, 0), counters(3000, 4000, 10)
	if up, down := Traffic(before, now, rows); up != 1250 || down != 2000 {
		t.Errorf("by counters: %v, %v", up, down)
	}
	if r, n := Drops(before, now), Dropped(now); r != 5 || n != 13 || Refused(now) != 7 {
		t.Errorf("drops %v per second, %v, refused %v", r, n, Refused(now))
	}
	if up, down := Traffic(now, &Sample{At: now.At.Add(time.Second), Counters: counters(1, 1, 0)}, nil); up != 0 || down != 0 {
		t.Errorf("counted anew: %v, %v", up, down)
	}
	if Drops(&Sample{}, &Sample{}) != 0 || Dropped(&Sample{}) != 0 {
		t.Error("nothing was counted")
	}
}
