// SPDX-License-Identifier: Apache-2.0

//go:build !race && !unconfined

package stage

import (
	"golang.org/x/sys/unix"

	"aldente/policy"
)

// giveUp leaves the process without files and capabilities, before the second
// stage.
func giveUp(args policy.Arguments) {
	if args.Stage == policy.StageEnter && args.Namespaces&unix.CLONE_NEWNS != 0 {
		if err := policy.EmptyRoot(); err != nil {
			Logf(LevelWarning, "%v", err)
		}
	}
	if err := policy.DropCapabilities(); err != nil {
		Logf(LevelWarning, "%v", err)
	}
}

// Confine puts up every layer and returns what is in force.
func (p *Program) Confine(args policy.Arguments) (r policy.Report) {
	// The broker has set this, but a change of credentials clears it.
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	policy.SetName(p.Name)

	// What the first stage left.
	r.Add(policy.CheckNamespaces(args.Namespaces))
	r.Add(policy.CheckRoot())
	r.Add(policy.CheckCapabilities())

	// What a process does to itself.
	r.Add(policy.Limits(args.Namespaces&unix.CLONE_NEWUSER != 0, args.FileSize, args.Files))
	r.Add(policy.LimitMemory(p.Memory))
	r.Add(policy.NoNewPrivs())
	r.Add(policy.NonDumpable())
	r.Add(policy.DenyWriteExecute())

	// Landlock's calls are not in the filter, so it comes first.
	r.Add(unlessSkipped(args, "landlock", policy.LandlockNothing))
	start, _, _ := policy.FiltersOf(args.Mode)
	r.Add(unlessSkipped(args, "seccomp", func() policy.Layer { return policy.Seccomp(start) }))
	return r
}

// Tighten puts the list of the running process in the place of the start-up's.
func Tighten(args policy.Arguments) (r policy.Report) {
	_, running, _ := policy.FiltersOf(args.Mode)
	r.Add(unlessSkipped(args, "seccomp", func() policy.Layer { return policy.Seccomp(running) }))
	return r
}
