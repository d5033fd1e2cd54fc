// SPDX-License-Identifier: Apache-2.0

package fuzz

import (
	_ "embed"
	"strings"
)

//go:embed targets.txt
var targets string

// Target is one fuzz target.
type Target struct {
	Package    string // below the module's root
	Name       string // of the function
	Dictionary string // "" for none
}

// Targets lists every target.
func Targets() (all []Target) {
	for line := range strings.Lines(targets) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		t := Target{Package: f[0], Name: f[1]}
		if f[2] != "-" {
			t.Dictionary = f[2]
		}
		all = append(all, t)
	}
	return all
}
