// SPDX-License-Identifier: Apache-2.0

//go:build debugfilter

package policy

import "embed"

// filters holds the variant for development: a forbidden call is not carried
// out and raises SIGSYS, so that the Go runtime prints the goroutine that made
// it. Captured code could go on after that: not for use.
//
//go:embed filters/*-trap_*.bpf
var filters embed.FS

const (
	filterSuffix = "-trap"
	filterAction = "DEBUG BUILD: a forbidden call only raises a signal"
)

// DebugFilter says whether this build only traps forbidden calls.
const DebugFilter = true
