// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"aldente/bench/bed"
	"aldente/test/netlab"
)

// rows are what is measured. More is better in all.
var rows = []struct {
	name    string
	bulk    bool // throughput, which the sandbox must not cost
	measure func(guest, remote *netlab.NS, span time.Duration) float64
}{
	{"TCP up, Gbit/s", true, func(g, r *netlab.NS, d time.Duration) float64 { return bulk(g, r, d, false) }},
	{"TCP down, Gbit/s", true, func(g, r *netlab.NS, d time.Duration) float64 { return bulk(g, r, d, true) }},
	{"TCP requests, 1/s", false, requests},
	{"TCP connections, 1/s", false, connections},
}

var lastPort atomic.Int32

// listen returns a listener that no measurement has used.
func listen(remote *netlab.NS) (net.Listener, string) {
	addr := "192.0.2.9:" + strconv.Itoa(10000+int(lastPort.Add(1)))
	return remote.Listen("tcp4", addr), addr
}

// bulk moves data over one connection, after a quarter of the span for warming
// up.
func bulk(guest, remote *netlab.NS, span time.Duration, down bool) float64 {
	ln, addr := listen(remote)
	defer ln.Close()
	c := guest.Dial("tcp4", addr)
	s, err := ln.Accept()
	if err != nil {
		bed.Fail(err)
	}
	from, to := c, s
	if down {
		from, to = s, c
	}
	var b bed.Bulk
	defer b.Stop()
	if err := b.Flow(from, to); err != nil {
		bed.Fail(err)
	}
	b.Start()
	time.Sleep(span / 4)
	bytes, start := b.Received.Load(), time.Now()
	time.Sleep(span)
	return float64(b.Received.Load()-bytes) * 8 / 1e9 / time.Since(start).Seconds()
}

// requests sends a byte and waits for one, over one connection.
func requests(guest, remote *netlab.NS, span time.Duration) float64 {
	ln, addr := listen(remote)
	defer ln.Close()
	go netlab.Echo(ln)
	c := guest.Dial("tcp4", addr)
	defer c.Close()
	return perSecond(span, func() error {
		b := []byte{1}
		if _, err := c.Write(b); err != nil {
			return err
		}
		_, err := io.ReadFull(c, b)
		return err
	})
}

// connections makes one connection after the other. Each is reset, so that no
// port waits.
func connections(guest, remote *netlab.NS, span time.Duration) float64 {
	ln, addr := listen(remote)
	defer ln.Close()
	go netlab.Echo(ln)
	return perSecond(span, func() error {
		c, err := guest.DialError("tcp4", addr, 5*time.Second)
		if err != nil {
			return err
		}
		_ = c.(*net.TCPConn).SetLinger(0)
		return c.Close()
	})
}

// perSecond repeats an action for a while.
func perSecond(span time.Duration, act func() error) float64 {
	n, start := 0, time.Now()
	for ; time.Since(start) < span; n++ {
		if err := act(); err != nil {
			bed.Fail(err)
		}
	}
	return float64(n) / time.Since(start).Seconds()
}
