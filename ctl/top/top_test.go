// SPDX-License-Identifier: Apache-2.0

package top

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/charmbracelet/x/ansi"

	"aldente/broker/control/api"
	"aldente/ctl/watch"
)

var update = flag.Bool("update", false, "write the golden files anew")

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

var start = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// sample is what the instance of a number says at a second of its life.
func sample(pid, second int) *watch.Sample {
	n := uint64(second)
	s := &watch.Sample{
		At: start.Add(time.Duration(second) * time.Second),
		Status: &api.StatusReply{
			Version: "1", Personality: "pasta", PID: pid, WorkerPID: pid + 1, Started: start.Format(time.RFC3339), Link: "tap", Connected: true,
			Guest: "curl https://example.org/", Interface: "eth0", MTU: 65520,
			Limits: []api.Limit{{Name: "tcp flows", Used: 30, Max: 100}, {Name: "udp ports", Used: 90, Max: 100, Refused: 2}, {Name: "unbounded"}},
		},
		Flows: []api.Flow{
			{Protocol: "tcp", Direction: "out", State: "ESTABLISHED", Guest: "192.0.2.2:40000", Remote: "198.51.100.9:443", Age: float64(second), RTT: 0.0123,
				Sent: 1000 * n, Received: 1_000_000 * n * n, Retransmits: 3, Rule: "--allow any:443", Name: "example.org"},
			{Protocol: "tcp", Direction: "in", State: "SYN-SENT", Guest: "[2001:db8:1::2]:80", Remote: "[2001:db8:2::9]:51234", Age: 0.4, Idle: 0.4},
			{Protocol: "udp", Direction: "bypass-out", State: "open", Guest: "127.0.0.1:5353", Remote: "127.0.0.1:53", Age: 70_000, Idle: 4000, Sent: 99_999, Received: 12},
		},
		Counters: &api.CountersReply{Counters: []api.Counter{
			{Name: "link_bytes_total", Labels: map[string]string{"direction": "from_guest"}, Value: 1100 * float64(n)},
			{Name: "link_bytes_total", Labels: map[string]string{"direction": "to_guest"}, Value: 1_100_000 * float64(n*n)},
			{Name: "dropped_packets_total", Labels: map[string]string{"protocol": "udp", "reason": "queue_full"}, Value: float64(n / 4)},
			{Name: "egress_refused_total", Value: 4},
		}},
	}
	for i := range 20 {
		s.Flows = append(s.Flows, api.Flow{Protocol: "tcp", Direction: "out", State: "ESTABLISHED", Guest: fmt.Sprintf("192.0.2.2:%d", 41_000+i),
			Remote: "203.0.113.5:80", Age: 100, Idle: 50, Sent: uint64(i), Received: uint64(10 * i)})
	}
	return s
}

// fake is an instance whose every look is a second later.
type fake struct {
	pid    int
	mu     sync.Mutex
	second int
	err    error
}

func (f *fake) Name() string { return fmt.Sprint(f.pid) }

func (f *fake) Ask(_ context.Context, req api.Request, each func(*api.Reply) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	if req.Command == api.Status {
		f.second++
	}
	s := sample(f.pid, f.second)
	switch req.Command {
	case api.Status:
		return each(&api.Reply{Status: s.Status})
	case api.Flows:
		return each(&api.Reply{Flows: s.Flows})
	}
	return each(&api.Reply{Counters: s.Counters})
}

func lister(all ...watch.Instance) watch.Lister {
	return func(context.Context) ([]watch.Instance, error) { return all, nil }
}

// filled is a model that has seen some seconds of an instance.
func filled(width, height, seconds int) *Model {
	m := New(Config{List: lister(&fake{pid: 100}), Every: time.Second})
	m.Update(tea.WindowSizeMsg{Width: width, Height: height})
	m.Update(listed{instances: []watch.Instance{&fake{pid: 100}, &fake{pid: 200}}})
	for i := range seconds {
		m.asking = true
		m.Update(looked{sample: sample(100, i+1)})
	}
	return m
}

// plain is a frame without colours.
func plain(m *Model) string {
	var b strings.Builder
	for _, l := range m.Frame() {
		b.WriteString(strings.TrimRight(ansi.Strip(l), " ") + "\n")
	}
	return b.String()
}

func press(m *Model, keys ...string) {
	special := map[string]rune{
		"enter": tea.KeyEnter, "esc": tea.KeyEscape, "tab": tea.KeyTab, "up": tea.KeyUp, "down": tea.KeyDown, "backspace": tea.KeyBackspace,
		"end": tea.KeyEnd, "home": tea.KeyHome, "pgdown": tea.KeyPgDown, "pgup": tea.KeyPgUp, "space": tea.KeySpace,
	}
	for _, k := range keys {
		if c, ok := special[k]; ok {
			m.Update(tea.KeyPressMsg{Code: c})
			continue
		}
		for _, c := range k {
			m.Update(tea.KeyPressMsg{Code: c, Text: string(c)})
		}
	}
}

