// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// load is how a program moves many datagrams: several with one call, so that
// not the load is what is measured.
type load struct {
	perCall int
	segment bool // as QUIC does it, with UDP_SEGMENT and UDP_GRO
}

var (
	plainLoad   = load{perCall: 32}
	segmentLoad = load{perCall: 4, segment: true}
)

// maxSegments is what every kernel takes in one call, UDP_MAX_SEGMENTS of
// include/linux/udp.h before Linux 6.10.
const maxSegments = 64

// messages are what one call sends, or has room for.
func (l load) messages(size int, to net.Addr) []ipv4.Message {
	m := make([]ipv4.Message, l.perCall)
	if l.segment {
		size *= min(maxSegments, 65000/size)
	}
	for i := range m {
		m[i] = ipv4.Message{Buffers: [][]byte{make([]byte, size)}, Addr: to}
	}
	return m
}

// prepare sets the options of both ends. The receiver gets a queue that
// outlasts the time it does not run: three busy threads share the processors.
func (l load) prepare(from, to *net.UDPConn, size int) error {
	err := option(to, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	if l.segment {
		err = errors.Join(err, option(to, unix.IPPROTO_UDP, unix.UDP_GRO, 1), option(from, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size))
	}
	return err
}

func option(c *net.UDPConn, level, name, value int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var e error
	err = raw.Control(func(fd uintptr) { e = unix.SetsockoptInt(int(fd), level, name, value) })
	return errors.Join(err, e)
}

// datagrams sends datagrams of a size as fast as the sender's kernel takes
// them and returns the payload delivered, in Gbit/s.
func datagrams(w path, size int, down bool, l load, span time.Duration) (float64, error) {
	far := w.server.ListenUDP("udp4", w.listen)
	defer far.Close()
	c, err := w.client.DialError("udp4", w.dial, time.Second)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	near := c.(*net.UDPConn)
	// The remote answers where the first datagram came from.
	if _, err := near.Write([]byte("here")); err != nil {
		return 0, err
	}
	_ = far.SetReadDeadline(time.Now().Add(2 * time.Second))
	_, peer, err := far.ReadFromUDP(make([]byte, 16))
	if err != nil {
		return 0, err
	}
	from, to, dest := near, far, net.Addr(nil)
	if down {
		from, to, dest = far, near, peer
	}
	if err := l.prepare(from, to, size); err != nil {
		return 0, err
	}
	stop := time.Now().Add(span + span/4)
	_ = to.SetReadDeadline(stop)
	done := make(chan struct{})
	defer func() { <-done }()
	go func() {
		defer close(done)
		p, m := ipv4.NewPacketConn(from), l.messages(size, dest)
		for time.Now().Before(stop) {
			// An error is of a datagram before: the next may do better.
			_, _ = p.WriteBatch(m, 0)
		}
	}()
	p, m := ipv4.NewPacketConn(to), load{perCall: l.perCall, segment: true}.messages(size, nil)
	var bytes int64
	start := time.Now()
	for {
		n, err := p.ReadBatch(m, 0)
		if err != nil {
			break
		}
		if time.Since(start) < span/4 {
			continue
		}
		for i := range n {
			bytes += int64(m[i].N)
		}
	}
	return float64(bytes) * 8 / 1e9 / span.Seconds(), nil
}
