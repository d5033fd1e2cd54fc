// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"

	"aldente/broker/cli"
	"aldente/broker/control"
	"aldente/broker/control/wire"
	"aldente/broker/forward"
	"aldente/broker/plan"
)

// listenControl binds the control socket, if -c asks for one.
func (in *instance) listenControl(caller int) (err error) {
	if in.cfg.ConfPath == "" {
		return nil
	}
	users := []uint32{uint32(caller)}
	if ids := in.cfg.RunAs; ids != nil {
		users = append(users, ids.UID)
	}
	in.control, err = control.Listen(control.Options{
		Path: in.cfg.ConfPath, Users: users, Guest: in.cfg.Personality != cli.Passt, Logger: in.log,
	})
	return err
}

// serveControl lets the rules be changed from now on.
func (in *instance) serveControl() {
	if in.control != nil {
		go in.control.Serve(&liveRules{plan: in.plan, forward: in.forward})
	}
}

// liveRules are the rules in force as control clients see them.
type liveRules struct {
	plan    *plan.Plan
	forward *forward.Forwarder
	shown   plan.Rules // to the client whose turn it is
}

// Tables returns them, one table for each direction that there is.
func (l *liveRules) Tables() []wire.Table {
	has := l.plan.Capabilities()
	caps := wire.CapInterfaces
	for c, ok := range map[wire.Caps]bool{
		wire.CapIPv4: has.IPv4, wire.CapIPv6: has.IPv6, wire.CapTCP: has.TCP, wire.CapUDP: has.UDP, wire.CapScan: has.Namespace,
	} {
		if ok {
			caps |= c
		}
	}
	now := l.forward.Rules()
	l.shown = now
	tables := []wire.Table{{ID: wire.Host, Name: wire.Names[wire.Host], Caps: caps, Rules: now.Inbound}}
	if has.Namespace {
		tables = append(tables, wire.Table{ID: wire.Splice, Name: wire.Names[wire.Splice], Caps: caps, Rules: now.Outbound})
	}
	return tables
}

// Change puts tables in force. Those that are left out stay. What a client sends back
// is what it was shown, changed: if somebody has changed rules by --control meanwhile,
// it has to look again.
func (l *liveRules) Change(tables []wire.Table) error {
	return withNext(l.forward.Update(func(now plan.Rules) (plan.Rules, error) {
		if !slices.Equal(now.Inbound, l.shown.Inbound) || !slices.Equal(now.Outbound, l.shown.Outbound) {
			return now, errors.New("another client has changed the rules meanwhile (try again)")
		}
		for _, t := range tables {
			switch t.ID {
			case wire.Host:
				now.Inbound = t.Rules
			case wire.Splice:
				now.Outbound = t.Rules
			default:
				return now, fmt.Errorf("there is no table %d", t.ID)
			}
		}
		return now, nil
	}))
}

// withNext has an error say what to do, if it knows that.
func withNext(err error) error {
	if u := (*cli.UsageError)(nil); errors.As(err, &u) && u.Next != "" {
		return fmt.Errorf("%w (%s)", err, u.Next)
	}
	return err
}
