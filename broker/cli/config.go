// SPDX-License-Identifier: Apache-2.0

// Package cli turns a command line of passt, pasta or aldente into a Config.
// It reads no network state: what depends on the host's interfaces, routes and
// resolvers is left open in Config and settled by package hostnet.
//
// Options follow getopt_long(3) to the letter, because scripts do: operands
// end them, short ones cluster, long ones may be abbreviated while unambiguous.
package cli

import (
	"net/netip"
	"strings"

	"aldente/broker/budget"
	"aldente/broker/egress"
	"aldente/broker/ingress"
)

// Personality is the command line that a program name stands for.
type Personality int

// Personalities.
const (
	Aldente Personality = iota // pasta's options, safe defaults
	Pasta                      // connects a network namespace
	Passt                      // connects a virtual machine
	Slirp                      // slirp4netns's options, for its callers
)

// PersonalityOf derives the personality from argv[0]: a base name that holds
// "pasta", "passt" or "slirp4netns" (pasta.avx2, passt-next) selects it, any other is
// Aldente.
func PersonalityOf(argv0 string) Personality {
	base := argv0[strings.LastIndexByte(argv0, '/')+1:]
	switch {
	case strings.Contains(base, "passt"):
		return Passt
	case strings.Contains(base, "pasta"):
		return Pasta
	case strings.Contains(base, "slirp4netns"):
		return Slirp
	}
	return Aldente
}

// String returns the program name.
func (p Personality) String() string {
	switch p {
	case Passt:
		return "passt"
	case Pasta:
		return "pasta"
	case Slirp:
		return "slirp4netns"
	}
	return "aldente"
}

// Action is what the command line asks for.
type Action int

// Actions. All but ActionRun end the program with status 0 after printing.
const (
	ActionRun          Action = iota
	ActionHelp                // --help
	ActionVersion             // --version
	ActionSelfTest            // --self-test
	ActionCapabilities        // --print-capabilities
	ActionCheckRules          // --check-rules; takes operands, and does not end the command line
)

// TargetKind says how the guest's network namespace is found.
type TargetKind int

// Kinds of target.
const (
	TargetNone  TargetKind = iota // passt: the guest is a virtual machine
	TargetSpawn                   // new namespaces for Config.Command
	TargetPID                     // those of process Target.PID
	TargetPath                    // bound or procfs entry Target.Path
	TargetName                    // Target.Name as in ip-netns(8)
)

// Target names the guest's network namespace. Only the field of Kind is set.
type Target struct {
	Kind TargetKind // which of the fields below is set
	PID  int        // above zero
	Path string     // not empty
	Name string     // without a slash
}

// NoControl is the argument of --control that is no path.
const NoControl = "none"

// Controllable tells whether --control names a socket.
func (c *Config) Controllable() bool { return c.ControlPath != "" && c.ControlPath != NoControl }

// Machine tells whether the guest is a virtual machine, or a link that was passed to us:
// there is no namespace then.
func (c *Config) Machine() bool {
	return c.Personality == Passt || c.Personality == Slirp && c.Target.Kind == TargetNone
}

// EgressOption is one --allow or --deny, unparsed. Package egress gives Dest
// its meaning; the order of options is the order of rules.
type EgressOption struct {
	Allow bool   // --allow, else --deny
	Dest  string // the argument, see egress.Rule
	At    string // "FILE:LINE" of a rules file, empty: it is an option
}

// OtherRule is a line of a rules file, or an option that could be one, which is no
// EgressOption.
type OtherRule struct {
	Text string // as a line has it
	At   string // "FILE:LINE" of a rules file, empty: it is an option
}

// IDs is a user and group to run as.
type IDs struct{ UID, GID uint32 }

// Forward is what one of -t, -u, -T and -U adds up to.
type Forward struct {
	Rules []Rule // at most MaxRules
}

