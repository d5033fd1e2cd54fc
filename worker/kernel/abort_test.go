// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"aldente/worker/tcp/tcptest"
)

// TestAbort resets connections in each state in which a translator may. What
// we send before is lost on its way: only where both ends were told
// already is the kernel to send it again.
func TestAbort(t *testing.T) {
	probe, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	deaf(t, probe) // or not allowed to
	unix.Close(probe)
	const size = 1000
	lost := tcptest.Stream(0, size)
	hostEnds := func(t *testing.T, host int) {
		if err := unix.Shutdown(host, unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name          string
		before, after bool // the host ends its stream before or after the guest
		guest         bool // the guest ends its own
		state         uint8
		whole         bool // the stream arrives, to its end
	}{
		{name: "open", state: unix.BPF_TCP_ESTABLISHED},
		{name: "the host has ended", before: true, state: unix.BPF_TCP_CLOSE_WAIT},
		{name: "the guest has ended", guest: true, state: unix.BPF_TCP_FIN_WAIT1},
		{name: "the host, then the guest", before: true, guest: true, state: unix.BPF_TCP_LAST_ACK, whole: true},
		{name: "both at a time", after: true, guest: true, state: unix.BPF_TCP_CLOSING, whole: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s Sockets
			fd, host := connected(t)
			if tt.before {
				hostEnds(t, host)
				arrived(t, fd)
			}
			deaf(t, host)
			if n, err := unix.Write(fd, lost); n != size || err != nil {
				t.Fatal(n, err)
			}
			if tt.guest {
				s.ShutdownWrite(int32(fd))
			}
			if tt.after {
				hostEnds(t, host)
				arrived(t, fd)
			}
			if info, e := s.info(int32(fd)); e != 0 || info.State != tt.state {
				t.Fatalf("state %d, want %d, %v", info.State, tt.state, e)
			}
			if !tt.whole { // RST is sent once
				hears(t, host)
			}
			s.ResetOnClose(int32(fd))
			Close(int32(fd))
			if tt.whole {
				hears(t, host)
			}
			got, err := receive(t, host)
			if tt.whole && (err != nil || !bytes.Equal(got, lost)) {
				t.Errorf("%d bytes of %d, %v", len(got), size, err)
			}
			if !tt.whole && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("not reset but %v", err)
			}
		})
	}
}

// TestAbortAnswered: a connection that the guest gives up in the moment in which its
// peer answers is reset, though the broker has a copy of the socket a little longer.
func TestAbortAnswered(t *testing.T) {
	var s Sockets
	fd, host := connected(t)
	brokers, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	s.resetIn(int32(fd), unix.BPF_TCP_SYN_SENT)
	Close(int32(fd))
	unix.Close(brokers)
	f := os.NewFile(uintptr(host), "")
	defer f.Close()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if e, err := unix.GetsockoptInt(host, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || e != 0 {
			if unix.Errno(e) != unix.ECONNRESET && unix.Errno(e) != unix.EPIPE {
				t.Errorf("%v, %v", unix.Errno(e), err)
			}
			return
		}
		if time.Now().After(end) {
			t.Fatal("not reset")
		}
	}
}

// arrived waits for the peer's FIN.
func arrived(t testing.TB, fd int) {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	for end := time.Now().Add(5 * time.Second); ; {
		if n, _ := unix.Poll(p, 100); n == 1 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("no FIN")
		}
	}
}

// acknowledged waits until the other end has all that was sent to it.
func acknowledged(t testing.TB, fd int) {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ); err != nil || n == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("not all arrived")
		}
	}
}

// deaf has a socket drop each segment that comes, until hears.
func deaf(t *testing.T, fd int) {
	none, err := bpf.Assemble([]bpf.Instruction{bpf.RetConstant{Val: 0}})
	if err != nil {
		t.Fatal(err)
	}
	f := unix.SockFilter{Code: none[0].Op, K: none[0].K}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &f})
	if err == unix.EPERM {
		unix.Close(fd)
		t.Skip("filters of TCP sockets need CAP_NET_ADMIN here")
	}
	if err != nil {
		t.Fatal(err)
	}
}

func hears(t *testing.T, fd int) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
		t.Fatal(err)
	}
}

// receive reads a stream to its end, with a bound for a peer that is silent.
func receive(t *testing.T, fd int) ([]byte, error) {
	f := os.NewFile(uintptr(fd), "")
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return io.ReadAll(c)
}
