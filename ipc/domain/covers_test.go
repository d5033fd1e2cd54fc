// SPDX-License-Identifier: Apache-2.0

package domain

import "testing"

// TestCovers: a pattern covers what stands for no other names than it.
func TestCovers(t *testing.T) {
	for _, tt := range []struct {
		p, o string
		want bool
	}{
		{"a.test", "a.test", true}, {"a.test", "b.a.test", false}, {"a.test", "*.a.test", false},
		{"*.test", "a.test", true}, {"*.test", "b.a.test", true}, {"*.test", "*.test", true}, {"*.test", "*.a.test", true},
		{"*.a.test", "*.test", false}, {"*.a.test", "a.test", false}, {"*.a.test", "xa.test", false}, {"*.a.test", "*.xa.test", false},
	} {
		p, err := ParsePattern(tt.p)
		o, err2 := ParsePattern(tt.o)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		if got := p.Covers(o); got != tt.want {
			t.Errorf("%s covers %s: %v", tt.p, tt.o, got)
		}
	}
}
