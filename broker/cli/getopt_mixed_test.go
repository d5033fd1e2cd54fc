// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"slices"
	"testing"
)

// TestGetoptMixed: where options may stand behind operands, all are found, and what is
// behind "--" is none; elsewhere the first operand ends them.
func TestGetoptMixed(t *testing.T) {
	for _, tt := range []struct {
		argv  []string
		mixed bool
		opts  []string
		rest  []string
	}{
		{[]string{"1", "tap0"}, true, nil, []string{"1", "tap0"}},
		{[]string{"1", "-c", "tap0", "-m", "9"}, true, []string{"configure", "mtu"}, []string{"1", "tap0"}},
		{[]string{"1", "-cm9", "--", "-c", "tap0"}, true, []string{"configure", "mtu"}, []string{"1", "-c", "tap0"}},
		{[]string{"-", "-c"}, true, []string{"configure"}, []string{"-"}},
		{[]string{"1", "-m", "-c"}, true, []string{"mtu"}, []string{"1"}},
		{[]string{"1", "-c"}, false, nil, []string{"1", "-c"}},
	} {
		g := getopt{table: slirpOptions, in: slirpOnly, argv: append([]string{"slirp4netns"}, tt.argv...), next: 1, mixed: tt.mixed, warn: t.Logf}
		var opts []string
		for {
			o, _, err := g.scan()
			if err != nil {
				t.Fatalf("%q: %v", tt.argv, err)
			}
			if o == nil {
				break
			}
			opts = append(opts, o.long)
		}
		if rest := g.rest(); !slices.Equal(opts, tt.opts) || !slices.Equal(rest, tt.rest) {
			t.Errorf("%q: options %q, operands %q", tt.argv, opts, rest)
		}
	}
}
