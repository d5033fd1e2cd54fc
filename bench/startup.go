// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"aldente/bench/report"
	"aldente/test/netlab"
)

// startups times a command that ends at once, in a namespace that is made,
// configured and connected for it.
func startups(o options, lab *netlab.Lab, t *report.Table) {
	for range 10 {
		for _, c := range contestants(o) {
			if c.binary == "" || c.name == "slirp4netns" { // which runs no command
				continue
			}
			args := append(append([]string{c.binary}, netlab.NoForward()...), "--config-net", "--", "true")
			start := time.Now()
			p := lab.Host.Start(netlab.Spec{Args: args, User: netlab.Nobody, Timeout: 10 * time.Second})
			if p.Wait() == 0 {
				t.Add("start-up of --config-net -- true", "ms", c.name, float64(time.Since(start))/1e6)
			}
		}
	}
}
