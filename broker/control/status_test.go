// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/control/api"
	"aldente/broker/rulesfile"
	"aldente/fuzz"
)

// fake is an instance that can say one thing and have one thing changed.
type fake struct {
	Instance
	level atomic.Value
}

func (f *fake) Status() api.StatusReply {
	return api.StatusReply{Personality: "pasta", Egress: "everywhere"}
}

func (f *fake) SetLogLevel(l string) error {
	if l == "loud" {
		return errors.New("there is no level loud")
	}
	f.level.Store(l)
	return nil
}

// both starts a server on both sockets, and returns their names, as package net has
// them.
func both(t *testing.T, in Instance, change func(*Status)) (shows, changes string, log *logged) {
	t.Helper()
	log = &logged{}
	s := NewStatus(StatusOptions{Users: []uint32{uint32(os.Geteuid())}, Guest: true, Logger: slog.New(slog.NewTextHandler(log, nil))})
	name, err := s.ListenDefault(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	changes = filepath.Join(t.TempDir(), "s")
	if err := s.ListenControl(changes); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(s)
	}
	s.Serve(in)
	t.Cleanup(s.Close)
	return "@" + name, changes, log
}

// ask sends words and returns the replies.
func ask(t *testing.T, path, words string) []api.Reply {
	t.Helper()
	c := dial(t, path)
	defer c.Close()
	_, _ = io.WriteString(c, words)
	return replies(t, c)
}

func replies(t *testing.T, c net.Conn) (all []api.Reply) {
	t.Helper()
	b := bufio.NewReader(c)
	for {
		line, err := b.ReadBytes('\n')
		if len(line) > 0 {
			var r api.Reply
			if err := json.Unmarshal(line, &r); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			all = append(all, r)
		}
		if err != nil {
			if err != io.EOF && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the end: %v", err)
			}
			return all
		}
	}
}

const wantStatus = `{"version":1,"command":"status","of a later version":[1]}` + "\n"

// TestStatusServer: what is shown, what may be changed by which socket, and what is no
// request.
func TestStatusServer(t *testing.T) {
	in := &fake{}
	shows, changes, log := both(t, in, nil)
	for _, path := range []string{shows, changes} {
		r := ask(t, path, wantStatus)
		if len(r) != 1 || r[0].Status == nil || r[0].Status.Personality != "pasta" || r[0].Status.Control != (path == changes) {
			t.Errorf("%s: %+v", path, r)
		}
		for words, want := range map[string]string{
			"\n": "no request", "{}\n": "version", "null\n": "version", "[]\n": "no request", wantStatus + wantStatus: "more than one request",
			`{"version":2,"command":"status"}` + "\n":              "speaks version 1",
			`{"version":1,"command":"\u001b[2J"}` + "\n":           `no command "\x1b[2J"`,
			`{"version":1,"command":"` + strings.Repeat("x", 999):  "", // and no end
			strings.Repeat("[", api.MaxRequest-1) + "\n":           "no request",
			strings.Repeat(" ", api.MaxLoad) + wantStatus:          map[string]string{shows: "more than 65536 bytes", changes: "more than 1048576 bytes"}[path],
			`{"version":1,"command":"status","target":3}` + "\n":   "no request",
			`{"version":1,"command":"status","level":"\xff"` + "}": "",
		} {
			c := dial(t, path)
			_, _ = io.WriteString(c, words)
			_ = c.CloseWrite()
			r := replies(t, c)
			c.Close()
			if len(r) != 1 || r[0].Error == "" || !strings.Contains(r[0].Error, want) || strings.ContainsRune(r[0].Error, 0x1b) {
				t.Errorf("%s: %.60q: %+v, want %q", path, words, r, want)
			}
		}
	}
	level := func(l string) string { return fmt.Sprintf(`{"version":1,"command":"log-level","level":%q}`+"\n", l) }
	if r := ask(t, shows, level("debug")); len(r) != 1 || !strings.Contains(r[0].Error, "--control PATH") || in.level.Load() != nil {
		t.Errorf("the socket that changes nothing: %+v, %v", r, in.level.Load())
	}
	if r := ask(t, changes, level("debug")); len(r) != 1 || r[0].Error != "" || in.level.Load() != "debug" {
		t.Errorf("the one that does: %+v, %v", r, in.level.Load())
	}
	if r := ask(t, changes, level("loud")); len(r) != 1 || r[0].Error != "there is no level loud" {
		t.Errorf("a level that is none: %+v", r)
	}
	if n := strings.Count(log.String(), "changed by a client"); n != 1 {
		t.Errorf("%d changes are in the log:\n%s", n, log)
	}
}

