// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/broker/control/api"
	"aldente/test/netlab"
)

// ruledGuest is one behind rules of a file.
type ruledGuest struct {
	*netlab.Guest
	t       *testing.T
	lab     *netlab.Lab
	file    string
	control string
}

// ruled starts one with a rules file.
func ruled(t *testing.T, lab *netlab.Lab, rules string, args ...string) *ruledGuest {
	t.Helper()
	dir := socketDir(t)
	g := &ruledGuest{t: t, lab: lab, file: filepath.Join(dir, "rules"), control: filepath.Join(dir, "s")}
	g.write(rules)
	g.Guest = lab.Guest(append([]string{"-d", "--rules", g.file, "--control", g.control}, args...)...) // -d: a command's instance tells only warnings
	return g
}

// write puts other rules into the file, as editors do: another file by the same name.
func (g *ruledGuest) write(rules string) {
	g.t.Helper()
	err := os.WriteFile(g.file+".new", []byte(rules), 0o644)
	if err == nil {
		err = os.Rename(g.file+".new", g.file)
	}
	if err != nil {
		g.t.Fatal(err)
	}
}

// hangUp sends SIGHUP and waits until the log has something more that holds words.
func (g *ruledGuest) hangUp(words string) string {
	g.t.Helper()
	had := len(g.Proc.Output())
	if err := g.Proc.Signal(syscall.SIGHUP); err != nil {
		g.t.Fatal(err)
	}
	return g.logged(had, words)
}

// logged waits until what the log has behind a place holds words.
func (g *ruledGuest) logged(had int, words string) string {
	g.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if log := g.Proc.Output()[had:]; strings.Contains(log, words) {
			return log
		} else if time.Now().After(end) {
			g.t.Fatalf("the log does not say %q:\n%s", words, log)
		}
	}
}

// load has our client load a file of rules.
func (g *ruledGuest) load(rules string, args ...string) (int, string) {
	g.t.Helper()
	path := g.file + ".load"
	if err := os.WriteFile(path, []byte(rules), 0o644); err != nil {
		g.t.Fatal(err)
	}
	return aldentectl(g.t, g.lab, netlab.Nobody, append([]string{"rules", "load", path, "--socket", g.control}, args...)...)
}

// talk opens a connection to an echo server and tries it.
func (g *ruledGuest) talk(network, to string) net.Conn {
	g.t.Helper()
	c := g.Dial(network, to)
	g.t.Cleanup(func() { c.Close() })
	if !lives(c) {
		g.t.Fatalf("%s %s says nothing", network, to)
	}
	return c
}

// lives tells whether a connection still echoes.
func lives(c net.Conn) bool {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("?")); err != nil {
		return false
	}
	_, err := c.Read(make([]byte, 1))
	return err == nil
}

// ends waits for a TCP connection to be reset.
func (g *ruledGuest) ends(what string, c net.Conn) {
	g.t.Helper()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		g.t.Errorf("%s: %v, want a reset", what, err)
	}
}

// silences waits until what a UDP socket sends is refused.
func (g *ruledGuest) silences(what string, c net.Conn) {
	g.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_ = c.SetDeadline(time.Now().Add(time.Second))
		_, err := c.Write([]byte("?"))
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		switch {
		case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EACCES):
			return
		case time.Now().After(end):
			g.t.Errorf("%s: still answered, or %v", what, err)
			return
		}
	}
}

// TestRulesReload: a file that is read again changes what is allowed, and ends what is
// not allowed any more and nothing else. One that is wrong changes nothing, and the log
// says where.
func TestRulesReload(t *testing.T) {
	needOurs(t)
	lab := egressLab(t)
	const all = "# all that is used here\nallow any:7\nallow any:80\ndeny any\n"
	g := ruled(t, lab, all)
	for _, f := range families {
		g.write(all)
		g.hangUp("egress rules were loaded")
		at := func(port string) string { return net.JoinHostPort(f.remote, port) }
		stays, goes := g.talk("tcp", at("7")), g.talk("tcp", at("80"))
		staysUDP, goesUDP := g.talk("udp", at("7")), g.talk("udp", at("80"))

		for name, rules := range map[string]string{"wrong": "allow any:7\n  alow any\n", "empty": "\n", "half": "allow any:7\ndeny an"} {
			g.write(rules)
			log := g.hangUp("the egress rules stay as they are")
			if want := map[string]string{"wrong": g.file + `:2:3: `, "empty": g.file + ": there is no rule", "half": g.file + ":2:6: "}[name]; !strings.Contains(log, want) {
				t.Errorf("%s: %q is not in\n%s", name, want, log)
			}
		}
		if err := os.Remove(g.file); err != nil {
			t.Fatal(err)
		}
		if log := g.hangUp("the egress rules stay as they are"); !strings.Contains(log, g.file+": no such file or directory") {
			t.Errorf("no file:\n%s", log)
		}
		for name, c := range map[string]net.Conn{"7": stays, "80": goes, "udp 7": staysUDP, "udp 80": goesUDP} {
			if !lives(c) {
				t.Errorf("%s, %s: ended by rules that were not loaded", f.name, name)
			}
		}

		g.write("allow any:7\ndeny any\n")
		g.hangUp("egress rules were loaded")
		g.ends(f.name, goes)
		g.silences(f.name, goesUDP)
		if got := reach(g.Guest, "tcp "+at("80")); got != prohibited {
			t.Errorf("%s: a new connection: %s", f.name, got)
		}
		for name, c := range map[string]net.Conn{"tcp": stays, "udp": staysUDP} {
			if !lives(c) {
				t.Errorf("%s, %s: what is allowed has ended", f.name, name)
			}
		}
	}
}

