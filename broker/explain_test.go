// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"aldente/broker/cli"
	"aldente/broker/control/api"
	"aldente/broker/egress"
	"aldente/broker/forward"
	"aldente/broker/hostnet"
	"aldente/broker/plan"
	"aldente/broker/sockets"
)

// planned is what a command line makes of a host with both families, a resolver on its
// loopback, and 192.0.2.2, which the guest has too.
func planned(t *testing.T, line string) explained {
	t.Helper()
	words := strings.Fields(line)
	if words[0] != "passt" {
		words = append(words, "--", "true")
	}
	cfg, err := cli.Parse(words)
	if err != nil {
		t.Fatal(err)
	}
	h := plan.Host{
		Network: &hostnet.Network{
			V4: hostnet.Family{Address: netip.MustParsePrefix("192.0.2.2/24"), Gateway: netip.MustParseAddr("192.0.2.1")},
			V6: hostnet.Family{Address: netip.MustParsePrefix("2001:db8::2/64"), Gateway: netip.MustParseAddr("2001:db8::1")},
			Own: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"), netip.MustParseAddr("192.0.2.2"),
				netip.MustParseAddr("2001:db8::2")},
		},
		Resolvers:   hostnet.ParseResolvers([]byte("nameserver 127.0.0.53\n")),
		Local:       func(egress.Flow) bool { return false },
		Descriptors: 4096, ClientPorts: cli.PortRange{First: 32768, Last: 60999},
	}
	p, err := plan.New(cfg, h)
	if err != nil {
		t.Fatal(err)
	}
	in := &instance{cfg: cfg, log: slog.New(slog.DiscardHandler), plan: p}
	fc := p.Factory
	fc.Logger = in.log
	in.factory = sockets.New(fc)
	for _, r := range p.Outbound { // as the agent would have opened them
		if r.Auto {
			continue
		}
		for port := r.First; ; port++ {
			in.factory.Adopt(p.NamespaceListener(r, port, -1))
			if port == r.Last {
				break
			}
		}
	}
	in.forward = forward.New(p, in.factory, 1024, in.log)
	return explained{in}
}

