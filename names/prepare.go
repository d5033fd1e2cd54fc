// SPDX-License-Identifier: Apache-2.0

//go:build !captive

package main

import "aldente/names/loop"

// prepare reads the start-up records from the control channel, up to
// ipc.NamesKindStart.
func prepare(control, files int) (resolver, error) { return loop.New(control, files) }
