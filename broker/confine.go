// SPDX-License-Identifier: Apache-2.0

//go:build !race && !unconfined

package main

import (
	"aldente/ipc"
	"aldente/policy"
)

// confine gives up what only set-up needed. All that it may still open are
// sockets; the program of the worker is all that it may still execute.
//
// A command that we started was cloned before, and is under nothing of this.
func (in *instance) confine() policy.Report {
	files, replaceable := in.worker.Needs()
	if in.asking != nil {
		more, ok := in.asking.Needs()
		files.Execute, replaceable = append(files.Execute, more.Execute...), replaceable && ok
	}
	if in.stream != nil && in.stream.Answers() {
		files.Sockets = []string{"/"} // nobody knows where the client's will be
	}
	_, _, filter := policy.FiltersOf(in.mode())
	c := policy.Confinement{Filter: unlessSkipped(filter), Capabilities: in.kept(), Files: files}
	if replaceable {
		return c.Apply()
	}
	// A worker without a PID namespace has calls of its own to make, with
	// a number that no filter can know; and the next one of a worker whose namespaces
	// are not kept needs all that the first one did.
	c.Filter = ""
	return append(c.Apply(), policy.Layer{Name: "seccomp " + filter, State: policy.Missing,
		Detail: "left out, since the next worker could not be started under it"})
}

// checkExecutable refuses a build that cannot work.
func checkExecutable() error { return policy.CheckExecutable() }

// kept are the capabilities that forwarding needs later. Automatic forwarding
// binds ports as they come, low ones where a rule names them. Answers to
// datagrams leave from the port that the datagrams came to. Listeners on an interface are
// bound again when another comes by its name. Which ports rules
// will name that come later, nobody knows.
func (in *instance) kept() policy.Capabilities {
	if in.plan.Live() {
		return policy.BindLowPorts
	}
	first := firstOpen()
	for _, r := range in.plan.Inbound {
		if r.Auto && !r.Weak && r.First < first {
			return policy.BindLowPorts
		}
	}
	for _, l := range in.factory.Listeners() {
		if (l.Proto == ipc.ProtoUDP || l.Interface != "" && in.follows()) && l.Port < first {
			return policy.BindLowPorts
		}
	}
	return 0
}
