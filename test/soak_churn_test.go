// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aldente/test/netlab"
)

// soak is a translator under load.
type soak struct {
	t     *testing.T
	lab   *netlab.Lab
	files int // that each process may have open
	g     *netlab.Guest
	began time.Time

	// Every disturbance has a number. What fails without one during its life
	// is a fault of ours.
	epoch   atomic.Int64 // odd while something is disturbed
	running atomic.Bool
	over    chan struct{}
	paused  sync.RWMutex // held for reading by what is under way
	wg      sync.WaitGroup
	lasting []*lasting
	active  sync.Map // connections that end soon

	done   atomic.Int64 // connections
	broken atomic.Int64 // of them, by us
	failed atomic.Int64
	kills  int
	most   int // connections at a time
}

// where is a way through the translator: who connects, and to what.
type where struct {
	name    string
	network string
	client  func(k *soak) *netlab.NS
	addr    string
	wire    bool // by the link that is damaged
}

func guest(k *soak) *netlab.NS  { return k.g.NS }
func host(k *soak) *netlab.NS   { return k.lab.Host }
func remote(k *soak) *netlab.NS { return k.lab.Remote }

var ways = []where{
	{"out IPv4", "tcp", guest, "192.0.2.9:7", true},
	{"out IPv6", "tcp", guest, "[2001:db8:1::9]:7", true},
	{"in IPv4", "tcp", remote, netlab.Host4 + ":10001", true},
	{"in IPv6", "tcp", remote, "[" + netlab.Host6 + "]:10001", true},
	{"loopback in", "tcp", host, "127.0.0.1:10001", false},
	{"loopback out", "tcp", guest, "[::1]:10002", false},
}

// soakUser runs nothing else, so that nobody but root can signal it.
var soakUser = &netlab.User{UID: 61235, GID: 61235}

func newSoak(t *testing.T, span time.Duration, files int) *soak {
	wrap := limited(t, files)
	lab := netlab.New(t, netlab.Options{Wire: &netlab.Damage{}})
	k := &soak{t: t, lab: lab, files: files, over: make(chan struct{})}
	for _, f := range families {
		go netlab.Echo(lab.Remote.Listen("tcp", f.at(f.remote, "7")))
		go netlab.Echo(lab.Host.Listen("tcp", f.at(f.lo, "10002")))
		go netlab.EchoUDP(lab.Remote.ListenUDP("udp", f.at(f.remote, "7")))
		go resetting(lab.Remote.Listen("tcp", f.at(f.remote, "9")))
		go unread(lab.Remote.Listen("tcp", f.at(f.remote, "10")))
	}
	k.g = lab.GuestWith(netlab.GuestSpec{Args: []string{"--config-net", "-t", "10001", "-u", "10001", "-T", "10002"},
		Wrap: wrap, User: soakUser, Timeout: span*2 + 10*time.Minute})
	go netlab.Echo(k.g.Listen("tcp", ":10001"))
	go netlab.EchoUDP(k.g.ListenUDP("udp", ":10001"))
	return k
}

// resetting serves connections that it resets after some bytes.
func resetting(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.CopyN(io.Discard, c, 1000)
			_, _ = c.Write(make([]byte, 5000))
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}()
	}
}

// unread serves connections that it does not read from, for a while.
func unread(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond)
			c.Close()
		}()
	}
}

func (k *soak) damage(d netlab.Damage) { k.lab.Wire.Set(d) }

// disturb runs what makes connections fail.
func (k *soak) disturb(f func()) {
	k.epoch.Add(1)
	f()
	k.epoch.Add(1)
}

// start begins the churn; the lasting connections begin with a worker.
func (k *soak) start() {
	k.began = time.Now()
	k.running.Store(true)
	go func() {
		select {
		case <-k.g.Proc.Done():
			k.running.Store(false)
			k.t.Errorf("after %v the translator ended with status %d", time.Since(k.began), k.g.Proc.Wait())
		case <-k.over:
		}
	}()
	k.t.Cleanup(func() { close(k.over) })
	for i := range 12 {
		w := ways[i%len(ways)]
		k.churn(func() error { return k.one(w) }, 20*time.Millisecond)
	}
	for _, f := range families {
		k.churn(func() error { return k.breaks(f) }, 15*time.Millisecond)
		k.churn(func() error { return k.pings(f) }, 2*time.Second)
	}
	k.datagrams(k.g.NS, "192.0.2.9:7")
	k.datagrams(k.g.NS, "[2001:db8:1::9]:7")
	k.datagrams(k.lab.Remote, netlab.Host4+":10001")
	k.datagrams(k.lab.Host, "127.0.0.1:10001")
}

func (k *soak) stop() {
	k.running.Store(false)
	k.breakLasting()
	k.wg.Wait()
	k.t.Logf("%d connections, %d of them broken on purpose, up to %d at a time; %d workers killed; %d failed", k.done.Load(), k.broken.Load(),
		k.most, k.kills, k.failed.Load())
	if k.done.Load() == 0 || k.broken.Load() == 0 {
		k.t.Error("nothing was done")
	}
}

func (k *soak) pause()  { k.paused.Lock() }
func (k *soak) resume() { k.paused.Unlock() }

// churn does something again and again. It may fail only if something was
// disturbed meanwhile.
func (k *soak) churn(f func() error, rest time.Duration) {
	k.wg.Go(func() {
		for k.running.Load() {
			k.paused.RLock()
			before := k.epoch.Load()
			err := f()
			if err != nil && k.epoch.Load() == before && before%2 == 0 && k.failed.Add(1) < 10 {
				k.t.Error(err)
			}
			k.done.Add(1)
			k.paused.RUnlock()
			time.Sleep(rest/2 + rand.N(rest))
		}
	})
}

