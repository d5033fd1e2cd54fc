// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/broker/control/wire"
	"aldente/broker/hostnet/nettest"
	"aldente/ipc"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// rules are tables that clients change.
type rules struct {
	mu      sync.Mutex
	tables  []wire.Table
	changes int
	refuse  error
}

func (r *rules) Tables() []wire.Table {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tables
}

func (r *rules) Change(to []wire.Table) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuse == nil {
		r.tables, r.changes = []wire.Table{{ID: wire.Host, Name: "HOST", Rules: to[0].Rules}}, r.changes+1
	}
	return r.refuse
}

func (r *rules) changed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changes
}

// logged is a log that a test reads.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logged) await(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(l.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log does not say %q:\n%s", text, l)
		}
	}
}

// serve starts a server and returns its socket, its log and its rules.
func serve(t *testing.T, change func(*Server)) (path string, log *logged, r *rules) {
	t.Helper()
	path, log, r = filepath.Join(t.TempDir(), "s"), &logged{}, &rules{tables: []wire.Table{{ID: wire.Host, Name: "HOST"}}}
	s, err := Listen(Options{Path: path, Users: []uint32{uint32(os.Geteuid())}, Guest: true, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(s)
	}
	go s.Serve(r)
	t.Cleanup(s.Close)
	return path, log, r
}

func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.Dial("unix", path)
	for end := time.Now().Add(10 * time.Second); errors.Is(err, unix.EAGAIN) && time.Now().Before(end); c, err = net.Dial("unix", path) {
		time.Sleep(time.Millisecond) // as many wait as may
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.UnixConn)
}

// port is tables with one rule.
func port(n uint16) []wire.Table {
	return []wire.Table{{ID: wire.Host, Rules: []cli.Rule{
		{Proto: ipc.ProtoTCP, PortRange: cli.PortRange{First: n, Last: n}, TargetPort: n},
	}}}
}

// change is one client's whole turn: it returns what our server answers.
func change(t *testing.T, path string, to []wire.Table) error {
	t.Helper()
	c := dial(t, path)
	defer c.Close()
	if _, err := wire.ReadHello(c); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(wire.AppendTables(nil, to)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	return wire.ReadAnswer(c)
}

// TestChange: what a client sends is put in force, and it learns of it; one that only
// looks, or says nothing sensible, changes nothing.
func TestChange(t *testing.T) {
	path, log, r := serve(t, nil)
	if err := change(t, path, port(80)); err != nil || r.changed() != 1 {
		t.Errorf("%v, %d changes", err, r.changed())
	}
	look := dial(t, path)
	if tables, err := wire.ReadHello(look); err != nil || len(tables) != 1 || len(tables[0].Rules) != 1 {
		t.Errorf("%v, %v", tables, err)
	}
	look.Close()

	r.mu.Lock()
	r.refuse = errors.New("port 81 is taken")
	r.mu.Unlock()
	refused := (*wire.Refusal)(nil)
	if err := change(t, path, port(81)); !errors.As(err, &refused) || refused.Reason != "port 81 is taken" {
		t.Errorf("refused: %v", err)
	}
	log.await(t, "port 81 is taken")

	c := dial(t, path)
	_, _ = c.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	if b, err := io.ReadAll(c); err != nil && !errors.Is(err, unix.ECONNRESET) || !bytes.Contains(b, []byte("malformed")) {
		t.Errorf("nonsense: %q, %v", b, err)
	}
	if n := r.changed(); n != 1 {
		t.Errorf("%d changes", n)
	}
}

// TestTheirClient: passt's sends, closes, and does not wait for an answer.
func TestTheirClient(t *testing.T) {
	path, log, r := serve(t, nil)
	for n := range uint16(200) {
		c := dial(t, path)
		if _, err := wire.ReadHello(c); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(wire.AppendTables(nil, port(n+1)))
		c.Close()
	}
	if err := change(t, path, port(300)); err != nil { // behind all of them
		t.Error(err)
	}
	if n := r.changed(); n != 201 || log.String() != "" {
		t.Errorf("%d changes; %s", n, log)
	}
}

// TestSlowClients: one that says nothing, or stops amid a rule, is over after its time,
// and its turn has changed nothing. One that has closed is over at once.
func TestSlowClients(t *testing.T) {
	path, log, r := serve(t, func(s *Server) { s.patience = time.Second })
	request := wire.AppendTables(nil, port(80))
	for _, n := range []int{0, 1, 20, len(request) - 1} {
		c := dial(t, path)
		if _, err := wire.ReadHello(c); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(request[:n])
		if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("after %d bytes: %v", n, err)
		}
		cut := dial(t, path)
		if _, err := wire.ReadHello(cut); err != nil {
			t.Fatal(err)
		}
		_, _ = cut.Write(request[:n])
		cut.Close()
	}
	log.await(t, "too slow")
	log.await(t, "amid what it said")
	if err := change(t, path, port(81)); err != nil || r.changed() != 1 {
		t.Errorf("%v, %d changes", err, r.changed())
	}
}

