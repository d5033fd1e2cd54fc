// SPDX-License-Identifier: Apache-2.0

package cli

import "slices"

// unsupported lists options that are understood but not carried out yet.
var unsupported = []struct {
	option string
	asked  func(*Config) bool
}{
	{"--vhost-user", func(c *Config) bool { return c.VhostUser }},
	{"-c", func(c *Config) bool { return c.ConfPath != "" }},
	{"--repair-path", func(c *Config) bool { return c.RepairPath != "" }},
	{"--stats", func(c *Config) bool { return c.Stats != 0 }},
	{"-t auto", func(c *Config) bool { return c.TCPPorts.asksAuto() }},
	{"-u auto", func(c *Config) bool { return c.UDPPorts.asksAuto() }},
	{"-T", func(c *Config) bool { return c.TCPNS.asks() }},
	{"-U", func(c *Config) bool { return c.UDPNS.asks() }},
	{"--splice-only", func(c *Config) bool { return c.SpliceOnly }},
	{"--host-lo-to-ns-lo", func(c *Config) bool { return c.HostLoToNSLo }},
}

func (f *Forward) asks() bool { return f.Explicit && len(f.Rules) > 0 }

func (f *Forward) asksAuto() bool {
	return f.Explicit && slices.ContainsFunc(f.Rules, func(r Rule) bool { return r.Auto })
}

// Unsupported returns an error naming the first option that was asked for and
// that this version can't carry out. Defaults don't count.
func (c *Config) Unsupported() error {
	for _, u := range unsupported {
		if u.asked(c) {
			return usagef("%s is not supported by this version", u.option)
		}
	}
	return nil
}
