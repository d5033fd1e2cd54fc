// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"aldente/broker/control/api"
)

// speaking is an instance that answers each command as told, and notes what it is
// asked.
type speaking struct {
	mu    sync.Mutex
	asked []api.Request
}

// speak starts one and returns the path of its socket.
func speak(t *testing.T, replies map[string]api.Reply) (path string, s *speaking) {
	t.Helper()
	path, s = filepath.Join(t.TempDir(), "s"), &speaking{}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var r api.Request
			if json.NewDecoder(c).Decode(&r) == nil {
				s.mu.Lock()
				s.asked = append(s.asked, r)
				s.mu.Unlock()
				reply, ok := replies[r.Command]
				if r.Command == api.Status && !ok {
					reply.Status = &api.StatusReply{Control: true, PID: 7}
				}
				_ = json.NewEncoder(c).Encode(reply)
			}
			c.Close()
		}
	}()
	return path, s
}

// last is the last request.
func (s *speaking) last() api.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[len(s.asked)-1]
}

// TestRulesShown: what is printed of rules, and that it moves no cursor.
func TestRulesShown(t *testing.T) {
	path, _ := speak(t, map[string]api.Reply{api.Rules: {Rules: []api.Rule{
		{Number: 1, Text: "--deny host", Source: "default", Hits: 1234567},
		{Number: 2, Text: "--allow \x1b[2Jx\ty\nz", Source: "option", Note: "a\u202eb"},
	}}})
	const want = "#  HITS     SOURCE   RULE                NOTE\n1  1234567  default  --deny host         -\n2  0        option   --allow ?[2Jx y z  a?b\n"
	st, out := ctl("rules", "--socket", path)
	if got := strings.Join(strings.Fields(out), " "); st != 0 || !strings.HasPrefix(got, strings.Join(strings.Fields(want), " ")) || strings.Count(out, "\n") != 4 {
		t.Errorf("status %d:\n%s", st, out)
	}
	st, out = ctl("rules", "--json", "--socket", path)
	var rules []api.Rule
	if err := json.Unmarshal([]byte(out), &rules); st != 0 || err != nil || len(rules) != 2 || rules[1].Text != "--allow \x1b[2Jx\ty\nz" || strings.ContainsRune(out, 0x1b) {
		t.Errorf("status %d, %v: %s", st, err, out)
	}
	path, _ = speak(t, nil)
	if st, out := ctl("rules", "--socket", path); st != 1 || !strings.Contains(out, "something else") {
		t.Errorf("no rules: status %d: %s", st, out)
	}
}

// TestWhyShown: what is asked for which words, and how steps are printed.
func TestWhyShown(t *testing.T) {
	path, s := speak(t, map[string]api.Reply{api.Why: {Why: []api.Step{
		{What: "packet", Result: "to \x1b]0;x\a"}, {What: "verdict", Result: "allowed", Final: true, Allow: true}}}})
	for words, want := range map[string]api.Target{
		"tcp 192.0.2.1:80":                {Protocol: "tcp", Address: "192.0.2.1", Port: 80},
		"udp [2001:db8::1]:53":            {Protocol: "udp", Address: "2001:db8::1", Port: 53},
		"tcp [::ffff:192.0.2.1]:80":       {Protocol: "tcp", Address: "192.0.2.1", Port: 80},
		"tcp [fe80::1%lo]:80":             {Protocol: "tcp", Address: "fe80::1", Port: 80},
		"icmp 2001:db8::1":                {Protocol: "icmp", Address: "2001:db8::1"},
		"icmp [2001:db8::1] --json":       {Protocol: "icmp", Address: "2001:db8::1"},
		"tcp 192.0.2.1:0":                 {Protocol: "tcp", Address: "192.0.2.1"},
		"icmp 192.0.2.1 --socket " + path: {Protocol: "icmp", Address: "192.0.2.1"},
		"tcp pypi.test:443":               {Protocol: "tcp", Name: "pypi.test", Port: 443},
		"icmp PyPI.test.":                 {Protocol: "icmp", Name: "PyPI.test."},
	} {
		st, out := ctl(append([]string{"why", "--socket", path}, strings.Fields(words)...)...)
		if r := s.last(); st != 0 || r.Command != api.Why || *r.Target != want {
			t.Errorf("why %s: status %d: %s: %+v", words, st, out, r.Target)
		}
		if !strings.Contains(words, "--json") && out != "1  packet   to ?]0;x?\n2  verdict  allowed\n" {
			t.Errorf("why %s:\n%s", words, out)
		}
	}
	for _, host := range []string{"192.0.2.1:80", "[2001:db8::1]:80", "example.org:80"} {
		if st, out := ctl("why", "icmp", host, "--socket", path); st != 1 || !strings.Contains(out, "has a port, which icmp does not") {
			t.Errorf("why icmp %s: status %d: %s", host, st, out)
		}
	}
	for name, steps := range map[string][]api.Step{"nothing": nil, "no verdict": {{What: "packet", Result: "x"}}} {
		path, _ := speak(t, map[string]api.Reply{api.Why: {Why: steps}})
		if st, out := ctl("why", "tcp", "192.0.2.1:80", "--socket", path); st != 1 || !strings.Contains(out, "something else") {
			t.Errorf("%s: status %d: %s", name, st, out)
		}
	}
}

