// SPDX-License-Identifier: Apache-2.0

//go:build !captive

package stage

import "aldente/policy"

// unlessSkipped puts up a layer. Only test builds skip any, to try each layer
// on its own.
func unlessSkipped(_ policy.Arguments, _ string, layer func() policy.Layer) policy.Layer {
	return layer()
}
