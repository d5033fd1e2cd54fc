// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"aldente/ipc"
)

// slirpDefault is what the least command line means.
func slirpDefault() *Config {
	return &Config{
		Personality: Slirp, LogSize: DefaultLogSize, MTU: 1500, MAC: [6]byte{0x52, 0x55, 10, 0, 2, 2}, LinkKind: ipc.LinkTap, FD: -1, ViaSecretFD: -1, PcapSize: -1,
		Foreground: true, NoNetnsQuit: true, NoSplice: true, IPv4Only: true, DHCPDNS: true,
		Target: Target{Kind: TargetPID, PID: 4711}, NSIfName: "tap0",
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.100/24")}, Gateway4: addr("10.0.2.2"), DNSForward4: addr("10.0.2.3"),
		Virtual4: netip.MustParsePrefix("10.0.2.0/24"),
	}
}

// TestSlirp: what slirp4netns's options mean in pasta's terms.
func TestSlirp(t *testing.T) {
	three, four := 3, 4
	for line, change := range map[string]func(*Config){
		"slirp4netns 4711 tap0":             func(*Config) {},
		"/usr/bin/slirp4netns 4711 tap0":    func(*Config) {},
		"slirp4netns -- 4711 tap0":          func(*Config) {},
		"slirp4netns 4711 -c tap0 -m 65520": func(c *Config) { c.ConfigNet, c.MTU = true, 65520 }, // options behind operands
		"slirp4netns --disable-host-loopback --mtu=65521 --enable-sandbox --enable-seccomp --enable-ipv6 -c -r 3 -e 4 --netns-type=path /n tap1": func(c *Config) {
			c.ConfigNet, c.MTU, c.NoMapGW, c.ReadyFD, c.ExitFD = true, 65521, true, &three, &four
			c.Target, c.NetnsOnly, c.NSIfName = Target{Kind: TargetPath, Path: "/n"}, true, "tap1"
			c.IPv4Only, c.Gateway6, c.DNSForward6, c.Virtual6 = false, addr("fd00::2"), addr("fd00::3"), netip.MustParsePrefix("fd00::/64")
			c.Addresses = append(c.Addresses, netip.MustParsePrefix("fd00::64/64"))
		},
		"slirp4netns --cidr 10.7.0.0/16 -a /s 4711 tap0": func(c *Config) {
			c.Virtual4, c.Gateway4, c.DNSForward4 = netip.MustParsePrefix("10.7.0.0/16"), addr("10.7.0.2"), addr("10.7.0.3")
			c.Addresses, c.MAC, c.APISocket = []netip.Prefix{netip.MustParsePrefix("10.7.0.100/16")}, [6]byte{0x52, 0x55, 10, 7, 0, 2}, "/s"
		},
		"slirp4netns --cidr 10.0.2.128/25 4711 tap0": func(c *Config) {
			c.Virtual4, c.Gateway4, c.DNSForward4 = netip.MustParsePrefix("10.0.2.128/25"), addr("10.0.2.130"), addr("10.0.2.131")
			c.Addresses, c.MAC = []netip.Prefix{netip.MustParsePrefix("10.0.2.228/25")}, [6]byte{0x52, 0x55, 10, 0, 2, 130}
		},
		"slirp4netns --disable-dns 4711 tap0": func(c *Config) { c.DNSNone, c.DHCPDNS, c.DNSForward4 = true, false, netip.Addr{} },
		"slirp4netns --userns-path=/proc/7/ns/user --netns-type=path ns tap0": func(c *Config) {
			c.Target, c.Userns = Target{Kind: TargetPath, Path: "./ns"}, "/proc/7/ns/user"
		},
		"slirp4netns --outbound-addr=192.0.2.1 --outbound-addr6=2001:db8::1 4711 tap0": func(c *Config) {
			c.Outbound4, c.Outbound6 = addr("192.0.2.1"), addr("2001:db8::1")
		},
		"slirp4netns --outbound-addr=192.0.2.1 --outbound-addr=eth0 --outbound-addr6=eth1 4711 tap0": func(c *Config) {
			c.OutboundIf4, c.OutboundIf6 = "eth0", "eth1"
		},
		"slirp4netns -c --macaddress=02:11:22:33:44:55 4711 tap0": func(c *Config) {
			c.ConfigNet, c.NSMAC = true, [6]byte{2, 0x11, 0x22, 0x33, 0x44, 0x55}
		},
		"slirp4netns --netns-type=tapfd 5": func(c *Config) {
			c.Target, c.NSIfName, c.FD, c.OneOff, c.LinkKind = Target{}, "", 5, true, ipc.LinkStream
		},
		"slirp4netns --target-type=bess /tmp/bess": func(c *Config) {
			c.Target, c.NSIfName, c.SocketPath, c.LinkKind = Target{}, "", "/tmp/bess", ipc.LinkSeqpacket
		},
		"slirp4netns --target-type=netns --netns-type=pid 4711 tap0": func(*Config) {},
		"slirp4netns 4711 tap0 more": func(c *Config) {
			c.Warnings = []string{"too many arguments: only 4711 and tap0 count"}
		},
	} {
		want := slirpDefault()
		change(want)
		if diff := cmp.Diff(want, mustParse(t, line), cmpAddr); diff != "" {
			t.Errorf("%s (-want +got)\n%s", line, diff)
		}
	}
}

