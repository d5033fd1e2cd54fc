// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"aldente/broker/audit"
	"aldente/test/netlab"
)

// TestAudit: what is denied as a whole is allowed and recorded, what is denied by
// itself is not; the rules that are made of the record allow the same run, and no more.
func TestAudit(t *testing.T) {
	needOurs(t)
	lab := egressLab(t)
	dir := socketDir(t)
	record, rules := filepath.Join(dir, "record"), filepath.Join(dir, "rules")
	run := map[string]string{
		"tcp 192.0.2.9:7": open, "udp 192.0.2.9:7": open, "icmp 192.0.2.9": open, "tcp [2001:db8:1::9]:80": open,
		"tcp 169.254.169.254:80": prohibited, "tcp 198.51.100.9:53": prohibited,
	}
	try := func(g *netlab.Guest) {
		t.Helper()
		for what, want := range run {
			if got := reach(g, what); got != want {
				t.Errorf("%s: %s, want %s", what, got, want)
			}
		}
	}
	g := lab.GuestWith(netlab.GuestSpec{Binary: aldente(), Args: []string{"--config-net", "--audit", record, "--deny", "198.51.100.9", "--deny", "any"}})
	try(g)
	if st, out := ask(lab, g, "why", "tcp", "192.0.2.9:7"); st != 0 || !strings.Contains(out, `--audit allows what "--deny any" refuses`) {
		t.Errorf("status %d: %s", st, out)
	}
	g.Close()
	g.Proc.Wait()
	st, err := os.Stat(record)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", st, err)
	}
	b, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for line := range strings.Lines(string(b)) {
		var e audit.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if !e.More {
			seen[e.Protocol+" "+e.Address] = e.Verdict + " " + e.Rule
		}
	}
	for what, want := range map[string]string{
		"tcp 192.0.2.9": "denied --deny any", "udp 192.0.2.9": "denied --deny any", "icmp 192.0.2.9": "denied --deny any", "tcp 2001:db8:1::9": "denied --deny any",
		"tcp 198.51.100.9": "refused --deny 198.51.100.9", "tcp 169.254.169.254": "refused --deny metadata",
	} {
		if seen[what] != want {
			t.Errorf("%s: recorded %q, want %q", what, seen[what], want)
		}
	}
	if len(seen) != len(run) {
		t.Errorf("recorded are %v", seen)
	}

	code, out := aldentectl(t, lab, netlab.Nobody, "rules", "suggest", record)
	if code != 0 {
		t.Fatal(out)
	}
	if err := os.WriteFile(rules, []byte(out), 0o644); err != nil {
		t.Fatal(err)
	}
	p := lab.StartPasta(netlab.GuestSpec{Binary: aldente(), User: netlab.Nobody}, "--check-rules", rules)
	if st := p.Wait(); st != 0 || strings.Contains(p.Output(), "warning") {
		t.Errorf("status %d: %s", st, p.Output())
	}
	try(lab.GuestWith(netlab.GuestSpec{Binary: aldente(), Args: []string{"--config-net", "--rules", rules}}))
	run = map[string]string{"tcp 192.0.2.9:80": prohibited, "udp [2001:db8:1::9]:7": prohibited}
	try(lab.GuestWith(netlab.GuestSpec{Binary: aldente(), Args: []string{"--config-net", "--rules", rules}}))
}
