// SPDX-License-Identifier: Apache-2.0

//go:build !race && !unconfined

package supervise

// enters: the first worker's process does what a first image would.
const enters = true
