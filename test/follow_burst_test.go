// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"aldente/test/netlab"
)

// TestFollowBurst: a routing daemon brings thousands of routes by the template, and takes
// them away. The guest has them, and what changes then.
func TestFollowBurst(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	const routes = 3000
	batch := func(verb string) string {
		var b strings.Builder
		for n := range routes {
			fmt.Fprintf(&b, "route %s 10.%d.%d.0/24 via 192.0.2.1\n", verb, n>>8, n&0xff)
		}
		f := filepath.Join(t.TempDir(), verb)
		if err := os.WriteFile(f, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return f
	}
	count := func() int {
		_, out := g.Run("ip", "route", "show", "root", "10.0.0.0/8")
		return strings.Count(out, "\n")
	}
	lab.Host.Must("ip", "-batch", batch("add"))
	comesTrue(t, "the guest has all routes", func() bool { return count() == routes })
	lab.Host.IP("addr add 192.0.2.77/24 dev h0")
	comesTrue(t, "the guest has one more address", func() bool { return ipSays(g.NS, "192.0.2.77/24", "addr") })
	lab.Host.Must("ip", "-batch", batch("del"))
	comesTrue(t, "the guest has none of them", func() bool { return count() == 0 })
	lab.Host.IP("addr del 192.0.2.77/24 dev h0")
	comesTrue(t, "the guest has lost the address", func() bool { return !ipSays(g.NS, "192.0.2.77/24", "addr") })
}
