// SPDX-License-Identifier: Apache-2.0

package guestsock

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// worker takes clients over as they come.
type worker struct {
	clients chan int // our copies of their sockets
	renewed chan bool
	gone    bool
}

func newWorker() *worker { return &worker{clients: make(chan int, 8), renewed: make(chan bool, 8)} }

func (w *worker) Send(_ []byte, fd int) error {
	if w.gone {
		return errors.New("no worker")
	}
	copied, err := unix.Dup(fd)
	w.clients <- copied
	return err
}

func (w *worker) Renew() { w.renewed <- true }

// connect is a machine that connects.
func connect(t *testing.T, path string) int { return connectBy(t, path, unix.SOCK_STREAM) }

func connectBy(t *testing.T, path string, typ int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30})
	return fd
}

// taken waits for the worker to have a client.
func (w *worker) taken(t *testing.T) {
	t.Helper()
	select {
	case fd := <-w.clients:
		t.Cleanup(func() { unix.Close(fd) })
	case <-time.After(30 * time.Second):
		t.Fatal("the worker has no client")
	}
}

// closedBy waits for the other side to hang up.
func closedBy(t *testing.T, fd int) {
	t.Helper()
	if n, err := unix.Read(fd, make([]byte, 1)); n != 0 || err != nil {
		t.Fatalf("not hung up on: %d, %v", n, err)
	}
}

// TestClients: one at a time, and the same one again keeps its worker.
func TestClients(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	s, err := Listen(path, ipc.LinkStream, false, slog.New(slog.DiscardHandler))
	if err != nil || s.Path() != path {
		t.Fatal(s.Path(), err)
	}
	w := newWorker()
	go s.Serve(w)
	connect(t, path)
	w.taken(t)
	closedBy(t, connect(t, path)) // a second one
	s.Closed()
	connect(t, path)
	w.taken(t)
	s.Closed()
	s.Closed() // once more is nothing
	if len(w.renewed) > 0 {
		t.Error("the same client gets another worker")
	}
	s.mu.Lock()
	s.last.pid++ // somebody else
	s.mu.Unlock()
	connect(t, path)
	w.taken(t)
	if len(w.renewed) != 1 {
		t.Error("another client gets the worker of the last")
	}
	s.Closed()
	s.mu.Lock()
	s.last.pid++
	s.mu.Unlock()
	s.WorkerGone() // nobody knows that one's flows any more
	connect(t, path)
	w.taken(t)
	if len(w.renewed) != 1 {
		t.Error("a new worker is replaced")
	}
}

// TestStuckWorker: a worker that does not let go of a client that is gone is replaced,
// one that does is not. Only front ends of vhost-user can have it wait.
func TestStuckWorker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	s, err := Listen(path, ipc.LinkVhostUser, false, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorker()
	go s.Serve(w)
	connect := func() int {
		t.Helper()
		fd := connect(t, path)
		w.taken(t)
		return fd
	}
	fd := connect()
	unix.Shutdown(fd, unix.SHUT_RDWR)
	s.Closed()
	time.Sleep(letGo + letGo/4)
	if len(w.renewed) > 0 {
		t.Error("a worker that has let go is replaced")
	}
	unix.Shutdown(connect(), unix.SHUT_RDWR)
	select {
	case <-w.renewed:
	case <-time.After(30 * time.Second):
		t.Error("a worker that does not let go is not replaced")
	}
	// Where the worker ends the connection, its client sees that.
	s.Closed()
	fd = connect()
	s.Closed()
	for fds := w.clients; len(fds) > 0; {
		unix.Close(<-fds)
	}
	closedBy(t, fd)
}

// TestOneOff: nobody is served after the only client.
func TestOneOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	s, err := Listen(path, ipc.LinkStream, true, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorker()
	served := make(chan bool)
	go func() { s.Serve(w); close(served) }()
	connect(t, path)
	w.taken(t)
	<-served
	select {
	case <-s.Done():
		t.Fatal("done while the client is there")
	default:
	}
	s.Closed()
	<-s.Done()

	given := Given(ipc.LinkStream, slog.New(slog.DiscardHandler))
	if given.Path() != "" {
		t.Errorf("a given socket is at %q", given.Path())
	}
	given.Closed()
	<-given.Done()
}

// TestNoWorker: a client that comes while no worker runs is refused in the end.
func TestNoWorker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	s, err := Listen(path, ipc.LinkStream, false, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorker()
	w.gone = true
	go s.Serve(w)
	closedBy(t, connect(t, path))
}

// TestPaths: what may be at a path already.
func TestPaths(t *testing.T) {
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	path := filepath.Join(dir, "socket")
	s, err := Listen(path, ipc.LinkStream, false, log)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if _, err := Listen(path, ipc.LinkStream, false, log); err == nil || !strings.Contains(err.Error(), "already in use") {
		t.Errorf("in use: %v", err)
	}
	unix.Close(s.fd)
	if _, err := Listen(path, ipc.LinkStream, false, log); err != nil {
		t.Errorf("left over: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file, ipc.LinkStream, false, log); err == nil || !strings.Contains(err.Error(), "in the way") {
		t.Errorf("a file: %v", err)
	}
	if _, err := Listen(filepath.Join(dir, "none", "socket"), ipc.LinkStream, false, log); err == nil || !strings.Contains(err.Error(), "create the directory") {
		t.Errorf("no directory: %v", err)
	}
}

// TestSameClient: who finds its flows again.
func TestSameClient(t *testing.T) {
	now := time.Now()
	last := client{known: true, pid: 7, uid: 1000, left: now}
	for _, tt := range []struct {
		name string
		cred unix.Ucred
		at   time.Time
		want bool
	}{
		{"the same", unix.Ucred{Pid: 7, Uid: 1000}, now.Add(time.Second), true},
		{"another process", unix.Ucred{Pid: 8, Uid: 1000}, now, false},
		{"another user", unix.Ucred{Pid: 7, Uid: 0}, now, false},
		{"too late", unix.Ucred{Pid: 7, Uid: 1000}, now.Add(comeBack), false},
	} {
		if got := last.is(&tt.cred, tt.at); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	if (&client{known: true}).is(&unix.Ucred{}, now) {
		t.Error("a process that cannot be seen is known")
	}
}
