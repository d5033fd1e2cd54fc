// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"aldente/ipc"
)

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

// parse runs a command line given as words, see words.
func parse(t *testing.T, line string) (*Config, error) {
	t.Helper()
	t.Setenv("SHELL", "/bin/testsh")
	return ParseWith(words(line), testPorts)
}

func mustParse(t *testing.T, line string) *Config {
	t.Helper()
	c, err := parse(t, line)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return c
}

func TestPersonalityOf(t *testing.T) {
	for argv0, want := range map[string]Personality{
		"pasta": Pasta, "/usr/bin/pasta": Pasta, "pasta.avx2": Pasta, "-pasta": Pasta,
		"passt": Passt, "./passt.avx2": Passt, "/opt/pasta/bin/passt": Passt,
		"slirp4netns": Slirp, "/usr/libexec/podman/slirp4netns": Slirp, "slirp4netns-1.3": Slirp, "slirp": Aldente,
		"aldente": Aldente, "/opt/pasta/aldente": Aldente, "": Aldente, "past": Aldente,
	} {
		if got := PersonalityOf(argv0); got != want {
			t.Errorf("%q: got %v, want %v", argv0, got, want)
		}
	}
}

// TestErrors holds command lines that are refused and the message, checked
// against passt where it has the option.
func TestErrors(t *testing.T) {
	for line, want := range map[string]string{
		"aldente --verify-sni=0":    "Invalid --verify-sni '0': give ports and ranges of them, as 443,8443 or 8000-8100",
		"aldente --verify-sni=443,": "Invalid --verify-sni '443,': give ports and ranges of them, as 443,8443 or 8000-8100",
		"aldente --verify-sni=9-8":  "Invalid --verify-sni '9-8': give ports and ranges of them, as 443,8443 or 8000-8100",
		"passt --verify-sni 443":    "Extra non-option argument: 443",

		"pasta --via 192.0.2.9:1080":                      "Invalid --via",
		"pasta --via https://192.0.2.9:1":                 "Invalid --via: https:// is not possible, nobody here speaks TLS",
		"pasta --via socks4://192.0.2.9:1":                "Invalid --via: only version 5 of SOCKS knows IPv6 and passwords",
		"pasta --via socks5h://192.0.2.9:1":               "Invalid --via: what socks5h:// asks for is an option of its own",
		"pasta --via socks5://me:hush@192.0.2.9:1":        "Invalid --via: everybody on this host can read a password there",
		"pasta --via http://a%3Ab@192.0.2.9:1":            "Invalid --via: no such user is possible",
		"pasta --via http://a%0a@192.0.2.9:1":             "Invalid --via: no such user is possible",
		"pasta --via http://@192.0.2.9:1":                 "Invalid --via: no such user is possible",
		"pasta --via http://192.0.2.9":                    "Invalid --via: there is no port",
		"pasta --via http://[::1]":                        "Invalid --via: there is no port",
		"pasta --via http://192.0.2.9:0":                  "Invalid --via: that is no port",
		"pasta --via http://192.0.2.9:65536":              "Invalid --via: that is no port",
		"pasta --via http://2001:db8::1:80":               "Invalid --via: that is neither an address nor a host's name",
		"pasta --via http://-x:80":                        "Invalid --via: that is neither an address nor a host's name",
		"pasta --via http://[fe80::1%1]:80":               "Invalid --via: no proxy has that address",
		"pasta --via http://0.0.0.0:80":                   "Invalid --via: no proxy has that address",
		"pasta --via http://a:1 --via http://a:1":         "More than one --via: connections go by one proxy",
		"pasta --via-secret /x":                           "--via-secret, --via-names and --via-except are for --via, which is not given",
		"pasta --via-names":                               "--via-secret, --via-names and --via-except are for --via, which is not given",
		"pasta --via http://me@a:1":                       "--via has a user, and no password",
		"pasta --via http://a:1 --via-secret /x":          "--via-secret needs a user",
		"pasta --via http://me@a:1 --via-secret fd:x":     "Invalid --via-secret 'fd:x'",
		"pasta --via http://me@a:1 --via-secret /dev/fd/": "Invalid --via-secret '/dev/fd/'",
		"passt --via http://m@a:1 --via-secret fd:5 -F 5": "--via-secret and --fd cannot be one descriptor",
		"pasta --via http://a:1 --via-except 10.0.0.0/33": "Invalid --via-except '10.0.0.0/33'",
		"pasta --splice-only --via http://a:1":            "--via is for what crosses the guest's interface, and --splice-only gives it none: leave one of them out",

		"aldente --verify-sni=1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17": "Too many ports for --verify-sni: at most 16 ranges",

		// getopt_long(3), in glibc's words.
		"pasta -Z":                               "pasta: invalid option -- 'Z'",
		"./x/pasta -dZ":                          "./x/pasta: invalid option -- 'Z'",
		"pasta -d-":                              "pasta: invalid option -- '-'",
		"pasta -:":                               "pasta: invalid option -- ':'",
		"pasta -m":                               "pasta: option requires an argument -- 'm'",
		"pasta -dm":                              "pasta: option requires an argument -- 'm'",
		"pasta --bogus":                          "pasta: unrecognized option '--bogus'",
		"pasta --bogus=3":                        "pasta: unrecognized option '--bogus=3'",
		"pasta --mtu":                            "pasta: option '--mtu' requires an argument",
		"pasta --mt":                             "pasta: option '--mtu' requires an argument",
		"pasta --debug=3":                        "pasta: option '--debug' doesn't allow an argument",
		"pasta --config-n=3":                     "pasta: option '--config-net' doesn't allow an argument",
		"pasta --debug --vers=3":                 "pasta: option '--version' doesn't allow an argument",
		"passt --so":                             "passt: option '--socket' requires an argument",
		"passt --socket-p":                       "passt: option '--socket-path' requires an argument",
		"pasta --conf":                           "pasta: option '--conf' is ambiguous; possibilities: '--config-net' '--conf-path'",
		"pasta --conf=x":                         "pasta: option '--conf=x' is ambiguous; possibilities: '--config-net' '--conf-path'",
		"pasta --c":                              "pasta: option '--c' is ambiguous; possibilities: '--config-net' '--conf-path' '--chroot-fallback'",
		"pasta --d":                              "pasta: option '--d' is ambiguous; possibilities: '--debug' '--dns' '--dhcp-dns' '--dhcp-search' '--dns-forward' '--dns-host'",
		"pasta --f":                              "pasta: option '--f' is ambiguous; possibilities: '--foreground' '--fd' '--freebind' '--fqdn'",
		"pasta --h":                              "pasta: option '--h' is ambiguous; possibilities: '--help' '--hostname' '--host-lo-to-ns-lo'",
		"pasta --i":                              "pasta: option '--i' is ambiguous; possibilities: '--interface' '--ipv4-only' '--ipv6-only'",
		"pasta --l":                              "pasta: option '--l' is ambiguous; possibilities: '--log-file' '--log-size'",
		"pasta --m":                              "pasta: option '--m' is ambiguous; possibilities: '--mtu' '--mac-addr' '--map-host-loopback' '--map-guest-addr' '--migrate-exit' '--migrate-no-linger'",
		"pasta --n":                              "pasta: option '--n' is ambiguous; possibilities: '--ns-ifname' '--netmask' '--no-tcp' '--no-udp' '--no-icmp' '--no-dhcp' '--no-dhcpv6' '--no-ndp' '--no-ra' '--no-splice' '--no-map-gw' '--netns' '--ns-mac-addr' '--no-dhcp-dns' '--no-dhcp-search' '--no-netns-quit' '--no-copy-routes' '--no-copy-addrs' '--netns-only' '--no-pidns'",
		"pasta --o":                              "pasta: option '--o' is ambiguous; possibilities: '--outbound' '--one-off' '--outbound-if4' '--outbound-if6'",
		"pasta --p":                              "pasta: option '--p' is ambiguous; possibilities: '--pcap' '--pid' '--print-capabilities'",
		"pasta --r":                              "pasta: option '--r' is ambiguous; possibilities: '--runas' '--repair-path'",
		"pasta --s":                              "pasta: option '--s' is ambiguous; possibilities: '--stderr' '--socket' '--search' '--splice-only' '--socket-path' '--stats'",
		"pasta --t":                              "pasta: option '--t' is ambiguous; possibilities: '--tcp-ports' '--tcp-ns' '--trace'",
		"pasta --u":                              "pasta: option '--u' is ambiguous; possibilities: '--udp-ports' '--udp-ns' '--userns'",
		"pasta --v":                              "pasta: option '--v' is ambiguous; possibilities: '--version' '--vhost-user'",
		"pasta --out":                            "pasta: option '--out' is ambiguous; possibilities: '--outbound' '--outbound-if4' '--outbound-if6'",
		"pasta --a":                              "pasta: option '--address' requires an argument",
		"pasta --deny":                           "pasta: option '--deny' requires an argument",
		"pasta -m x -h":                          "Invalid MTU: x",
		"aldente --nat64 10.0.0.0/8":             "Invalid --nat64 '10.0.0.0/8': a translator's prefix is an IPv6 one of 32, 40, 48, 56, 64 or 96 bits, as 2001:db8:64::/96",
		"aldente --nat64 2001:db8::1/96":         "Invalid --nat64 '2001:db8::1/96': a translator's prefix is an IPv6 one of 32, 40, 48, 56, 64 or 96 bits, as 2001:db8:64::/96",
		"aldente --redirect 192.0.2.7":           "Invalid --redirect '192.0.2.7': FROM=TO is needed, as tcp:192.0.2.7:80=198.51.100.8:8080",
		"passt --redirect a=192.0.2.7":           "Invalid --redirect 'a=192.0.2.7': \"a\" is neither an address nor a prefix, nor \"any\"",
		"passt foo":                              "Extra non-option argument: foo",
		"passt -- foo":                           "Extra non-option argument: foo",
		"passt -1 foo -d":                        "Extra non-option argument: foo",
		"passt -":                                "Extra non-option argument: -",
		"pasta -m ''":                            "Invalid MTU: ",
		"pasta -m 1500x":                         "Invalid MTU: 1500x",
		"pasta -m -1":                            "Invalid MTU: -1",
		"pasta -m 65522":                         "MTU 65522 too large (max 65521)",
		"pasta -m 99999999999":                   "MTU 99999999999 too large (max 65521)",
		"pasta -a x":                             "Invalid guest address: x",
		"pasta -a ''":                            "Invalid guest address: ",
		"pasta -a 10.0.0.1/":                     "Invalid guest address: 10.0.0.1/",
		"pasta -a 10.0.0.1/0x10":                 "Invalid guest address: 10.0.0.1/0x10",
		"pasta -a 10.0.0.1/33":                   "Invalid prefix length: 10.0.0.1/33",
		"pasta -a fd00::5/129":                   "Invalid prefix length: fd00::5/129",
		"pasta -a 127.0.0.1":                     "Invalid guest address: 127.0.0.1",
		"pasta -a 0.0.0.0":                       "Invalid guest address: 0.0.0.0",
		"pasta -a 224.0.0.1":                     "Invalid guest address: 224.0.0.1",
		"pasta -a 255.255.255.255":               "Invalid guest address: 255.255.255.255",
		"pasta -a ::1":                           "Invalid guest address: ::1",
		"pasta -a fe80::1%eth0":                  "Invalid guest address: fe80::1%eth0",
		"pasta -a 010.0.0.1":                     "Invalid guest address: 010.0.0.1",
		"pasta -a 10.0.0.1/24 -n 24":             "Redundant prefix length specification",
		"pasta -n 24 -a 10.0.0.1/24":             "Redundant prefix length specification",
		"pasta -n 24 -a fd00::5/64":              "Redundant prefix length specification",
		"pasta -a 10.0.0.1/24 -n 16 -a 10.0.0.2": "Redundant prefix length specification",
		"pasta -n 33":                            "Invalid prefix length: 33",
		"pasta -n 255.0.255.0":                   "Invalid prefix length: 255.0.255.0",
		"pasta -n ''":                            "Invalid prefix length: ",
		"pasta -n 24x":                           "Invalid prefix length: 24x",
		"pasta -n ::":                            "Invalid prefix length: ::",
		"pasta -g none":                          "Invalid gateway address: none",
		"pasta -g 127.0.0.1":                     "Invalid gateway address: 127.0.0.1",
		"pasta -g [fd00::1]":                     "Invalid gateway address: [fd00::1]",
		"pasta -M 1:2:3:4:5:6":                   "Invalid MAC address: 1:2:3:4:5:6",
		"pasta -M 9a-55-9a-55-9a-55":             "Invalid MAC address: 9a-55-9a-55-9a-55",
		"pasta -M 52:54:00:12:34:5g":             "Invalid MAC address: 52:54:00:12:34:5g",
		"pasta -M 52:54:00:12:34:567":            "Invalid MAC address: 52:54:00:12:34:567",
		"pasta --ns-mac-addr ff:ff:ff:ff:ff:ff":  "Invalid MAC address: ff:ff:ff:ff:ff:ff",
		"pasta --ns-mac-addr 00:00:00:00:00:00":  "Invalid MAC address: 00:00:00:00:00:00",
		"pasta -i ''":                            "Invalid interface name: ",
		"pasta -i a/b":                           "Invalid interface name: a/b",
		"pasta --outbound-if4 16charsname12345":  "Invalid interface name: 16charsname12345",
		"pasta -I ..":                            "Invalid interface name: ..",
		"pasta -I a%d":                           "Invalid interface name: a%d",
		"pasta -o 0.0.0.0":                       "Invalid or redundant outbound address: 0.0.0.0",
		"pasta -o 224.0.0.1":                     "Invalid or redundant outbound address: 224.0.0.1",
		"pasta -D x":                             "Cannot use DNS address x",
		"pasta -D ''":                            "Cannot use DNS address ",
		"pasta -S ''":                            "Cannot use DNS search domain ",
		"pasta -S 'ok a..b'":                     "Cannot use DNS search domain a..b",
		"pasta --dns-forward 127.0.0.1":          "Invalid DNS forwarding address: 127.0.0.1",
		"pasta --dns-host ::":                    "Invalid host nameserver address: ::",
		"pasta --map-host-loopback ::1":          "Invalid address to remap to host: ::1",
		"pasta --map-guest-addr ff02::1":         "Invalid address to remap to host: ff02::1",
		"pasta -H " + strings.Repeat("a", 254):   "Invalid hostname: " + strings.Repeat("a", 254),
		"pasta --fqdn " + strings.Repeat("a", 254): "Invalid FQDN: " + strings.Repeat("a", 254),
		"pasta -p ''":                           "Invalid pcap path: ",
		"pasta -P ''":                           "Invalid PID file: ",
		"pasta --flow-log ''":                   "Invalid flow log path: ",
		"pasta -l ''":                           "Invalid log file path: ",
		"pasta -c ''":                           "Invalid configuration path: ",
		"passt -s ''":                           "Invalid socket path: ",
		"passt -s /" + strings.Repeat("a", 107): "Invalid socket path: /" + strings.Repeat("a", 107),
		"pasta --log-size 40959":                "Invalid --log-size: 40959",
		"pasta --log-size 1M":                   "Invalid --log-size: 1M",
		"pasta --stats x":                       "Invalid --stats: x",
		"passt -F x":                            "Invalid --fd: x",
		"passt -F -1":                           "Invalid --fd: -1",
		"passt -F 99999999999":                  "Invalid --fd: 99999999999",
		"pasta -F 3":                            "-F is for passt mode only",
		"pasta --netns-only true":               "--userns and --netns-only are for PID or --netns",
		"pasta --userns /u true":                "--userns and --netns-only are for PID or --netns",
		"pasta --runas nosuchuser0":             "Invalid --runas option: nosuchuser0: no such user",
		"pasta --runas root:nosuchgroup0":       "Invalid --runas option: root:nosuchgroup0: no such group",
		"pasta --runas 4100000000":              "Invalid --runas option: 4100000000: no group known for this UID, give UID:GID",
		"pasta --runas 4294967295:1":            "Invalid --runas option: 4294967295:1: no such user",
		"pasta --runas ''":                      "Invalid --runas option: : no such user",
		"pasta -1":                              "--one-off is for passt mode only",
		"pasta -s x":                            "-s is for passt mode only",
		"pasta --socket x":                      "-s is for passt mode only",
		"aldente --vhost-user":                  "--vhost-user is for passt mode only",
		"pasta --no-dhcp-dns":                   "--no-dhcp-dns is for passt mode only",
		"pasta --no-dhcp-search":                "--no-dhcp-search is for passt mode only",
		"passt -I foo":                          "-I is for pasta mode only",
		"passt -T none":                         "-T is for pasta mode only",
		"passt -U 22":                           "-U is for pasta mode only",
		"passt --userns x":                      "--userns is for pasta mode only",
		"passt --netns x":                       "--netns is for pasta mode only",
		"passt --config-net":                    "--config-net is for pasta mode only",
		"passt --dhcp-dns":                      "--dhcp-dns is for pasta mode only",
		"passt --splice-only":                   "--splice-only is for pasta mode only",
		"passt -t auto":                         "'auto' port forwarding is only allowed for pasta: 'auto'",
		"passt --repair-path x":                 "--repair-path is for vhost-user mode only",
		"passt --migrate-exit":                  "--migrate-exit is for vhost-user mode only",
		"passt --migrate-no-linger":             "--migrate-no-linger is for vhost-user mode only",
		"pasta --no-splice --host-lo-to-ns-lo":  "--host-lo-to-ns-lo is incompatible with --no-splice",
		"pasta --splice-only --no-splice":       "--splice-only is incompatible with --no-splice",
		"pasta --no-copy-routes":                "--no-copy-routes needs --config-net",
		"pasta --no-copy-addrs":                 "--no-copy-addrs needs --config-net",
		"pasta --netns foo 123":                 "Both --netns and PID or command given",
		"pasta --netns /x -- true":              "Both --netns and PID or command given",
		"pasta --netns ''":                      "Invalid network namespace name or path: ",
		"pasta --netns ..":                      "Invalid network namespace name or path: ..",
		"pasta --userns '' 1":                   "Invalid userns: ",
		"pasta 999999999999":                    "Invalid PID 999999999999",
		"pasta 99999999999999999999":            "Invalid PID 99999999999999999999",
		"pasta -- -1":                           "Invalid PID -1",
		"pasta 0":                               "Invalid PID 0",
		"pasta --no-pidns 1":                    "--no-pidns is incompatible with PID or --netns",
		"pasta --no-pidns --netns foo":          "--no-pidns is incompatible with PID or --netns",
		"aldente --hide-sockets 1":              "--hide-sockets is for a command that is started here, not for PID or --netns",
		"pasta --no-tcp -t 22":                  "-t: can't forward ports with the protocol disabled: TCP [*]:22  =>  22",
		"pasta -u auto --no-udp":                "-u: can't forward ports with the protocol disabled: UDP [*]:1-32767  =>  1-32767 (best effort) (auto-scan)",
		"pasta -T 22 -T none":                   "-T none conflicts with previous options",

		"passt --sd-notify":      "--sd-notify is for a service that stays in the foreground: it needs -f, or a command",
		"pasta --sd-notify 4711": "--sd-notify is for a service that stays in the foreground: it needs -f, or a command",

		"passt --socket-type foo":                 "Invalid socket type: foo",
		"pasta --socket-type dgram":               "--socket-type is for passt mode only",
		"passt --socket-type dgram -F 3":          "--socket-type is for a socket that is made here, of frames: what --fd is, shows; vhost-user has a stream",
		"passt --socket-type stream --vhost-user": "--socket-type is for a socket that is made here, of frames: what --fd is, shows; vhost-user has a stream",
	} {
		c, err := parse(t, line)
		if err == nil {
			t.Errorf("%s: no error, %+v", line, c)
			continue
		}
		if err.Error() != want {
			t.Errorf("%s:\n got %s\nwant %s", line, err, want)
		}
		if _, ok := err.(*UsageError); !ok {
			t.Errorf("%s: %T", line, err)
		}
	}
}

