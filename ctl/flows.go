// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"aldente/broker/control/api"
	"aldente/ctl/top"
	"aldente/ctl/watch"
)

// lookTime is how long an instance may take for all that is asked at once.
const lookTime = 20 * time.Second

// Flags of flows and top.
var (
	flagProtocol  = flag{long: "protocol", arg: "PROTO", values: []string{"tcp", "udp", "icmp"}, help: "only flows of tcp, udp or icmp"}
	flagDirection = flag{long: "direction", arg: "DIR", values: []string{"out", "in", "bypass", "bypass-out", "bypass-in"},
		help: "only flows that the guest began (out), that others\nbegan (in), or that go past the link (bypass)"}
	flagState    = flag{long: "state", arg: "STATE", help: "only flows in that state"}
	flagAddress  = flag{long: "address", arg: "ADDR", help: "only flows with that address, or one of that\nnetwork (ADDR/BITS), on either side"}
	flagPort     = flag{long: "port", arg: "PORT", help: "only flows with that port on either side"}
	flagSort     = flag{long: "sort", arg: "ORDER", values: watch.Orders, help: "by which column, rate if it is not said"}
	flagReverse  = flag{long: "reverse", help: "the order turned round"}
	flagInterval = flag{long: "interval", arg: "SECONDS", help: "look again after that time, and show rates"}
	flagCount    = flag{long: "count", arg: "N", help: "with --interval: how many tables, 0 for no end;\none if it is not said"}
	flagLooks    = flag{long: "count", arg: "N", help: "with --once: after how many looks, two if\nnot said; the curves show those"}
	flagOnce     = flag{long: "once", help: "print one screen, and need no terminal"}

	flowsFlags = []flag{flagProtocol, flagDirection, flagState, flagAddress, flagPort, flagSort, flagReverse, flagInterval, flagCount}
	topFlags   = []flag{flagSort, flagInterval, flagOnce, flagLooks}
)

// flowsReply is what "flows --json" prints of one moment.
type flowsReply struct {
	PID   int         `json:"pid"`
	Time  string      `json:"time"`
	Rates bool        `json:"rates"` // sent_rate and received_rate mean something
	Flows []watch.Row `json:"flows"`
}

// filter is what the flags and operands say of the flows that are wanted.
func (c *call) filter() (*watch.Filter, error) {
	f := &watch.Filter{Protocol: c.given[flagProtocol.long], Direction: c.given[flagDirection.long], State: c.given[flagState.long], Words: c.args}
	for _, l := range []flag{flagProtocol, flagDirection} {
		if err := c.oneOf(l); err != nil {
			return nil, err
		}
	}
	var err error
	if v, ok := c.given[flagAddress.long]; ok {
		if f.Address, err = watch.ParseAddress(v); err != nil {
			return nil, c.wrong("--address: %v", err)
		}
	}
	if v, ok := c.given[flagPort.long]; ok {
		if f.Port, err = watch.ParsePort(v); err != nil {
			return nil, c.wrong("--port: %v", err)
		}
	}
	return f, nil
}

// flows shows the flows of an instance.
func flows(c *call) error {
	filter, err := c.filter()
	if err != nil {
		return err
	}
	if err := c.oneOf(flagSort); err != nil {
		return err
	}
	interval, err := c.within(flagInterval, 0, 0.1, 3600)
	if err != nil {
		return err
	}
	count, err := c.within(flagCount, 1, 0, 1e9)
	if err != nil {
		return err
	}
	if c.has(flagCount.long) && interval == 0 {
		return c.wrong("--count needs --interval")
	}
	in, err := c.one()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	before, err := lookAt(ctx, in)
	if err != nil {
		return err
	}
	if interval == 0 {
		return c.showFlows(in, nil, before, filter)
	}
	for n := 0; count == 0 || n < int(count); n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Duration(interval * float64(time.Second))):
		}
		now, err := lookAt(ctx, in)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if n > 0 && !c.has(flagJSON.long) {
			fmt.Fprintln(c.out)
		}
		if err := c.showFlows(in, before, now, filter); err != nil {
			return err
		}
		before = now
	}
	return nil
}

func lookAt(ctx context.Context, in watch.Instance) (*watch.Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	return watch.Look(ctx, in, api.Flows)
}

// showFlows prints the flows of one moment.
func (c *call) showFlows(in looked, before, now *watch.Sample, filter *watch.Filter) error {
	rows := watch.Choose(watch.Rows(before, now), filter)
	watch.Sort(rows, c.given[flagSort.long], c.has(flagReverse.long))
	if c.has(flagJSON.long) {
		rows = append([]watch.Row{}, rows...) // a list, if of none
		return c.json(flowsReply{in.pid, now.At.Format(time.RFC3339Nano), before != nil, rows})
	}
	columns := watch.Columns
	if before == nil {
		columns = slices.DeleteFunc(slices.Clone(columns), func(col watch.Column) bool { return col.Rates })
	}
	t := watch.Layout(rows, columns, 0)
	for _, line := range append([]string{t.Head}, t.Lines...) {
		if _, err := fmt.Fprintln(c.out, line); err != nil {
			return err
		}
	}
	return nil
}

// showTop is the live view.
func showTop(c *call) error {
	if err := c.oneOf(flagSort); err != nil {
		return err
	}
	interval, err := c.within(flagInterval, 1, top.Shortest.Seconds(), top.Longest.Seconds())
	if err != nil {
		return err
	}
	list, err := c.lister()
	if err != nil {
		return err
	}
	looks, err := c.within(flagLooks, 2, 2, 10_000)
	if err != nil {
		return err
	}
	if c.has(flagLooks.long) && !c.has(flagOnce.long) {
		return c.wrong("--count needs --once")
	}
	config := top.Config{List: list, Looks: int(looks), Every: time.Duration(interval * float64(time.Second)), Order: c.given[flagSort.long], Words: strings.Join(c.args, " ")}
	switch {
	case c.has(flagJSON.long):
		screen, err := top.Data(config)
		if err != nil {
			return err
		}
		return c.json(screen)
	case c.has(flagOnce.long):
		return top.Once(config, c.raw)
	}
	return top.Run(config)
}