// TestWhy: what is explained, for each name of the program, protocol and family. Each
// row has a piece of a step, "what: result", in order, and the verdict last.
func TestWhy(t *testing.T) {
	for _, tt := range []struct {
		command, target string
		allow           bool
		steps           []string
	}{
		{"pasta", "tcp 198.51.100.7:80", true, []string{"packet: tcp from the guest to 198.51.100.7:80", "family: the guest has IPv4",
			"address: 198.51.100.7 stands for itself", "rules: there are none", "verdict: allowed: to tcp 198.51.100.7:80"}},
		{"pasta", "udp [2001:db8:9::7]:80", true, []string{"family: the guest has IPv6", "verdict: allowed: to udp [2001:db8:9::7]:80"}},
		{"passt", "tcp 192.0.2.1:80", true, []string{"note: 192.0.2.1 is the guest's gateway, mapped to the host unless --no-map-gw is given",
			"address: 192.0.2.1 is the guest's name for the host's loopback: 127.0.0.1", "verdict: allowed: to tcp 127.0.0.1:80"}},
		{"passt", "udp [2001:db8::1]:80", true, []string{"address: 2001:db8::1 is the guest's name for the host's loopback: ::1", "verdict: allowed: to udp [::1]:80"}},
		{"passt", "udp 192.0.2.1:53", true, []string{"address: 192.0.2.1 is the guest's name for a resolver of the host's: 127.0.0.53", "verdict: allowed: to udp 127.0.0.53:53"}},
		{"passt --no-map-gw", "tcp 192.0.2.1:80", true, []string{"note: 192.0.2.1 is the guest's gateway, and is not mapped", "address: 192.0.2.1 stands for itself"}},
		{"passt", "tcp 127.0.0.1:80", false, []string{"address: 127.0.0.1 is the guest itself", "verdict: refused: the host's loopback has another name in the guest, 192.0.2.1"}},
		{"passt --no-map-gw", "tcp [::1]:80", false, []string{"verdict: refused: the host's loopback has no name in the guest; --map-host-loopback ADDR gives it one"}},
		{"passt --multicast none", "udp 224.0.0.251:5353", false, []string{"address: 224.0.0.251 is multicast", "verdict: refused, whatever the rules say"}},
		{"passt", "tcp 224.0.0.251:5353", false, []string{"address: 224.0.0.251 is multicast", "verdict: refused, whatever the rules say"}},
		{"aldente", "udp [ff02::fb]:5353", false, []string{"address: ff02::fb is multicast", "verdict: refused, whatever the rules say"}},
		{"passt", "udp 224.0.0.251:5353", true, []string{"address: 224.0.0.251 is many: --multicast has it leave, on the host's link", "verdict: allowed: to udp 224.0.0.251:5353"}},
		{"pasta", "udp [ff02::fb]:5353", true, []string{"address: ff02::fb is many", "verdict: allowed: to udp [ff02::fb]:5353"}},
		{"passt --multicast broadcast", "udp 255.255.255.255:9", true, []string{"address: 255.255.255.255 is many", "verdict: allowed"}},
		{"passt", "udp 255.255.255.255:67", false, []string{"address: 255.255.255.255 is the broadcast address", "verdict: refused, whatever"}},
		{"passt", "tcp [::]:80", false, []string{"address: :: is no destination", "verdict: refused, whatever"}},
		{"passt", "tcp 198.51.100.7:0", false, []string{"verdict: refused: nothing has port 0"}},
		{"passt -4", "tcp [2001:db8:9::7]:80", false, []string{"family: the guest has no IPv6", "verdict: refused: an option takes IPv6 away (-4, -6"}},
		{"passt -6", "tcp 198.51.100.7:80", false, []string{"family: the guest has no IPv4"}},
		{"passt --no-tcp", "tcp 198.51.100.7:80", false, []string{"verdict: refused by --no-tcp"}},
		{"passt --no-tcp", "udp 198.51.100.7:80", true, nil},
		{"passt --no-udp", "udp [2001:db8:9::7]:80", false, []string{"verdict: refused by --no-udp"}},
		{"passt --no-icmp", "icmp 198.51.100.7", false, []string{"verdict: refused by --no-icmp"}},
		{"passt --no-icmp", "icmp 2001:db8:9::7", false, []string{"verdict: refused by --no-icmp"}},
		{"pasta --splice-only", "tcp 198.51.100.7:80", false, []string{"verdict: refused by --splice-only"}},
		{"passt -o 192.0.2.2 --outbound-if4 eth7", "tcp 198.51.100.7:80", true, []string{"source: 192.0.2.2, by interface eth7"}},

		{"aldente", "tcp 198.51.100.7:80", true, []string{"rule 8: --deny host: is for other addresses", "rule 9: --deny metadata: is for other addresses",
			"rules: none fits", "verdict: allowed"}},
		{"aldente", "tcp 192.0.2.2:22", false, []string{"note: 192.0.2.2 was given to the guest", "rule 8: --deny host: fits, and denies",
			`verdict: refused by "--deny host": the guest hears "administratively prohibited"; "--allow tcp:192.0.2.2:22" would allow it`}},
		{"aldente", "udp [2001:db8::2]:22", false, []string{`"--allow udp:[2001:db8::2]:22" would allow it`}},
		{"aldente", "tcp 169.254.169.254:80", false, []string{"rule 9: --deny metadata: fits, and denies"}},
		{"aldente", "tcp [64:ff9b::169.254.169.254]:80", false, []string{
			"rule 9: --deny metadata: fits, and denies (for 169.254.169.254, which 64:ff9b::a9fe:a9fe may become on the way)", `"--allow tcp:169.254.169.254:80" would`}},
		{"aldente", "udp 169.254.1.1:53", true, []string{"note: 169.254.1.1 was chosen, since", "address: 169.254.1.1 is the guest's name for a resolver of the host's: 127.0.0.53",
			"rule 8: --deny host: does not count for the forwarded resolver", "verdict: allowed: to udp 127.0.0.53:53"}},
		{"aldente", "tcp 169.254.1.1:80", true, []string{"address: 169.254.1.1 stands for a resolver on ports 53 and 853 of TCP and UDP only"}},
		{"aldente --map-host-loopback 169.254.9.9 --allow tcp:127.0.0.1:5432", "tcp 169.254.9.9:5432", true, []string{
			"address: 169.254.9.9 is the guest's name for the host's loopback: 127.0.0.1", "rule 8: --allow tcp:127.0.0.1:5432: fits, and allows", "verdict: allowed: to tcp 127.0.0.1:5432"}},
		{"aldente --map-host-loopback 169.254.9.9 --allow tcp:127.0.0.1:5432", "tcp 169.254.9.9:22", false, []string{
			"rule 8: --allow tcp:127.0.0.1:5432: is for other ports", "rule 9: --deny host: fits, and denies", `"--allow tcp:127.0.0.1:22" would allow it`}},
		{"aldente --map-guest-addr 169.254.9.8", "tcp 169.254.9.8:22", false, []string{"address: 169.254.9.8 is the guest's name for the host where both have one address: 192.0.2.2"}},
		{"aldente --deny tcp:198.51.100.0/24", "tcp 198.51.100.7:80", false, []string{`"--allow tcp:198.51.100.7:80" before it would allow it`}},
		{"aldente --deny any", "icmp 198.51.100.7", false, []string{`"--allow icmp:198.51.100.7" before it would allow it`}},
		{"aldente --deny any", "icmp 2001:db8:9::7", false, []string{`"--allow icmp:2001:db8:9::7" before it would allow it`}},
		{"aldente -T 5432", "tcp 127.0.0.1:5432", true, []string{"listener: port 5432 of the namespace's loopback is forwarded", "address: the rule leads to tcp 127.0.0.1:5432",
			"rule 8: --allow tcp:127.0.0.0/8:5432: fits, and allows", "verdict: allowed: to tcp 127.0.0.1:5432"}},
		{"aldente -T 5432:5433", "tcp [::1]:5432", true, []string{"verdict: allowed: to tcp [::1]:5433"}},
		{"aldente -T 5432", "udp 127.0.0.1:5432", false, []string{"verdict: refused: the host's loopback has no name"}},
		{"pasta -U 53 --deny host", "udp 127.0.0.1:53", false, []string{"listener: port 53", "rule 8: --deny host: fits, and denies", `"--allow udp:127.0.0.1:53" before it`}},
	} {
		e := planned(t, tt.command)
		proto, host, _ := strings.Cut(tt.target, " ")
		target := api.Target{Protocol: proto, Address: host}
		if proto != "icmp" {
			to := netip.MustParseAddrPort(host)
			target.Address, target.Port = to.Addr().String(), to.Port()
		}
		steps, err := e.Why(&target)
		if err != nil {
			t.Errorf("%s: %s: %v", tt.command, tt.target, err)
			continue
		}
		rest := tt.steps
		for i, s := range steps {
			if last := i == len(steps)-1; s.Final != last || (s.What == "verdict") != last || s.Allow && !last {
				t.Errorf("%s: %s: %+v", tt.command, tt.target, s)
			}
			if text := s.What + ": " + s.Result; len(rest) > 0 && strings.Contains(text, rest[0]) {
				rest = rest[1:]
			}
		}
		if len(rest) > 0 || steps[len(steps)-1].Allow != tt.allow {
			t.Errorf("%s: %s: allowed %v, want %v; %q is not said in\n%+v", tt.command, tt.target, steps[len(steps)-1].Allow, tt.allow, rest, steps)
		}
	}
}