// TestAbbreviations: what the original takes without our own options, it still does.
func TestAbbreviations(t *testing.T) {
	for i := range options {
		o := &options[i]
		for n := 1; n <= len(o.long); n++ {
			g := getopt{table: options}
			var others []option
			for _, x := range options {
				if !x.extra {
					others = append(others, x)
				}
			}
			plain := getopt{table: others}
			was, is := plain.findLong(o.long[:n]), g.findLong(o.long[:n])
			if len(was) == 1 && (len(is) != 1 || was[0].long != is[0].long) {
				t.Errorf("--%s: was %s, is %d matches", o.long[:n], was[0].long, len(is))
			}
		}
	}
}

func TestTableIsConsistent(t *testing.T) {
	long, short := map[string]bool{}, map[byte]bool{}
	for i := range options {
		o := &options[i]
		switch {
		case long[o.long]:
			t.Errorf("--%s twice", o.long)
		case o.short != 0 && short[o.short]:
			t.Errorf("-%c twice", o.short)
		case o.set == nil || o.in == 0:
			t.Errorf("--%s has no effect", o.long)
		case o.help == "" && o.alias == "":
			t.Errorf("--%s has no help", o.long)
		}
		long[o.long], short[o.short] = true, true
	}
}

func TestDefaults(t *testing.T) {
	c := mustParse(t, "pasta")
	auto := func(proto uint8, ifname string) Forward {
		r := Rule{Proto: proto, Interface: ifname, PortRange: PortRange{1, 32767}, TargetPort: 1, Weak: true, Auto: true}
		s := r
		s.PortRange, s.TargetPort = PortRange{61000, 65535}, 61000
		return Forward{Rules: []Rule{r, s}}
	}
	want := &Config{
		Personality: Pasta, LogSize: DefaultLogSize, MTU: -1, MAC: DefaultMAC, LinkKind: ipc.LinkTap, FD: -1, ViaSecretFD: -1, PcapSize: -1,
		Target: Target{Kind: TargetSpawn}, Command: []string{"/bin/testsh"}, LoginShell: true,
		TCPPorts: auto(ipc.ProtoTCP, ""), UDPPorts: auto(ipc.ProtoUDP, ""),
		TCPNS: auto(ipc.ProtoTCP, "lo"), UDPNS: auto(ipc.ProtoUDP, "lo"),
		Multicast: Multicast{Send: true},
	}
	if diff := cmp.Diff(want, c, cmpAddr); diff != "" {
		t.Errorf("pasta (-want +got)\n%s", diff)
	}

	want = &Config{
		Personality: Passt, LogSize: DefaultLogSize, MTU: -1, MAC: DefaultMAC, LinkKind: ipc.LinkStream, FD: -1, ViaSecretFD: -1, PcapSize: -1,
		DHCPDNS: true, DHCPSearch: true, Multicast: Multicast{Send: true},
	}
	if diff := cmp.Diff(want, mustParse(t, "passt"), cmpAddr); diff != "" {
		t.Errorf("passt (-want +got)\n%s", diff)
	}

	want = &Config{
		Personality: Aldente, LogSize: DefaultLogSize, MTU: -1, MAC: DefaultMAC, LinkKind: ipc.LinkTap, FD: -1, ViaSecretFD: -1, PcapSize: -1, NoMapGW: true, HideSockets: true,
		Target: Target{Kind: TargetSpawn}, Command: []string{"/bin/testsh"}, LoginShell: true,
	}
	if diff := cmp.Diff(want, mustParse(t, "aldente"), cmpAddr); diff != "" {
		t.Errorf("aldente (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(want, mustParse(t, ""), cmpAddr); diff != "" {
		t.Errorf("no argv[0] (-want +got)\n%s", diff)
	}
}

// TestUnsupported lists what is asked for and must not be ignored silently.
func TestUnsupported(t *testing.T) {
	for line, want := range map[string]string{
		"pasta":                                  "",
		"aldente":                                "",
		"pasta -t 22 -u 80-90":                   "",
		"pasta -t none -T none -U none":          "",
		"pasta --no-splice":                      "",
		"pasta -t auto":                          "",
		"pasta -u 80,auto":                       "",
		"pasta -T auto":                          "",
		"pasta -U 22":                            "",
		"pasta --splice-only":                    "",
		"pasta --host-lo-to-ns-lo":               "",
		"pasta -c x":                             "",
		"passt -c /dev/null --version":           "",
		"passt --vhost-user -s x --fd 3":         "",
		"passt --vhost-user --repair-path x":     "--repair-path",
		"passt --vhost-user --migrate-exit":      "--migrate-exit",
		"passt --vhost-user --migrate-no-linger": "--migrate-no-linger",
		"aldente -t 8000,auto -u none -6":        "",
	} {
		got := ""
		if err := mustParse(t, line).Unsupported(); err != nil {
			got = err.Error()
		}
		if want != "" {
			want += " is not supported by this version"
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", line, got, want)
		}
	}
}
