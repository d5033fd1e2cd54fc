// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"net/netip"
	"os/user"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"aldente/ipc"
)

// vhostUser is what --vhost-user changes.
func vhostUser(c *Config) { c.VhostUser, c.LinkKind = true, ipc.LinkVhostUser }

// TestConfig checks each command line against what it changes in the Config of
// the bare program name.
func TestConfig(t *testing.T) {
	mac := [6]byte{0x52, 0x54, 0, 0x12, 0x34, 0x5f}
	prefixes := func(s ...string) (out []netip.Prefix) {
		for _, p := range s {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	for line, change := range map[string]func(c *Config){
		"aldente -d":              func(c *Config) { c.Debug = true },
		"aldente --trace":         func(c *Config) { c.Trace, c.Debug = true, true },
		"aldente --trace -q":      func(c *Config) { c.Quiet = true },
		"aldente -q -d":           func(c *Config) { c.Debug = true },
		"aldente -dfq":            func(c *Config) { c.Foreground, c.Quiet = true, true },
		"aldente -fm1500 -l/x":    func(c *Config) { c.Foreground, c.MTU, c.LogFile = true, 1500, "/x" },
		"aldente -f4m 1500":       func(c *Config) { c.Foreground, c.IPv4Only, c.MTU = true, true, 1500 },
		"aldente -4 -6":           func(c *Config) { c.IPv6Only = true },
		"aldente -6 -4":           func(c *Config) { c.IPv4Only = true },
		"aldente --config-n":      func(c *Config) { c.ConfigNet = true },
		"aldente --mt=1500":       func(c *Config) { c.MTU = 1500 },
		"aldente --mtu 0x500":     func(c *Config) { c.MTU = 1280 },
		"aldente -m 0":            func(c *Config) { c.MTU = 0 },
		"aldente --mtu ' 1500'":   func(c *Config) { c.MTU = 1500 },
		"aldente -m 1500 -m 9000": func(c *Config) { c.MTU = 9000 },
		"aldente -m 67": func(c *Config) {
			c.MTU = 68
			c.Warnings = []string{"MTU 67 is too small for IPv4 (minimum 68)", "MTU 67 is too small for IPv6 (minimum 1280)"}
		},
		"aldente -4m 1279":                                           func(c *Config) { c.MTU, c.IPv4Only = 1279, true },
		"pasta -p a --pcap-size 4096":                                func(c *Config) { c.Pcap, c.PcapSize = "a", 4096 },
		"pasta --flow-log a":                                         func(c *Config) { c.FlowLog = "a" },
		"passt --flow-log=syslog":                                    func(c *Config) { c.FlowLog = "syslog" },
		"aldente -l a -l b --log-size 40960":                         func(c *Config) { c.LogFile, c.LogSize = "b", 40960 },
		"aldente -P p -p q -c r":                                     func(c *Config) { c.PIDFile, c.Pcap, c.ConfPath = "p", "q", "r" },
		"aldente --stats 5 --chroot-fallback":                        func(c *Config) { c.Stats = 5 },
		"aldente -e --stderr":                                        func(c *Config) { c.Stderr, c.Warnings = true, []string{"--stderr is deprecated and will be dropped"} },
		"aldente --strict":                                           func(c *Config) { c.Strict = true },
		"aldente --self-test":                                        func(c *Config) { c.Action = ActionSelfTest },
		"aldente --self":                                             func(c *Config) { c.Action = ActionSelfTest },
		"aldente -a 10.0.0.1":                                        func(c *Config) { c.Addresses = prefixes("10.0.0.1/8") },
		"aldente -a 172.16.0.1":                                      func(c *Config) { c.Addresses = prefixes("172.16.0.1/16") },
		"aldente -a 192.168.0.1":                                     func(c *Config) { c.Addresses = prefixes("192.168.0.1/24") },
		"aldente -a 240.0.0.1":                                       func(c *Config) { c.Addresses = prefixes("240.0.0.1/32") },
		"aldente -a 10.0.0.1/0":                                      func(c *Config) { c.Addresses = prefixes("10.0.0.1/8") },
		"aldente -a 10.0.0.1/020":                                    func(c *Config) { c.Addresses = prefixes("10.0.0.1/20") },
		"aldente -a [10.0.0.1]/32":                                   func(c *Config) { c.Addresses = prefixes("10.0.0.1/32") },
		"aldente -a ::ffff:10.0.0.1/120":                             func(c *Config) { c.Addresses = prefixes("10.0.0.1/24") },
		"aldente -a ::ffff:10.0.0.1/24":                              func(c *Config) { c.Addresses = prefixes("10.0.0.1/24") },
		"aldente -a fd00::5":                                         func(c *Config) { c.Addresses = prefixes("fd00::5/64") },
		"aldente -a [fd00::5]/128":                                   func(c *Config) { c.Addresses = prefixes("fd00::5/128") },
		"aldente -a fd00::5 -a 10.0.0.1/24":                          func(c *Config) { c.Addresses = prefixes("10.0.0.1/24", "fd00::5/64") },
		"aldente -a 10.0.0.1/24 -a 10.0.0.2":                         func(c *Config) { c.Addresses = prefixes("10.0.0.2/8") },
		"aldente -a 10.0.0.1 -n 24":                                  func(c *Config) { c.Addresses, c.Netmask = prefixes("10.0.0.1/24"), 24 },
		"aldente -n 24 -n 25 -a 10.0.0.1":                            func(c *Config) { c.Addresses, c.Netmask = prefixes("10.0.0.1/25"), 25 },
		"aldente -a 10.0.0.1 -n 020":                                 func(c *Config) { c.Addresses, c.Netmask = prefixes("10.0.0.1/16"), 16 },
		"aldente -a 10.0.0.1 -n 255.255.255.224":                     func(c *Config) { c.Addresses, c.Netmask = prefixes("10.0.0.1/27"), 27 },
		"aldente -a 10.0.0.1 -n 0":                                   func(c *Config) { c.Addresses = prefixes("10.0.0.1/8") },
		"aldente -a 10.0.0.1/24 -a fd00::5 -n 16":                    func(c *Config) { c.Addresses, c.Netmask = prefixes("10.0.0.1/16", "fd00::5/64"), 16 },
		"aldente -a fd00::5/64 -a 10.0.0.1 -n 24":                    func(c *Config) { c.Addresses, c.Netmask = prefixes("10.0.0.1/24", "fd00::5/64"), 24 },
		"aldente -n 255.255.255.255":                                 func(c *Config) { c.Netmask = 32 },
		"aldente -g 10.0.0.1 -g fd00::1 -g 10.0.0.2":                 func(c *Config) { c.Gateway4, c.Gateway6 = addr("10.0.0.2"), addr("fd00::1") },
		"aldente -M 52:54:00:12:34:5F":                               func(c *Config) { c.MAC = mac },
		"aldente --ns-mac-addr 52:54:00:12:34:5f":                    func(c *Config) { c.NSMAC = mac },
		"aldente -i eth0 -i eth1 -I a":                               func(c *Config) { c.Interface, c.NSIfName = "eth1", "a" },
		"aldente --outbound-if4 a --outbound-if6 b":                  func(c *Config) { c.OutboundIf4, c.OutboundIf6 = "a", "b" },
		"aldente -o 127.0.0.1 -o fd00::1":                            func(c *Config) { c.Outbound4, c.Outbound6 = addr("127.0.0.1"), addr("fd00::1") },
		"aldente -o ::ffff:10.0.0.1":                                 func(c *Config) { c.Outbound4 = addr("10.0.0.1") },
		"aldente -D 1.1.1.1 -D none":                                 func(c *Config) { c.DNSNone = true },
		"aldente -D none -D 1.1.1.1":                                 func(c *Config) { c.DNS = []netip.Addr{addr("1.1.1.1")} },
		"aldente --dns ::1 --dns 127.0.0.1":                          func(c *Config) { c.DNS = []netip.Addr{addr("::1"), addr("127.0.0.1")} },
		"aldente -S none":                                            func(c *Config) { c.SearchNone = true },
		"aldente -S none -S a.b":                                     func(c *Config) { c.Search = []string{"a.b"} },
		"aldente -S a.b -S none":                                     func(c *Config) { c.SearchNone = true },
		"aldente -S 'a.b  c' -Sd. --search=c":                        func(c *Config) { c.Search = []string{"a.b", "c", "d"} },
		"aldente -S none.":                                           func(c *Config) { c.Search = []string{"none"} },
		"aldente -S .":                                               func(c *Config) { c.SearchNone = true },
		"aldente -S 'a .'":                                           func(c *Config) { c.Search = []string{"a"} },
		"aldente --dns-forward 10.0.2.3":                             func(c *Config) { c.DNSForward4 = addr("10.0.2.3") },
		"aldente --dns-forward fd00::3 --dns-host ::1":               func(c *Config) { c.DNSForward6, c.DNSHost6 = addr("fd00::3"), addr("::1") },
		"aldente --dns-host 127.0.0.53":                              func(c *Config) { c.DNSHost4 = addr("127.0.0.53") },
		"aldente --dhcp-dns --dhcp-search":                           func(c *Config) { c.DHCPDNS, c.DHCPSearch = true, true },
		"passt --no-dhcp-dns --no-dhcp-search":                       func(c *Config) { c.DHCPDNS, c.DHCPSearch = false, false },
		"aldente -H h --fqdn f.g":                                    func(c *Config) { c.Hostname, c.FQDN = "h", "f.g" },
		"aldente --no-tcp --no-udp":                                  func(c *Config) { c.NoTCP, c.NoUDP = true, true },
		"aldente --no-icmp":                                          func(c *Config) { c.NoICMP, c.NoNDP, c.NoRA = true, true, true },
		"aldente --no-ndp":                                           func(c *Config) { c.NoNDP, c.NoRA = true, true },
		"aldente --no-ra --no-dhcp --no-dhcpv6":                      func(c *Config) { c.NoRA, c.NoDHCP, c.NoDHCPv6 = true, true, true },
		"passt --no-map-gw":                                          func(c *Config) { c.NoMapGW = true },
		"passt --map-host-loopback 10.0.0.9":                         func(c *Config) { c.MapHostLoopback4 = addr("10.0.0.9") },
		"passt --map-host-loopback none --map-host-loopback fd00::9": func(c *Config) { c.NoMapGW, c.MapHostLoopback6 = true, addr("fd00::9") },
		"passt --map-host-loopback 10.0.0.9 --map-host-loopback none": func(c *Config) {
			c.NoMapGW = true
		},
		"aldente --map-guest-addr 10.0.0.9 --map-guest-addr fd00::9": func(c *Config) {
			c.MapGuestAddr4, c.MapGuestAddr6 = addr("10.0.0.9"), addr("fd00::9")
		},
		"aldente --map-guest-addr 10.0.0.9 --map-guest-addr none": func(*Config) {},
		"aldente --freebind --no-splice":                          func(c *Config) { c.FreeBind, c.NoSplice = true, true },
		"aldente --splice-only --host-lo-to-ns-lo":                func(c *Config) { c.SpliceOnly, c.HostLoToNSLo = true, true },
		"aldente --config-net --no-copy-routes --no-copy-addrs": func(c *Config) {
			c.ConfigNet, c.NoCopyRoutes, c.NoCopyAddrs = true, true, true
			c.Warnings = []string{"--no-copy-routes is deprecated and will be dropped", "--no-copy-addrs is deprecated and will be dropped"}
		},
		"aldente --multicast send":                  func(c *Config) { c.Multicast.Send = true },
		"pasta --multicast none":                    func(c *Config) { c.Multicast = Multicast{} },
		"pasta --multicast mdns --multicast none":   func(c *Config) { c.Multicast = Multicast{} },
		"aldente --multicast none --multicast=send": func(c *Config) { c.Multicast.Send = true },
		"aldente --multicast broadcast":             func(c *Config) { c.Multicast = Multicast{Send: true, Broadcast: true} },
		"pasta --multicast mdns,239.1.2.3:5000,mdns": func(c *Config) {
			c.Multicast.Groups = []netip.AddrPort{netip.MustParseAddrPort("224.0.0.251:5353"), netip.MustParseAddrPort("[ff02::fb]:5353"), netip.MustParseAddrPort("239.1.2.3:5000")}
		},
		"aldente --no-hide-sockets":                func(c *Config) { c.HideSockets = false },
		"aldente --no-hide-sockets --hide-sockets": func(*Config) {},
		"pasta --hide-sockets":                     func(c *Config) { c.HideSockets = true },
		"pasta --hide-sockets --no-hide-sockets":   func(*Config) {},
		"aldente --sd-notify":                      func(c *Config) { c.SDNotify = true },
		"aldente --no-netns-quit --no-pidns":       func(c *Config) { c.NoNetnsQuit, c.NoPidns = true, true },
		"passt --allow tcp:10.0.0.0/8:80 --deny any --allow x": func(c *Config) {
			c.Egress = []EgressOption{{Allow: true, Dest: "tcp:10.0.0.0/8:80"}, {Dest: "any"}, {Allow: true, Dest: "x"}}
		},
		"pasta --via socks5://192.0.2.9:1080": func(c *Config) { c.Via = &Via{What: ipc.ProxySOCKS5, Host: "192.0.2.9", Port: 1080} },
		"passt --via HTTP://a%40b@[2001:DB8::9]:3128/ --via-secret /s --via-names": func(c *Config) {
			c.Via, c.ViaSecret, c.ViaNames = &Via{What: ipc.ProxyHTTP, User: "a@b", Host: "2001:db8::9", Port: 3128}, "/s", true
		},
		"aldente --via socks5://u@proxy.example:1 --via-secret x --via-secret /dev/fd/7 --via-except 10.1.2.3/8 --via-except ::1": func(c *Config) {
			c.Via, c.ViaSecretFD = &Via{What: ipc.ProxySOCKS5, User: "u", Host: "proxy.example", Port: 1}, 7
			c.ViaExcept = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")}
		},
		"aldente --verify-sni":                            func(c *Config) { c.VerifySNI = []PortRange{{443, 443}} },
		"aldente --verify-sni=853,8000-8100 --verify-sni": func(c *Config) { c.VerifySNI = []PortRange{{853, 853}, {8000, 8100}, {443, 443}} },
		"aldente --nat64 2001:db8:64::/96 --nat64 64:ff9b:1::/64": func(c *Config) {
			c.NAT64 = []netip.Prefix{netip.MustParsePrefix("2001:db8:64::/96"), netip.MustParsePrefix("64:ff9b:1::/64")}
		},
		"passt -1 -s /run/s":         func(c *Config) { c.OneOff, c.SocketPath = true, "/run/s" },
		"passt --socket-path /run/s": func(c *Config) { c.SocketPath = "/run/s" },
		"passt --fd 5":               func(c *Config) { c.FD, c.OneOff = 5, true },
		"passt -F 0":                 func(c *Config) { c.FD, c.OneOff = 0, true },
		"passt --repair-path none -s x --vhost-user": func(c *Config) { c.RepairPath, c.SocketPath = "none", "x"; vhostUser(c) },
		"passt --vhost-user --migrate-exit --migrate-no-linger": func(c *Config) {
			vhostUser(c)
			c.MigrateExit, c.MigrateNoLinger = true, true
			c.Warnings = []string{"--migrate-exit is deprecated and will be dropped", "--migrate-no-linger is deprecated and will be dropped"}
		},
	} {
		name, _, _ := strings.Cut(line, " ")
		want := mustParse(t, name)
		change(want)
		if diff := cmp.Diff(want, mustParse(t, line), cmpAddr); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", line, diff)
		}
	}
}

func TestTarget(t *testing.T) {
	type result struct {
		target       Target
		userns       string // Userns
		command      string
		login, alone bool // LoginShell, NetnsOnly
	}
	spawn := Target{Kind: TargetSpawn}
	for line, want := range map[string]result{
		"pasta":                            {target: spawn, command: "/bin/testsh", login: true},
		"pasta -f":                         {target: spawn, command: "/bin/testsh", login: true},
		"pasta --":                         {target: spawn, command: "/bin/testsh", login: true},
		"pasta echo -f -- x":               {target: spawn, command: "echo|-f|--|x"},
		"pasta -f -- echo -f":              {target: spawn, command: "echo|-f"},
		"pasta -":                          {target: spawn, command: "-"},
		"pasta ''":                         {target: spawn, command: ""},
		"pasta 12x":                        {target: spawn, command: "12x"},
		"pasta 0x1":                        {target: spawn, command: "0x1"},
		"pasta 1 2":                        {target: spawn, command: "1|2"},
		"pasta 123":                        {target: Target{Kind: TargetPID, PID: 123}},
		"pasta -- ' +123'":                 {target: Target{Kind: TargetPID, PID: 123}},
		"pasta --userns /u 123":            {target: Target{Kind: TargetPID, PID: 123}, userns: "/u"},
		"pasta --netns-only 123":           {target: Target{Kind: TargetPID, PID: 123}, alone: true},
		"pasta --userns /u --netns-only 1": {target: Target{Kind: TargetPID, PID: 1}, alone: true},
		"pasta --netns-only --userns /u 1": {target: Target{Kind: TargetPID, PID: 1}, userns: "/u"},
		"pasta --netns foo":                {target: Target{Kind: TargetName, Name: "foo"}, alone: true},
		"pasta --netns a --netns ./b":      {target: Target{Kind: TargetPath, Path: "./b"}, alone: true},
		"pasta --netns /n --userns /u":     {target: Target{Kind: TargetPath, Path: "/n"}, userns: "/u"},
		"passt":                            {},
	} {
		c := mustParse(t, line)
		got := result{c.Target, c.Userns, strings.Join(c.Command, "|"), c.LoginShell, c.NetnsOnly}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", line, diff)
		}
	}
	t.Setenv("SHELL", "")
	c, err := ParseWith([]string{"pasta"}, testPorts)
	if err != nil || c.Command[0] != "/bin/sh" {
		t.Errorf("no SHELL: %v, %v", c, err)
	}
}