// TestRequestsInPieces: a request may come byte by byte.
func TestRequestsInPieces(t *testing.T) {
	shows, _, _ := both(t, &fake{}, nil)
	c := dial(t, shows)
	defer c.Close()
	for i := range len(wantStatus) {
		if _, err := io.WriteString(c, wantStatus[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if r := replies(t, c); len(r) != 1 || r[0].Status == nil {
		t.Errorf("%+v", r)
	}
}

// TestHostileClients: clients that say nothing, stop amid what they say, do not read or
// connect without end keep nobody else from being served, and are over after their
// time.
func TestHostileClients(t *testing.T) {
	shows, _, _ := both(t, &fake{}, func(s *Status) { s.patience = 4 * time.Second })
	var slow []*net.UnixConn
	for i := range 3 * maxClients {
		c := dial(t, shows)
		_, _ = io.WriteString(c, wantStatus[:i%len(wantStatus)])
		slow = append(slow, c)
		if r := ask(t, shows, wantStatus); len(r) != 1 || r[0].Status == nil {
			t.Fatalf("beside %d slow ones: %+v", i+1, r)
		}
	}
	for i, c := range slow {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("slow client %d is still there", i)
		}
	}
	for range 500 {
		c, err := net.Dial("unix", shows)
		if errors.Is(err, unix.EAGAIN) {
			continue // as many wait as may
		}
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, wantStatus)
		c.Close()
	}
	if r := ask(t, shows, wantStatus); len(r) != 1 || r[0].Status == nil {
		t.Errorf("after 500 that did not wait: %+v", r)
	}
}

// lasting puts a handler in place that answers until its client has gone.
func lasting(t *testing.T, run func(context.Context, Instance, *api.Request, *Client) error) {
	t.Helper()
	handlers["test"] = handler{lasts: true, run: run}
	t.Cleanup(func() { delete(handlers, "test") })
}

const wantTest = `{"version":1,"command":"test"}` + "\n"

// TestFull: as many clients as there may be that are being served: one more is told so,
// and there is room again once one has gone.
func TestFull(t *testing.T) {
	lasting(t, func(ctx context.Context, _ Instance, _ *api.Request, c *Client) error {
		if err := c.Reply(&api.Reply{}); err != nil {
			return err
		}
		<-ctx.Done()
		return errGone
	})
	shows, changes, _ := both(t, &fake{}, nil)
	var held []*net.UnixConn
	for range maxClients {
		c := dial(t, shows)
		_, _ = io.WriteString(c, wantTest)
		if _, err := bufio.NewReader(c).ReadBytes('\n'); err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	if r := ask(t, changes, wantStatus); len(r) != 1 || !strings.Contains(r[0].Error, "16 clients") {
		t.Errorf("one more: %+v", r)
	}
	held[3].Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		r := ask(t, changes, wantStatus)
		if len(r) == 1 && r[0].Status != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("there is room, and %+v", r)
		}
	}
}

// TestUnread: a client that does not read ends the handler.
func TestUnread(t *testing.T) {
	ended := make(chan error, 1)
	lasting(t, func(_ context.Context, _ Instance, _ *api.Request, c *Client) error {
		for {
			if err := c.Reply(&api.Reply{Error: strings.Repeat("x", 1000)}); err != nil {
				ended <- err
				return err
			}
		}
	})
	shows, _, _ := both(t, &fake{}, func(s *Status) { s.patience = 200 * time.Millisecond })
	c := dial(t, shows)
	defer c.Close()
	_, _ = io.WriteString(c, wantTest)
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on")
	}
}

// TestStatusStrangers: another user is told nothing, by either socket; a process in
// another network namespace finds no abstract socket, and by the file is told nothing.
func TestStatusStrangers(t *testing.T) {
	in := &fake{}
	shows, changes, log := both(t, in, nil)
	type said struct {
		path  string
		words []byte
		err   error
	}
	all := make(chan said, 2)
	go func() {
		defer close(all)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Unshare(unix.CLONE_NEWNET) != nil {
			return
		}
		for _, path := range []string{shows, changes} {
			// By package net it might be another thread's namespace.
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return
			}
			b := make([]byte, 64)
			n := 0
			if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err == nil {
				_, _ = unix.Write(fd, []byte(wantStatus))
				n, _ = unix.Read(fd, b)
			}
			unix.Close(fd)
			all <- said{path, b[:max(n, 0)], err}
		}
	}()
	n := 0
	for s := range all {
		n++
		if len(s.words) > 0 || s.path == shows && !errors.Is(s.err, unix.ECONNREFUSED) || s.path == changes && s.err != nil {
			t.Errorf("%s, from another namespace: %q, %v", s.path, s.words, s.err)
		}
	}
	if n == 2 {
		log.await(t, "in another network namespace")
	} else {
		t.Log("no network namespace can be made")
	}

	shows, changes, log = both(t, in, func(s *Status) {
		for _, g := range s.gates {
			g.users = []uint32{uint32(os.Geteuid()) + 1}
		}
	})
	for _, path := range []string{shows, changes} {
		c := dial(t, path)
		_, _ = io.WriteString(c, wantStatus)
		if b, _ := io.ReadAll(c); len(b) > 0 {
			t.Errorf("another user is told %q", b)
		}
	}
	log.await(t, "neither this instance's user nor root")
}

