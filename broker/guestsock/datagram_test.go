// SPDX-License-Identifier: Apache-2.0

package guestsock

import (
	"bytes"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// machine is one that sends datagrams to a socket, from one of its own at a path;
// without: from none.
func machine(t *testing.T, to, from string) int {
	t.Helper()
	fd := lone(t, unix.AF_UNIX, unix.SOCK_DGRAM)
	if from != "" {
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: from}); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: to}); err != nil {
		t.Fatal(err)
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30})
	return fd
}

// takes is what the worker reads from the socket that it has got.
func takes(t *testing.T, fd int, want ...string) {
	t.Helper()
	b := make([]byte, 100)
	for _, w := range want {
		n, err := unix.Read(fd, b)
		if err != nil || string(b[:n]) != w {
			t.Fatalf("the worker reads %q, %v, want %q", b[:max(n, 0)], err, w)
		}
	}
	if n, err := unix.Read(fd, b); err != unix.EAGAIN {
		t.Fatalf("the worker reads %q, %v, and should nothing", b[:max(n, 0)], err)
	}
}

// got waits for the worker to have a client.
func (w *worker) got(t *testing.T) int {
	t.Helper()
	select {
	case fd := <-w.clients:
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	case <-time.After(30 * time.Second):
		t.Fatal("the worker has no client")
	}
	return -1
}

type lines struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(b)
}

func (l *lines) has(t *testing.T, s string) {
	t.Helper()
	for range 3000 {
		l.mu.Lock()
		ok := strings.Contains(l.String(), s)
		l.mu.Unlock()
		if ok {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("no %q in the log", s)
}

// TestDatagramClients: the first datagram brings the client, and stays to be read; nobody
// else is heard while that is there; the next one comes when it has gone.
func TestDatagramClients(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "socket")
	log := &lines{}
	s, err := Listen(path, ipc.LinkDatagram, false, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	w := &mortal{newWorker(), s}
	go s.Serve(w)

	nobody := machine(t, path, "")
	for range 3 {
		if _, err := unix.Write(nobody, []byte("who am I?")); err != nil {
			t.Fatal(err)
		}
	}
	log.has(t, "bind its socket")
	a := machine(t, path, filepath.Join(dir, "a"))
	for _, m := range []string{"hello", "", "frame"} {
		unix.Write(a, []byte(m))
	}
	fd := w.got(t)
	if !s.Connected() || !s.Answers() {
		t.Error("nobody is connected, or is to be answered")
	}
	takes(t, fd, "hello", "", "frame")
	if _, err := unix.Write(fd, []byte("answer")); err != nil {
		t.Fatal(err)
	}
	takesOne(t, a, "answer")
	if err := unix.Connect(nobody, &unix.SockaddrUnix{Name: path}); err != unix.EPERM {
		t.Errorf("another one connects: %v", err)
	}
	if _, err := unix.Write(nobody, []byte("me too")); err != unix.EPERM {
		t.Errorf("another one is heard: %v", err)
	}
	unix.Write(a, []byte("more"))
	takes(t, fd, "more")
	unix.Write(a, []byte("unread"))
	unix.Close(fd)
	s.Closed()
	if s.Connected() {
		t.Error("somebody is connected")
	}
	for len(w.clients) == 0 { // what comes before it is disconnected goes
		unix.Write(a, []byte("again"))
		time.Sleep(time.Millisecond)
	}
	fd = w.got(t)
	if len(w.renewed) != 1 {
		t.Error("a worker that still has the socket serves the next client")
	}
	takesSome(t, fd, "again")
	s.WorkerGone() // by itself
	b := machine2(t, path, filepath.Join(dir, "b"))
	unix.Write(b, []byte("b"))
	fd = w.got(t)
	if len(w.renewed) != 1 {
		t.Error("a new worker is replaced")
	}
	unix.Shutdown(fd, unix.SHUT_RDWR) // as a worker can
	s.Closed()
	log.has(t, "shut down")
}

// mortal is a worker that ends when it is to be replaced.
type mortal struct {
	*worker
	s *Server
}

func (m *mortal) Renew() {
	m.worker.Renew()
	m.s.WorkerGone()
}

// machine2 is machine while the socket is another's: it connects as soon as it may.
func machine2(t *testing.T, to, from string) int {
	t.Helper()
	fd := lone(t, unix.AF_UNIX, unix.SOCK_DGRAM)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: from}); err != nil {
		t.Fatal(err)
	}
	for unix.Connect(fd, &unix.SockaddrUnix{Name: to}) != nil {
		time.Sleep(time.Millisecond)
	}
	return fd
}

