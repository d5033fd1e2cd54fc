// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/hostnet/nettest"
	"aldente/ipc"
)

// sockets hands the guest's agent over.
func (g *guest) sockets(t *testing.T) *Sockets {
	t.Helper()
	if err := g.SetupLoopback(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	s := g.Sockets(func(err error) { ended <- err })
	t.Cleanup(func() { _ = unix.Shutdown(g.FD(), unix.SHUT_RDWR); <-ended })
	return s
}

// open waits for one socket.
func (s *Sockets) open(o ipc.AgentOpen) (fd int, err error) {
	done := make(chan struct{})
	s.Open(o, func(f int, e error) {
		fd, err = f, e
		close(done)
	})
	<-done
	return fd, err
}

func TestSetupLoopback(t *testing.T) {
	g := newGuest(t)
	if err := g.SetupLoopback(); err != nil {
		t.Fatal(err)
	}
	if out := g.ip(t, "-o link"); !strings.Contains(out, "lo:") || !strings.Contains(out, "UP") || strings.Count(out, "\n") > 1 {
		t.Errorf("links: %s", out)
	}
}

// TestOpenSockets opens each kind, and finds it in the namespace as asked for.
func TestOpenSockets(t *testing.T) {
	// The agent dies with the thread that started it, which is not to be one that
	// ends in another namespace.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	g := newGuest(t)
	s := g.sockets(t)
	const listen = ipc.AgentOpenBind | ipc.AgentOpenListen
	lo4 := [16]byte{10: 0xff, 0xff, 127, 0, 0, 1}
	for _, tt := range []struct {
		name string
		o    ipc.AgentOpen
		ss   string // of ss -Hltun, empty: nothing there
	}{
		{"bare TCP", ipc.AgentOpen{Proto: ipc.ProtoTCP}, ""},
		{"bare UDP over IPv4", ipc.AgentOpen{Proto: ipc.ProtoUDP, Flags: ipc.AgentOpenIPv4}, ""},
		{"dual, on lo", ipc.AgentOpen{Proto: ipc.ProtoTCP, Flags: listen | ipc.AgentOpenDevice | ipc.AgentOpenDual, LocalPort: 8001}, "*%lo:8001"},
		{"IPv6 only", ipc.AgentOpen{Proto: ipc.ProtoTCP, Flags: listen, LocalPort: 8002}, "[::]:8002"},
		{"IPv4, low port", ipc.AgentOpen{Proto: ipc.ProtoTCP, Flags: listen | ipc.AgentOpenIPv4, LocalPort: 80, Local: lo4}, "127.0.0.1:80"},
		{"UDP", ipc.AgentOpen{Proto: ipc.ProtoUDP, Flags: listen | ipc.AgentOpenDevice | ipc.AgentOpenDual, LocalPort: 8003}, "*%lo:8003"},
		{"UDP for answers", ipc.AgentOpen{Proto: ipc.ProtoUDP, Flags: ipc.AgentOpenBind | ipc.AgentOpenDevice | ipc.AgentOpenIPv4,
			LocalPort: 53, Local: lo4}, "127.0.0.1%lo:53"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fd, err := s.open(tt.o)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			var out string
			g.do(t, func() { out = ss(t) })
			if tt.ss == "" && out != "" || !strings.Contains(out, tt.ss) {
				t.Errorf("ss: %q, want %q", out, tt.ss)
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
				t.Errorf("flags %#x, %v", flags, err)
			}
		})
	}
	taken := ipc.AgentOpen{Proto: ipc.ProtoTCP, Flags: listen, LocalPort: 8004}
	fd, err := s.open(taken)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := s.open(taken); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a port that is taken: %v", err)
	}
}

// TestManySockets has more requests under way than the channel holds.
func TestManySockets(t *testing.T) {
	g := newGuest(t)
	s := g.sockets(t)
	const n = 2000
	var mu sync.Mutex
	var wg sync.WaitGroup
	var fds []int
	var failed error
	wg.Add(n)
	for p := range n {
		s.Open(ipc.AgentOpen{Proto: ipc.ProtoTCP, Flags: ipc.AgentOpenBind | ipc.AgentOpenListen, LocalPort: uint16(2000 + p)}, func(fd int, err error) {
			defer wg.Done()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
				return
			}
			fds = append(fds, fd)
		})
	}
	wg.Wait()
	for _, fd := range fds {
		unix.Close(fd)
	}
	if len(fds) != n || failed != nil {
		t.Errorf("%d sockets, %v", len(fds), failed)
	}
}

