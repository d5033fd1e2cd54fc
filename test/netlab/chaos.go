// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// chaosArg as first argument makes the binary one end of a connection.
const chaosArg = "netlab-chaos"

// ChaosSize is how many bytes a run moves each way: ALDENTE_CHAOS in MiB, or
// what a test has time for.
func ChaosSize() int64 {
	if n, err := strconv.ParseInt(os.Getenv("ALDENTE_CHAOS"), 10, 32); err == nil {
		return n << 20
	}
	return 64 << 20
}

// ChaosTimeout is how long moving size bytes may take; the translator has to live
// for as long. A ring of 48 KB, on a machine where a processor is waited for during
// 20 ms, moves about twice as much.
func ChaosTimeout(size int64) time.Duration {
	return 2*time.Minute + time.Duration(size>>20)*time.Second
}

// ChaosWay is a connection from a process in one namespace to one in another, that
// listens at Listen and is reached at Addr.
type ChaosWay struct {
	Client, Server *NS    // where the ends are
	Listen, Addr   string // ADDR:PORT, as the server and the client have it
}

// Chaos has both ends of each connection send size bytes at once, with urgent bytes
// among them, receivers that do not read for a while, and each direction ended by
// itself. Meanwhile these processes, and all of pids, are stopped and continued at
// random. What arrives must be what was sent. All connections move at the same time:
// while one process is stopped, the others have something to do.
func Chaos(tb TB, size int64, pids []int, all ...ChaosWay) {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatalf("%v", err)
	}
	end := func(n *NS, how, at string) *Proc {
		return n.Start(Spec{Args: []string{exe, chaosArg, how, at, fmt.Sprint(size)}, Timeout: ChaosTimeout(size * int64(len(all)))})
	}
	type pair struct{ client, server *Proc }
	var pairs []pair
	for _, w := range all {
		p := pair{server: end(w.Server, "listen", w.Listen)}
		p.client = end(w.Client, "dial", w.Addr)
		pairs = append(pairs, p)
		pids = append(pids[:len(pids):len(pids)], p.server.PID, p.client.PID)
	}
	var stops []func()
	for range all {
		stops = append(stops, stopAtRandom(pids))
	}
	var status [][]int
	for _, p := range pairs {
		status = append(status, []int{p.client.Wait(), p.server.Wait()})
	}
	for _, stop := range stops {
		stop()
	}
	var bad []string
	for k, p := range pairs {
		sent, got := strings.Fields(p.client.Stdout()), strings.Fields(p.server.Stdout())
		switch {
		case status[k][0] != 0 || status[k][1] != 0 || len(sent) != 2 || len(got) != 2:
			bad = append(bad, fmt.Sprintf("%s: client: status %d, %s\nserver: status %d, %s",
				all[k].Addr, status[k][0], p.client.Output(), status[k][1], p.server.Output()))
		case sent[0] != got[1] || sent[1] != got[0]:
			bad = append(bad, fmt.Sprintf("%s: client sent and received %s\nserver sent and received %s", all[k].Addr, sent, got))
		}
	}
	if len(bad) > 0 {
		tb.Fatalf("%s", strings.Join(bad, "\n"))
	}
}

// stopAtRandom stops and continues processes until the function that it returns is
// called.
func stopAtRandom(pids []int) func() {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			pid := pids[rand.IntN(len(pids))]
			_ = syscall.Kill(pid, syscall.SIGSTOP)
			time.Sleep(time.Duration(rand.IntN(20_000)) * time.Microsecond)
			_ = syscall.Kill(pid, syscall.SIGCONT)
			select {
			case <-done:
				return
			case <-time.After(time.Duration(rand.IntN(20_000)) * time.Microsecond):
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// chaosEnd is the process at one end: it prints the sums of what it sent and of
// what it received.
func chaosEnd(how, at string, size int64) error {
	c, err := chaosConn(how, at)
	if err != nil {
		return err
	}
	defer c.Close()
	sum := make(chan string, 1)
	failed := make(chan error, 2)
	go func() {
		s, err := chaosSend(c, size, how)
		failed <- err
		sum <- s
	}()
	h := sha256.New()
	b := make([]byte, 1<<20)
	var n int64
	for {
		if rand.IntN(200) == 0 {
			time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond) // the window closes
		}
		k, err := c.Read(b[:1+rand.IntN(len(b))])
		h.Write(b[:k])
		if n += int64(k); err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("received %d of %d bytes: %w", n, size, err)
		}
	}
	if err := <-failed; err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("received %d bytes of %d", n, size)
	}
	fmt.Printf("%s %x\n", <-sum, h.Sum(nil))
	return nil
}

