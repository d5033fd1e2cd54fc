// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"math"
	"net/netip"
	"strings"

	"aldente/ipc"
)

// The network that a caller of slirp4netns expects, unless --cidr names another for
// IPv4: where in it the gateway, the resolver and the guest are.
var (
	slirpNet4 = netip.MustParsePrefix("10.0.2.0/24")
	slirpNet6 = netip.MustParsePrefix("fd00::/64")
)

const (
	slirpGateway  = 2
	slirpResolver = 3
	slirpGuest    = 100

	slirpMTU     = 1500
	slirpMaxBits = 25 // of a network that has room for these
)

// slirpMAC is our side's address on the link: two bytes, and the gateway's address.
func slirpMAC(gateway netip.Addr) [6]byte {
	a := gateway.As4()
	return [6]byte{0x52, 0x55, a[0], a[1], a[2], a[3]}
}

// slirpArgs is what slirp4netns's options add up to until all of them are known.
type slirpArgs struct {
	net4       netip.Prefix
	ipv6       bool
	noLoopback bool
	noDNS      bool
	netnsType  string
	targetType string
	mac        bool // --macaddress was given
}

// slirpOptions holds one row for each option of slirp4netns.
var slirpOptions = []option{
	{long: "configure", short: 'c', in: slirpOnly,
		set:  flag(func(c *Config) *bool { return &c.ConfigNet }),
		help: "bring up the tap, with address, routes and MTU,\nand lo"},
	{long: "exit-fd", short: 'e', arg: "FD", in: slirpOnly,
		set:  callersFD("exit-fd", func(c *Config) **int { return &c.ExitFD }),
		help: "exit with status 0 once anything happens to FD:\ndata, or its other end is closed"},
	{long: "ready-fd", short: 'r', arg: "FD", in: slirpOnly,
		set:  callersFD("ready-fd", func(c *Config) **int { return &c.ReadyFD }),
		help: "write \"1\" to FD and close it, when all is ready"},
	{long: "mtu", short: 'm', arg: "MTU", in: slirpOnly, set: setSlirpMTU,
		help: "MTU of the guest's interface (default: 1500,\nat most 65521)"},
	{long: "enable-ipv6", short: '6', in: slirpOnly, set: slirpFlag(func(a *slirpArgs) *bool { return &a.ipv6 }),
		help: "IPv6 as well: network fd00::/64"},
	{long: "api-socket", short: 'a', arg: "PATH", in: slirpOnly,
		set:  socketPath("API socket", func(c *Config) *string { return &c.APISocket }),
		help: "socket by which ports are forwarded to the guest\nwhile it runs, in JSON"},
	{long: "cidr", arg: "CIDR", in: slirpOnly, set: setSlirpCIDR,
		help: "the guest's IPv4 network (default: 10.0.2.0/24)"},
	{long: "disable-host-loopback", in: slirpOnly, set: slirpFlag(func(a *slirpArgs) *bool { return &a.noLoopback }),
		help: "the gateway's address does not lead to the host's\nloopback"},
	{long: "netns-type", arg: "TYPE", in: slirpOnly, set: slirpWord("netns-type", func(a *slirpArgs) *string { return &a.netnsType }, "pid", "path", "tapfd"),
		help: "what the first argument is: pid; path, of a\nnetwork namespace; tapfd, a descriptor\n(default: pid)"},
	{long: "userns-path", arg: "PATH", in: slirpOnly, set: setUserns,
		help: "user namespace to join first\n(default: that of PID)"},
	{long: "enable-sandbox", in: slirpOnly, set: always,
		help: "accepted; the sandbox is always there"},
	{long: "enable-seccomp", in: slirpOnly, set: always,
		help: "accepted; seccomp(2) filters are always in force"},
	{long: "outbound-addr", arg: "IPv4|INTERFACE", in: slirpOnly, set: setSlirpOutbound(true),
		help: "host's address or interface that connections\nleave by"},
	{long: "outbound-addr6", arg: "IPv6|INTERFACE", in: slirpOnly, set: setSlirpOutbound(false),
		help: "the same for IPv6"},
	{long: "disable-dns", in: slirpOnly, set: slirpFlag(func(a *slirpArgs) *bool { return &a.noDNS }),
		help: "no resolver at the third address of the network"},
	{long: "macaddress", arg: "MAC", in: slirpOnly, set: setSlirpMAC,
		help: "hardware address of the guest's interface, with -c\n(default: random)"},
	{long: "target-type", arg: "TYPE", in: slirpOnly, set: slirpWord("target-type", func(a *slirpArgs) *string { return &a.targetType }, "netns", "bess"),
		help: "what is connected: netns; bess, a User Mode\nLinux, by a socket at PATH (default: netns)"},
	{long: "help", short: 'h', in: slirpOnly, set: action(ActionHelp),
		help: "print this text and exit"},
	{long: "version", short: 'v', in: slirpOnly, set: action(ActionVersion),
		help: "print the version and exit"},
}

