// SPDX-License-Identifier: Apache-2.0

//go:build race

package main

import "aldente/policy"

// A race build's runtime makes calls that no filter lists. It is for tests, and
// says so.

func (in *instance) confine() policy.Report {
	return policy.Report{{Name: "race detector build", State: policy.Missing, Detail: "no layer is in force"}}
}

func (in *instance) kept() policy.Capabilities { return 0 }
