// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"aldente/broker/budget"
	"aldente/broker/egress"
	"aldente/broker/ingress"
	"aldente/ipc"
)

// setter is what an option does to the Config.
type setter func(p *parser, arg string) error

// prefix is an address and the length given with it, -1 for none.
type prefix struct {
	addr netip.Addr
	bits int
}

func (x prefix) with(bits int) netip.Prefix { return netip.PrefixFrom(x.addr, bits) }

func (p *parser) warnf(format string, args ...any) {
	p.c.Warnings = append(p.c.Warnings, fmt.Sprintf(format, args...))
}

func flag(field func(*Config) *bool) setter {
	return func(p *parser, _ string) error {
		*field(p.c) = true
		return nil
	}
}

func deprecated(name string, field func(*Config) *bool) setter {
	return func(p *parser, _ string) error {
		if !*field(p.c) {
			p.warnf("%s is deprecated and will be dropped", name)
		}
		*field(p.c) = true
		return nil
	}
}

func choose(value bool, field func(*parser) **bool) setter {
	return func(p *parser, _ string) error {
		*field(p) = &value
		return nil
	}
}

func action(a Action) setter {
	return func(p *parser, _ string) error {
		p.c.Action = a
		return nil
	}
}

func spec(i int) setter {
	return func(p *parser, arg string) error {
		p.specs[i] = append(p.specs[i], arg)
		return nil
	}
}

func egressRule(allow bool) setter {
	return func(p *parser, arg string) error {
		p.warnPort(map[bool]string{true: "--allow", false: "--deny"}[allow], arg[strings.LastIndexByte(arg, '/')+1:])
		p.c.Egress = append(p.c.Egress, EgressOption{Allow: allow, Dest: arg})
		return nil
	}
}

// ingressRule adds a rule, once all of them are known to be ones.
func ingressRule(allow bool) setter {
	return func(p *parser, arg string) error {
		rules := append(p.c.Ingress, ingress.Rule{Allow: allow, Source: arg})
		if _, err := ingress.New(rules); err != nil {
			return usagef("Invalid %v", err)
		}
		p.c.Ingress = rules
		return nil
	}
}

// maxSNIPorts bounds the ranges of --verify-sni.
const maxSNIPorts = 16

// setVerifySNI adds ports: those of HTTPS, unless others are given.
func setVerifySNI(p *parser, arg string) error {
	if arg == "" {
		arg = "443"
	}
	for s := range strings.SplitSeq(arg, ",") {
		r, ok := parseRange(s)
		switch {
		case !ok || r.First == 0:
			return usagef("Invalid --verify-sni '%s': give ports and ranges of them, as 443,8443 or 8000-8100", arg)
		case len(p.c.VerifySNI) == maxSNIPorts:
			return usagef("Too many ports for --verify-sni: at most %d ranges", maxSNIPorts)
		}
		p.c.VerifySNI = append(p.c.VerifySNI, r)
	}
	return nil
}

// maxNAT64 bounds the prefixes of translators.
const maxNAT64 = 8

func setNAT64(p *parser, arg string) error {
	prefix, err := netip.ParsePrefix(arg)
	if err == nil {
		err = egress.CheckNAT64(prefix)
	}
	switch {
	case err != nil:
		return usagef("Invalid --nat64 '%s': a translator's prefix is an IPv6 one of 32, 40, 48, 56, 64 or 96 bits, as 2001:db8:64::/96", arg)
	case len(p.c.NAT64) == maxNAT64:
		return usagef("Too many --nat64: at most %d", maxNAT64)
	}
	p.c.NAT64 = append(p.c.NAT64, prefix)
	return nil
}

func setRedirect(p *parser, arg string) error {
	r, err := egress.ParseRedirect(arg)
	switch {
	case err != nil:
		return usagef("Invalid --redirect '%s': %v", arg, err)
	case len(p.c.Redirects) == egress.MaxRedirects:
		return usagef("Too many --redirect: at most %d", egress.MaxRedirects)
	}
	p.c.Redirects = append(p.c.Redirects, r)
	return nil
}

// setLimit adds limits; the last word on each counts.
func setLimit(p *parser, arg string) error {
	if p.c.Limits == nil {
		p.c.Limits = budget.Change{}
	}
	if err := p.c.Limits.Parse(arg); err != nil {
		return usagef("Invalid --limit: %v", err)
	}
	return nil
}

func path(what string, field func(*Config) *string) setter {
	return func(p *parser, arg string) error {
		if arg == "" {
			return nextf("give the name of a file", "Invalid %s path: %s", what, arg)
		}
		*field(p.c) = arg
		return nil
	}
}

// socketPath is path for what must fit into a sockaddr_un.
func socketPath(what string, field func(*Config) *string) setter {
	return func(p *parser, arg string) error {
		if arg == "" || len(arg) > maxSocketPath {
			return nextf(fmt.Sprintf("give a path of at most %d bytes", maxSocketPath), "Invalid %s path: %s", what, arg)
		}
		*field(p.c) = arg
		return nil
	}
}

