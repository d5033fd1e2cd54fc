// SPDX-License-Identifier: Apache-2.0

//go:build !captive

package main

import "aldente/worker/lane"

// prepare reads the start-up records from the control channel, up to
// ipc.KindStart.
func prepare(control int) (translator, error) { return lane.New(control) }
