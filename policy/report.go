// SPDX-License-Identifier: Apache-2.0

// Package policy confines the processes: seccomp filters, Landlock,
// capabilities, limits. Each step is a function that does one thing and
// returns a Layer that says what is now in force.
//
// The order matters. Mounts come before Landlock, which forbids them; Landlock
// before seccomp, which forbids Landlock. Capabilities are dropped on a locked
// thread directly before the executable replaces itself, so that every thread
// of the new image starts without them.
package policy

import (
	"errors"
	"fmt"
	"strings"
)

// State says how much of a layer is in force.
type State uint8

const (
	Missing State = iota // not in force
	Partial              // in force as far as the running kernel goes
	InForce              // in force
)

func (s State) String() string {
	switch s {
	case InForce:
		return "in force"
	case Partial:
		return "partly in force"
	}
	return "missing"
}

// Layer is one of the walls around a process.
type Layer struct {
	Name   string // what lies in the way of whom
	State  State  // whether it is in force
	Detail string // what exactly, or why not
}

func (l Layer) String() string {
	if l.Detail == "" {
		return l.Name + ": " + l.State.String()
	}
	return fmt.Sprintf("%s: %s (%s)", l.Name, l.State, l.Detail)
}

// Report lists the layers of one process in the order they were put up.
type Report []Layer

// Add appends layers.
func (r *Report) Add(layers ...Layer) { *r = append(*r, layers...) }

// ErrNotConfined is returned under --strict when a layer is missing.
var ErrNotConfined = errors.New("confinement is incomplete")

// Err returns ErrNotConfined naming the layers that are missing, or nil. A
// layer that an older kernel has in part is not missing.
func (r Report) Err() error {
	var names []string
	for _, l := range r {
		if l.State == Missing {
			names = append(names, l.String())
		}
	}
	if names == nil {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrNotConfined, strings.Join(names, "; "))
}
