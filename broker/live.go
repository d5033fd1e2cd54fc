// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"aldente/broker/cli"
	"aldente/broker/control"
	"aldente/broker/control/wire"
	"aldente/broker/forward"
	"aldente/broker/plan"
)

// listenControl binds the sockets of -c and --control, if they are asked for.
func (in *instance) listenControl(caller int) (err error) {
	if in.cfg.Controllable() {
		if err := in.status.ListenControl(in.cfg.ControlPath); err != nil {
			return err
		}
		if in.shown.controlPath, err = filepath.Abs(in.cfg.ControlPath); err != nil {
			in.shown.controlPath = in.cfg.ControlPath
		}
	}
	if in.cfg.APISocket != "" {
		in.hostfwd, err = control.ListenHostfwd(control.Options{
			Path: in.cfg.APISocket, Users: in.clients(caller), Guest: !in.cfg.Machine(), Logger: in.log,
		})
		return err
	}
	if in.cfg.ConfPath == "" {
		return nil
	}
	in.control, err = control.Listen(control.Options{
		Path: in.cfg.ConfPath, Users: in.clients(caller), Guest: !in.cfg.Machine(), Logger: in.log,
	})
	return err
}

// listenStatus makes the status socket, unless options are against it. An instance
// without one is as good.
func (in *instance) listenStatus(caller int) {
	if in.cfg.ControlPath == cli.NoControl {
		return
	}
	in.shown.pid, in.shown.user = os.Getpid(), unprivileged(in.cfg).own.UID
	in.status = control.NewStatus(control.StatusOptions{Users: in.clients(caller), Guest: !in.cfg.Machine(), Logger: in.log})
	name, err := in.status.ListenDefault(in.shown.pid)
	if err != nil {
		in.log.Debug("no status socket", "error", err)
		return
	}
	in.log.Debug("status socket", "name", name)
}

// clients are the users who may look at this instance or change it, besides root.
func (in *instance) clients(caller int) []uint32 {
	users := []uint32{uint32(caller)}
	if ids := in.cfg.RunAs; ids != nil {
		users = append(users, ids.UID)
	}
	if inInitialUserNamespace() {
		return users
	}
	// There all users that the namespace does not know have this number.
	return slices.DeleteFunc(users, func(u uint32) bool { return u == nobody })
}

// serveControl answers clients from now on.
func (in *instance) serveControl() {
	if in.status != nil {
		in.status.Serve(&liveStatus{instance: in, explained: explained{in}})
	}
	if in.control != nil {
		go in.control.Serve(&liveRules{plan: in.plan, forward: in.forward})
	}
	if in.hostfwd != nil {
		go in.hostfwd.Serve(&hostfwds{forward: in.forward, guest: in.cfg.Addresses[0].Addr()})
	}
}

// closeControl removes what belongs to the sockets.
func (in *instance) closeControl() {
	if in.status != nil {
		in.status.Close()
	}
	if in.control != nil {
		in.control.Close()
	}
	if in.hostfwd != nil {
		in.hostfwd.Close()
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
