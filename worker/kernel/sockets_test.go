// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/worker/tcp/tcptest"
)

// TestRecvSkipToTheEnd reads streams by skipping what was read already. Bytes
// and the stream's end may arrive between the system calls of which that
// consists: the end must not be taken for that of what was seen.
func TestRecvSkipToTheEnd(t *testing.T) {
	var s Sockets
	const total = 3000
	buf := make([]byte, 4000)
	for round := range 300 {
		fd, host := connected(t)
		for n := range 2 {
			unix.Write(host, tcptest.Stream(n*1000, 1000))
		}
		done := make(chan bool)
		go func() {
			for range round % 50 * 20 { // not quite at once
				runtime.KeepAlive(done)
			}
			unix.Write(host, tcptest.Stream(2000, 1000))
			unix.Shutdown(host, unix.SHUT_WR)
			close(done)
		}()
		seen := 0
		for end := time.Now().Add(5 * time.Second); ; {
			n, e := s.RecvSkip(int32(fd), seen, buf)
			if e == syscall.EAGAIN && time.Now().Before(end) {
				continue
			}
			if e != 0 {
				t.Fatalf("behind %d bytes: %v", seen, e)
			}
			if n == 0 {
				break
			}
			if !bytes.Equal(buf[:n], tcptest.Stream(seen, n)) {
				t.Fatalf("other bytes behind %d", seen)
			}
			seen += n
		}
		<-done
		unix.Close(fd)
		unix.Close(host)
		if seen != total {
			t.Fatalf("round %d: the stream ended at %d of %d", round, seen, total)
		}
	}
}

// TestRecvPieces reads a stream into pieces, as far as there is of it, and again.
func TestRecvPieces(t *testing.T) {
	var s Sockets
	fd, host := connected(t)
	defer unix.Close(fd)
	defer unix.Close(host)
	pieces := [][]byte{make([]byte, 7), make([]byte, 1), make([]byte, 1000), make([]byte, 500)}
	if _, e := s.RecvPieces(int32(fd), pieces, unix.MSG_PEEK|unix.MSG_DONTWAIT); e != syscall.EAGAIN {
		t.Fatalf("of an empty stream: %v", e)
	}
	unix.Write(host, tcptest.Stream(0, 1200))
	for _, flags := range []int{unix.MSG_PEEK, unix.MSG_PEEK, 0} {
		n, e := s.RecvPieces(int32(fd), pieces, flags)
		if all := bytes.Join(pieces, nil); n != 1200 || e != 0 || !bytes.Equal(all[:n], tcptest.Stream(0, n)) {
			t.Fatalf("flags %#x: %d bytes, %v", flags, n, e)
		}
	}
	if _, e := s.RecvPieces(int32(fd), pieces, unix.MSG_DONTWAIT); e != syscall.EAGAIN {
		t.Fatalf("of a stream that was read: %v", e)
	}
}
