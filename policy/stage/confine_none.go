// SPDX-License-Identifier: Apache-2.0

//go:build unconfined && !race

package stage

import "aldente/policy"

// A build with the unconfined tag is for one purpose: to measure what the
// sandbox costs (bench/sandbox). It keeps the namespaces it was started in and
// nothing else, and says so.

func giveUp(policy.Arguments) {}

// Confine puts up nothing.
func (p *Program) Confine(policy.Arguments) policy.Report {
	return policy.Report{{Name: "unconfined build", State: policy.Missing, Detail: "no layer is in force"}}
}

// Tighten changes nothing.
func Tighten(policy.Arguments) policy.Report { return nil }