func takesOne(t *testing.T, fd int, want string) {
	t.Helper()
	b := make([]byte, 100)
	if n, err := unix.Read(fd, b); err != nil || string(b[:n]) != want {
		t.Fatalf("%q, %v, want %q", b[:max(n, 0)], err, want)
	}
}

func takesSome(t *testing.T, fd int, want string) {
	t.Helper()
	b := make([]byte, 100)
	for seen := 0; ; seen++ {
		n, err := unix.Read(fd, b)
		if err == unix.EAGAIN && seen > 0 {
			return
		}
		if err != nil || string(b[:n]) != want {
			t.Fatalf("%q, %v, want %q", b[:max(n, 0)], err, want)
		}
	}
}

// TestTwoAtOnce: of two that have sent before either was known, the worker reads nothing
// of the other.
func TestTwoAtOnce(t *testing.T) {
	for _, order := range []string{"ab", "aab", "aba", "aabb", "a", "aaaaaaaaab"} {
		dir := t.TempDir()
		path := filepath.Join(dir, "socket")
		s, err := Listen(path, ipc.LinkDatagram, true, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		fds := map[rune]int{}
		for _, who := range "ab" {
			fds[who] = machine(t, path, filepath.Join(dir, string(who)))
		}
		alone := !strings.Contains(order, "b")
		for k, who := range order {
			if _, err := unix.Write(fds[who], []byte(fmt.Sprint(string(who), k))); err != nil {
				t.Fatal(err)
			}
		}
		w := newWorker()
		done := make(chan bool)
		go func() { s.Serve(w); close(done) }()
		fd := w.got(t)
		if alone {
			takes(t, fd, "a0")
		} else {
			takes(t, fd)
		}
		unix.Write(fds['a'], []byte("later"))
		takes(t, fd, "later")
		s.Closed()
		<-s.Done()
		<-done
		unix.Close(s.fd)
	}
}

// TestDatagramUnreachable: a client that cannot be answered is not served, and nobody
// waits for it.
func TestDatagramUnreachable(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "socket")
	log := &lines{}
	s, err := Listen(path, ipc.LinkDatagram, false, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	gone := machine(t, path, filepath.Join(dir, "gone"))
	unix.Write(gone, []byte("I was here"))
	unix.Unlink(filepath.Join(dir, "gone"))
	w := newWorker()
	go s.Serve(w)
	log.has(t, "cannot be answered")
	abstract := machine(t, path, "@"+path)
	unix.Write(abstract, []byte("nor can I"))
	a := machine(t, path, filepath.Join(dir, "a"))
	unix.Write(a, []byte("a"))
	takes(t, w.got(t), "a")
}

// TestGivenStays: what was given to us and keeps the bounds of frames outlives a worker.
func TestGivenStays(t *testing.T) {
	for kind, stays := range map[uint8]bool{
		ipc.LinkStream: false, ipc.LinkDatagram: true, ipc.LinkSeqpacket: true, ipc.LinkTap: true, ipc.LinkPlainTap: true,
	} {
		s := Given(kind, slog.New(slog.DiscardHandler))
		s.WorkerGone()
		if s.Connected() != stays {
			t.Errorf("kind %d: there after its worker's end: %v", kind, !stays)
		}
		s.Closed()
		<-s.Done()
	}
}

// TestSeqpacketClients: they connect as a stream's do.
func TestSeqpacketClients(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	s, err := Listen(path, ipc.LinkSeqpacket, false, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorker()
	go s.Serve(w)
	connectBy(t, path, unix.SOCK_SEQPACKET)
	w.taken(t)
	closedBy(t, connectBy(t, path, unix.SOCK_SEQPACKET))
	if err := unix.Connect(lone(t, unix.AF_UNIX, unix.SOCK_STREAM), &unix.SockaddrUnix{Name: path}); err != unix.EPROTOTYPE {
		t.Errorf("a stream connects: %v", err)
	}
	s.Closed()
	connectBy(t, path, unix.SOCK_SEQPACKET)
	w.taken(t)
}