// TestRulesLoad: a client's rules stand in the place of the file's, all or none; flows go
// on if that is asked for. Who may not change anything does not.
func TestRulesLoad(t *testing.T) {
	needOurs(t)
	lab := egressLab(t)
	g := ruled(t, lab, "allow any:7\nallow any:80\ndeny any\n", "--deny", "192.0.2.9")
	if got := reach(g.Guest, "tcp 192.0.2.9:7"); got != open {
		t.Fatalf("the file stands before the option behind it: %s", got)
	}
	remote := "198.51.100.9:80"
	c := g.talk("tcp", remote)
	must := func(want string, rules string, args ...string) {
		t.Helper()
		if st, out := g.load(rules, args...); st != 0 || !strings.Contains(out, want) {
			t.Fatalf("status %d: %s", st, out)
		}
	}
	must("3 rules are in force, 0 flows end", "allow any:7\ndeny any:80\n", "--keep")
	if !lives(c) {
		t.Error("--keep does not keep")
	}
	if got := reach(g.Guest, "tcp "+remote); got != prohibited {
		t.Errorf("a new connection: %s", got)
	}
	for rules, want := range map[string]string{
		"allow any\ndeny any:x\n": g.file + ".load:2:6: ", "allow a b c\n": ".load:1:9: ", "\n": "there is no rule in it", "nat64 2001:db8:64::/96\n": "nat64 cannot be changed",
	} {
		if st, out := g.load(rules); st != 1 || !strings.Contains(out, want) {
			t.Errorf("%q: status %d: %s", rules, st, out)
		}
	}
	if got := reach(g.Guest, "tcp "+remote); got != prohibited || !lives(c) {
		t.Errorf("rules that were not taken are in force: %s", got)
	}
	must("1 flows end", "allow any:7\ndeny any:80\n", "--end")
	g.ends("--end", c)
	rules := asked[[]api.Rule](t, lab, g.Guest, "rules")
	i := 0
	for ; i < len(rules) && rules[i].Source == "built in"; i++ {
	}
	var got []string
	for _, r := range rules[i:min(i+3, len(rules))] {
		got = append(got, r.Text+" "+r.Source+" "+strings.TrimPrefix(r.Note, g.file))
	}
	if want := "--allow any:7 file .load:1, --deny any:80 file .load:2, --deny 192.0.2.9 option "; strings.Join(got, ", ") != want {
		t.Errorf("%q, want %q", strings.Join(got, ", "), want)
	}

	// The file still says what it said.
	g.hangUp("egress rules were loaded")
	if got := reach(g.Guest, "tcp "+remote); got != open {
		t.Errorf("after SIGHUP: %s", got)
	}
}

