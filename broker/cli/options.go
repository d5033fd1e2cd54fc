// SPDX-License-Identifier: Apache-2.0

package cli

// personalities is a set of them.
type personalities uint8

const (
	passtOnly personalities = 1 << iota
	pastaOnly               // and aldente
	both      = passtOnly | pastaOnly
)

func (p Personality) bit() personalities {
	if p == Passt {
		return passtOnly
	}
	return pastaOnly
}

// String is how messages call the set.
func (s personalities) String() string {
	if s == passtOnly {
		return "passt"
	}
	return "pasta"
}

// group is a section of the usage text.
type group int

const (
	general group = iota
	guest
	names
	protocols
	translation
	confinement
	forwarding
	namespace
	machine
)

// options holds one row for each option. The order is that in which an
// ambiguous abbreviation lists its possibilities; the usage text follows it
// within each group.
var options = []option{
	{long: "debug", short: 'd', in: both, group: general, set: setDebug,
		help: "log more, to standard error"},
	{long: "quiet", short: 'q', in: both, group: general, set: setQuiet,
		help: "log only warnings and errors"},
	{long: "foreground", short: 'f', in: both, group: general,
		set:  flag(func(c *Config) *bool { return &c.Foreground }),
		help: "stay in the foreground"},
	{long: "stderr", short: 'e', in: both, group: general,
		set:  deprecated("--stderr", func(c *Config) *bool { return &c.Stderr }),
		help: "deprecated, without effect"},
	{long: "log-file", short: 'l', arg: "PATH", in: both, group: general,
		set:  path("log file", func(c *Config) *string { return &c.LogFile }),
		help: "log to PATH instead of the system log"},
	{long: "help", short: 'h', in: both, group: general, set: action(ActionHelp),
		help: "print this text and exit"},
	{long: "socket", short: 's', arg: "PATH", in: passtOnly, group: machine,
		set:  socketPath("socket", func(c *Config) *string { return &c.SocketPath }),
		help: "UNIX domain socket that QEMU connects to\n(default: first free of /tmp/passt_1.socket to\n/tmp/passt_64.socket)"},
	{long: "fd", short: 'F', arg: "FD", in: passtOnly, group: machine, set: setFD,
		help: "use FD, a connected socket or a tap, as the\nguest's link; exit when it is closed"},
	{long: "ns-ifname", short: 'I', arg: "NAME", in: pastaOnly, group: namespace, set: setNSIfName,
		help: "name of the interface in the namespace\n(default: as the host's, or tap0)"},
	{long: "pcap", short: 'p', arg: "FILE", in: both, group: general,
		set:  path("pcap", func(c *Config) *string { return &c.Pcap }),
		help: "write the guest's packets to FILE, in pcap format"},
	{long: "pid", short: 'P', arg: "FILE", in: both, group: general, set: setPIDFile,
		help: "write the process ID to FILE once ready"},
	{long: "mtu", short: 'm', arg: "MTU", in: both, group: guest, set: setMTU,
		help: "MTU to assign, 0 to assign none (default: 65520)"},
	{long: "address", short: 'a', arg: "ADDR[/LEN]", in: both, group: guest, set: setAddress,
		help: "address to assign, one for IPv4 and one for IPv6\n(default: the host's)"},
	{long: "netmask", short: 'n', arg: "MASK", in: both, group: guest, set: setNetmask,
		help: "IPv4 mask to assign, dotted or in bits\n(default: the host's, or by the address's class)"},
	{long: "mac-addr", short: 'M', arg: "MAC", in: both, group: guest, set: setMAC,
		help: "our MAC address towards the guest\n(default: 9a:55:9a:55:9a:55)"},
	{long: "gateway", short: 'g', arg: "ADDR", in: both, group: guest, set: setGateway,
		help: "gateway to assign, one for IPv4 and one for IPv6\n(default: the host's)"},
	{long: "interface", short: 'i', arg: "NAME", in: both, group: guest,
		set:  ifName(func(c *Config) *string { return &c.Interface }),
		help: "host interface to copy addresses and routes of\n(default: as --outbound-if4 and --outbound-if6,\nor the one with the first default route)"},
	{long: "outbound", short: 'o', arg: "ADDR", in: both, group: translation, set: setOutbound,
		help: "source address of outbound sockets, one for IPv4\nand one for IPv6 (default: by route)"},
	{long: "dns", short: 'D', arg: "ADDR", in: both, group: names, set: setDNS,
		help: "resolver to advertise, repeatable; \"none\" for none\n(default: those of /etc/resolv.conf)"},
	{long: "search", short: 'S', arg: "LIST", in: both, group: names, set: setSearch,
		help: "search domains to advertise, separated by spaces,\nrepeatable; \"none\" for none\n(default: those of /etc/resolv.conf)"},
	{long: "hostname", short: 'H', arg: "NAME", in: both, group: names,
		set:  hostName("hostname", func(c *Config) *string { return &c.Hostname }),
		help: "host name to assign by DHCP"},
	{long: "no-tcp", in: both, group: protocols, set: flag(func(c *Config) *bool { return &c.NoTCP }),
		help: "no TCP"},
	{long: "no-udp", in: both, group: protocols, set: flag(func(c *Config) *bool { return &c.NoUDP }),
		help: "no UDP"},
	{long: "no-icmp", in: both, group: protocols, set: flag(func(c *Config) *bool { return &c.NoICMP }),
		help: "no ICMP and ICMPv6; implies --no-ndp"},
	{long: "no-dhcp", in: both, group: protocols, set: flag(func(c *Config) *bool { return &c.NoDHCP }),
		help: "no DHCP server"},
	{long: "no-dhcpv6", in: both, group: protocols, set: flag(func(c *Config) *bool { return &c.NoDHCPv6 }),
		help: "no DHCPv6 server"},
	{long: "no-ndp", in: both, group: protocols, set: flag(func(c *Config) *bool { return &c.NoNDP }),
		help: "no answers to neighbour discovery"},
	{long: "no-ra", in: both, group: protocols, set: flag(func(c *Config) *bool { return &c.NoRA }),
		help: "no router advertisements"},
	{long: "no-splice", in: both, group: forwarding, set: flag(func(c *Config) *bool { return &c.NoSplice }),
		help: "no bypass for the host's loopback traffic"},
	{long: "splice-only", in: pastaOnly, group: forwarding,
		set:  flag(func(c *Config) *bool { return &c.SpliceOnly }),
		help: "only forward loopback traffic; no interface in the\nnamespace"},
	{long: "freebind", in: both, group: forwarding, set: flag(func(c *Config) *bool { return &c.FreeBind }),
		help: "allow listening on addresses the host doesn't have"},
	{long: "no-map-gw", in: both, group: translation, set: flag(func(c *Config) *bool { return &c.NoMapGW }),
		help: "don't map the gateway's address to the host\n(default in aldente)"},
	{long: "ipv4-only", short: '4', in: both, group: protocols, set: setIPv4Only,
		help: "IPv4 only"},
	{long: "ipv6-only", short: '6', in: both, group: protocols, set: setIPv6Only,
		help: "IPv6 only"},
	{long: "one-off", short: '1', in: passtOnly, group: machine,
		set:  flag(func(c *Config) *bool { return &c.OneOff }),
		help: "exit once the first connection is closed"},
	{long: "tcp-ports", short: 't', arg: "SPEC", in: both, group: forwarding, set: spec(0),
		help: "forward TCP ports of the host to the guest, see\nbelow (default: auto in pasta, else none)"},
	{long: "udp-ports", short: 'u', arg: "SPEC", in: both, group: forwarding, set: spec(1),
		help: "the same for UDP"},
	{long: "tcp-ns", short: 'T', arg: "SPEC", in: pastaOnly, group: forwarding, set: spec(2),
		help: "forward TCP ports of the namespace's loopback to\nthe host's (default: auto in pasta, else none)"},
	{long: "udp-ns", short: 'U', arg: "SPEC", in: pastaOnly, group: forwarding, set: spec(3),
		help: "the same for UDP"},
	{long: "userns", arg: "PATH", in: pastaOnly, group: namespace, set: setUserns,
		help: "user namespace to join first\n(default: that of PID)"},
	{long: "netns", arg: "PATH|NAME", in: pastaOnly, group: namespace, set: setNetns,
		help: "network namespace to join"},
	{long: "ns-mac-addr", arg: "MAC", in: pastaOnly, group: namespace, set: setNSMAC,
		help: "MAC address of the interface in the namespace\n(default: random)"},
	{long: "dhcp-dns", in: pastaOnly, group: names,
		set:  choose(true, func(p *parser) **bool { return &p.dhcpDNS }),
		help: "advertise resolvers"},
	{long: "no-dhcp-dns", in: passtOnly, group: names,
		set:  choose(false, func(p *parser) **bool { return &p.dhcpDNS }),
		help: "don't advertise resolvers"},
	{long: "dhcp-search", in: pastaOnly, group: names,
		set:  choose(true, func(p *parser) **bool { return &p.dhcpSearch }),
		help: "advertise search domains"},
	{long: "no-dhcp-search", in: passtOnly, group: names,
		set:  choose(false, func(p *parser) **bool { return &p.dhcpSearch }),
		help: "don't advertise search domains"},
	{long: "dns-forward", arg: "ADDR", in: both, group: names, set: setDNSForward,
		help: "send the guest's queries to ADDR to --dns-host,\none for IPv4 and one for IPv6"},
	{long: "no-netns-quit", in: pastaOnly, group: namespace,
		set:  flag(func(c *Config) *bool { return &c.NoNetnsQuit }),
		help: "stay when the network namespace is deleted"},
	{long: "trace", in: both, group: general, set: setTrace,
		help: "log every packet; implies --debug"},
	{long: "runas", arg: "USER[:GROUP]", in: both, group: general, set: setRunAs,
		help: "run as this user, by name or number\n(default: nobody, if started as root)"},
	{long: "log-size", arg: "BYTES", in: both, group: general, set: setLogSize,
		help: "limit of the log file's size (default: 1048576)"},
	{long: "version", in: both, group: general, set: action(ActionVersion),
		help: "print the version and exit"},
	{long: "outbound-if4", arg: "NAME", in: both, group: translation,
		set:  ifName(func(c *Config) *string { return &c.OutboundIf4 }),
		help: "host interface to bind outbound IPv4 sockets to"},
	{long: "outbound-if6", arg: "NAME", in: both, group: translation,
		set:  ifName(func(c *Config) *string { return &c.OutboundIf6 }),
		help: "the same for IPv6"},
	{long: "config-net", in: pastaOnly, group: namespace,
		set:  flag(func(c *Config) *bool { return &c.ConfigNet }),
		help: "set up interface, addresses and routes in the\nnamespace, without DHCP"},
	{long: "no-copy-routes", in: pastaOnly, group: namespace,
		set:  deprecated("--no-copy-routes", func(c *Config) *bool { return &c.NoCopyRoutes }),
		help: "deprecated: only a default route"},
	{long: "no-copy-addrs", in: pastaOnly, group: namespace,
		set:  deprecated("--no-copy-addrs", func(c *Config) *bool { return &c.NoCopyAddrs }),
		help: "deprecated: only one address"},
	{long: "netns-only", in: pastaOnly, group: namespace, set: setNetnsOnly,
		help: "join no user namespace, create none\n(default with --netns and no --userns)"},
	{long: "map-host-loopback", arg: "ADDR", in: both, group: translation, set: setMapHostLoopback,
		help: "address by which the guest reaches the host's\nloopback, one for IPv4 and one for IPv6, or \"none\"\n(default: the gateway; none in aldente)"},
	{long: "map-guest-addr", arg: "ADDR", in: both, group: translation, set: setMapGuestAddr,
		help: "address by which the guest reaches the host under\nthe address that both have, or \"none\""},
	{long: "host-lo-to-ns-lo", in: pastaOnly, group: forwarding,
		set:  flag(func(c *Config) *bool { return &c.HostLoToNSLo }),
		help: "deliver the host's loopback traffic to the\nnamespace's loopback"},
	{long: "dns-host", arg: "ADDR", in: both, group: names, set: setDNSHost,
		help: "resolver for --dns-forward or the mapped gateway\n(default: first of /etc/resolv.conf)"},
	{long: "vhost-user", in: passtOnly, group: machine, set: flag(func(c *Config) *bool { return &c.VhostUser }),
		help: "speak vhost-user on the socket"},
	{long: "print-capabilities", in: both, group: general, set: action(ActionCapabilities),
		help: "print what vhost-user front-ends ask for, in JSON"},
	{long: "socket-type", arg: "TYPE", extra: true, in: passtOnly, group: machine, set: setSocketType,
		help: "type of the socket of -s: stream, dgram or\nseqpacket (default: stream)"},
	{long: "socket-path", alias: "socket", arg: "PATH", in: passtOnly, group: machine,
		set: socketPath("socket", func(c *Config) *string { return &c.SocketPath })},
	{long: "fqdn", arg: "NAME", in: both, group: names,
		set:  hostName("FQDN", func(c *Config) *string { return &c.FQDN }),
		help: "full domain name to assign by DHCP and DHCPv6"},
	{long: "repair-path", arg: "PATH", in: passtOnly, group: machine,
		set:  socketPath("passt-repair", func(c *Config) *string { return &c.RepairPath }),
		help: "socket of the TCP_REPAIR helper, or \"none\"\n(default: the socket's path and .repair)"},
	{long: "migrate-exit", in: passtOnly, group: machine,
		set:  deprecated("--migrate-exit", func(c *Config) *bool { return &c.MigrateExit }),
		help: "deprecated: exit after migration"},
	{long: "migrate-no-linger", in: passtOnly, group: machine,
		set:  deprecated("--migrate-no-linger", func(c *Config) *bool { return &c.MigrateNoLinger }),
		help: "deprecated: close sockets after migration"},
	{long: "stats", arg: "SECONDS", in: both, group: general, set: setStats,
		help: "print what was counted, once in SECONDS"},
	{long: "conf-path", short: 'c', arg: "PATH", in: both, group: general,
		set:  socketPath("configuration", func(c *Config) *string { return &c.ConfPath }),
		help: "socket by which pesto(1) changes port rules while\nrunning"},
	{long: "chroot-fallback", in: both, group: general, set: func(*parser, string) error { return nil },
		help: "accepted for passt's sake, without effect"},
	{long: "no-pidns", in: pastaOnly, group: namespace, set: flag(func(c *Config) *bool { return &c.NoPidns }),
		help: "run the command in the caller's PID namespace"},

	{long: "allow", arg: "DEST", extra: true, in: both, group: confinement, set: egressRule(true),
		help: "let the guest connect to DEST"},
	{long: "deny", arg: "DEST", extra: true, in: both, group: confinement, set: egressRule(false),
		help: "don't; of both options, the first that fits counts"},
	{long: "nat64", arg: "PREFIX", extra: true, in: both, group: confinement, set: setNAT64,
		help: "translator's prefix: judge the IPv4 in it, too"},
	{long: "pcap-size", arg: "BYTES", extra: true, in: both, group: general, set: setPcapSize,
		help: "end the capture when FILE of --pcap has that size\n(default: any size)"},
	{long: "control", arg: "PATH", extra: true, in: both, group: general,
		set:  socketPath("control", func(c *Config) *string { return &c.ControlPath }),
		help: "socket by which aldentectl(1) changes what runs;\n\"none\": no status socket either"},
	{long: "flow-log", arg: "FILE|syslog", extra: true, in: both, group: general,
		set:  path("flow log", func(c *Config) *string { return &c.FlowLog }),
		help: "write a line for each flow that ends or is refused\nto FILE, or to the system log: \"syslog\""},
	{long: "limit", arg: "WHAT=N", extra: true, in: both, group: confinement, set: setLimit,
		help: "change what the guest may use up, repeatable,\nsee below; \"none\": no limits"},
	{long: "hide-sockets", extra: true, in: pastaOnly, group: confinement,
		set:  choose(true, func(p *parser) **bool { return &p.hide }),
		help: "new /run and /tmp for the command, without the\nhost's UNIX sockets (default in aldente)"},
	{long: "no-hide-sockets", extra: true, in: pastaOnly, group: confinement,
		set:  choose(false, func(p *parser) **bool { return &p.hide }),
		help: "leave it the host's"},
	{long: "strict", extra: true, in: both, group: confinement, set: flag(func(c *Config) *bool { return &c.Strict }),
		help: "don't start if the kernel lacks a sandbox layer"},
	{long: "self-test", extra: true, in: both, group: confinement, set: action(ActionSelfTest),
		help: "put up the sandbox, report each layer and exit:\nstatus 0 if none is missing"},
}
