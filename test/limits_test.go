// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"aldente/broker/control/api"
	"aldente/test/netlab"
)

// TestLimitBytes: what goes by the guest's link in a time is bounded, each way for
// itself, whichever protocol and however many connections, and all of them get on.
func TestLimitBytes(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	const rate, each, flows = 4_000_000, 3_000_000, 4
	g := lab.Guest("--limit", fmt.Sprintf("bytes=%d", rate), "-t", "10001")
	go netlab.EchoUDP(lab.Remote.ListenUDP("udp", "192.0.2.9:7"))
	for _, f := range families {
		for _, up := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/up=%v", f.name, up), func(t *testing.T) {
				ln := lab.Remote.Listen("tcp", f.at(f.remote, "0"))
				_, port, _ := net.SplitHostPort(ln.Addr().String())
				began := time.Now()
				var wg sync.WaitGroup
				for range flows {
					c := g.Dial("tcp", f.at(f.remote, port))
					s, err := ln.Accept()
					if err != nil {
						t.Fatal(err)
					}
					from, to := c, s
					if !up {
						from, to = s, c
					}
					wg.Add(2)
					go func() {
						defer wg.Done()
						_ = from.SetDeadline(time.Now().Add(time.Minute))
						_, _ = from.Write(make([]byte, each))
						from.Close()
					}()
					go func() {
						defer wg.Done()
						_ = to.SetDeadline(time.Now().Add(time.Minute))
						if n, err := io.Copy(io.Discard, to); n != each {
							t.Errorf("%d bytes of %d, %v", n, each, err)
						}
					}()
				}
				// Beside bulk a question is answered. It may be lost, as on any such link.
				if !eventually(20*time.Second, func() bool { return reach(g, "udp 192.0.2.9:7") == open }) {
					t.Error("no answer beside bulk")
				}
				wg.Wait()
				if least := time.Duration(float64(flows*each-1_000_000) / rate * float64(time.Second)); time.Since(began) < least {
					t.Errorf("%d bytes in %v, with %d a second", flows*each, time.Since(began), rate)
				}
			})
		}
	}
	t.Run("datagrams", func(t *testing.T) {
		sink := lab.Remote.ListenUDP("udp", "192.0.2.9:9")
		_ = sink.SetReadBuffer(4 << 20)
		c := g.Dial("udp", "192.0.2.9:9")
		began, got := time.Now(), 0
		go func() {
			b := make([]byte, 1400)
			for time.Since(began) < 2*time.Second {
				for range 20 {
					_, _ = c.Write(b)
				}
				time.Sleep(time.Millisecond)
			}
		}()
		b := make([]byte, 2048)
		for {
			_ = sink.SetReadDeadline(time.Now().Add(time.Second))
			n, err := sink.Read(b)
			if err != nil {
				break
			}
			got += n
		}
		if most := int(float64(rate)*time.Since(began).Seconds()) + 1_000_000; got > most || got == 0 {
			t.Errorf("%d bytes in %v", got, time.Since(began))
		}
	})
}

// TestLimitConns: beyond as many flows as may be, connections of the guest's wait until
// another ends, and those to it in the backlog; UDP makes room by itself.
func TestLimitConns(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, tt := range []struct{ name, dir string }{{"out", "out"}, {"in", "in"}} {
		t.Run(tt.name, func(t *testing.T) {
			lab := lab.For(t)
			g := lab.Guest("--limit", "conns=6", "-t", "10001")
			client, server, at, to := g.NS, lab.Remote, "192.0.2.9:80", "192.0.2.9:80"
			if tt.dir == "in" {
				client, server, at, to = lab.Remote, g.NS, ":10001", netlab.Host4+":10001"
			}
			ln := server.Listen("tcp", at)
			go netlab.Echo(ln)
			talks := func(c net.Conn, wait time.Duration) bool {
				_ = c.SetDeadline(time.Now().Add(wait))
				if _, err := c.Write([]byte("?")); err != nil {
					return false
				}
				_, err := c.Read(make([]byte, 1))
				return err == nil
			}
			var all []net.Conn
			for range 6 {
				c := client.Dial("tcp", to)
				if !talks(c, 10*time.Second) {
					t.Fatalf("connection %d of 6 does not work", len(all)+1)
				}
				all = append(all, c)
			}
			more := make(chan net.Conn, 1)
			go func() {
				c, err := client.DialError("tcp", to, 30*time.Second)
				if err != nil {
					t.Errorf("one more is not waited for: %v", err)
				}
				more <- c
			}()
			if tt.dir == "in" {
				c := <-more
				if c == nil || talks(c, time.Second) {
					t.Fatal("one more than may be")
				}
				more <- c
			} else {
				select {
				case <-more:
					t.Fatal("one more than may be")
				case <-time.After(1500 * time.Millisecond):
				}
			}
			held := uint64(0)
			for _, l := range asked[api.StatusReply](t, lab, g, "status").Limits {
				if l.Name == "flows" {
					held = l.Max
				}
			}
			if held != 6 {
				t.Errorf("status has a limit of %d flows", held)
			}
			for _, c := range all[:3] {
				c.Close()
			}
			c := <-more
			if c == nil {
				t.Fatal("it has not come")
			}
			defer c.Close()
			// What was said is not said again: it may have an answer already.
			if tt.dir == "in" {
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				if _, err := c.Read(make([]byte, 1)); err != nil {
					t.Errorf("where others have ended: %v", err)
				}
			} else if !talks(c, 30*time.Second) {
				t.Error("nothing where others have ended")
			}
		})
	}
	t.Run("UDP", func(t *testing.T) {
		lab := lab.For(t)
		go netlab.EchoUDP(lab.Remote.ListenUDP("udp", "192.0.2.9:7"))
		g := lab.Guest("--limit", "conns=6")
		for k := range 30 {
			if !eventually(10*time.Second, func() bool { return reach(g, "udp 192.0.2.9:7") == open }) {
				t.Fatalf("flow %d gets no answer", k)
			}
		}
	})
}

// TestLimitNewConns: flows begin so many in a second; the others wait, and no one is
// refused.
func TestLimitNewConns(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	for _, extra := range [][]string{nil, {"--allow-in", "any"}} {
		for _, dir := range []string{"out", "in"} {
			t.Run(fmt.Sprint(dir, extra), func(t *testing.T) {
				lab := lab.For(t)
				g := lab.Guest(append([]string{"--limit", "new-conns=5/s", "-t", "10001"}, extra...)...)
				client, server, at, to := g.NS, lab.Remote, "192.0.2.9:80", "192.0.2.9:80"
				if dir == "in" {
					client, server, at, to = lab.Remote, g.NS, ":10001", netlab.Host4+":10001"
				}
				ln := server.Listen("tcp", at)
				go netlab.Echo(ln)
				began := time.Now()
				var wg sync.WaitGroup
				const n = 15
				for range n {
					wg.Add(1)
					go func() {
						defer wg.Done()
						c, err := client.DialError("tcp", to, 40*time.Second)
						if err != nil {
							t.Error(err)
							return
						}
						defer c.Close()
						_ = c.SetDeadline(time.Now().Add(40 * time.Second))
						_, _ = c.Write([]byte("?"))
						if _, err := c.Read(make([]byte, 1)); err != nil {
							t.Error(err)
						}
					}()
				}
				wg.Wait()
				if time.Since(began) < 1500*time.Millisecond {
					t.Errorf("%d connections in %v, with five a second", n, time.Since(began))
				}
			})
		}
	}
}
