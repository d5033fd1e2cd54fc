// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"time"

	"aldente/bench/bed"
	"aldente/test/netlab"
)

// begin opens flows TCP connections that move data as fast as they can.
func begin(b *bed.Bulk, p path, flows int, down bool) error {
	ln := p.server.Listen("tcp4", p.listen)
	defer ln.Close()
	for range flows {
		c, s, err := p.connect(ln)
		if err != nil {
			return err
		}
		from, to := c, s
		if down {
			from, to = s, c
		}
		if err := b.Flow(from, to); err != nil {
			return err
		}
	}
	b.Start()
	return nil
}

// bulk moves data over flows TCP connections for span, after a quarter of it
// for warming up, and returns Gbit/s received and the translator's processor
// seconds for each GiB.
func bulk(e *entrant, p path, flows int, down bool, span time.Duration) (gbit, cpuGiB float64, err error) {
	var b bed.Bulk
	defer b.Stop()
	if err := begin(&b, p, flows, down); err != nil {
		return 0, 0, err
	}
	time.Sleep(span / 4)
	bytes, cpu, start := b.Received.Load(), e.cpu(), time.Now()
	time.Sleep(span)
	bytes, cpu = b.Received.Load()-bytes, e.cpu()-cpu
	seconds := time.Since(start).Seconds()
	if bytes == 0 { // some stall for longer than a short span
		fmt.Fprintf(os.Stderr, "bench: %s: %d flows moved nothing\n", e.name, flows)
		return 0, 0, nil
	}
	return float64(bytes) * 8 / 1e9 / seconds, cpu.Seconds() / (float64(bytes) / (1 << 30)), nil
}

// beside is what a client that asks and waits finds beside bulk, and the Gbit/s that are
// moved meanwhile.
func beside(e *entrant, lab *netlab.Lab, flows int, down bool, span time.Duration) (r rate, gbit float64, err error) {
	var a bed.Asks
	defer a.Close()
	if err := open(&a, outbound(e, lab), "tcp4", 1); err != nil {
		return r, 0, err
	}
	a.Prepare()
	var b bed.Bulk
	defer b.Stop()
	if err := begin(&b, outbound(e, lab), flows, down); err != nil {
		return r, 0, err
	}
	bytes, start := b.Received.Load(), time.Now()
	r, err = ask(&a, span)
	return r, float64(b.Received.Load()-bytes) * 8 / 1e9 / time.Since(start).Seconds(), err
}