// TestRulesLoadStrangers: nobody changes rules by the socket that only shows, and no
// process of the guest's by either.
func TestRulesLoadStrangers(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := ruled(t, lab, "deny any\n")
	path := g.file + ".wide"
	if err := os.WriteFile(path, []byte("allow any\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	client := filepath.Join(netlab.Stage(), "aldentectl")
	for _, socket := range []string{g.control, fmt.Sprintf("@aldente/%d", g.Proc.PID)} {
		p := g.Start(netlab.Spec{Args: []string{client, "rules", "load", path, "--socket", socket}, User: netlab.Nobody})
		if st := p.Wait(); st == 0 {
			t.Errorf("the guest changes its rules by %s: %s", socket, p.Output())
		}
	}
	plain := lab.Guest("--rules", g.file)
	if st, out := aldentectl(t, lab, netlab.Nobody, "rules", "load", path, "--pid", fmt.Sprint(plain.Proc.PID)); st != 1 || !strings.Contains(out, "without --control") {
		t.Errorf("without --control: status %d: %s", st, out)
	}
	for _, g := range []*netlab.Guest{g.Guest, plain} {
		if got := reach(g, "tcp 192.0.2.9:7"); got != prohibited {
			t.Errorf("the rules have become wider: %s", got)
		}
	}
}

// TestRulesFileStart: a start with a file that is wrong is none, and says all that is.
func TestRulesFileStart(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	dir := socketDir(t)
	path := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	good, bad := path("good", "allow tcp:any:443\r\ndeny any"), path("bad", "allow\nallow tcp:any:0\n")
	for _, tt := range []struct {
		args   []string
		status int
		want   []string
	}{
		{[]string{"--rules", bad, "--rules", filepath.Join(dir, "none")}, 1, []string{"none: no such file or directory (name a file that is there)"}},
		{[]string{"--rules", good, "--rules", bad}, 1, []string{bad + ":1:1: allow needs DEST", bad + ":2:7: "}},
		{[]string{"--rules", dir}, 1, []string{"no regular file"}},
		{[]string{"--check-rules", good, bad}, 1, []string{"1  allow tcp:any:443  " + good + ":1\n2  deny any ", bad + ":1:1: "}},
		{[]string{"--allow", "any", "--check-rules", good}, 0, []string{"1  allow any ", "warning: " + good + ":2: deny any: never decides: rule 1 stands before it and allows all of it"}},
	} {
		p := lab.StartPasta(netlab.GuestSpec{User: netlab.Nobody}, append(tt.args, map[bool][]string{true: nil, false: {"--config-net", "--", "true"}}[strings.Contains(tt.args[0]+tt.args[len(tt.args)-2], "check")]...)...)
		st := p.Wait()
		for _, w := range tt.want {
			if st != tt.status || !strings.Contains(p.Output(), w) {
				t.Errorf("%q: status %d, no %q in\n%s", tt.args, st, w, p.Output())
			}
		}
	}
}

// TestRulesReloadOthers: redirects, and who may connect to the guest, follow rules that
// are changed as well, and go back with those that are refused.
func TestRulesReloadOthers(t *testing.T) {
	needOurs(t)
	lab := egressLab(t)
	const in, out = "allow-in any\nallow any\n", "deny-in any\nallow any\n"
	g := ruled(t, lab, in+"redirect 198.51.100.77:80=192.0.2.9:7\n", "-t", "9001")
	go netlab.Echo(g.Listen("tcp", ":9001"))
	comesIn := func() bool {
		c, err := lab.Remote.DialError("tcp", netlab.Host4+":9001", 5*time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		return lives(c)
	}
	check := func(name string, inside bool, redirected string) {
		t.Helper()
		if got := reach(g.Guest, "tcp 198.51.100.77:80"); got != redirected {
			t.Errorf("%s: the redirect leads to %s, want %s", name, got, redirected)
		}
		if comesIn() != inside {
			t.Errorf("%s: from outside: %t, want %t", name, !inside, inside)
		}
	}
	check("at the start", true, open)
	g.write(out + "redirect 198.51.100.77:80=192.0.2.9:9\n") // where nobody listens
	g.hangUp("egress rules were loaded")
	check("changed", false, refused)
	for _, wrong := range []string{in + "redirect x\n", in + "limit udp=5\n", "allow-in nobody\nallow any\n"} {
		g.write(wrong)
		g.hangUp("the egress rules stay as they are")
		check("wrong", false, refused)
	}
	g.write(in + "redirect 198.51.100.77:80=192.0.2.9:7\n")
	g.hangUp("egress rules were loaded")
	check("and back", true, open)
	hits := hitsBy(t, lab, g.Guest)
	for rule, at := range map[string]string{"--redirect 198.51.100.77:80=192.0.2.9:7 %s: before the rules, which judge where it goes": ":3",
		"--allow-in any %s: who connects to the guest; of UDP not counted": ":1", "--allow any %s": ":2"} {
		if _, listed := hits[strings.Replace(rule, "%s", g.file+at, 1)]; !listed {
			t.Errorf("%q at %s is not listed: %v", rule, at, hits)
		}
	}
}

// TestCheckRulesJSON: what --check-rules says for programs is all that it says for people.
func TestCheckRulesJSON(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	dir := socketDir(t)
	good, bad, none := filepath.Join(dir, "good"), filepath.Join(dir, "bad"), filepath.Join(dir, "none")
	for path, text := range map[string]string{good: "deny any\nallow pypi.test:443\nredirect 192.0.2.1=192.0.2.2\n", bad: "allow\nallow tcp:any:0\n"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := lab.StartPasta(netlab.GuestSpec{User: netlab.Nobody}, "--check-rules", "--json", good, bad, none)
	var sets []struct {
		Files    []string
		Warnings []string
		Rules    []struct {
			Number     int
			Rule, From string
			Warnings   []string
		}
		Errors []struct {
			File, Message, Next string
			Line, Column        int
		}
	}
	if st, err := p.Wait(), json.Unmarshal([]byte(p.Stdout()), &sets); st != 1 || err != nil || len(sets) != 3 || p.Output() != p.Stdout() {
		t.Fatalf("status %d, %v: %s", st, err, p.Output())
	}
	want := []string{"1 deny any " + good + ":1 0", "2 allow pypi.test:443 " + good + ":2 1", "3 redirect 192.0.2.1=192.0.2.2 " + good + ":3 0"}
	var got []string
	for _, r := range sets[0].Rules {
		got = append(got, fmt.Sprintf("%d %s %s %d", r.Number, r.Rule, r.From, len(r.Warnings)))
	}
	if !slices.Equal(got, want) || len(sets[0].Errors) != 0 || !slices.Equal(sets[0].Files, []string{good}) {
		t.Errorf("%q, want %q; %+v", got, want, sets[0])
	}
	if e := sets[1].Errors; len(e) != 2 || e[0].File != bad || e[0].Line != 1 || e[0].Column != 1 || e[1].Line != 2 || e[1].Column != 7 || e[0].Message == "" || len(sets[1].Rules) != 0 {
		t.Errorf("%+v", sets[1])
	}
	if e := sets[2].Errors; len(e) != 1 || e[0].File != none || e[0].Line != 0 || e[0].Next == "" {
		t.Errorf("%+v", sets[2])
	}
}

// TestRulesReloadAsRoot: what root has started is somebody else by then, and reads root's
// file all the same: by a process that has root's user, one capability, no descriptor of
// anybody's, and ends with the instance. A link it does not follow.
func TestRulesReloadAsRoot(t *testing.T) {
	needOurs(t)
	needRoot(t)
	lab := egressLab(t)
	dir := t.TempDir()
	g := &ruledGuest{t: t, lab: lab, file: filepath.Join(dir, "rules")}
	g.write("allow tcp:192.0.2.9:7\ndeny any\n")
	if err := os.Chmod(g.file, 0o600); err != nil {
		t.Fatal(err)
	}
	g.Guest = lab.GuestWith(netlab.GuestSpec{User: netlab.Root, Args: []string{"--config-net", "-d", "--rules", g.file}})
	reader := 0
	for _, pid := range netlab.Children(g.Proc.PID) {
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(comm) == "aldente-reader\n" {
			reader = pid
		}
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", reader))
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", reader))
	for _, line := range []string{"Uid:\t0\t", "CapPrm:\t0000000000000004\n", "CapEff:\t0000000000000004\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
		if !strings.Contains(string(status), line) {
			t.Errorf("the reader has not %q:\n%s", line, status)
		}
	}
	if len(fds) != 2 {
		t.Errorf("the reader has %d descriptors", len(fds))
	}
	c := g.talk("tcp", "192.0.2.9:7")
	if err := os.WriteFile(g.file, []byte("deny any\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.hangUp("egress rules were loaded")
	g.ends("as root", c)

	if err := os.Rename(g.file, g.file+".real"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(g.file+".real", g.file); err != nil {
		t.Fatal(err)
	}
	if log := g.hangUp("the egress rules stay as they are"); !strings.Contains(log, "is a link") {
		t.Errorf("a link:\n%s", log)
	}
	g.Close()
	g.Proc.Wait()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/fd/0", reader)); err != nil {
			if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", reader)); string(comm) != "aldente-reader\n" {
				break
			}
		}
		if time.Now().After(end) {
			t.Fatal("the reader outlives its instance")
		}
	}
}

// TestRulesReloadBypass: a connection past the link ends as well when the rules refuse
// where it leads, and one elsewhere does not; a rule for ports that goes ends none.
func TestRulesReloadBypass(t *testing.T) {
	needOurs(t)
	lab := egressLab(t)
	g := ruled(t, lab, "allow any\n", "-T", "7,80")
	goes, stays := g.talk("tcp", "127.0.0.1:7"), g.talk("tcp", "[::1]:80")
	g.write("deny host:7\nallow any\n")
	g.hangUp("egress rules were loaded")
	g.ends("past the link", goes)
	if !lives(stays) {
		t.Error("what is allowed has ended")
	}
	if st, out := aldentectl(t, lab, netlab.Nobody, "forward", "delete", "-T", "80", "--socket", g.control); st != 0 {
		t.Fatal(out)
	}
	g.hangUp("egress rules were loaded")
	if !lives(stays) {
		t.Error("a rule for ports that is gone has ended its connection")
	}
}