func ifName(field func(*Config) *string) setter {
	return func(p *parser, arg string) error {
		if !validIfName(arg) {
			return nextf("\"ip link\" lists them", "Invalid interface name: %s", arg)
		}
		*field(p.c) = arg
		return nil
	}
}

func hostName(what string, field func(*Config) *string) setter {
	return func(p *parser, arg string) error {
		if len(arg) > MaxName {
			return nextf(fmt.Sprintf("give at most %d bytes", MaxName), "Invalid %s: %s", what, arg)
		}
		*field(p.c) = arg
		return nil
	}
}

// Of -d, --trace and -q the last one counts.

func setDebug(p *parser, _ string) error {
	p.c.Debug, p.c.Quiet = true, false
	return nil
}

func setTrace(p *parser, _ string) error {
	p.c.Trace, p.c.Debug, p.c.Quiet = true, true, false
	return nil
}

func setQuiet(p *parser, _ string) error {
	p.c.Quiet, p.c.Debug, p.c.Trace = true, false, false
	return nil
}

func setIPv4Only(p *parser, _ string) error {
	p.c.IPv4Only, p.c.IPv6Only = true, false
	return nil
}

func setIPv6Only(p *parser, _ string) error {
	p.c.IPv4Only, p.c.IPv6Only = false, true
	return nil
}

func setFD(p *parser, arg string) error {
	n, ok := parseNumber(arg, 0, math.MaxInt32)
	if !ok {
		return nextf("give the number of an open descriptor", "Invalid --fd: %s", arg)
	}
	p.c.FD = int(n)
	return nil
}

// socketTypes are the links that a socket of each type carries.
var socketTypes = map[string]uint8{"stream": ipc.LinkStream, "dgram": ipc.LinkDatagram, "seqpacket": ipc.LinkSeqpacket}

func setSocketType(p *parser, arg string) error {
	kind, ok := socketTypes[arg]
	if !ok {
		return nextf("give stream, dgram or seqpacket", "Invalid socket type: %s", arg)
	}
	p.c.LinkKind, p.socketType = kind, true
	return nil
}

// setNSIfName refuses a percent sign, which the kernel would replace by a number.
func setNSIfName(p *parser, arg string) error {
	if !validIfName(arg) || strings.Contains(arg, "%") {
		return nextf(fmt.Sprintf("give at most %d bytes, without slash, colon, space or percent sign", maxIfName), "Invalid interface name: %s", arg)
	}
	p.c.NSIfName = arg
	return nil
}

func setPIDFile(p *parser, arg string) error {
	if arg == "" {
		return nextf("give the name of a file", "Invalid PID file: %s", arg)
	}
	p.c.PIDFile = arg
	return nil
}

func setMTU(p *parser, arg string) error {
	n, ok := parseNumber(arg, 0, math.MaxUint64)
	if !ok {
		return nextf(fmt.Sprintf("give a number of bytes, at most %d; 0 assigns none", MaxMTU), "Invalid MTU: %s", arg)
	}
	if n > MaxMTU {
		return usagef("MTU %d too large (max %d)", n, MaxMTU)
	}
	p.c.MTU = int(n)
	return nil
}

// setAddress keeps the last address of each family. A length given with the
// last address and one given by -n exclude each other.
func setAddress(p *parser, arg string) error {
	addr, bits, err := parsePrefix(arg)
	if err != nil {
		return err
	}
	p.cidr = bits >= 0
	if addr.Is4() {
		p.addr4 = prefix{addr, bits}
	} else {
		p.addr6 = prefix{addr, bits}
	}
	return p.redundantLength()
}

func setNetmask(p *parser, arg string) error {
	bits, ok := parseNetmask(arg)
	if !ok {
		return nextf("give 0 to 32, or a mask as 255.255.255.0", "Invalid prefix length: %s", arg)
	}
	p.netmask = bits
	return p.redundantLength()
}

func (p *parser) redundantLength() error {
	if p.cidr && p.netmask != 0 {
		return nextf("give it with -a or with -n, not with both", "Redundant prefix length specification")
	}
	return nil
}

func setMAC(p *parser, arg string) (err error) {
	p.c.MAC, err = checkMAC(arg)
	return err
}

func setNSMAC(p *parser, arg string) (err error) {
	p.c.NSMAC, err = checkMAC(arg)
	return err
}

func checkMAC(arg string) ([6]byte, error) {
	mac, ok := parseMAC(arg)
	if !ok {
		return mac, nextf("give six pairs of hexadecimal digits, as 52:54:00:12:34:56; the first number must be even, as odd ones are groups",
			"Invalid MAC address: %s", arg)
	}
	return mac, nil
}

// perFamily stores an address in the field of its family.
func perFamily(arg string, allow addrKind, v4, v6 *netip.Addr, complaint string) error {
	addr, ok := parseAddr(arg, allow)
	if !ok {
		return nextf(addressHint(arg), "%s: %s", complaint, arg)
	}
	if addr.Is4() {
		*v4 = addr
	} else {
		*v6 = addr
	}
	return nil
}

