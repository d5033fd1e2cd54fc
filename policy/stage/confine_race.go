// SPDX-License-Identifier: Apache-2.0

//go:build race

package stage

import "aldente/policy"

// A race build needs cgo: it cannot exec in an empty file system, and its
// runtime makes calls that no filter lists. It keeps the namespaces it was
// started in and nothing else. It is for tests, and says so.

// Enter goes on in the same image.
func Enter(policy.Arguments) error {
	Logf(LevelError, "RACE DETECTOR BUILD: not confined; never use this outside tests")
	return nil
}

// Tune changes nothing.
func (p *Program) Tune() {}

// Confine puts up nothing.
func (p *Program) Confine(policy.Arguments) policy.Report {
	return policy.Report{{Name: "race detector build", State: policy.Missing, Detail: "no layer is in force"}}
}

// Tighten changes nothing.
func Tighten(policy.Arguments) policy.Report { return nil }