// Config is a parsed command line. Zero values mean "not given" unless said
// otherwise; an invalid netip.Addr is an address not given. Where the default
// depends on the personality, the field holds the settled value.
type Config struct {
	Personality Personality // by the name of the program
	Action      Action      // what to do; the zero value: run
	Warnings    []string    // to be logged at start, one line each

	// Process.
	Debug       bool   // -d, --trace
	Trace       bool   // --trace
	Quiet       bool   // -q; takes back -d and --trace before it, and the reverse
	Foreground  bool   // -f
	SDNotify    bool   // --sd-notify
	Stderr      bool   // -e, deprecated, without effect
	LogFile     string // -l
	LogSize     int64  // --log-size, bytes, at least MinLogSize; default DefaultLogSize
	Stats       int    // --stats, seconds between statistics lines
	RunAs       *IDs   // --runas, nil: nobody if started as root
	PIDFile     string // -P
	Pcap        string // -p
	PcapSize    int64  // --pcap-size, bytes, at least MinPcapSize; -1: any number
	ConfPath    string // -c, control socket
	FlowLog     string // --flow-log: file or "syslog", empty: none
	ControlPath string // --control; NoControl: not even the status socket
	Strict      bool   // --strict: a missing sandbox layer is an error

	// Guest's addresses and routes.
	MTU          int            // -m, bytes; -1: not given, 0: not advertised
	Addresses    []netip.Prefix // -a: at most one of each family, with host bits; length from -a, -n or the class
	Netmask      int            // -n without -a: length for an adopted address that has none; 0: not given
	Gateway4     netip.Addr     // -g
	Gateway6     netip.Addr     // -g
	MAC          [6]byte        // -M, default DefaultMAC
	Interface    string         // -i, template on the host
	OutboundIf4  string         // --outbound-if4
	OutboundIf6  string         // --outbound-if6
	Outbound4    netip.Addr     // -o, source of outbound sockets
	Outbound6    netip.Addr     // -o
	IPv4Only     bool           // -4; the last of -4 and -6 counts
	IPv6Only     bool           // -6
	Hostname     string         // -H, at most MaxName bytes
	FQDN         string         // --fqdn, at most MaxName bytes
	NoCopyRoutes bool           // --no-copy-routes, deprecated, needs ConfigNet
	NoCopyAddrs  bool           // --no-copy-addrs, deprecated, needs ConfigNet

	// Name resolution.
	DNS         []netip.Addr // -D, at most ipc.MaxDNS of each family; a family without one uses the host's
	DNSNone     bool         // -D none came last: no resolver at all
	DNSForward4 netip.Addr   // --dns-forward
	DNSForward6 netip.Addr   // --dns-forward
	DNSHost4    netip.Addr   // --dns-host
	DNSHost6    netip.Addr   // --dns-host
	Search      []string     // -S, at most ipc.MaxSearch domains, no trailing dot
	SearchNone  bool         // -S none came last: no search list at all
	DHCPDNS     bool         // resolvers are advertised; default in passt
	DHCPSearch  bool         // search list is advertised; default in passt

	// Protocols.
	NoTCP    bool // --no-tcp
	NoUDP    bool // --no-udp
	NoICMP   bool // --no-icmp, sets NoNDP
	NoDHCP   bool // --no-dhcp
	NoNDP    bool // --no-ndp, sets NoRA
	NoDHCPv6 bool // --no-dhcpv6
	NoRA     bool // --no-ra

	// Translation.
	MapHostLoopback4 netip.Addr     // --map-host-loopback: used even with NoMapGW
	MapHostLoopback6 netip.Addr     // --map-host-loopback
	NoMapGW          bool           // --no-map-gw, --map-host-loopback none; default in aldente
	MapGuestAddr4    netip.Addr     // --map-guest-addr
	MapGuestAddr6    netip.Addr     // --map-guest-addr
	NoFollow         bool           // --no-follow: the guest's network stays as the host's was at start
	Egress           []EgressOption // --allow, --deny, in their order
	NamesNXDOMAIN    bool           // --names-nxdomain: refused names do not exist
	RuleFiles        []string       // --rules, in their order: see WithRules
	KeepFlows        bool           // --keep-flows: what rules refuse that are changed goes on until it ends
	OtherRules       []OtherRule    // what WithRules has found besides Egress, in its order
	Audit            string         // --audit: what "deny any" refuses is allowed, and recorded there
	CheckFiles       []string       // operands of --check-rules: each is checked by itself, with all options
	JSON             bool           // --json: --check-rules prints for programs
	VerifySNI        []PortRange    // --verify-sni: ports where the server's name in a hello is looked at
	NAT64            []netip.Prefix // --nat64, prefixes of the network's translators

	Multicast Multicast         // --multicast
	Redirects []egress.Redirect // --redirect, in their order
	Ingress   []ingress.Rule    // --allow-in, --deny-in, in their order

	Via         *Via           // --via: the proxy that the guest's connections go by; nil: none
	ViaSecret   string         // --via-secret: file of the password; empty: none
	ViaSecretFD int            // --via-secret fd:N; -1: none
	ViaNames    bool           // --via-names: the proxy is told names
	ViaExcept   []netip.Prefix // --via-except: does not go by it

	Limits budget.Change // --limit

	said []said // options that a rules file could have said, and --rules, in order

	// Forwarding.
	TCPPorts     Forward // -t, host to guest
	UDPPorts     Forward // -u
	TCPNS        Forward // -T, namespace to host
	UDPNS        Forward // -U
	FreeBind     bool    // --freebind
	NoSplice     bool    // --no-splice
	SpliceOnly   bool    // --splice-only
	HostLoToNSLo bool    // --host-lo-to-ns-lo

	// Pasta and aldente.
	Target      Target
	Userns      string   // --userns
	NetnsOnly   bool     // --netns-only, or implied by --netns without --userns
	Command     []string // TargetSpawn: what to run, never empty
	LoginShell  bool     // no operand: Command is the user's shell, argv[0] to be "-" and its path
	ConfigNet   bool     // --config-net
	NSIfName    string   // -I
	NSMAC       [6]byte  // --ns-mac-addr, zero: the kernel's choice
	NoNetnsQuit bool     // --no-netns-quit
	NoPidns     bool     // --no-pidns
	HideSockets bool     // --hide-sockets; default in aldente, for a command

	// Passt.
	SocketPath      string // -s
	LinkKind        uint8  // ipc.Link*; zero before the end of parsing, unless an option names one
	FD              int    // -F, open descriptor of the link, -1: none; sets OneOff
	OneOff          bool   // -1
	VhostUser       bool   // --vhost-user
	RepairPath      string // --repair-path; "none" forbids the socket
	MigrateExit     bool   // --migrate-exit, deprecated
	MigrateNoLinger bool   // --migrate-no-linger, deprecated

	// Slirp4netns.
	APISocket          string       // -a
	ReadyFD            *int         // -r, nil: none
	ExitFD             *int         // -e, nil: none
	Virtual4, Virtual6 netip.Prefix // of the guest's network, where nothing is but what has a meaning there
}

// Limits and defaults.
const (
	DefaultLogSize = 1 << 20 // bytes
	MinLogSize     = 40960   // bytes
	MinPcapSize    = 4096    // bytes
	MaxMTU         = 65521   // 65535 less an Ethernet header
	MaxName        = 253     // bytes of a host name, RFC 1035 section 2.3.4 in text form
	maxSocketPath  = 107     // sun_path less its terminator, unix(7)
	maxIfName      = 15      // IFNAMSIZ less its terminator, linux/if.h
)

// DefaultMAC is our side's address on the guest's link, locally administered.
var DefaultMAC = [6]byte{0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55}
