// SPDX-License-Identifier: Apache-2.0

//go:build race || unconfined

package main

import "aldente/policy"

// A race build's runtime makes calls that no filter lists; it is for tests. An
// unconfined build is for measuring what confinement costs (bench/sandbox). Both
// say so.

func (in *instance) confine() policy.Report {
	return policy.Report{{Name: "race detector or unconfined build", State: policy.Missing, Detail: "no layer is in force"}}
}

func (in *instance) kept() policy.Capabilities { return 0 }

// checkExecutable lets them be: they are not executed in an empty file system.
func checkExecutable() error { return nil }