// TestFrames: the screen in many sizes and states, beside golden files.
func TestFrames(t *testing.T) {
	for _, tt := range []struct {
		name          string
		width, height int
		keys          []string
	}{
		{"wide", 140, 32, nil},
		{"usual", 80, 24, nil},
		{"low", 80, 10, nil},
		{"tiny", 30, 5, nil},
		{"marked", 100, 16, []string{"end", "up"}},
		{"filtered", 100, 16, []string{"/", "udp"}},
		{"details", 80, 24, []string{"enter"}},
		{"help", 80, 32, []string{"?"}},
		{"reversed", 100, 16, []string{"s", "r"}},
		{"paused", 100, 16, []string{"space"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := filled(tt.width, tt.height, 12)
			press(m, tt.keys...)
			golden(t, tt.name+".txt", plain(m))
		})
	}
}

// TestEverySize: no size of the terminal breaks the screen.
func TestEverySize(t *testing.T) {
	for _, keys := range [][]string{nil, {"?"}, {"enter"}, {"/", "x"}, {"end"}} {
		m := filled(80, 24, 5)
		press(m, keys...)
		for width := range 130 {
			for _, height := range []int{0, 1, 2, 3, 4, 5, 8, 9, 13, 14, 40} {
				m.Update(tea.WindowSizeMsg{Width: width, Height: height})
				f := m.Frame()
				if len(f) != height {
					t.Fatalf("%d lines on a screen of %dx%d, keys %v", len(f), width, height, keys)
				}
				for _, l := range f {
					if n := ansi.StringWidth(l); n > width {
						t.Fatalf("a line of %d on a screen of %dx%d: %q", n, width, height, l)
					}
				}
			}
		}
	}
}

// TestCursor: the marked flow stays marked when the order changes, and the window
// follows it.
func TestCursor(t *testing.T) {
	m := filled(80, 16, 3)
	press(m, "end")
	want := m.selected
	if m.cursor != len(m.shown)-1 || m.offset == 0 {
		t.Fatalf("cursor %d, offset %d of %d", m.cursor, m.offset, len(m.shown))
	}
	for _, key := range []string{"r", "s", "s", "r", "S"} {
		press(m, key)
		if n := m.cursor - m.offset; idOf(&m.shown[m.cursor]) != want || n < 0 || n >= m.room().rows {
			t.Errorf("after %s: cursor %d, offset %d", key, m.cursor, m.offset)
		}
	}
	for range 50 {
		press(m, "down")
	}
	press(m, "pgup", "home", "up")
	if m.cursor != 0 || m.offset != 0 {
		t.Errorf("cursor %d, offset %d", m.cursor, m.offset)
	}
	press(m, "pgdown", "pgdown", "pgdown", "pgdown", "pgdown")
	press(m, "/", "udp", "enter")
	if len(m.shown) != 1 || m.cursor != 0 || m.offset != 0 {
		t.Errorf("cursor %d, offset %d of %d", m.cursor, m.offset, len(m.shown))
	}
	press(m, "esc")
	if len(m.shown) != len(m.rows) {
		t.Errorf("filter %q is still there", m.filter)
	}
	press(m, "/", "uxy", "backspace", "backspace", "dp")
	if m.filter != "udp" {
		t.Errorf("filter %q", m.filter)
	}
	press(m, "esc")
	if m.filter != "" || m.typing {
		t.Errorf("filter %q", m.filter)
	}
}

// TestInstances: instances come, go and are chosen; answers of others do not count; one
// question at a time.
func TestInstances(t *testing.T) {
	a, b := &fake{pid: 100}, &fake{pid: 200}
	m := New(Config{List: lister(), Every: time.Second})
	m.Update(listed{})
	if !strings.Contains(plain(m), "no instance") {
		t.Error(plain(m))
	}
	_, cmd := m.Update(listed{instances: []watch.Instance{a, b}})
	if cmd == nil || m.name != "100" || !m.asking {
		t.Fatalf("%q, asking %v", m.name, m.asking)
	}
	if _, cmd := m.Update(tea.KeyPressMsg{Code: tea.KeyTab}); cmd == nil || m.name != "200" {
		t.Fatalf("%q", m.name)
	}
	m.Update(looked{turn: 0, sample: sample(100, 1)})
	if m.last != nil {
		t.Error("an answer of the instance before was taken")
	}
	if _, cmd := m.Update(listed{turn: 0, instances: []watch.Instance{a, b}}); cmd != nil {
		t.Error("a second chain of questions")
	}
	if _, cmd := m.Update(tick{turn: 0}); cmd != nil {
		t.Error("a tick of the instance before counts")
	}
	m.Update(looked{turn: 1, sample: sample(200, 1)})
	if m.asking || !strings.Contains(plain(m), "pasta 200 [2/2]") {
		t.Error(plain(m))
	}
	m.Update(listed{turn: 1, instances: []watch.Instance{a}})
	if !strings.Contains(plain(m), "instance 200 has ended") {
		t.Error(plain(m))
	}
	press(m, "tab")
	if m.name != "100" || m.gone {
		t.Errorf("%q", m.name)
	}
	m.Update(looked{turn: 2, err: errors.New("no answer\x1b[2J")})
	if s := strings.Join(m.Frame(), "\n"); !strings.Contains(s, "no answer?[2J") {
		t.Error(s)
	}
	press(m, "1", "2", "9", "tab")
	m.Update(listed{turn: m.turn, err: errors.New("no list")})
	if !strings.Contains(plain(m), "no list") {
		t.Error(plain(m))
	}
}