// TestSlirpErrors: what is refused, by a line that says what to do.
func TestSlirpErrors(t *testing.T) {
	for line, want := range map[string]string{
		"slirp4netns":                                          "Nothing to connect",
		"slirp4netns 4711":                                     "Which interface?",
		"slirp4netns x tap0":                                   "PID must be a positive integer",
		"slirp4netns 0 tap0":                                   "PID must be a positive integer",
		"slirp4netns -m 0 4711 tap0":                           "MTU must be a positive integer (< 65522)",
		"slirp4netns -m 65522 4711 tap0":                       "MTU must be a positive integer (< 65522)",
		"slirp4netns -r x 4711 tap0":                           "ready-fd must be a non-negative integer",
		"slirp4netns -e -1 4711 tap0":                          "exit-fd must be a non-negative integer",
		"slirp4netns --cidr x 4711 tap0":                       "Invalid CIDR",
		"slirp4netns --cidr fd00::/64 4711 tap0":               "Invalid CIDR",
		"slirp4netns --cidr 10.0.2.0/26 4711 tap0":             "Prefix length needs to be 1-25",
		"slirp4netns --cidr 10.0.2.1/24 4711 tap0":             "CIDR needs to be a network address",
		"slirp4netns --netns-type=x 4711 tap0":                 "Invalid --netns-type",
		"slirp4netns --target-type=x 4711 tap0":                "Invalid --target-type",
		"slirp4netns --netns-type=path '' tap0":                "is empty",
		"slirp4netns --netns-type=tapfd -c 5":                  "excludes --configure",
		"slirp4netns --netns-type=tapfd x":                     "Invalid --fd",
		"slirp4netns --target-type=bess -c /s":                 "excludes --configure",
		"slirp4netns --target-type=bess --netns-type=pid /s":   "excludes --configure",
		"slirp4netns --target-type=bess --userns-path=/u /s":   "excludes --configure",
		"slirp4netns --macaddress=02:11:22:33:44:55 4711 tap0": "--macaddress is for an interface that is configured here",
		"slirp4netns -c --macaddress=x 4711 tap0":              "Invalid MAC address",
		"slirp4netns --outbound-addr=1.2.3 4711 tap0":          "Outbound address has to be a valid IPv4 address or interface name",
		"slirp4netns --outbound-addr=::1 4711 tap0":            "Outbound address has to be",
		"slirp4netns --outbound-addr6=127.0.0.1 4711 tap0":     "Outbound address has to be",
		"slirp4netns -a '' 4711 tap0":                          "Invalid API socket path",
		"slirp4netns 4711 waytoolonginterfacename":             "Invalid interface name",
		"slirp4netns --enable 4711 tap0":                       "ambiguous; possibilities: '--enable-ipv6' '--enable-sandbox' '--enable-seccomp'",
		"slirp4netns --config-net 4711 tap0":                   "unrecognized option '--config-net'",
		"slirp4netns -t 22 4711 tap0":                          "invalid option -- 't'",
	} {
		_, err := parse(t, line)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}

// searched are the words that callers look for in what --help prints, as of
// RootlessKit 3, Podman 5, dockerd-rootless.sh and containerd-rootless.sh.
var searched = []string{
	"--netns-type", "--enable-ipv6", "--enable-sandbox", "--enable-seccomp", "--disable-host-loopback", "--cidr", "--mtu",
	"--api-socket", "--outbound-addr", "--outbound-addr6", "--userns-path", "--ready-fd", "--exit-fd", "--configure", "--disable-dns",
	"--macaddress", "--target-type",
}

// TestSlirpUsage: each option is listed, and has an entry in the manual page.
func TestSlirpUsage(t *testing.T) {
	c := mustParse(t, "slirp4netns -6 --help")
	text, ok := c.Text("slirp4netns")
	if !ok {
		t.Fatal("--help prints nothing")
	}
	for line := range strings.Lines(text) {
		if len(strings.TrimSuffix(line, "\n")) > 80 {
			t.Errorf("long line: %s", line)
		}
	}
	for _, word := range searched {
		if !regexp.MustCompile(`(^|\W)` + word + `($|\W)`).MatchString(text) {
			t.Errorf("%s is not in the text, where callers look for it", word)
		}
	}
	page, err := os.ReadFile("../../man/slirp4netns.1")
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]string{}
	for line := range strings.Lines(string(page)) {
		for _, m := range regexp.MustCompile(`Fl Fl ([a-z0-9-]+)`).FindAllStringSubmatch(line, -1) {
			if strings.HasPrefix(line, ".It Fl") {
				entries[m[1]] = line
			}
		}
	}
	long, short := map[string]bool{}, map[byte]bool{}
	for i := range slirpOptions {
		o := &slirpOptions[i]
		if !strings.Contains(text, "--"+o.long) {
			t.Errorf("--%s is not listed", o.long)
		}
		entry, ok := entries[o.long]
		delete(entries, o.long)
		switch {
		case !ok:
			t.Errorf("--%s: no entry", o.long)
		case o.short != 0 && !strings.Contains(entry, ".It Fl "+string(o.short)+" "):
			t.Errorf("--%s: no -%c: %s", o.long, o.short, entry)
		case (o.arg != "") != strings.Contains(entry, " Ar "):
			t.Errorf("--%s: argument %q: %s", o.long, o.arg, entry)
		}
		if long[o.long] || o.short != 0 && short[o.short] || o.set == nil || o.help == "" || o.in != slirpOnly {
			t.Errorf("--%s: twice, or without effect or help", o.long)
		}
		long[o.long], short[o.short] = true, true
	}
	for name := range entries {
		t.Errorf("--%s: not an option", name)
	}
	if text, _ := mustParse(t, "slirp4netns --version").Text("slirp4netns"); !strings.HasPrefix(text, "slirp4netns version ") {
		t.Errorf("version: %s", text)
	}
}
