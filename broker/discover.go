// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/broker/hostnet"
	"aldente/broker/inet"
	"aldente/broker/plan"
	"aldente/broker/ports"
	"aldente/broker/sockets"
)

// discover reads what the plan depends on.
func (in *instance) discover() (plan.Host, error) {
	cfg := in.cfg
	h := plan.Host{
		Descriptors: descriptors(),
		Conntrack:   int(sysctl("nf_conntrack_max", 0)),
		ClientPorts: cli.EphemeralPorts(cli.PortRangeFile),
		UDPIdle:     sysctl("nf_conntrack_udp_timeout", 30),
		UDPStream:   sysctl("nf_conntrack_udp_timeout_stream", 120),
		PeekOff4:    inet.PeekOffWorks(unix.AF_INET),
		PeekOff6:    inet.PeekOffWorks(unix.AF_INET6),
	}
	var err error
	in.watchNetwork()
	in.watchResolvers()
	if h.Network, err = in.readNetwork(); err != nil {
		return h, err
	}
	if h.Resolvers, err = hostnet.ReadResolvers(hostnet.ResolvConf); err != nil {
		in.log.Warn("the host's resolvers are unknown, --dns ADDR names one", "error", err)
	}
	h.Resolvers.NumberZones(in.linkIndex)
	if h.Via, err = in.prepareVia(); err != nil {
		return h, err
	}
	if plan.AsksLocal(cfg) {
		local, err := hostnet.NewLocal(h.Network.V6.Scope)
		if err != nil {
			return h, err
		}
		h.Local, in.net.local = local.Has, local
	}
	return h, nil
}

// makeFactory makes what opens all sockets, as planned.
func (in *instance) makeFactory() {
	fc := in.plan.Factory
	fc.Logger, fc.Flows, fc.Audit = in.log, in.makeFlowLog(), in.audit
	if in.plan.NeedsClients() {
		clients, err := ports.OpenClients()
		if err != nil {
			in.log.Warn("clients of the host's own cannot be told from services: some get no answer from UDP ports of the guest", "error", err)
		} else {
			fc.Client = clients.Connected
		}
	}
	in.factory = sockets.New(fc)
	if err := in.factory.SetBudget(in.plan.Limits, in.plan.Budget); err != nil {
		in.log.Warn("closed sockets cannot be told from open ones, limits on them count both", "error", err)
	}
	in.rememberFlows()
	if err := in.factory.KnowPorts(); err != nil {
		in.log.Warn("cannot tell who is on a port: flows of the guest share none", "error", err)
	}
}

// descriptors is how many files this process may have open.
func descriptors() int {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return 1024
	}
	return int(min(r.Max, 1<<20))
}

// sysctl reads a number of the host's connection tracking, where it can be read and
// is not zero.
func sysctl(name string, otherwise uint32) uint32 {
	b, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
	if err != nil {
		return otherwise
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 31)
	if err != nil || n == 0 {
		return otherwise
	}
	return uint32(n)
}