// TestTakenNames: a name that somebody has is not in the way; where all are taken there
// is no socket.
func TestTakenNames(t *testing.T) {
	const pid = 1 << 30 // nobody's
	var squat []int
	for n := range mostNames {
		fd, name, err := bindAbstract(pid)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		squat = append(squat, fd)
		want := fmt.Sprintf("%s%d-%d", api.Prefix, pid, n)
		if n == 0 {
			want = fmt.Sprintf("%s%d", api.Prefix, pid)
		}
		if name != want {
			t.Errorf("name %d is %s", n, name)
		}
	}
	if _, name, err := bindAbstract(pid); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("one more: %q, %v", name, err)
	}
	unix.Close(squat[0])
	squat[0] = -1
	fd, name, err := bindAbstract(pid)
	if err != nil || strings.Contains(name, "-") {
		t.Fatalf("%q, %v", name, err)
	}
	unix.Close(fd)
}

// Load is fake's: rules that name a place are wrong there.
func (f *fake) Load(l *api.LoadSpec) (*api.LoadReply, error) {
	if l.Text == "wrong" {
		return nil, rulesfile.Errors{{File: l.Name, Line: 1, Column: 2, Msg: "one"}, {File: l.Name, Line: 3, Column: 4, Msg: "two"}}
	}
	f.level.Store(fmt.Sprint(len(l.Text), l.Keep, l.End))
	return &api.LoadReply{Rules: 1, Ended: 2}, nil
}

// TestLoad: rules are loaded by the socket that changes things alone, as many as go into
// a file, and each thing that is wrong with them has its line.
func TestLoad(t *testing.T) {
	in := &fake{}
	shows, changes, _ := both(t, in, nil)
	load := func(l *api.LoadSpec) string {
		b, err := json.Marshal(&api.Request{Version: 1, Command: api.Load, Load: l})
		if err != nil {
			t.Fatal(err)
		}
		return string(b) + "\n"
	}
	good := load(&api.LoadSpec{Name: "f", Text: "allow any", Keep: true})
	if r := ask(t, shows, good); len(r) != 1 || !strings.Contains(r[0].Error, "--control PATH") || in.level.Load() != nil {
		t.Errorf("the socket that changes nothing: %+v, %v", r, in.level.Load())
	}
	if r := ask(t, changes, good); len(r) != 1 || r[0].Error != "" || r[0].Load == nil || r[0].Load.Ended != 2 || in.level.Load() != "9 true false" {
		t.Errorf("%+v, %v", r, in.level.Load())
	}
	if r := ask(t, changes, load(&api.LoadSpec{Name: "f", Text: strings.Repeat("\n", rulesfile.MaxSize)})); len(r) != 1 || r[0].Error != "" {
		t.Errorf("as large as may be: %+v", r)
	}
	if r := ask(t, changes, load(&api.LoadSpec{Name: "f", Text: "wrong"})); len(r) != 1 || r[0].Error != "the rules stay as they are" || !slices.Equal(r[0].Problems, []string{"f:1:2: one", "f:3:4: two"}) {
		t.Errorf("%+v", r)
	}
	for want, l := range map[string]*api.LoadSpec{
		"no rules": {Name: "f"}, "cannot both": {Name: "f", Text: "x", Keep: true, End: true}, "cannot be shown": {Name: "a\x1b[2J", Text: "x"},
		"more than 4096 bytes": {Name: strings.Repeat("x", 5000), Text: "x"}, "no rules are": nil,
	} {
		if r := ask(t, changes, load(l)); len(r) != 1 || !strings.Contains(r[0].Error, want) {
			t.Errorf("%+v: %+v, want %q", l, r, want)
		}
	}
}

// FuzzRequest: whatever a client says is a request or an error of one line.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{wantStatus, "{}", "null", "[", `{"version":1,"command":"why","target":{"protocol":"tcp","address":"::1","port":70000}}`,
		`{"version":1,"command":"forward","forward":{"specs":["-t 80"]}}`,
		`{"version":1,"command":"load","load":{"name":"f","text":"allow any\ndeny any\n","keep":true}}`, `{"version":1e9}`, `{"VERSION":1,"command":"log-level","level":"debug"}`} {
		fuzz.Add(f, []byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > api.MaxRequest {
			return
		}
		r, err := decodeRequest(b)
		if err != nil {
			if line, e := json.Marshal(&api.Reply{Error: err.Error()}); e != nil || bytes.ContainsRune(line, '\n') {
				t.Errorf("%q, %v", line, e)
			}
			return
		}
		if r.Version != api.Version {
			t.Errorf("version %d", r.Version)
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := decodeRequest(again); err != nil || same.Command != r.Command || same.Level != r.Level {
			t.Errorf("%s: %+v, %v", again, same, err)
		}
	})
}