func chaosConn(how, at string) (*net.TCPConn, error) {
	if how == "listen" {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		c, err := l.Accept()
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, err := net.Dial("tcp", at)
		if err == nil {
			// A forwarder takes a connection for which there is no server, and
			// resets it.
			time.Sleep(100 * time.Millisecond)
			if _, err = c.Write(nil); err == nil && chaosAlive(c.(*net.TCPConn)) {
				return c.(*net.TCPConn), nil
			}
			c.Close()
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(errors.New("no connection"), err)
		}
	}
}

// chaosAlive tells whether a connection was not reset.
func chaosAlive(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		alive = err == nil && info.State == unix.BPF_TCP_ESTABLISHED
	})
	return alive
}

// chaosSend sends size random bytes in pieces of all sizes, some of which end in an
// urgent byte, and ends its direction.
func chaosSend(c *net.TCPConn, size int64, how string) (string, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return "", err
	}
	src := rand.NewChaCha8([32]byte{byte(len(how))})
	h := sha256.New()
	b := make([]byte, 256<<10)
	for left := size; left > 0; {
		n := int(min(left, int64(1+rand.IntN(len(b)))))
		if rand.IntN(3) == 0 {
			n = min(n, 1+rand.IntN(2000))
		}
		_, _ = src.Read(b[:n])
		h.Write(b[:n])
		flags := 0
		if rand.IntN(4) == 0 {
			flags = unix.MSG_OOB
		}
		for rest := b[:n]; len(rest) > 0; {
			var k int
			var werr error
			err := raw.Write(func(fd uintptr) bool {
				k, werr = unix.SendmsgN(int(fd), rest, nil, nil, flags|unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
				return werr != unix.EAGAIN
			})
			if err == nil && werr != unix.EINTR {
				err = werr
			}
			if err != nil {
				return "", fmt.Errorf("sent %d of %d bytes: %w", size-left, size, err)
			}
			rest = rest[max(k, 0):]
		}
		left -= int64(n)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), c.CloseWrite()
}

// BriefChaos makes many connections through processes that are stopped at
// random. Each says so many bytes and ends, or resets, its direction; the peer hears
// a part of them, all where it was not reset, and answers with the same.
func BriefChaos(tb TB, client, server *NS, listen, addr string, most int, pids []int) {
	tb.Helper()
	ln := server.Listen("tcp", listen)
	defer ln.Close()
	said := make([]byte, most)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(said)
	wrong := make(chan string, 1000)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				b, err := io.ReadAll(c)
				if len(b) > most || string(b) != string(said[:len(b)]) {
					wrong <- fmt.Sprintf("%d other bytes", len(b))
				}
				if err == nil {
					_, _ = c.Write(b)
				}
			}()
		}
	}()
	stop := stopAtRandom(pids)
	defer stop()
	for n := range most {
		for _, reset := range []bool{true, false} {
			if err := brief(client, addr, said[:n], reset); err != nil {
				tb.Fatalf("%d bytes, reset=%v: %v", n, reset, err)
			}
		}
	}
	select {
	case w := <-wrong:
		tb.Fatalf("%s", w)
	default:
	}
}

func brief(client *NS, addr string, say []byte, reset bool) error {
	conn, err := client.DialError("tcp", addr, 20*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	c := conn.(*net.TCPConn)
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Write(say); err != nil {
		return err
	}
	if reset {
		return c.SetLinger(0)
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	if err == nil && string(b) != string(say) {
		err = fmt.Errorf("%d bytes came back", len(b))
	}
	return err
}