// always is the setter of what is so anyway.
func always(*parser, string) error { return nil }

func slirpFlag(field func(*slirpArgs) *bool) setter {
	return func(p *parser, _ string) error {
		*field(&p.slirp) = true
		return nil
	}
}

// slirpWord takes one of several words.
func slirpWord(option string, field func(*slirpArgs) *string, words ...string) setter {
	return func(p *parser, arg string) error {
		for _, w := range words {
			if arg == w {
				*field(&p.slirp) = arg
				return nil
			}
		}
		return nextf("give "+strings.Join(words, " or "), "Invalid --%s: %s", option, arg)
	}
}

// callersFD takes the number of a descriptor that the caller has left open.
func callersFD(option string, field func(*Config) **int) setter {
	return func(p *parser, arg string) error {
		n, ok := parseNumber(arg, 10, math.MaxInt32)
		if !ok {
			return nextf("give the number of an open descriptor", "%s must be a non-negative integer: %s", option, arg)
		}
		fd := int(n)
		*field(p.c) = &fd
		return nil
	}
}

func setSlirpMTU(p *parser, arg string) error {
	n, ok := parseNumber(arg, 0, MaxMTU)
	if !ok || n == 0 {
		return nextf(fmt.Sprintf("give 1 to %d", MaxMTU), "MTU must be a positive integer (< %d): %s", MaxMTU+1, arg)
	}
	p.c.MTU = int(n)
	return nil
}

func setSlirpCIDR(p *parser, arg string) error {
	net, err := netip.ParsePrefix(arg)
	switch {
	case err != nil || !net.Addr().Is4():
		return nextf("give an IPv4 network, as 10.0.2.0/24", "Invalid CIDR: %s", arg)
	case net.Bits() < 1 || net.Bits() > slirpMaxBits:
		return nextf("gateway, resolver and guest have to find room in it", "Prefix length needs to be 1-%d: %s", slirpMaxBits, arg)
	case net != net.Masked():
		return nextf(fmt.Sprintf("give %v", net.Masked()), "CIDR needs to be a network address: %s", arg)
	}
	p.slirp.net4 = net
	return nil
}

// setSlirpOutbound takes an address of one family, or else the name of an interface.
func setSlirpOutbound(v4 bool) setter {
	return func(p *parser, arg string) error {
		c := p.c
		addr, name, family := &c.Outbound6, &c.OutboundIf6, "IPv6"
		if v4 {
			addr, name, family = &c.Outbound4, &c.OutboundIf4, "IPv4"
		}
		a, ok := parseAddr(arg, loopback)
		switch {
		case ok && a.Is4() == v4:
			*addr, *name = a, ""
		case !ok && validIfName(arg) && !looksNumeric(arg):
			*addr, *name = netip.Addr{}, arg
		default:
			return nextf("\"ip address\" lists both", "Outbound address has to be a valid %s address or interface name: %s", family, arg)
		}
		return nil
	}
}

// looksNumeric tells whether somebody has meant an IPv4 address, not a name.
func looksNumeric(s string) bool { return strings.Trim(s, "0123456789.") == "" }

func setSlirpMAC(p *parser, arg string) error {
	p.slirp.mac = true
	return setNSMAC(p, arg)
}

