// SPDX-License-Identifier: Apache-2.0

package sockets

import (
	"aldente/broker/control/api"
	"aldente/ipc"
)

// StageUsage is what has become of flows that were looked at.
type StageUsage struct {
	Bound  int                  // how many may be looked at at a time; zero: none is
	Held   int                  // are being looked at
	Passed uint64               // were let through
	Ended  [StageReasons]uint64 // were not, by reason
}

// StageReason is why a flow that was looked at did not go on.
type StageReason uint8

// Reasons.
const (
	StageOtherName StageReason = iota // the rules do not let the name in its hello be where it leads
	StageNoName                       // its hello has no name, or none that a host can have
	StageNoHello                      // it does not begin with a hello that can be read
	StageLate                         // there was nothing to see in time
	StageNoRoom                       // as many as may be were looked at
	StageLost                         // it ended before, or the worker did, or the process for names
	StageReasons                      // how many there are
)

// reasonOf is the reason for what was found in place of a name.
func reasonOf(found uint8) StageReason {
	switch found {
	case ipc.FoundNoName, ipc.FoundBadName:
		return StageNoName
	case ipc.FoundEnd:
		return StageLost
	case ipc.FoundNoRoom:
		return StageNoRoom
	}
	return StageNoHello
}

// Stages tells what has become of flows that were looked at.
func (f *Factory) Stages() StageUsage {
	f.stages.mu.Lock()
	defer f.stages.mu.Unlock()
	u := f.stages.usage
	if u.Held = f.stages.held(false); len(f.cfg().VerifySNI) > 0 && f.stages.send != nil {
		u.Bound = ipc.MaxStages
	}
	return u
}

// stageResults are the reasons as a label.
var stageResults = [StageReasons]string{StageOtherName: "other_name", StageNoName: "no_name", StageNoHello: "no_hello",
	StageLate: "late", StageNoRoom: "no_room", StageLost: "lost"}

// HelloCounters are what has become of flows that were looked at; none where none is.
func (f *Factory) HelloCounters() (all []api.Counter) {
	u := f.Stages()
	if u.Bound == 0 {
		return nil
	}
	add := func(result string, n uint64) {
		all = append(all, api.Counter{
			Name: "hellos_total", Value: float64(n), Labels: map[string]string{"result": result},
			Help: "Flows whose first bytes were looked at (--verify-sni): those that went on, and why others did not.",
		})
	}
	add("passed", u.Passed)
	for reason, n := range u.Ended {
		add(stageResults[reason], n)
	}
	return append(all, api.Counter{Name: "hellos_awaited", Value: float64(u.Held), Help: "Flows whose first bytes are looked at now."})
}