func TestActions(t *testing.T) {
	for line, want := range map[string]Action{
		"passt -h -Z":                   ActionHelp,
		"pasta --help --netns x y":      ActionHelp,
		"pasta --version -Z":            ActionVersion,
		"passt --print-capabilities -Z": ActionCapabilities,
		"pasta --print-cap":             ActionCapabilities,
		"pasta --self-test -h":          ActionHelp,
		"pasta -dh":                     ActionHelp,
		"pasta -- -h":                   ActionRun,
		"pasta x -h":                    ActionRun,
	} {
		c := mustParse(t, line)
		if c.Action != want {
			t.Errorf("%s: got %d, want %d", line, c.Action, want)
		}
		if text, ok := c.Text("pasta"); ok != (want != ActionRun) || ok && !strings.HasSuffix(text, "\n") {
			t.Errorf("%s: answer %q, %v", line, text, ok)
		}
	}
}

func TestListsAreBounded(t *testing.T) {
	c := mustParse(t, "pasta -D 1.1.1.1 -D 2.2.2.2 -D ::2 -D 3.3.3.3 -D 4.4.4.4 -D ::3")
	want := []netip.Addr{addr("1.1.1.1"), addr("2.2.2.2"), addr("::2"), addr("3.3.3.3"), addr("::3")}
	if diff := cmp.Diff(want, c.DNS, cmpAddr); diff != "" || len(c.Warnings) != 1 {
		t.Errorf("%s, warnings %q", diff, c.Warnings)
	}
	c = mustParse(t, "pasta -S 'a b c d e f g'")
	if diff := cmp.Diff([]string{"a", "b", "c", "d", "e", "f"}, c.Search); diff != "" || len(c.Warnings) != 1 {
		t.Errorf("%s, warnings %q", diff, c.Warnings)
	}
}