func setGateway(p *parser, arg string) error {
	return perFamily(arg, 0, &p.c.Gateway4, &p.c.Gateway6, "Invalid gateway address")
}

func setOutbound(p *parser, arg string) error {
	return perFamily(arg, loopback, &p.c.Outbound4, &p.c.Outbound6, "Invalid or redundant outbound address")
}

func setDNSForward(p *parser, arg string) error {
	return perFamily(arg, 0, &p.c.DNSForward4, &p.c.DNSForward6, "Invalid DNS forwarding address")
}

func setDNSHost(p *parser, arg string) error {
	return perFamily(arg, loopback, &p.c.DNSHost4, &p.c.DNSHost6, "Invalid host nameserver address")
}

func setMapHostLoopback(p *parser, arg string) error {
	c := p.c
	if arg == "none" {
		c.MapHostLoopback4, c.MapHostLoopback6, c.NoMapGW = netip.Addr{}, netip.Addr{}, true
		return nil
	}
	return perFamily(arg, 0, &c.MapHostLoopback4, &c.MapHostLoopback6, "Invalid address to remap to host")
}

func setMapGuestAddr(p *parser, arg string) error {
	c := p.c
	if arg == "none" {
		c.MapGuestAddr4, c.MapGuestAddr6 = netip.Addr{}, netip.Addr{}
		return nil
	}
	return perFamily(arg, 0, &c.MapGuestAddr4, &c.MapGuestAddr6, "Invalid address to remap to host")
}

// setDNS adds a resolver; "none" takes back those before it.
func setDNS(p *parser, arg string) error {
	c := p.c
	if arg == "none" {
		c.DNS, c.DNSNone = nil, true
		return nil
	}
	addr, ok := parseAddr(arg, anyAddr&^unspecified)
	if !ok {
		return nextf(addressHint(arg), "Cannot use DNS address %s", arg)
	}
	p.warnPort("-D", arg)
	c.DNSNone = false
	same := 0
	for _, d := range c.DNS {
		if d.Is4() == addr.Is4() {
			same++
		}
	}
	if same == ipc.MaxDNS {
		p.warnf("DNS address %s ignored: no more than %d of a family are advertised", arg, ipc.MaxDNS)
		return nil
	}
	c.DNS = append(c.DNS, addr)
	return nil
}

// setSearch adds domains; "none" takes back those before it. The root domain
// is what resolvers try anyway and adds nothing.
func setSearch(p *parser, arg string) error {
	c := p.c
	if arg == "none" {
		c.Search, c.SearchNone = nil, true
		return nil
	}
	domains := strings.Fields(arg)
	if len(domains) == 0 {
		return nextf("give domains, separated by spaces", "Cannot use DNS search domain %s", arg)
	}
	for _, d := range domains {
		d = strings.TrimSuffix(d, ".")
		switch {
		case d == "":
			c.SearchNone = len(c.Search) == 0
		case !validDomain(d):
			return nextf("a domain is labels of 1 to 63 bytes with dots between them", "Cannot use DNS search domain %s", d)
		case len(c.Search) == ipc.MaxSearch:
			p.warnf("DNS search domain %s ignored: no more than %d are advertised", d, ipc.MaxSearch)
		case !slices.Contains(c.Search, d):
			c.Search, c.SearchNone = append(c.Search, d), false
		}
	}
	return nil
}

func setUserns(p *parser, arg string) error {
	if arg == "" {
		return nextf("give a path, as /proc/PID/ns/user", "Invalid userns: %s", arg)
	}
	p.c.Userns, p.c.NetnsOnly = arg, false
	return nil
}

func setNetnsOnly(p *parser, _ string) error {
	p.c.Userns, p.c.NetnsOnly = "", true
	return nil
}

func setNetns(p *parser, arg string) (err error) {
	p.c.Target, err = parseNetns(arg)
	return err
}

func setRunAs(p *parser, arg string) (err error) {
	p.c.RunAs, err = parseRunAs(arg)
	return err
}

func setLogSize(p *parser, arg string) error {
	n, ok := parseNumber(arg, 0, math.MaxInt64)
	if !ok || n < MinLogSize {
		return nextf(fmt.Sprintf("give a number of bytes, at least %d", MinLogSize), "Invalid --log-size: %s", arg)
	}
	p.c.LogSize = int64(n)
	return nil
}

func setPcapSize(p *parser, arg string) error {
	n, ok := parseNumber(arg, 0, math.MaxInt64)
	if !ok || n < MinPcapSize {
		return nextf(fmt.Sprintf("give a number of bytes, at least %d", MinPcapSize), "Invalid --pcap-size: %s", arg)
	}
	p.c.PcapSize = int64(n)
	return nil
}

func setStats(p *parser, arg string) error {
	n, ok := parseNumber(arg, 0, math.MaxInt32)
	if !ok {
		return nextf("give a number of seconds", "Invalid --stats: %s", arg)
	}
	p.c.Stats = int(n)
	return nil
}
