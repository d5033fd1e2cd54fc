// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// TestUrgentData: bytes around urgent ones arrive complete and in order, both
// ways through the tap and through both bypasses, and so do the urgent ones
// themselves, in line (RFC 6093 section 3). A read that ends at an urgent mark is
// not the last, and a splice that finds nothing before one is not the end.
func TestUrgentData(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "10001", "-t", "10003", "-T", "10002", "-u", "none", "-U", "none")
	for _, f := range families {
		for _, way := range []struct {
			name           string
			client, server *netlab.NS
			listen, to     string
		}{
			{"out by the tap", g.NS, lab.Remote, f.at(f.remote, "10009"), f.at(f.remote, "10009")},
			{"in by the tap", lab.Remote, g.NS, f.any + ":10003", f.at(f.host, "10003")},
			{"in past the tap", lab.Host, g.NS, f.any + ":10001", f.at(f.lo, "10001")},
			{"out past the tap", g.NS, lab.Host, f.at(f.lo, "10002"), f.at(f.lo, "10002")},
		} {
			for _, size := range []int{40_000, 2_420_000} {
				t.Run(fmt.Sprintf("%s/%s/%d", f.name, way.name, size), func(t *testing.T) {
					ln := way.server.For(t).Listen("tcp", way.listen)
					far := make(chan error, 1)
					go func() {
						c, err := ln.Accept()
						if err != nil {
							far <- err
							return
						}
						far <- urgentBothWays(c.(*net.TCPConn), size, 2)
					}()
					c := way.client.For(t).Dial("tcp", way.to).(*net.TCPConn)
					if err := urgentBothWays(c, size, 1); err != nil {
						t.Errorf("client: %v", err)
					}
					if err := <-far; err != nil {
						t.Errorf("server: %v", err)
					}
					ln.Close()
				})
			}
		}
	}
}

// urgentBothWays sends size bytes, one in some two thousand urgent and the last
// one too, and reads as many, which it compares with what the other side sends by
// its own seed: 1 and 2.
func urgentBothWays(c *net.TCPConn, size int, seed uint64) error {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	_ = raw.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) })
	if optErr != nil {
		return optErr
	}
	sent := make(chan error, 1)
	go func() { sent <- sendUrgent(c, urgentBytes(size, seed), seed) }()
	got, err := io.ReadAll(c)
	if err == nil {
		err = <-sent
	}
	want := urgentBytes(size, 3-seed)
	if n := len(got); err != nil || !bytes.Equal(got, want) {
		same := 0
		for same < min(n, size) && got[same] == want[same] {
			same++
		}
		return fmt.Errorf("%d bytes of %d, the same up to %d: %v", n, size, same, err)
	}
	return nil
}

func urgentBytes(size int, seed uint64) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = r.Read(b)
	return b
}

func sendUrgent(c *net.TCPConn, b []byte, seed uint64) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(seed, 1))
	for len(b) > 0 {
		n := min(1+r.IntN(4000), len(b))
		if n > 1 {
			if _, err := c.Write(b[:n-1]); err != nil {
				return err
			}
		}
		var e error
		err := raw.Write(func(fd uintptr) bool {
			e = unix.Sendto(int(fd), b[n-1:n], unix.MSG_OOB, nil)
			return e != unix.EAGAIN
		})
		if err != nil || e != nil {
			return fmt.Errorf("urgent byte: %v %v", err, e)
		}
		b = b[n:]
		if r.IntN(20) == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	return c.CloseWrite()
}