// slirpOperands decides what is connected.
func (p *parser) slirpOperands(args []string) error {
	c, s := p.c, &p.slirp
	usage := func(msg string) error {
		return &UsageError{Msg: msg, Hint: "Usage: slirp4netns [OPTION]... PID|PATH|FD [TAPNAME], see --help"}
	}
	if len(args) == 0 {
		return usage("Nothing to connect: give a process, a path or a descriptor")
	}
	if len(args) > 2 {
		p.warnf("too many arguments: only %s and %s count", args[0], args[1])
	}
	what := args[0]
	switch {
	case s.targetType == "bess":
		if c.ConfigNet || s.netnsType != "" || c.Userns != "" {
			return usage("--target-type=bess excludes --configure, --netns-type and --userns-path: there is no namespace")
		}
		c.LinkKind = ipc.LinkSeqpacket
		return socketPath("socket", func(c *Config) *string { return &c.SocketPath })(p, what)
	case s.netnsType == "tapfd":
		if c.ConfigNet || c.Userns != "" {
			return usage("--netns-type=tapfd excludes --configure and --userns-path: whoever passes the tap has its namespace")
		}
		c.LinkKind, c.OneOff = ipc.LinkStream, true // which kind the descriptor shows
		return setFD(p, what)
	case s.netnsType == "path":
		if what == "" {
			return usage("The path of a network namespace is empty")
		}
		if !strings.Contains(what, "/") {
			what = "./" + what // a name without a slash is one of ip-netns(8) elsewhere
		}
		c.Target, c.NetnsOnly = Target{Kind: TargetPath, Path: what}, c.Userns == ""
	default:
		pid, ok := parseNumber(what, 10, math.MaxInt32)
		if !ok || pid == 0 {
			return usage("PID must be a positive integer: " + what)
		}
		c.Target = Target{Kind: TargetPID, PID: int(pid)}
	}
	if len(args) == 1 {
		return usage("Which interface? Give the name of the tap, as tap0")
	}
	return setNSIfName(p, args[1])
}

// finishSlirp says what the options mean in pasta's terms.
func (p *parser) finishSlirp() error {
	c, s := p.c, &p.slirp
	if s.mac && !c.ConfigNet {
		return nextf("give -c too, or leave it out", "--macaddress is for an interface that is configured here")
	}
	if c.LinkKind == 0 {
		c.LinkKind = ipc.LinkTap
	}
	if c.MTU < 0 {
		c.MTU = slirpMTU
	}
	if !s.net4.IsValid() {
		s.net4 = slirpNet4
	}
	c.Foreground, c.NoNetnsQuit = true, true
	// What comes by a forwarded port comes from the gateway or from afar, never from
	// the guest's own loopback.
	c.NoSplice = true
	c.IPv4Only, c.NoMapGW = !s.ipv6, s.noLoopback
	c.Virtual4, c.Gateway4 = s.net4, nth(s.net4, slirpGateway)
	c.MAC = slirpMAC(c.Gateway4)
	c.Addresses = []netip.Prefix{netip.PrefixFrom(nth(s.net4, slirpGuest), s.net4.Bits())}
	if s.ipv6 {
		c.Virtual6, c.Gateway6 = slirpNet6, nth(slirpNet6, slirpGateway)
		c.Addresses = append(c.Addresses, netip.PrefixFrom(nth(slirpNet6, slirpGuest), slirpNet6.Bits()))
	}
	if c.DNSNone, c.DHCPDNS = s.noDNS, !s.noDNS; !s.noDNS {
		c.DNSForward4 = nth(s.net4, slirpResolver)
		if s.ipv6 {
			c.DNSForward6 = nth(slirpNet6, slirpResolver)
		}
	}
	p.warnMTU()
	return nil
}

// nth is an address of a network, by its number below 256.
func nth(net netip.Prefix, n byte) netip.Addr {
	b := net.Masked().Addr().AsSlice()
	b[len(b)-1] += n
	a, _ := netip.AddrFromSlice(b)
	return a
}

// slirpUsage is what --help prints. Callers search it for the names of options.
func slirpUsage(name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s [OPTION]... PID|PATH|FD [TAPNAME]\n\n", name)
	b.WriteString("Connects a network namespace to the network, without privileges, for whoever\n" +
		"expects slirp4netns.\n\n")
	for i := range slirpOptions {
		writeOption(&b, &slirpOptions[i])
	}
	b.WriteString("\nThe guest is at .100 of its network, the gateway and host at .2, the host's\n" +
		"resolver at .3.\n")
	return b.String()
}
