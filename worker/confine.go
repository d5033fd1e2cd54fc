// SPDX-License-Identifier: Apache-2.0

//go:build !race

package main

import (
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"aldente/policy"
)

// heapLimit is a safety net, in bytes: nothing on the packet path allocates, so
// the collector is off unless something leaks.
const heapLimit = 1 << 30

// settleRuntime makes the runtime do now what it would otherwise do when first
// needed, and be killed for.
func settleRuntime() {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(heapLimit)
	// The first timer makes the runtime's own epoll and eventfd descriptors.
	// The collector's scavenger uses timers.
	time.AfterFunc(time.Hour, func() {}).Stop()
}

// confine puts up every layer and returns what is in force.
func confine(args policy.Arguments) (r policy.Report) {
	// The broker has set this, but a change of credentials clears it.
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	policy.SetName("aldente-worker")

	// What the first stage left.
	r.Add(policy.CheckNamespaces(args.Namespaces))
	r.Add(policy.CheckRoot())
	r.Add(policy.CheckCapabilities())

	// What a process does to itself.
	r.Add(policy.Limits(args.Namespaces&unix.CLONE_NEWUSER != 0))
	r.Add(policy.NoNewPrivs())
	r.Add(policy.NonDumpable())
	r.Add(policy.DenyWriteExecute())

	// Landlock's calls are not in the filter, so it comes first.
	r.Add(unlessSkipped(args, "landlock", policy.LandlockNothing))
	r.Add(unlessSkipped(args, "seccomp", func() policy.Layer {
		return policy.Seccomp(policy.FilterWorkerStart)
	}))
	return r
}

// tighten replaces the list of the start-up by that of the running worker.
func tighten(args policy.Arguments) (r policy.Report) {
	filter := policy.FilterWorkerTap
	if args.Mode == "stream" {
		filter = policy.FilterWorkerStream
	}
	r.Add(unlessSkipped(args, "seccomp", func() policy.Layer { return policy.Seccomp(filter) }))
	return r
}