func TestRunAs(t *testing.T) {
	root, err := user.LookupId("0")
	if err != nil {
		t.Skip("no user database")
	}
	group, err := user.LookupGroupId(root.Gid)
	if err != nil {
		t.Skip("no group database")
	}
	for arg, want := range map[string]IDs{
		"0":                              {0, 0},
		root.Username:                    {0, 0},
		root.Username + ":7":             {0, 7},
		"7:" + group.Name:                {7, 0},
		"4100000000:4100000001":          {4100000000, 4100000001},
		root.Username + ":" + group.Name: {0, 0},
	} {
		if got := mustParse(t, "pasta --runas "+arg).RunAs; got == nil || *got != want {
			t.Errorf("%s: got %v, want %v", arg, got, want)
		}
	}
}

func checkConfig(t *testing.T, c *Config) {
	if c.MTU < -1 || c.MTU > MaxMTU || c.LogSize < MinLogSize || c.IPv4Only && c.IPv6Only {
		t.Fatalf("unsound: %+v", c)
	}
	if (c.Target.Kind == TargetSpawn) != (len(c.Command) > 0) || (c.Target.Kind == TargetNone) != (c.Personality == Passt) {
		t.Fatalf("target %+v, command %q", c.Target, c.Command)
	}
	for _, p := range c.Addresses {
		if !p.IsValid() || p.Bits() == 0 || p.Addr().IsLoopback() || p.Addr().Is4In6() {
			t.Fatalf("address %v", p)
		}
	}
	for _, f := range []Forward{c.TCPPorts, c.UDPPorts, c.TCPNS, c.UDPNS} {
		for i := range f.Rules {
			if err := f.Rules[i].check(); err != nil {
				t.Fatal(err)
			}
		}
	}
}
