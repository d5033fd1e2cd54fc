// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/control/hostfwd"
)

// ports are what clients have forwarded.
type ports struct {
	mu  sync.Mutex
	all []hostfwd.Forward
}

func (p *ports) Add(r *hostfwd.Request) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Forward.HostPort == 99 {
		return 0, errors.New("it is taken")
	}
	f := r.Forward
	f.ID = len(p.all) + 1
	p.all = append(p.all, f)
	return f.ID, nil
}

func (p *ports) Remove(id int) bool { return id <= len(p.all) }

func (p *ports) List() []hostfwd.Forward {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]hostfwd.Forward(nil), p.all...)
}

func serveHostfwd(t *testing.T, patience time.Duration) (path string, log *logged) {
	t.Helper()
	path, log = filepath.Join(t.TempDir(), "s"), &logged{}
	s, err := ListenHostfwd(Options{Path: path, Users: []uint32{uint32(os.Geteuid())}, Guest: true, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.patience = patience
	go s.Serve(&ports{})
	t.Cleanup(s.Close)
	return path, log
}

const (
	addTCP   = `{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_port": 80, "guest_addr": "10.0.2.100", "guest_port": 80}}`
	addTaken = `{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_port": 99, "guest_port": 80}}`
	list     = `{"execute": "list_hostfwd"}`
)

// askHostfwd is one client's whole turn.
func askHostfwd(t *testing.T, path string, shut bool, pieces ...string) string {
	t.Helper()
	c := dial(t, path)
	defer c.Close()
	for i, p := range pieces {
		if i > 0 {
			time.Sleep(20 * time.Millisecond)
		}
		if _, err := io.WriteString(c, p); err != nil {
			t.Fatal(err)
		}
	}
	if shut {
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	answer, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Error(err)
	}
	return string(answer)
}

// TestHostfwd: a request, an answer, the end; with and without the client's end, in
// pieces, too long, and not at all.
func TestHostfwd(t *testing.T) {
	path, log := serveHostfwd(t, 10*time.Second)
	const entry = `{"entries":[{"id":1,"proto":"tcp","host_addr":"0.0.0.0","host_port":80,"guest_addr":"10.0.2.100","guest_port":80}]}`
	for _, tt := range []struct {
		shut   bool
		pieces []string
		want   string
	}{
		{true, []string{list}, `{"entries":[]}`},
		{true, []string{addTCP}, `{"return":{"id":1}}`},
		{false, []string{list}, entry},
		{true, []string{`{"execute": `, `"list_hostfwd"`, `}`}, entry},
		{false, []string{`{"execute": `, `"list_hostfwd"`, `}`}, entry},
		{true, []string{addTaken}, `{"error":{"desc":"bad request: add_hostfwd: slirp_add_hostfwd failed"}}`},
		{true, []string{`{"execute": "remove_hostfwd", "arguments": {"id": 1}}`}, `{"return":{}}`},
		{true, []string{`{"execute": "remove_hostfwd", "arguments": {"id": 7}}`}, `{"error":{"desc":"bad request: remove_hostfwd: bad arguments.id"}}`},
		{true, []string{""}, `{"error":{"desc":"bad request: cannot parse JSON"}}`},
		{true, []string{`{"execute": "li`}, `{"error":{"desc":"bad request: cannot parse JSON"}}`},
		{true, []string{list + strings.Repeat(" ", hostfwd.MaxRequest-len(list))}, `{"error":{"desc":"bad request: too large message"}}`},
	} {
		if got := askHostfwd(t, path, tt.shut, tt.pieces...); got != tt.want {
			t.Errorf("%.80q: %s, want %s", tt.pieces, got, tt.want)
		}
	}
	// What is not taken resets the connection, as the client sees when it has the answer.
	c := dial(t, path)
	_, _ = io.WriteString(c, strings.Repeat("x", 2*hostfwd.MaxRequest))
	if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("after too much: %v", err)
	}
	if got := askHostfwd(t, path, true, list); got != entry {
		t.Errorf("at the end: %s", got)
	}
	log.await(t, "it is taken")
}

// TestHostfwdSlow: clients that say nothing keep nobody waiting, and are let go.
func TestHostfwdSlow(t *testing.T) {
	path, _ := serveHostfwd(t, time.Hour)
	for range mostHostfwd - 1 {
		c := dial(t, path)
		if _, err := io.WriteString(c, `{"execute"`); err != nil {
			t.Fatal(err)
		}
	}
	if got := askHostfwd(t, path, true, list); got != `{"entries":[]}` {
		t.Errorf("%s", got)
	}

	path, _ = serveHostfwd(t, 1500*time.Millisecond) // in which a client of a busy machine says what it wants
	for range 2 * mostHostfwd {
		dial(t, path)
	}
	if got := askHostfwd(t, path, true, list); got != `{"entries":[]}` {
		t.Errorf("once all were let go: %s", got)
	}
	if got := askHostfwd(t, path, false, "{"); got != `{"error":{"desc":"bad request: cannot parse JSON"}}` {
		t.Errorf("one that stops: %s", got)
	}
}

// TestHostfwdStrangers: a process of another network namespace, as the guest's are, gets
// no answer.
func TestHostfwdStrangers(t *testing.T) {
	path, log := serveHostfwd(t, time.Minute)
	if b := fromElsewhere(t, path, []byte(addTCP)); len(b) > 0 {
		t.Errorf("a client of another namespace is told %q", b)
	}
	log.await(t, "in another network namespace")
	if got := askHostfwd(t, path, true, list); got != `{"entries":[]}` {
		t.Errorf("it has changed something: %s", got)
	}
}
