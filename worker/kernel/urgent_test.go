// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/worker/flow"
	"aldente/worker/tcp/tcptest"
)

// marked is a connection whose other end has sent 1,000 bytes, of which the last
// is urgent, and 500 more; and its end, if so.
func marked(t *testing.T, end bool) (fd, host int) {
	fd, host = connected(t)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		t.Skipf("SO_PEEK_OFF: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd); unix.Close(host) })
	for n, flags := range []int{0, unix.MSG_OOB, 0} {
		if _, err := unix.SendmsgN(host, tcptest.Stream(n*500, 500), nil, nil, flags); err != nil {
			t.Fatal(err)
		}
	}
	acknowledged(t, host)
	if end {
		unix.Shutdown(host, unix.SHUT_WR)
		arrived(t, fd)
	}
	return fd, host
}

// TestUrgentCalls shows what each call of the translators does at an urgent byte,
// with the kernel's own sockets: it ends before the byte, with more behind it.
func TestUrgentCalls(t *testing.T) {
	const mark, all = 999, 1500
	for _, end := range []bool{false, true} {
		t.Run(fmt.Sprintf("end=%v", end), func(t *testing.T) {
			l, buf := new(Sockets), make([]byte, 4000)
			nothing := func(what string, n int, e syscall.Errno) {
				t.Helper()
				if end && (n != 0 || e != 0) || !end && e != syscall.EAGAIN {
					t.Errorf("%s: %d bytes, %v", what, n, e)
				}
			}
			took := func(what string, off, want, n int, e syscall.Errno) {
				t.Helper()
				if n != want || e != 0 || !bytes.Equal(buf[:n], tcptest.Stream(off, n)) {
					t.Errorf("%s: %d bytes of %d, %v", what, n, want, e)
				}
			}
			calls := func(name string, f func(fd int32)) {
				fd, _ := marked(t, end)
				t.Run(name, func(*testing.T) { f(int32(fd)) })
			}
			calls("peek", func(fd int32) {
				n, e := l.Recv(fd, buf, flow.MsgPeek|flow.MsgDontWait)
				took("up to it", 0, mark, n, e)
				n, e = l.Recv(fd, buf, flow.MsgPeek|flow.MsgDontWait)
				took("from it on", mark, all-mark, n, e)
				n, e = l.Recv(fd, buf, flow.MsgPeek|flow.MsgDontWait)
				nothing("behind all", n, e)
			})
			calls("dequeue", func(fd int32) {
				if n, e := l.Discard(fd, all); n != mark || e != 0 {
					t.Errorf("up to it: %d bytes, %v", n, e)
				}
				if n, e := l.Discard(fd, all-mark); n != all-mark || e != 0 {
					t.Errorf("from it on: %d bytes, %v", n, e)
				}
			})
			calls("read", func(fd int32) {
				n, e := l.Read(fd, buf)
				took("up to it", 0, mark, n, e)
				n, e = l.Read(fd, buf)
				took("from it on", mark, all-mark, n, e)
			})
			calls("skip", func(fd int32) {
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEEK_OFF, -1)
				n, e := l.RecvSkip(fd, 500, buf)
				took("up to it", 500, mark-500, n, e)
				n, e = l.RecvSkip(fd, mark, buf)
				nothing("at it", n, e) // and at the end, as if it were that of the stream
				if n, e = l.RecvSkip(fd, mark+1, buf); e != syscall.EAGAIN {
					t.Errorf("behind it: %d bytes, %v", n, e)
				}
				l.Discard(fd, mark)
				n, e = l.RecvSkip(fd, 0, buf)
				took("at it, with nothing before it", mark, all-mark, n, e)
			})
			calls("splice", func(fd int32) {
				r, pipe, _, e := l.Pipe()
				if e != 0 {
					t.Fatal(e)
				}
				defer unix.Close(int(r))
				defer unix.Close(int(pipe))
				if n, e := l.Splice(fd, pipe, all); n != mark || e != 0 {
					t.Errorf("up to it: %d bytes, %v", n, e)
				}
				n, e := l.Splice(fd, pipe, all)
				nothing("at it", n, e)
				n, e = l.Read(fd, buf)
				took("from it on", mark, all-mark, n, e)
			})
			calls("report", func(fd int32) {
				for _, events := range []uint32{flow.Readable, flow.Writable} {
					var p Poller
					if err := p.Open(); err != nil {
						t.Fatal(err)
					}
					p.Watch(fd, 7, events)
					n := p.Wait(1000, false)
					Close(p.FD())
					got, token := p.At(0)
					if urgent := got&flow.Urgent != 0; n != 1 || token != 7 || urgent != (events == flow.Readable) {
						t.Errorf("watched for %#x: %#x reported", events, got)
					}
				}
			})
		})
	}
}
