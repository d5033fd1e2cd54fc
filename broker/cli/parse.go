// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"aldente/ipc"
)

// parser carries what options add up to until all of them are known.
type parser struct {
	c         *Config
	portRange string // file with the ephemeral ports

	specs      [4][]string // raw -t, -u, -T and -U
	netmask    int         // -n, 0: not given
	cidr       bool        // the last -a had a prefix length
	addr4      prefix
	addr6      prefix
	dhcpDNS    *bool
	dhcpSearch *bool
	hide       *bool // sockets of the host
	follow     *bool // the host's network
	socketType bool  // was given
	slirp      slirpArgs
}

// Parse reads a command line; argv[0] selects the personality. --help,
// --version and their like end it where they stand, as if nothing followed.
// All errors are UsageErrors.
func Parse(argv []string) (*Config, error) { return ParseWith(argv, PortRangeFile) }

// ParseWith is Parse with the ephemeral ports read from portRangeFile.
func ParseWith(argv []string, portRangeFile string) (*Config, error) {
	if len(argv) == 0 {
		argv = []string{Aldente.String()}
	}
	c := &Config{
		Personality: PersonalityOf(argv[0]),
		LogSize:     DefaultLogSize,
		MTU:         -1,
		MAC:         DefaultMAC,
		FD:          -1,
		ViaSecretFD: -1,
		PcapSize:    -1,
	}
	c.NoMapGW = c.Personality == Aldente
	c.Multicast.Send = c.Personality == Pasta || c.Personality == Passt // as the original does
	p := &parser{c: c, portRange: portRangeFile}
	g := getopt{table: options, in: c.Personality.bit(), argv: argv, next: 1, warn: p.warnf}
	if c.Personality == Slirp {
		g.table, g.mixed = slirpOptions, true
	}
	for {
		opt, arg, err := g.scan()
		if err != nil {
			return nil, err
		}
		if opt == nil {
			break
		}
		if opt.in&c.Personality.bit() == 0 {
			return nil, usagef("%s is for %s mode only", opt.name(), opt.in)
		}
		if err := opt.set(p, arg); err != nil {
			return nil, err
		}
		c.say(opt, arg)
		if c.Action.final() {
			return c, nil
		}
	}
	if c.Action == ActionCheckRules {
		return c, p.checkFiles(g.rest())
	}
	if c.JSON {
		return nil, nextf("leave it out", "--json is for --check-rules")
	}
	operands, finish := p.operands, p.finish
	if c.Personality == Slirp {
		operands, finish = p.slirpOperands, p.finishSlirp
	}
	if err := operands(g.rest()); err != nil {
		return nil, err
	}
	if err := finish(); err != nil {
		return nil, err
	}
	return c, nil
}

// finish applies defaults and what one option means for another.
func (p *parser) finish() error {
	c := p.c
	if err := c.incompatible(); err != nil {
		return err
	}
	if err := c.checkVia(); err != nil {
		return err
	}
	if p.socketType && (c.FD >= 0 || c.VhostUser) {
		return nextf("leave it out", "--socket-type is for a socket that is made here, of frames: what --fd is, shows; vhost-user has a stream")
	}
	switch {
	case c.LinkKind != 0:
	case c.VhostUser:
		c.LinkKind = ipc.LinkVhostUser
	case c.Personality == Passt:
		c.LinkKind = ipc.LinkStream
	default:
		c.LinkKind = ipc.LinkTap
	}
	c.NoNDP = c.NoNDP || c.NoICMP
	c.NoRA = c.NoRA || c.NoNDP
	c.OneOff = c.OneOff || c.FD >= 0
	c.DHCPDNS = orDefault(p.dhcpDNS, c.Personality == Passt)
	c.DHCPSearch = orDefault(p.dhcpSearch, c.Personality == Passt)
	spawn := c.Target.Kind == TargetSpawn
	c.NoFollow = !orDefault(p.follow, true)
	if c.HideSockets = orDefault(p.hide, c.Personality == Aldente && spawn); c.HideSockets && !spawn {
		return usagef("--hide-sockets is for a command that is started here, not for PID or --netns")
	}
	p.addresses()
	p.warnMTU()
	return p.forwards()
}

func orDefault(given *bool, otherwise bool) bool {
	if given != nil {
		return *given
	}
	return otherwise
}