// TestWhyRefusesNonsense: what is no target is an error that says so.
func TestWhyRefusesNonsense(t *testing.T) {
	e := planned(t, "passt")
	for want, target := range map[string]*api.Target{
		"no target":     nil,
		"none of tcp":   {Protocol: "sctp", Address: "192.0.2.1", Port: 1},
		"has no ports":  {Protocol: "icmp", Address: "192.0.2.1", Port: 1},
		"is no address": {Protocol: "tcp", Address: "example.org", Port: 1},
		"a zone":        {Protocol: "tcp", Address: "fe80::1%eth0", Port: 1},
	} {
		if steps, err := e.Why(target); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, %v, want %q", target, steps, err, want)
		}
	}
}

// TestRulesListed: the rules in the order in which they are asked, and whose they are.
func TestRulesListed(t *testing.T) {
	always := []string{"--deny 127.0.0.0/8", "--deny 0.0.0.0", "--deny 224.0.0.0/4", "--deny 255.255.255.255", "--deny ::1", "--deny ::", "--deny ff00::/8"}
	for _, tt := range []struct {
		command string
		want    []string // behind those that always hold
	}{
		{"pasta", []string{"built in --allow any"}},
		{"passt --deny private --allow 10.0.0.1", []string{"option --deny private", "option --allow 10.0.0.1", "built in --allow any"}},
		{"aldente --allow 10.0.0.1 -T 5432:22", []string{"option --allow 10.0.0.1", "option --allow tcp:127.0.0.0/8:22", "option --allow tcp:[::1]:22",
			"default --deny host", "default --deny metadata", "built in --allow 127.0.0.53:53", "built in --allow 127.0.0.53:853", "built in --allow any"}},
		{"aldente -4 --dns none", []string{"default --deny host", "default --deny metadata", "built in --allow any"}},
	} {
		var got []string
		for i, r := range planned(t, tt.command).Rules() {
			if r.Number != i+1 || r.Hits != 0 {
				t.Errorf("%s: %+v", tt.command, r)
			}
			if strings.HasSuffix(r.Text, ":22") && r.Note != "by -T 5432:22" {
				t.Errorf("%s: %+v", tt.command, r)
			}
			got = append(got, r.Source+" "+r.Text)
		}
		var want []string
		for _, r := range always {
			if !strings.Contains(tt.command, "-4") || !strings.Contains(r, ":") && !strings.Contains(r, "ff00") {
				want = append(want, "built in "+r)
			}
		}
		if want = append(want, tt.want...); !slices.Equal(got, want) {
			t.Errorf("%s:\n%q, want\n%q", tt.command, got, want)
		}
	}
}