// TestTake has sockets at hand after the first request for one, and not too
// many.
func TestTake(t *testing.T) {
	g := newGuest(t)
	s := g.sockets(t)
	if fd := s.Take(ipc.ProtoTCP, true); fd >= 0 {
		t.Error("sockets nobody has asked for")
	}
	// Answers come in order: with the last one, all that were asked for are in.
	settle := func() {
		fd, err := s.open(ipc.AgentOpen{Proto: ipc.ProtoTCP})
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	settle()
	for range 10 * keepTCP {
		fd := s.Take(ipc.ProtoTCP, true)
		if fd < 0 {
			settle()
			continue
		}
		if d, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || d != unix.AF_INET {
			t.Fatalf("domain %d, %v", d, err)
		}
		unix.Close(fd)
	}
	settle()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.spare[kind(ipc.ProtoTCP, true)].fds); n < keepTCP/2 || n > keepTCP {
		t.Errorf("%d at hand", n)
	}
}

// TestAgentDiesServing ends all requests, those to come too.
func TestAgentDiesServing(t *testing.T) {
	g := newGuest(t)
	if err := g.SetupLoopback(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	s := g.Sockets(func(err error) { ended <- err })
	if err := unix.Kill(g.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 100)
	for range 100 {
		s.Open(ipc.AgentOpen{Proto: ipc.ProtoTCP}, func(fd int, err error) {
			if err == nil {
				unix.Close(fd)
			}
			errs <- err
		})
	}
	if err := <-ended; err == nil {
		t.Error("the end of the agent is no error")
	}
	var last error
	for range 100 {
		last = <-errs
	}
	if last == nil {
		t.Error("the last request succeeded")
	}
	if _, err := s.open(ipc.AgentOpen{Proto: ipc.ProtoTCP}); err == nil {
		t.Error("a request after the end succeeded")
	}
	if fd := s.Take(ipc.ProtoTCP, true); fd >= 0 {
		unix.Close(fd)
	}
}

// TestAskedTogether: sockets to keep at hand are asked for in one message, and no more
// are asked for than may be.
func TestAskedTogether(t *testing.T) {
	ours, its, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(its)
	g := newGuest(t) // for a process; its channel is not used
	c := &Client{process: g.process, channel: ours}
	ended := make(chan error, 1)
	s := c.Sockets(func(err error) { ended <- err })
	b := make([]byte, ipc.MaxRecord)
	asked := map[uint32]bool{}
	receive := func() int {
		n, _, err := ipc.Receive(its, b, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return 0
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ipc.ToAgent.Check(b[:n], false, ipc.Running); err != nil {
			t.Fatal(err)
		}
		var o ipc.AgentOpen
		for k := 0; k < n; k += ipc.AgentOpenSize {
			if err := o.Decode(b[k : k+ipc.AgentOpenSize]); err != nil || asked[o.ID] {
				t.Fatalf("request %d: %v", o.ID, err)
			}
			asked[o.ID] = true
		}
		return n / ipc.AgentOpenSize
	}
	if fd := s.Take(ipc.ProtoTCP, true); fd >= 0 {
		t.Fatalf("a socket %d from nowhere", fd)
	}
	if n := receive(); n != keepTCP {
		t.Errorf("%d in one message, want %d", n, keepTCP)
	}
	s.Take(ipc.ProtoTCP, true) // those that are asked for will do
	s.Take(ipc.ProtoTCP, false)
	s.Take(ipc.ProtoUDP, false)
	s.Take(ipc.ProtoUDP, true)
	for receive() > 0 {
	}
	if len(asked) != maxAsked {
		t.Errorf("%d are asked for, want %d", len(asked), maxAsked)
	}
	for id := range asked { // one answer each makes room for one of those that wait
		if err := ipc.Send(its, (&ipc.AgentOpened{ID: id, Errno: uint16(unix.EMFILE)}).Encode(), -1); err != nil {
			t.Fatal(err)
		}
		break
	}
	p := []unix.PollFd{{Fd: int32(its), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, 10_000); n != 1 {
		t.Fatalf("nothing more is asked for: %v", err)
	}
	if n := receive(); n != 1 {
		t.Errorf("%d more", n)
	}
	unix.Shutdown(its, unix.SHUT_RDWR)
	<-ended
}

// TestHostileAgent answers as no agent of ours does: that ends it.
func TestHostileAgent(t *testing.T) {
	// Of the guest's namespace, so that only its kind is wrong.
	socket := func(domain, typ, proto int) func(*testing.T, *guest) int {
		return func(t *testing.T, g *guest) (fd int) {
			t.Helper()
			var err error
			g.do(t, func() { fd, err = unix.Socket(domain, typ, proto) })
			if err != nil {
				t.Skipf("needs a socket: %v", err)
			}
			return fd
		}
	}
	own := func(t *testing.T, _ *guest) int {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	const stream = unix.SOCK_STREAM | unix.SOCK_NONBLOCK
	answer := func(id uint32) []byte { return (&ipc.AgentOpened{ID: id}).Encode() }
	for _, tt := range []struct {
		name   string
		rec    func(id uint32) []byte
		socket func(*testing.T, *guest) int
	}{
		{"socket of the host's namespace", answer, own},
		{"socket of another family", answer, socket(unix.AF_INET, stream, unix.IPPROTO_TCP)},
		{"socket of another protocol", answer, socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)},
		{"MPTCP", answer, socket(unix.AF_INET6, stream, unix.IPPROTO_MPTCP)},
		{"raw socket of the protocol", answer, socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)},
		{"UNIX socket", answer, socket(unix.AF_UNIX, stream, 0)},
		{"socket that blocks", answer, socket(unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP)},
		{"no socket", answer, nil},
		{"socket with an error", func(id uint32) []byte { return (&ipc.AgentOpened{ID: id, Errno: 13}).Encode() }, own},
		{"answer to nothing", func(id uint32) []byte { return (&ipc.AgentOpened{ID: id + 1}).Encode() }, own},
		{"another record", func(uint32) []byte { return (&ipc.AgentDone{ID: 1}).Encode() }, nil},
		{"short record", func(uint32) []byte { return []byte{1, 2, 3} }, nil},
		{"pipe", answer, func(t *testing.T, _ *guest) int {
			var p [2]int
			if err := unix.Pipe(p[:]); err != nil {
				t.Fatal(err)
			}
			unix.Close(p[1])
			return p[0]
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ours, its, err := ipc.Pair()
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(its)
			g := newGuest(t) // for a process; its channel is not used
			c := &Client{process: g.process, channel: ours}
			ended := make(chan error, 1)
			s := c.Sockets(func(err error) { ended <- err })
			got := make(chan error, 1)
			s.Open(ipc.AgentOpen{Proto: ipc.ProtoTCP}, func(fd int, err error) {
				if err == nil {
					unix.Close(fd)
				}
				got <- err
			})
			b := make([]byte, ipc.MaxRecord)
			n, _, err := ipc.Receive(its, b, 0)
			var o ipc.AgentOpen
			if err != nil || o.Decode(b[:n]) != nil {
				t.Fatalf("request: %v", err)
			}
			fd := -1
			if tt.socket != nil {
				fd = tt.socket(t, g)
				defer unix.Close(fd)
			}
			if err := ipc.Send(its, tt.rec(o.ID), fd); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				if !errors.Is(err, ipc.ErrMalformed) {
					t.Errorf("ended with %v", err)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("accepted")
			}
			if err := <-got; err == nil {
				t.Error("the request succeeded")
			}
			if ws, err := g.process.Reap(); err != nil || ws.Signal() != unix.SIGKILL {
				t.Errorf("its process ended with %#x, %v", ws, err)
			}
			unix.Close(ours)
		})
	}
}

func ss(t *testing.T) string {
	t.Helper()
	return nettest.Run(t, "ss", "-Hltun")
}
