// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// chunk is what one write of a bulk sender carries.
const chunk = 256 << 10

// bulk moves data over flows TCP connections for span, after a quarter of it
// for warming up, and returns Gbit/s received and the translator's processor
// seconds for each GiB.
func bulk(e *entrant, p path, flows int, down bool, span time.Duration) (gbit, cpuGiB float64, err error) {
	ln := p.server.Listen("tcp4", p.listen)
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
		c, s, err := p.connect(ln)
		if err != nil {
			return 0, 0, err
		}
		conns = append(conns, c, s)
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
