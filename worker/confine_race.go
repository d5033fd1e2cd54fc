// SPDX-License-Identifier: Apache-2.0

//go:build race

package main

import "aldente/policy"

// A race build needs cgo: it cannot exec in an empty file system, and its
// runtime makes calls that no filter lists. It keeps the namespaces it was
// started in and nothing else. It is for tests, and says so.

// enter goes on in the same image.
func enter(policy.Arguments) error {
	logf(levelError, "RACE DETECTOR BUILD: not confined; never use this outside tests")
	return nil
}

func tuneRuntime() {}

func confine(policy.Arguments) policy.Report {
	return policy.Report{{Name: "race detector build", State: policy.Missing, Detail: "no layer is in force"}}
}

func tighten(policy.Arguments) policy.Report { return nil }