// fromElsewhere is what a client with a socket of another network namespace is told after
// it has said something.
func fromElsewhere(t *testing.T, path string, say []byte) []byte {
	t.Helper()
	said := make(chan []byte, 1)
	go func() {
		defer close(said)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Unshare(unix.CLONE_NEWNET) != nil {
			return
		}
		// By package net it might be another thread's namespace.
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		if unix.Connect(fd, &unix.SockaddrUnix{Name: path}) != nil {
			return
		}
		_, _ = unix.Write(fd, say)
		b := make([]byte, 64)
		n, _ := unix.Read(fd, b)
		said <- b[:max(n, 0)]
	}()
	b, ok := <-said
	if !ok {
		t.Skip("needs a network namespace")
	}
	return b
}

// TestStrangers: a client whose socket is of another network namespace is refused,
// whoever it is, and so is another user. Nothing is said to it.
func TestStrangers(t *testing.T) {
	path, log, r := serve(t, nil)
	b := fromElsewhere(t, path, wire.AppendTables(nil, port(80)))
	if len(b) > 0 {
		t.Errorf("a client of another namespace is told %q", b)
	}
	log.await(t, "in another network namespace")
	if r.changed() != 0 {
		t.Error("it has changed rules")
	}

	path, log, r = serve(t, func(s *Server) { s.users = []uint32{uint32(os.Geteuid()) + 1} })
	c := dial(t, path)
	_, _ = c.Write(wire.AppendTables(nil, port(80)))
	if b, _ := io.ReadAll(c); len(b) > 0 {
		t.Errorf("another user is told %q", b)
	}
	log.await(t, "neither this instance's user nor root")
	if r.changed() != 0 {
		t.Error("another user has changed rules")
	}
}

// TestRefusalsAreFew: however many are refused, the log tells of them once a second.
func TestRefusalsAreFew(t *testing.T) {
	path, log, _ := serve(t, func(s *Server) { s.users = nil })
	for range 300 {
		c := dial(t, path)
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}
	if n := strings.Count(log.String(), "refused"); n == 0 || n > 30 {
		t.Errorf("%d lines for 300 clients", n)
	}
}

func listen(path string) (*Server, error) {
	return Listen(Options{Path: path, Logger: slog.New(slog.DiscardHandler)})
}

// TestPath: what is at the path stays, unless it is the socket of one that has ended.
func TestPath(t *testing.T) {
	dir := t.TempDir()
	plain, link, dead := filepath.Join(dir, "plain"), filepath.Join(dir, "link"), filepath.Join(dir, "dead")
	if err := os.WriteFile(plain, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen(dead); err == nil || !strings.Contains(err.Error(), "already in use") {
		t.Errorf("a socket that is listened on: %v", err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := os.Symlink(dead, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{plain, link, dir, os.DevNull} {
		if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "no socket") && path != dir+"/" {
			t.Errorf("%s: %v", path, err)
		}
	}
	if b, err := os.ReadFile(plain); err != nil || string(b) != "kept" {
		t.Errorf("a plain file: %q, %v", b, err)
	}
	if _, err := listen(filepath.Join(dir, "none", "s")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no such folder: %v", err)
	}

	s, err := listen(dead)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Lstat(dead); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket is %v, %v", st.Mode(), err)
	}
	s.Close()
	if _, err := os.Lstat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// TestRemover: what has taken the socket's place since is not removed.
func TestRemover(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another's file: %v", err)
	}
}

// TestHandOver: an instance that takes another's place waits for its end.
func TestHandOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, s.Close)
	next, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	next.Close()
}
