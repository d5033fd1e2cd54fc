// SPDX-License-Identifier: Apache-2.0

package fuzz

import (
	"runtime"
	"testing"
)

// CountsAllocations tells whether an input asks, by one of its bytes, for a
// count of allocations. Counting stops the world, so that only one value in
// sixteen does, which the seeds have.
func CountsAllocations(b byte) bool { return b&0xf0 == CountAllocations }

// CountAllocations in the upper half of a byte of an input.
const CountAllocations = 0xa0

// Allocates tells whether f allocates. A first count may hold what the runtime
// allocates for itself meanwhile; only if there is any, it is made with care.
func Allocates(f func()) bool {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return before.Mallocs != after.Mallocs && testing.AllocsPerRun(10, f) != 0
}