// TestForwardsListed: how port rules are shown.
func TestForwardsListed(t *testing.T) {
	e := planned(t, "pasta -t 127.0.0.1/8080:80 -u 53,auto -T 5432 -U none")
	want := []api.PortRule{
		{Direction: "in", Protocol: "tcp", Listen: "[127.0.0.1]:8080", Target: "80", Option: "-t 127.0.0.1/8080:80", Ports: 1},
		{Direction: "in", Protocol: "udp", Listen: "[*]:53", Target: "53", Flags: "auto-scan", Option: "-u 53:53,auto", Ports: 1, Listening: true},
		{Direction: "out", Protocol: "tcp", Listen: "[*]%lo:5432", Target: "5432", Option: "-T 5432:5432", Ports: 1},
	}
	if got := e.Forwards(); !slices.Equal(got, want) {
		t.Errorf("%+v, want\n%+v", got, want)
	}
	for _, f := range []*api.ForwardSpec{nil, {}} {
		if err := e.Forward(f); err == nil || !strings.Contains(err.Error(), "no port rules") {
			t.Errorf("%+v: %v", f, err)
		}
	}
	err := e.Forward(&api.ForwardSpec{Specs: []string{"-T 127.0.0.1/80"}})
	if err == nil || !strings.Contains(err.Error(), "(-T and -U listen on the namespace's loopback: give ports alone)") {
		t.Errorf("%v", err)
	}
}
