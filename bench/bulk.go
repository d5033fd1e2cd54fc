// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"aldente/test/netlab"
)

// chunk is what one write of a bulk sender carries.
const chunk = 256 << 10

var lastPort atomic.Int32

// nextAddr returns an address of the remote that no measurement has used: a
// translator may still hold data for an earlier one.
func nextAddr() string { return fmt.Sprintf("192.0.2.9:%d", 10000+lastPort.Add(1)%50000) }

// bulk moves data over flows TCP connections for span, after a quarter of it
// for warming up, and returns Gbit/s received and the translator's processor
// seconds for each GiB.
func bulk(e *entrant, remote *netlab.NS, flows int, down bool, span time.Duration) (gbit, cpuGiB float64, err error) {
	addr := nextAddr()
	ln := remote.Listen("tcp4", addr)
	defer ln.Close()
	var received atomic.Int64
	var wg sync.WaitGroup
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
		wg.Wait()
	}()
	for range flows {
		c, err := e.guest.DialError("tcp4", addr, 5*time.Second)
		if err != nil {
			return 0, 0, err
		}
		conns = append(conns, c)
		_ = ln.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
		s, err := ln.Accept()
		if err != nil {
			return 0, 0, err
		}
		conns = append(conns, s)
		from, to := c, s
		if down {
			from, to = s, c
		}
		wg.Go(func() { pour(from) })
		wg.Go(func() { drain(to, &received) })
	}
	time.Sleep(span / 4)
	bytes, cpu, start := received.Load(), e.cpu(), time.Now()
	time.Sleep(span)
	bytes, cpu = received.Load()-bytes, e.cpu()-cpu
	seconds := time.Since(start).Seconds()
	if bytes == 0 {
		return 0, 0, fmt.Errorf("%d flows moved nothing", flows)
	}
	return float64(bytes) * 8 / 1e9 / seconds, cpu.Seconds() / (float64(bytes) / (1 << 30)), nil
}

func pour(c net.Conn) {
	b := make([]byte, chunk)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func drain(c net.Conn, count *atomic.Int64) {
	b := make([]byte, chunk)
	for {
		n, err := c.Read(b)
		count.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// datagrams sends datagrams of a size as fast as the sender's kernel takes
// them and returns the payload delivered, in Gbit/s.
func datagrams(e *entrant, remote *netlab.NS, size int, down bool, span time.Duration) (float64, error) {
	addr := nextAddr()
	far := remote.ListenUDP("udp4", addr)
	defer far.Close()
	near, err := e.guest.DialError("udp4", addr, time.Second)
	if err != nil {
		return 0, err
	}
	defer near.Close()
	// The remote answers where the first datagram came from.
	if _, err := near.Write([]byte("here")); err != nil {
		return 0, err
	}
	_ = far.SetReadDeadline(time.Now().Add(2 * time.Second))
	_, peer, err := far.ReadFromUDPAddrPort(make([]byte, 16))
	if err != nil {
		return 0, err
	}
	stop := time.Now().Add(span + span/4)
	_ = far.SetReadDeadline(stop)
	_ = near.SetReadDeadline(stop)
	_ = far.SetReadBuffer(4 << 20)
	_ = near.(*net.UDPConn).SetReadBuffer(4 << 20)
	send := func(b []byte) { _, _ = near.Write(b) }
	recv := func(b []byte) (int, error) { n, _, err := far.ReadFromUDPAddrPort(b); return n, err }
	if down {
		send = func(b []byte) { _, _ = far.WriteToUDPAddrPort(b, peer) }
		recv = near.Read
	}
	go func() {
		b := make([]byte, size)
		for time.Now().Before(stop) {
			for range 64 {
				send(b)
			}
		}
	}()
	b := make([]byte, 1<<16)
	var bytes int64
	start := time.Now()
	for {
		n, err := recv(b)
		if err != nil {
			break
		}
		if time.Since(start) > span/4 {
			bytes += int64(n)
		}
	}
	return float64(bytes) * 8 / 1e9 / span.Seconds(), nil
}