// TestHostileTexts: what an instance says commands no terminal.
func TestHostileTexts(t *testing.T) {
	m := filled(200, 24, 1)
	evil := "x\x1b[2J\u202e\x07\r\n\u009b31m"
	s := &watch.Sample{At: start, Status: &api.StatusReply{Guest: evil, Personality: evil, Link: evil, Interface: evil, Limits: []api.Limit{{Name: evil, Used: 1 << 63, Max: 1}}},
		Flows: []api.Flow{{Protocol: evil, State: evil, Direction: evil, Guest: evil, Remote: evil, Rule: evil, Name: evil}}}
	s.Clean()
	m.asking = true
	m.Update(looked{sample: s})
	for _, keys := range [][]string{nil, {"enter"}} {
		press(m, keys...)
		for _, l := range m.Frame() {
			if rest := ansi.Strip(l); strings.ContainsAny(rest, "\x1b\x07\r\n\u202e\u009b") || strings.Contains(l, "\x1b[2J") {
				t.Errorf("%q", l)
			}
		}
	}
}

// screen is where the program draws.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *screen) await(t *testing.T, what string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(s.String(), what); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %q in %q", what, s.String())
		}
	}
}

// TestProgram runs the whole program on a screen of a test: it draws, obeys keys, ends,
// and leaves the alternate screen; without colours where there are none.
func TestProgram(t *testing.T) {
	for _, profile := range []colorprofile.Profile{colorprofile.ANSI, colorprofile.ASCII} {
		in, keys := io.Pipe()
		var out screen
		p := tea.NewProgram(New(Config{List: lister(&fake{pid: 100}, &fake{pid: 200}), Every: Shortest}),
			tea.WithInput(in), tea.WithOutput(&out), tea.WithWindowSize(120, 30), tea.WithColorProfile(profile),
			tea.WithEnvironment([]string{"TERM=xterm-256color"}), tea.WithoutSignals())
		done := make(chan error, 1)
		go func() {
			_, err := p.Run()
			done <- err
		}()
		out.await(t, "pasta 100")
		out.await(t, "example.org")
		_, _ = keys.Write([]byte("\t"))
		out.await(t, "200")
		_, _ = keys.Write([]byte("q"))
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("it does not end")
		}
		if s := out.String(); !strings.Contains(s, "\x1b[?1049h") || !strings.HasSuffix(s[:strings.LastIndex(s, "\x1b[?1049l")+8], "\x1b[?1049l") {
			t.Errorf("the alternate screen: %q", s)
		}
		if coloured := strings.Contains(out.String(), "\x1b[32m"); coloured != (profile == colorprofile.ANSI) {
			t.Errorf("%v: coloured %v", profile, coloured)
		}
		keys.Close()
	}
}

// TestOnce: one screen, in the size that is asked for.
func TestOnce(t *testing.T) {
	t.Setenv("COLUMNS", "90")
	t.Setenv("LINES", "20")
	t.Setenv("CLICOLOR_FORCE", "")
	var b bytes.Buffer
	if err := Once(Config{List: lister(&fake{pid: 100}), Every: Shortest, Words: "tcp"}, &b); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(b.String(), "\n"); len(lines) != 21 || strings.Contains(b.String(), "\x1b") || !strings.Contains(b.String(), "pasta 100") || strings.Contains(b.String(), "udp  ") {
		t.Errorf("%d lines:\n%s", len(lines), b.String())
	}
	if err := Once(Config{List: lister()}, &b); err == nil {
		t.Error("no instance, and no error")
	}
	if err := Once(Config{List: lister(&fake{err: errors.New("out")})}, &b); err == nil {
		t.Error("an instance that does not answer, and no error")
	}
}
