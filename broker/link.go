// SPDX-License-Identifier: Apache-2.0

package main

import (
	"aldente/broker/agent"
	"aldente/broker/guestsock"
	"aldente/ipc"
)

// attachStream completes what a worker needs to know to serve a virtual
// machine: its hardware address is learned, its link comes when it connects.
func (in *instance) attachStream() error {
	if in.cfg.FD >= 0 {
		link, err := guestsock.Prepare(in.cfg.FD, in.cfg.LinkKind)
		if err != nil {
			return err
		}
		in.link, in.linkFD = link, in.cfg.FD
	}
	in.configure([6]byte{}, "")
	return nil
}

// attach has the agent make the tap and the listeners in the namespace, and with
// that completes what a worker needs to know.
func (in *instance) attach() error {
	in.agent.Confine(in.plan.LiveRules() || len(in.cfg.TCPNS.Rules)+len(in.cfg.UDPNS.Rules) > 0)
	if in.plan.Scans() {
		in.agent.Scans()
	}
	changes := in.follows() && in.cfg.ConfigNet
	if changes {
		in.agent.Follows()
	}
	tap, err := in.makeTap()
	if err != nil {
		return err
	}
	if err := in.tell("agent", in.agent.Layers()); err != nil {
		return err
	}
	ns := in.agent.Sockets(func(err error) {
		in.log.Error("the agent has ended: nothing is opened in the namespace any more", "error", err)
	})
	in.factory.SetNamespace(ns, uint32(tap.IfIndex))
	if changes {
		in.net.guest, in.net.setup = ns, in.plan.Tap
	}
	if err := in.forward.Enter(ns); err != nil {
		return err
	}
	in.configure(tap.MAC, tap.Name)
	return nil
}

// configure decides what workers are told, and tells the user. tap is the name of
// the guest's interface, where we have made it.
func (in *instance) configure(mac [6]byte, tap string) {
	config := in.plan.Worker
	config.GuestMAC = mac
	in.setConfig(&config)
	for _, line := range in.plan.Summary(tap) {
		in.log.Info(line)
	}
}

// makeTap connects the namespace to a link, unless only its loopback counts.
func (in *instance) makeTap() (agent.Tap, error) {
	if in.cfg.SpliceOnly {
		return agent.Tap{}, in.agent.SetupLoopback()
	}
	tap, err := in.agent.Setup(in.plan.Tap)
	if err != nil {
		return tap, err
	}
	for _, w := range tap.Warnings {
		in.log.Warn(w)
	}
	in.link = ipc.Link{Kind: ipc.LinkTap, Offload: tap.Offload}
	in.linkFD = tap.FD
	return tap, nil
}
