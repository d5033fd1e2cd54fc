// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"aldente/ipc"
)

const testPorts = "testdata/ports"

var cmpAddr = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{}), cmpopts.IgnoreUnexported(Config{})}

// words splits a line at spaces, single quotes kept together.
func words(line string) []string {
	var out []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			out = append(out, part)
		} else {
			out = append(out, strings.Fields(part)...)
		}
	}
	return out
}

// explicitRules lists the rules that a command line asks for, in text: aldente has no
// others.
func explicitRules(args []string) []string {
	c, err := ParseWith(append([]string{"aldente"}, args...), testPorts)
	if err != nil {
		return []string{"error: " + err.Error()}
	}
	var out []string
	for _, f := range []Forward{c.TCPPorts, c.UDPPorts, c.TCPNS, c.UDPNS} {
		for i := range f.Rules {
			out = append(out, f.Rules[i].String())
		}
	}
	return out
}

func TestSpecs(t *testing.T) {
	f, err := os.Open("testdata/specs.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var line string
	var want []string
	n := 0
	check := func() {
		if line == "" {
			return
		}
		n++
		if diff := cmp.Diff(want, explicitRules(words(line))); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", line, diff)
		}
	}
	for s := bufio.NewScanner(f); s.Scan(); {
		switch text := s.Text(); {
		case text == "" || text[0] == '#':
		case text[0] == '\t':
			want = append(want, text[1:])
		default:
			check()
			line, want = text, nil
		}
	}
	check()
	if n < 200 {
		t.Errorf("only %d lines checked", n)
	}
}

func TestRuleFields(t *testing.T) {
	o := SpecOptions{Proto: ipc.ProtoUDP, Auto: true}
	got, err := ParseSpec("192.0.2.1%eth0/2200-2202:192.0.2.5/3200-3202,~2201,auto", o)
	if err != nil {
		t.Fatal(err)
	}
	base := Rule{
		Proto: ipc.ProtoUDP, Addr: netip.MustParseAddr("192.0.2.1"), Interface: "eth0",
		TargetAddr: netip.MustParseAddr("192.0.2.5"), Auto: true,
	}
	first, second := base, base
	first.PortRange, first.TargetPort = PortRange{2200, 2200}, 3200
	second.PortRange, second.TargetPort = PortRange{2202, 2202}, 3202
	if diff := cmp.Diff([]Rule{first, second}, got, cmpAddr); diff != "" {
		t.Error(diff)
	}
}

func TestAutoOnlyWithNamespace(t *testing.T) {
	for _, spec := range []string{"auto", "80,auto", "::1/auto"} {
		_, err := ParseSpec(spec, SpecOptions{Proto: ipc.ProtoTCP})
		if err == nil || !strings.Contains(err.Error(), "'auto' port forwarding is only allowed for pasta") {
			t.Errorf("%s: %v", spec, err)
		}
	}
}

func TestEphemeralPorts(t *testing.T) {
	dir := t.TempDir()
	for i, tc := range []struct {
		text string
		want PortRange
	}{
		{"1024\t2048\n", PortRange{1024, 2048}},
		{"5 5", PortRange{5, 5}},
		{"", defaultEphemeral},
		{"1 2 3", defaultEphemeral},
		{"2048 1024", defaultEphemeral},
		{"1 65536", defaultEphemeral},
		{"a b", defaultEphemeral},
	} {
		file := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := EphemeralPorts(file); got != tc.want {
			t.Errorf("%q: got %v, want %v", tc.text, got, tc.want)
		}
	}
	if got := EphemeralPorts(filepath.Join(dir, "absent")); got != defaultEphemeral {
		t.Errorf("absent: got %v", got)
	}
}

func TestTooManyRules(t *testing.T) {
	ports := func(n int) string {
		var items []string
		for i := range n {
			items = append(items, fmt.Sprint(1+2*i))
		}
		return strings.Join(items, ",")
	}
	o := SpecOptions{Proto: ipc.ProtoTCP}
	if rules, err := ParseSpec(ports(MaxRules), o); err != nil || len(rules) != MaxRules {
		t.Errorf("%d rules, %v", len(rules), err)
	}
	_, err := ParseSpec(ports(MaxRules+1), o)
	if err == nil || !strings.HasPrefix(err.Error(), "Too many rules (maximum 4096): TCP [*]:8193") {
		t.Error(err)
	}
}

// subtractSlow is the obvious way to compute what subtractFrom does.
func subtractSlow(b *bitmap, r PortRange) []PortRange {
	var out []PortRange
	for p := int(r.First); p <= int(r.Last); p++ {
		switch n := len(out); {
		case b.has(p):
		case n > 0 && int(out[n-1].Last) == p-1:
			out[n-1].Last++
		default:
			out = append(out, PortRange{uint16(p), uint16(p)})
		}
	}
	return out
}

func TestSubtract(t *testing.T) {
	ranges := []PortRange{{0, 0}, {0, 65535}, {65535, 65535}, {1, 63}, {64, 128}, {10, 20}, {65000, 65535}}
	for _, a := range ranges {
		for _, b := range ranges {
			for _, from := range ranges {
				var m bitmap
				m.add(a)
				m.add(b)
				got := slices.Collect(m.subtractFrom(from))
				if diff := cmp.Diff(subtractSlow(&m, from), got); diff != "" {
					t.Errorf("%v less %v and %v: %s", from, a, b, diff)
				}
			}
		}
	}
}

func checkRule(t *testing.T, rules []Rule, i int, o SpecOptions) {
	r := &rules[i]
	if r.First == 0 || r.TargetPort == 0 || r.First > r.Last || r.Target().Len() != r.Len() {
		t.Fatalf("unsound rule %v", r)
	}
	for j := range i {
		if r.conflicts(&rules[j]) {
			t.Fatalf("%v overlaps %v", r, &rules[j])
		}
	}
	text := *r
	if o.Outbound {
		text.Addr, text.Interface = netip.Addr{}, ""
	}
	again, err := ParseSpec(text.Spec(), o)
	if err != nil {
		t.Fatalf("%v: spec %s: %v", r, text.Spec(), err)
	}
	if diff := cmp.Diff([]Rule{*r}, again, cmpAddr); diff != "" {
		t.Fatalf("%v: spec %s: %s", r, text.Spec(), diff)
	}
}
