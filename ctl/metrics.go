// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os/signal"
	"syscall"

	"aldente/broker/control/api"
	"aldente/ctl/metrics"
	"aldente/ctl/watch"
)

var flagListen = flag{long: "listen", arg: "ADDR", help: "address and port, " + metrics.DefaultListen + " if it is\nnot said; whoever connects sees all metrics"}

// showMetrics prints the metrics of an instance.
func showMetrics(c *call) error {
	in, err := c.one()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookTime)
	defer cancel()
	if c.has(flagJSON.long) {
		s, err := watch.Look(ctx, in, api.Counters)
		if err != nil {
			return err
		}
		if s.Counters == nil {
			return errNoFigures("counters")
		}
		return c.json(s.Counters)
	}
	return metrics.Write(ctx, in, c.out)
}

// exporter serves the metrics of all instances.
func exporter(c *call) error {
	at, err := metrics.ParseListen(cmp.Or(c.given[flagListen.long], metrics.DefaultListen))
	if err != nil {
		return c.wrong("--listen: %v", err)
	}
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		return fmt.Errorf("cannot listen on %v: %w", at, cause(err))
	}
	fmt.Fprintf(c.errs, "metrics of all instances of this user are at http://%v/metrics\n", l.Addr())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	return metrics.NewExporter(find).Serve(ctx, l)
}