// one is a connection that lives as connections should.
func (k *soak) one(w where) error {
	size := 1
	switch rand.IntN(10) {
	case 0:
		size = 1 << 20
	case 1, 2, 3:
		size = 1 + rand.IntN(100_000)
	}
	if err := k.echo(w.client(k), w.network, w.addr, size, 30*time.Second); err != nil {
		return fmt.Errorf("%s, %d bytes: %w", w.name, size, err)
	}
	return nil
}

// echo sends bytes, half-closes, and compares what comes back.
func (k *soak) echo(n *netlab.NS, network, addr string, size int, patience time.Duration) error {
	c, err := n.DialError(network, addr, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	k.active.Store(c, nil)
	defer k.active.Delete(c)
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(size), byte(size >> 8)})
	_, _ = r.Read(b)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(b)
		if err == nil {
			err = c.(*net.TCPConn).CloseWrite()
		}
		sent <- err
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("%d of %d bytes came back: %w", len(got), size, err)
	}
	if !bytes.Equal(got, b) {
		return fmt.Errorf("%d bytes sent, %d others came back", size, len(got))
	}
	return nil
}

// breaks is a connection that does not end well: refused, reset by either
// side, stalled, or dropped with data under way. How each ends is for other
// tests; here they only happen.
func (k *soak) breaks(f family) error {
	port := []string{"7", "8", "9", "10"}[rand.IntN(4)]
	n, addr := k.g.NS, f.at(f.remote, port)
	if rand.IntN(4) == 0 {
		n, addr = k.lab.Host, f.at(f.lo, "10001")
	}
	c, err := n.DialError("tcp", addr, 5*time.Second)
	if err != nil {
		return nil
	}
	defer c.Close()
	k.broken.Add(1)
	_ = c.SetDeadline(time.Now().Add(time.Duration(rand.IntN(300)) * time.Millisecond))
	_, _ = c.Write(make([]byte, rand.IntN(1<<20)))
	if rand.IntN(2) == 0 {
		_ = c.(*net.TCPConn).SetLinger(0)
	}
	return nil
}

func (k *soak) pings(f family) error {
	if st, out := k.g.Run("ping", "-c", "5", "-i", "0.2", "-W", "5", f.remote); st != 0 {
		return fmt.Errorf("ping: %s", out)
	}
	return nil
}

// datagrams keeps a socket and asks with it. Some may be lost on a bad link, not
// all.
func (k *soak) datagrams(n *netlab.NS, addr string) {
	c, err := n.DialError("udp", addr, time.Second)
	if err != nil {
		k.t.Fatal(err)
	}
	b, buf := make([]byte, 3000), make([]byte, 1<<16)
	k.churn(func() error {
		size := 1 + rand.IntN(len(b))
		b[0]++
		// Of a datagram in fragments, and its answer, a bad wire lets little
		// more than half through.
		for range 60 {
			_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
			if _, err := c.Write(b[:size]); err != nil {
				continue
			}
			for {
				n, err := c.Read(buf)
				if err != nil {
					break
				}
				if bytes.Equal(buf[:n], b[:size]) {
					return nil
				}
			}
		}
		return fmt.Errorf("datagrams to %s: no answer", addr)
	}, 20*time.Millisecond)
	k.t.Cleanup(func() { c.Close() })
}

// lasting is a connection that goes on through everything but the end of its
// worker.
type lasting struct {
	w      where
	ended  chan error
	broken atomic.Bool
	c      net.Conn
}

// startLasting opens connections that nothing may break.
func (k *soak) startLasting() {
	for _, w := range ways {
		for range 4 {
			l := &lasting{w: w, ended: make(chan error, 1)}
			c, err := w.client(k).DialError(w.network, w.addr, 10*time.Second)
			if err != nil {
				k.t.Fatalf("%s: %v", w.name, err)
			}
			l.c = c
			k.lasting = append(k.lasting, l)
			k.wg.Go(func() { l.run(k) })
		}
	}
}

// run asks and listens. A disturbance may last; nothing may be lost.
func (l *lasting) run(k *soak) {
	b := make([]byte, 64<<10)
	for i := 0; !l.broken.Load(); i++ {
		part := b[:1+rand.IntN(len(b))]
		part[0] = byte(i)
		got := make([]byte, len(part))
		_ = l.c.SetDeadline(time.Now().Add(2 * time.Minute))
		_, err := l.c.Write(part)
		if err == nil {
			_, err = io.ReadFull(l.c, got)
		}
		if l.broken.Load() {
			break
		}
		if err != nil || !bytes.Equal(got, part) {
			k.t.Errorf("%s: a connection that lasts lost something in exchange %d: %v", l.w.name, i, err)
			break
		}
		time.Sleep(50*time.Millisecond + rand.N(200*time.Millisecond))
	}
	l.c.Close()
}

// breakActive ends connections whose worker is gone: one that waits for an answer
// would not hear of it.
func (k *soak) breakActive() {
	k.active.Range(func(c, _ any) bool {
		c.(net.Conn).Close()
		return true
	})
}

// breakLasting ends them, because their worker will end.
func (k *soak) breakLasting() {
	for _, l := range k.lasting {
		l.broken.Store(true)
		l.c.Close()
	}
	k.lasting = nil
}
