// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"

	"aldente/broker/budget"
	"aldente/ipc"
)

// limit settles what the guest may use up of its host.
func (in *instance) limit() {
	h := budget.Host{
		Descriptors: int(descriptors()),
		Ephemeral:   ephemeralPorts(),
		Conntrack:   int(sysctl("nf_conntrack_max", 0)),
	}
	in.limits = budget.Defaults(h).With(in.cfg.Limits, h)
	if err := in.factory.SetBudget(in.limits, h); err != nil {
		in.log.Warn("closed sockets cannot be told from open ones, limits on them count both", "error", err)
	}
}

// tellLimits tells a worker what it is to keep to by itself.
func (in *instance) tellLimits(c *ipc.Config) {
	c.MaxFlows = uint32(in.limits.Sockets)
	c.MaxUDP = uint32(in.limits.WorkerUDP())
}

// tellUsage says, in the end, how much of each limit was used.
func (in *instance) tellUsage() {
	for k, u := range in.factory.Usage() {
		if u.Opened > 0 || u.Refused > 0 {
			in.log.Debug("budget", "of", budget.Kind(k), "limit", u.Limit, "held", u.Held, "most", u.Most,
				"opened", u.Opened, "refused", u.Refused, "ended", u.Ended)
		}
	}
}

// ephemeralPorts is how many ports the kernel gives out by itself.
func ephemeralPorts() int {
	first, last := 32768, 60999 // the kernel's own default
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		var f, l int
		if _, err := fmt.Sscan(string(b), &f, &l); err == nil && f > 0 && l >= f && l < 1<<16 {
			first, last = f, l
		}
	}
	return last - first + 1
}