// incompatible reports options that exclude or need each other.
func (c *Config) incompatible() error {
	for _, r := range []struct {
		wrong bool
		msg   string
	}{
		{c.NoSplice && c.HostLoToNSLo, "--host-lo-to-ns-lo is incompatible with --no-splice"},
		{c.NoSplice && c.SpliceOnly, "--splice-only is incompatible with --no-splice"},
		{c.NoCopyRoutes && !c.ConfigNet, "--no-copy-routes needs --config-net"},
		{c.NoCopyAddrs && !c.ConfigNet, "--no-copy-addrs needs --config-net"},
		{c.SDNotify && !c.Foreground && c.Target.Kind != TargetSpawn, "--sd-notify is for a service that stays in the foreground: it needs -f, or a command"},
		{c.Stats != 0 && !c.Foreground && c.Target.Kind != TargetSpawn, "--stats prints to standard error: it needs -f, or a command"},
		{c.Controllable() && c.ControlPath == c.ConfPath, "--control and -c speak different protocols: each needs a path of its own"},
		{c.RepairPath != "" && c.RepairPath != "none" && !c.VhostUser, "--repair-path is for vhost-user mode only"},
		{c.MigrateExit && !c.VhostUser, "--migrate-exit is for vhost-user mode only"},
		{c.MigrateNoLinger && !c.VhostUser, "--migrate-no-linger is for vhost-user mode only"},
	} {
		if r.wrong {
			return nextf("leave out one of them, or see the manual page", "%s", r.msg)
		}
	}
	return nil
}

// addresses decides the guest's prefixes: -a with a length, -n, or the class
// of an IPv4 address; an IPv6 prefix is 64 bits unless given.
func (p *parser) addresses() {
	if p.addr4.addr.IsValid() {
		bits := p.netmask
		if bits == 0 {
			bits = p.addr4.bits
		}
		if bits <= 0 {
			bits = classBits(p.addr4.addr)
		}
		p.c.Addresses = append(p.c.Addresses, p.addr4.with(bits))
	}
	if p.addr6.addr.IsValid() {
		bits := p.addr6.bits
		if bits <= 0 {
			bits = 64
		}
		p.c.Addresses = append(p.c.Addresses, p.addr6.with(bits))
	}
	p.c.Netmask = p.netmask
}

// Smallest MTUs that the protocols work with: RFC 791 section 3.2, RFC 8200
// section 5.
const (
	minMTU4 = 68
	minMTU6 = 1280
)

func (p *parser) warnMTU() {
	c := p.c
	if c.MTU <= 0 {
		return
	}
	if c.MTU < minMTU4 && !c.IPv6Only {
		p.warnf("MTU %d is too small for IPv4 (minimum %d)", c.MTU, minMTU4)
	}
	defer func() { c.MTU = max(c.MTU, minMTU4) }() // no interface takes less
	if c.MTU < minMTU6 && !c.IPv4Only {
		p.warnf("MTU %d is too small for IPv6 (minimum %d)", c.MTU, minMTU6)
	}
}

// forwards turns the raw specifications into rules, now that -4, -6, --no-tcp
// and --no-udp are known.
func (p *parser) forwards() error {
	c := p.c
	for i, f := range [...]struct {
		option   string
		to       *Forward
		proto    uint8
		outbound bool
		disabled bool
	}{
		{"-t", &c.TCPPorts, ipc.ProtoTCP, false, c.NoTCP},
		{"-u", &c.UDPPorts, ipc.ProtoUDP, false, c.NoUDP},
		{"-T", &c.TCPNS, ipc.ProtoTCP, true, c.NoTCP},
		{"-U", &c.UDPNS, ipc.ProtoUDP, true, c.NoUDP},
	} {
		o := SpecOptions{
			Proto: f.proto, Outbound: f.outbound,
			Auto:     c.Personality != Passt,
			IPv4Only: c.IPv4Only, IPv6Only: c.IPv6Only,
		}
		specs := p.specs[i]
		if specs == nil && c.Personality == Pasta && !f.disabled {
			specs = []string{"auto"}
		}
		if err := p.addSpecs(f.to, f.option, specs, o); err != nil {
			return err
		}
		if f.disabled && len(f.to.Rules) > 0 {
			return usagef("%s: can't forward ports with the protocol disabled: %v", f.option, &f.to.Rules[0])
		}
	}
	return nil
}

func (p *parser) addSpecs(to *Forward, option string, specs []string, o SpecOptions) error {
	for _, s := range specs {
		if s == "none" {
			if len(to.Rules) > 0 {
				return nextf("give it alone, or leave it out", "%s none conflicts with previous options", option)
			}
			continue
		}
		if o.Ephemeral == (PortRange{}) {
			o.Ephemeral = EphemeralPorts(p.portRange)
		}
		rules, err := ParseSpec(s, o)
		if err != nil {
			return err
		}
		if to.Rules, err = AddRules(to.Rules, rules); err != nil {
			return err
		}
	}
	return nil
}
