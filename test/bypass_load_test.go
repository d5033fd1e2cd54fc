// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// TestManyBypassed holds 2,000 connections through the bypass at a time, all of
// which work.
func TestManyBypassed(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("-t", "10001")
	go netlab.Echo(g.NS.Listen("tcp", ":10001"))
	const conns, workers = 2000, 32
	all := make([]net.Conn, conns)
	each := func(what string, f func(i int) error) {
		var wg sync.WaitGroup
		for w := range workers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := w; i < conns; i += workers {
					if err := f(i); err != nil {
						t.Errorf("%s connection %d: %v", what, i, err)
						return
					}
				}
			}()
		}
		wg.Wait()
	}
	each("open", func(i int) (err error) {
		all[i], err = lab.Host.DialError("tcp", "127.0.0.1:10001", 10*time.Second)
		return err
	})
	for range 3 {
		each("use", func(i int) error {
			if all[i] == nil {
				return nil
			}
			want := bytes.Repeat([]byte{byte(i)}, 1+i)
			_ = all[i].SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := all[i].Write(want); err != nil {
				return err
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(all[i], got); err != nil || !bytes.Equal(got, want) {
				return fmt.Errorf("echo of %d bytes: %v", len(want), err)
			}
			return nil
		})
	}
	each("close", func(i int) error {
		if all[i] == nil {
			return nil
		}
		return all[i].Close()
	})
}

// TestBypassedInTurn makes 100,000 connections one after the other, and finds all
// processes as they were.
func TestBypassedInTurn(t *testing.T) {
	heavy(t)
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	lab.Host.Sysctl("net/ipv4/tcp_tw_reuse", "1")
	g := lab.Guest("-t", "10001")
	go netlab.Echo(g.NS.Listen("tcp", ":10001"))
	round := func(n int) {
		var wg sync.WaitGroup
		const workers = 4
		for range workers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				_ = lab.Host.Do(func() error {
					b := make([]byte, 8)
					for range n / workers {
						c, err := net.DialTimeout("tcp", "127.0.0.1:10001", 10*time.Second)
						if err != nil {
							t.Error(err)
							return nil
						}
						_ = c.(*net.TCPConn).SetLinger(0) // no TIME-WAIT: there are not as many ports
						_, err = c.Write(b)
						if err == nil {
							_, err = io.ReadFull(c, b)
						}
						c.Close()
						if err != nil {
							t.Error(err)
							return nil
						}
					}
					return nil
				})
			}()
		}
		wg.Wait()
		time.Sleep(500 * time.Millisecond)
	}
	type use struct{ fds, rss int64 }
	look := func() map[int]use {
		m := map[int]use{}
		for _, p := range g.Processes() {
			fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p))
			m[p] = use{int64(len(fds)), anonymous(p)}
		}
		return m
	}
	round(30_000) // pools fill once, heaps grow to what the collector lets them
	before := look()
	start := time.Now()
	round(100_000)
	t.Logf("100,000 connections in %v", time.Since(start))
	for p, now := range look() {
		was := before[p]
		// The broker keeps up to 32 sockets of the namespace at hand.
		if now.fds > was.fds+32 || now.rss > was.rss+1024 {
			t.Errorf("process %d: %d descriptors and %d KiB, before %d and %d", p, now.fds, now.rss, was.fds, was.rss)
		}
	}
}

// anonymous returns the resident anonymous memory of a process in KiB.
func anonymous(pid int) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			var n int64
			fmt.Sscan(v, &n)
			return n
		}
	}
	return 0
}

// TestBypassWorkerDies kills the worker: its successor has the listeners on both
// sides, the automatic ones too.
func TestBypassWorkerDies(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	tellBoth(lab.Host, "127.0.0.1:10002")
	g := lab.Guest("-t", "auto", "-u", "10001", "-T", "10002", "-U", "10002")
	tellBoth(g.NS, ":10001")
	check := func() {
		t.Helper()
		becomes := func(ns *netlab.NS, network, addr, want string) {
			t.Helper()
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				got := askSoonFull(ns, network, addr)
				if peer, _, _ := strings.Cut(got, " "); peer == want {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s %s: %q", network, addr, got)
				}
			}
		}
		for _, network := range []string{"tcp", "udp"} {
			becomes(lab.Host, network, "127.0.0.1:10001", netlab.Host4)
			becomes(g.NS, network, "127.0.0.1:10002", "127.0.0.1")
		}
	}
	check()
	for range 2 {
		w := g.Worker()
		if w == 0 {
			t.Fatal("no worker")
		}
		if err := syscall.Kill(w, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); g.Worker() == w || g.Worker() == 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("no new worker")
			}
		}
		check()
	}
}