// TestWhyName: where no rule is by name, which an instance says by no steps, a name stands
// for its addresses here.
func TestWhyName(t *testing.T) {
	path, s := speak(t, nil)
	if st, out := ctl("why", "tcp", "localhost:80", "--socket", path); st != 1 || !strings.Contains(out, "something else") {
		t.Errorf("status %d: %s", st, out)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var targets []api.Target
	for _, r := range s.asked {
		if r.Command == api.Why {
			targets = append(targets, *r.Target)
		}
	}
	if len(targets) != 2 || targets[0].Name != "localhost" || targets[1].Name != "" || !netip.MustParseAddr(targets[1].Address).IsLoopback() {
		t.Errorf("asked %+v", targets)
	}
}

// TestForwardSpecs: which rules are asked for by which words.
func TestForwardSpecs(t *testing.T) {
	path, s := speak(t, nil)
	for words, want := range map[string][]string{
		"add 80":                         {"-t 80"},
		"add -t 80 81 -u 53 -T 90 -U 91": {"-t 80", "-t 81", "-u 53", "-T 90", "-U 91"},
		"add -t80 -u53:54":               {"-t 80", "-u 53:54"},
		"delete -t 80":                   {"-t 80"},
		"add 80 -u 53 54":                {"-t 80", "-u 53", "-u 54"},
		"add -t %eth0/80,~81":            {"-t %eth0/80,~81"},
	} {
		st, out := ctl(append([]string{"forward", "--socket", path}, strings.Fields(words)...)...)
		r := s.last()
		if st != 0 || out != "" || r.Command != api.Forward || !slices.Equal(r.Forward.Specs, want) || r.Forward.Delete != strings.HasPrefix(words, "delete") {
			t.Errorf("forward %s: status %d: %s: %+v", words, st, out, r.Forward)
		}
	}
	many := []string{"forward", "add", "--socket", path}
	for range 5000 {
		many = append(many, "127.0.0.1/10000:10000")
	}
	before := len(s.asked)
	if st, out := ctl(many...); st != 1 || !strings.Contains(out, "change some at a time") || len(s.asked) != before {
		t.Errorf("status %d: %s", st, out)
	}
	path, _ = speak(t, map[string]api.Reply{api.Forward: {Error: "port 80 is \x1b[31mtaken"}})
	if st, out := ctl("forward", "add", "80", "--socket", path); st != 1 || out != "port 80 is ?[31mtaken\n" {
		t.Errorf("status %d: %q", st, out)
	}
}

// TestForwardsShown: how port rules are printed.
func TestForwardsShown(t *testing.T) {
	path, _ := speak(t, map[string]api.Reply{api.Forwards: {Forwards: []api.PortRule{
		{Direction: "in", Protocol: "tcp", Listen: "[*]:80", Target: "8080", Option: "-t 80:8080", Ports: 1, Listens: 1, Listening: true},
		{Direction: "out", Protocol: "udp", Listen: "[*]%lo:1-9", Target: "1-9\u009b", Flags: "auto-scan", Option: "-U 1-9:1-9,auto", Ports: 9},
	}}})
	const want = `FROM   PROTO  LISTENS ON  LEADS TO  PORTS               OPTION
host   tcp    [*]:80      8080      1 of 1              -t 80:8080
guest  udp    [*]%lo:1-9  1-9?      0 of 9 (auto-scan)  -U 1-9:1-9,auto
`
	if st, out := ctl("forward", "list", "--socket", path); st != 0 || out != want {
		t.Errorf("status %d:\n%s", st, out)
	}
	path, _ = speak(t, nil)
	if st, out := ctl("forward", "list", "--json", "--socket", path); st != 0 || out != "[]\n" {
		t.Errorf("none: status %d: %q", st, out)
	}
}

// TestRulesLoaded: what is asked for by a file, what an instance says to it, and which
// words make no sense.
func TestRulesLoaded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("allow any # x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path, s := speak(t, map[string]api.Reply{api.Load: {Load: &api.LoadReply{Rules: 3, Ended: 2, Warnings: []string{"f:1: \x1b[2J"}}}})
	for flags, want := range map[string]api.LoadSpec{"": {}, "--keep": {Keep: true}, "--end": {End: true}} {
		want.Name, want.Text = file, "allow any # x\n"
		st, out := ctl(append([]string{"rules", "load", file, "--socket", path}, strings.Fields(flags)...)...)
		if r := s.last(); st != 0 || r.Command != api.Load || *r.Load != want || out != "3 rules are in force, 2 flows end.\nf:1: ?[2J\n" {
			t.Errorf("%s: status %d: %q: %+v", flags, st, out, r.Load)
		}
	}
	if st, out := ctl("rules", "load", file, "--json", "--socket", path); st != 0 || !strings.Contains(out, `"ended": 2`) {
		t.Errorf("status %d: %s", st, out)
	}
	path, _ = speak(t, map[string]api.Reply{api.Load: {Error: "no\x1b", Problems: []string{"f:1:2: a\nb", "f:3:4: c"}}})
	if st, out := ctl("rules", "load", file, "--socket", path); st != 1 || out != "f:1:2: a b\nf:3:4: c\nno?\n" {
		t.Errorf("status %d: %q", st, out)
	}
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("allow a b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"load": "FILE is missing", "load x y": "'y'", "load x --keep --end": "exclude each other", "show x": "'x'", "lod": "'lod' is none of show, load, suggest, test",
		"--keep": "option '--keep' is for load", "load x --wildcards 3": "option '--wildcards' is for suggest", "test tcp": "HOST[:PORT] is missing",
		"suggest x --wildcards 1": "at least 2", "suggest": "FILE is missing", "load " + bad: bad + ":1:9: ", "load /nowhere": "no such file",
		"suggest /nowhere": "no such file", "suggest " + bad: "no line of it is one of a record",
	} {
		if st, out := ctl(append(append([]string{"rules"}, strings.Fields(args)...), "--socket", path)...); st != 1 || !strings.Contains(out, want) {
			t.Errorf("rules %s: status %d: %s, want %q", args, st, out, want)
		}
	}
}

// TestRulesSuggested: a record becomes rules.
func TestRulesSuggested(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	line := `{"time":"2026-11-29T20:00:00Z","name":"%s.pypi.test","address":"192.0.2.1","protocol":"tcp","port":443,"verdict":"denied","rule":"--deny any","count":1}` + "\n"
	if err := os.WriteFile(file, []byte(fmt.Sprintf(line+line, "a", "b")+"half"), 0o600); err != nil {
		t.Fatal(err)
	}
	const head = "# Made of a record of --audit: look at it before it is used.\n"
	for flags, want := range map[string]string{
		"":              head + "allow tcp:a.pypi.test:443 # 1 connection, 1 address\nallow tcp:b.pypi.test:443 # 1 connection, 1 address\ndeny any\n",
		"--wildcards 2": head + "allow tcp:*.pypi.test:443 # 2 connections, 1 address: a.pypi.test b.pypi.test\ndeny any\n",
	} {
		st, out := ctl(append([]string{"rules", "suggest", file}, strings.Fields(flags)...)...)
		if rest, ok := strings.CutSuffix(out, file+": 1 lines are none of a record, and are left out\n"); st != 0 || !ok || rest != want {
			t.Errorf("%s: status %d:\n%s", flags, st, out)
		}
	}
}
