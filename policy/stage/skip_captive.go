// SPDX-License-Identifier: Apache-2.0

//go:build captive && !race

package stage

import (
	"slices"
	"strings"

	"aldente/policy"
)

// Words returns the values of one key of a captive's script.
func Words(script []string, key string) (values []string) {
	for _, word := range script {
		if k, v, ok := strings.Cut(word, "="); ok && k == key {
			values = append(values, v)
		}
	}
	return values
}

// unlessSkipped leaves out a layer that "skip=NAME" names.
func unlessSkipped(args policy.Arguments, name string, layer func() policy.Layer) policy.Layer {
	if slices.Contains(Words(strings.Fields(args.Extra), "skip"), name) {
		return policy.Layer{Name: name, State: policy.Missing, Detail: "left out by the test"}
	}
	return layer()
}
