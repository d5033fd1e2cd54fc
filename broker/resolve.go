// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"aldente/broker/inet"
	"aldente/broker/names"
	"aldente/broker/supervise"
	"aldente/ipc"
	"aldente/policy"
)

// namesFiles is how many descriptors aldente-names may hold: of its clients, of sockets to
// resolvers, and of those that are on their way to it.
const namesFiles = 10 << 10

// prepareNames has aldente-names made, where a rule is by name or a proxy is asked. It is confined as a worker
// is, and replaced as one.
func (in *instance) prepareNames(id identity) error {
	plan := in.plan.Names
	if plan == nil {
		return nil
	}
	if err := answersHere(); err != nil {
		return err
	}
	o := names.Options{Logger: in.log, Config: plan.Config, Resolvers: plan.Resolvers, Rules: in.plan.Egress, Sockets: in.factory,
		Proxy: in.proxy, Other: in.factory.FromNames}
	if in.flows != nil {
		o.FlowLog = in.flows
	}
	if in.audit != nil {
		o.Audit = in.audit
	}
	o.Lasting = func() bool { return in.net.watcher != nil || !in.plan.Egress.Varies() }
	o.Closed = func(port uint16) { in.factory.NamesClosed(port, in.sendRevoke) }
	in.names = names.New(o)
	var err error
	in.asking, err = supervise.New(supervise.Options{
		Program:  supervise.Names,
		Identity: id.worker(),
		Logger:   in.log, Mode: policy.ModeNames, Strict: in.cfg.Strict, Debug: in.cfg.Debug, Extra: namesExtra(),
		Setup:   in.names.Setup,
		Serve:   in.serveNames,
		Files:   min(in.plan.Budget.Descriptors, namesFiles),
		OnReady: in.names.Ready,
		OnExit: func(e supervise.Exit) {
			in.shown.namesEnds.note(e)
			in.factory.NamesGone(in.sendRevoke)
			in.factory.StagesGone()
		},
	})
	if err != nil {
		return err
	}
	in.names.SetProcess(in.asking)
	in.factory.Names = in.names
	in.factory.SetNames(in.names.Tell)
	in.firstNames = make(chan error, 1)
	go func() { in.firstNames <- in.asking.Start() }()
	return nil
}

// answersHere tells what keeps questions from being answered on the host's loopback.
func answersHere() error {
	flow, other, _, err := inet.Pair(ipc.ProtoUDP)
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("rules by name and --audit need %v, and the host's loopback interface has not all of 127.0.0.0/8 (ip link set lo up; ip address add 127.0.0.1/8 dev lo)", inet.PairAddr)
	case err != nil:
		return fmt.Errorf("questions for names cannot be answered: %w", err)
	}
	unix.Close(flow)
	unix.Close(other)
	return nil
}

// serveNames answers aldente-names. What a guest may have made of it meanwhile, it finds a
// broker that is confined.
func (in *instance) serveNames(control int) error {
	<-in.locked
	return in.names.Serve(control)
}

// sendRevoke tells the worker, if there is one that takes it at once, to end flows. One
// that is not told goes on until its flows are idle.
func (in *instance) sendRevoke(r *ipc.Revoke) error {
	var rec [ipc.RevokeSize]byte
	r.Encode(rec[:])
	return in.worker.SendNow(rec[:])
}

// namesSpawned waits until aldente-names has its process, and namesReady until it is up.
func (in *instance) namesSpawned() error {
	if in.asking == nil {
		return nil
	}
	<-in.asking.Spawned()
	return in.asking.SpawnError()
}

func (in *instance) namesReady() error {
	if in.asking == nil {
		return nil
	}
	return <-in.firstNames
}
