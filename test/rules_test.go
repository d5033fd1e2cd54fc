// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"aldente/broker/control/api"
	"aldente/broker/control/wire"
	"aldente/test/netlab"
)

// ask has our client ask an instance, as its user on the host, and returns its status
// and what it prints.
func ask(lab *netlab.Lab, g *netlab.Guest, command string, args ...string) (int, string) {
	argv := slices.Concat([]string{filepath.Join(netlab.Stage(), "aldentectl"), command, "--pid", strconv.Itoa(g.Proc.PID)}, args)
	p := lab.Host.Start(netlab.Spec{Args: argv, User: netlab.Nobody})
	return p.Wait(), p.Output()
}

// asked is ask for a value.
func asked[T any](t *testing.T, lab *netlab.Lab, g *netlab.Guest, command string, args ...string) (v T) {
	t.Helper()
	st, out := ask(lab, g, command, append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), &v); st != 0 || err != nil {
		t.Fatalf("%s %q: status %d, %v: %s", command, args, st, err, out)
	}
	return v
}

// hitsBy are the hits of all rules, by "text note".
func hitsBy(t *testing.T, lab *netlab.Lab, g *netlab.Guest) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	for _, r := range asked[[]api.Rule](t, lab, g, "rules") {
		all[strings.TrimSpace(r.Text+" "+r.Note)] = r.Hits
	}
	return all
}

// TestRulesCount: the rule that a connection was refused or allowed by counts it, and
// nothing else does.
func TestRulesCount(t *testing.T) {
	needOurs(t)
	lab := egressLab(t)
	g := lab.GuestWith(netlab.GuestSpec{Binary: aldente(), Args: []string{"--config-net", "--deny", "tcp:198.51.100.9", "--allow", "tcp:192.0.2.9:7"}})
	for _, tt := range []struct{ what, want, rule string }{
		{"tcp 192.0.2.9:7", open, "--allow tcp:192.0.2.9:7"},
		{"tcp 198.51.100.9:7", prohibited, "--deny tcp:198.51.100.9"},
		{"tcp 169.254.169.254:80", prohibited, "--deny metadata"},
		{"udp [fd00:ec2::254]:80", prohibited, "--deny metadata"},
		{"tcp [2001:db8:1::9]:7", open, "--allow any what no rule fits"},
	} {
		before := hitsBy(t, lab, g)
		if got := reach(g, tt.what); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.what, got, tt.want)
		}
		for rule, n := range hitsBy(t, lab, g) {
			// A guest that is refused may try again.
			if grown := n - before[rule]; (grown > 0) != (rule == tt.rule) {
				t.Errorf("%s: %s counts %d", tt.what, rule, grown)
			}
		}
	}
	st, out := ask(lab, g, "rules")
	if st != 0 || !strings.HasPrefix(out, "#") || strings.Count(out, "\n") < 10 || !strings.Contains(out, "option    --deny tcp:198.51.100.9") {
		t.Errorf("status %d:\n%s", st, out)
	}
}

// explanation is what "why --json" prints of one target.
type explanation struct {
	Target api.Target
	Allow  bool
	Steps  []api.Step
}

// because asks why, and returns whether it is allowed and the last step.
func because(t *testing.T, lab *netlab.Lab, g *netlab.Guest, what string) (allow bool, verdict string) {
	t.Helper()
	all := asked[[]explanation](t, lab, g, "why", strings.Fields(what)...)
	if len(all) != 1 || len(all[0].Steps) == 0 {
		t.Fatalf("why %s: %+v", what, all)
	}
	return all[0].Allow, all[0].Steps[len(all[0].Steps)-1].Result
}

// TestWhyTellsTheTruth: what is explained is what happens, under each name that
// namespaces have; and to ask neither connects nor counts.
func TestWhyTellsTheTruth(t *testing.T) {
	needOurs(t)
	lab := egressLab(t)
	go netlab.Echo(lab.Host.Listen("tcp", "127.0.0.1:7001"))
	for _, tt := range []struct {
		name, binary string
		args         []string
		want         map[string]string // reached from the guest
	}{
		{"aldente", aldente(), []string{"--map-host-loopback", "192.0.2.77", "--allow", "tcp:127.0.0.1:7", "-T", "7001", "-a", "192.0.2.50", "-a", "2001:db8:1::50"}, map[string]string{
			"tcp 192.0.2.9:7": open, "udp [2001:db8:1::9]:7": open, "icmp 192.0.2.9": open, "tcp 192.0.2.77:7": open,
			"tcp 192.0.2.77:80": prohibited, "udp 192.0.2.77:7": prohibited, "tcp 192.0.2.2:7": prohibited, "tcp [2001:db8:1::2]:7": prohibited,
			"tcp 169.254.169.254:80": prohibited, "icmp 169.254.169.254": prohibited, "udp [fd00:ec2::254]:80": prohibited,
			"tcp 127.0.0.1:7001": open, "tcp 192.0.2.1:7": open, "tcp 10.9.8.7:7": open,
		}},
		{"aldente, IPv4 alone", aldente(), []string{"-4", "--deny", "private"}, map[string]string{
			"tcp 192.0.2.9:7": open, "tcp 10.9.8.7:7": prohibited, "udp 172.16.9.9:7": prohibited, "icmp 192.168.9.9": prohibited,
		}},
		{"pasta", netlab.Pasta(), nil, map[string]string{
			"tcp 192.0.2.9:7": open, "udp 192.0.2.9:7": open, "icmp 2001:db8:1::9": open, "tcp 192.0.2.1:7": open, "tcp 169.254.169.254:80": open,
			"udp 192.0.2.1:7": open, "tcp 10.9.8.7:7": open, "tcp [fd12::7]:7": open,
		}},
		{"pasta with rules", netlab.Pasta(), []string{"--allow", "tcp:192.0.2.9:7", "--deny", "192.0.2.0/24", "--deny", "udp:any", "--deny", "host"}, map[string]string{
			"tcp 192.0.2.9:7": open, "tcp 192.0.2.9:80": prohibited, "udp 10.9.8.7:7": prohibited, "udp [2001:db8:1::9]:7": prohibited,
			"tcp 10.9.8.7:7": open, "icmp 192.0.2.9": prohibited, "icmp 2001:db8:1::9": open, "tcp 192.0.2.1:7": prohibited,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab := lab.For(t)
			g := lab.GuestWith(netlab.GuestSpec{Binary: tt.binary, Args: append([]string{"--config-net"}, tt.args...)})
			for what, want := range tt.want {
				before := hitsBy(t, lab, g)
				allow, verdict := because(t, lab, g, what)
				if after := hitsBy(t, lab, g); fmt.Sprint(after) != fmt.Sprint(before) {
					t.Errorf("%s: to ask counts: %v, before %v", what, after, before)
				}
				if got := reach(g, what); got != want {
					t.Errorf("%s: %s, want %s", what, got, want)
				}
				if allow != (want == open) || (want == prohibited) != strings.HasPrefix(verdict, `refused by "--deny `) {
					t.Errorf("%s is %s, explained as %q", what, want, verdict)
				}
			}
		})
	}
}

// TestWhyRefuses: what never gets as far as a rule is explained too, names are looked
// up on the host, and nonsense is an error.
func TestWhyRefuses(t *testing.T) {
	needOurs(t)
	lab := egressLab(t)
	g := lab.Guest("-4", "--no-udp")
	for what, want := range map[string]string{
		"tcp [2001:db8:1::9]:7": "refused: an option takes IPv6 away", "udp 192.0.2.9:7": "refused by --no-udp",
		"tcp 127.0.0.1:7": "refused: the host's loopback has another name in the guest, 192.0.2.1; -T 7 brings", "tcp 224.0.0.1:7": "refused, whatever",
		"tcp 192.0.2.9:0": "refused: nothing has port 0",
	} {
		if allow, verdict := because(t, lab, g, what); allow || !strings.HasPrefix(verdict, want) {
			t.Errorf("%s: %v, %q, want %q", what, allow, verdict, want)
		}
	}
	if st, out := ask(lab, g, "why", "tcp", "localhost:7"); st != 0 || !strings.HasPrefix(out, "localhost is ") || !strings.Contains(out, "here on the host") ||
		!strings.Contains(out, "verdict  refused") {
		t.Errorf("a name: status %d\n%s", st, out)
	}
	for args, want := range map[string]string{
		"tcp": "is missing", "tcp 192.0.2.9": "is not HOST:PORT", "sctp 192.0.2.9:7": "none of tcp, udp and icmp", "tcp 192.0.2.9:x": "no port",
		"tcp 192.0.2.9:7 x": "nothing that 'x'", "icmp a..b": "has no address here",
	} {
		if st, out := ask(lab, g, "why", strings.Fields(args)...); st != 1 || !strings.Contains(out, want) {
			t.Errorf("why %s: status %d: %s", args, st, out)
		}
	}
}

// TestForwardLive: port rules are added and deleted while an instance runs, and carry
// traffic at once; what cannot be done leaves all as it was; and the socket that
// everybody of the user may read changes nothing.
func TestForwardLive(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	path := filepath.Join(socketDir(t), "control")
	s := &steered{t: t, lab: lab, g: lab.Guest("--control", path)}
	s.answer(8080, 8081)
	go netlab.Echo(lab.Host.Listen("tcp", "127.0.0.1:7001"))
	must := func(args ...string) {
		t.Helper()
		if st, out := ask(lab, s.g, "forward", args...); st != 0 || out != "" {
			t.Fatalf("forward %q: status %d: %s", args, st, out)
		}
	}
	options := func() string {
		t.Helper()
		var all []string
		for _, r := range asked[[]api.PortRule](t, lab, s.g, "forward", "list") {
			all = append(all, r.Option)
			if r.Listens != r.Ports || !r.Listening {
				t.Errorf("%+v does not listen", r)
			}
		}
		return strings.Join(all, " ")
	}
	if got := options(); got != "" {
		t.Errorf("at the start: %s", got)
	}
	must("add", "-t", "9001:8080", "-u", "9001:8080", "-T", "7002:7001")
	must("add", "9002:8081", "-t9001:8080") // the latter exists
	for _, f := range families {
		for _, network := range []string{"tcp", "udp"} {
			s.reaches(lab.Remote, network, f.at(f.host, "9001"), "8080")
			s.reaches(lab.Host, network, f.at(f.lo, "9001"), "8080")
		}
		s.reaches(lab.Remote, "tcp", f.at(f.host, "9002"), "8081")
	}
	s.reaches(s.g.NS, "tcp", "127.0.0.1:7002", "?")
	const all = "-t 9001:8080 -u 9001:8080 -t 9002:8081 -T 7002:7001"
	if got := options(); got != all {
		t.Errorf("%s, want %s", got, all)
	}
	if st, out := ask(lab, s.g, "forward", "list"); st != 0 || !strings.Contains(out, "\nguest  tcp    [*]%lo:7002  7001      1 of 1  -T 7002:7001\n") {
		t.Errorf("status %d:\n%s", st, out)
	}
	if allow, verdict := because(t, lab, s.g, "tcp 127.0.0.1:7002"); !allow || verdict != "allowed: to tcp 127.0.0.1:7001" {
		t.Errorf("%v, %s", allow, verdict)
	}

	taken := lab.Host.Listen("tcp", ":9100")
	defer taken.Close()
	for args, want := range map[string]string{
		"add -t 9003 -t 9100": "address already in use, for rule TCP [*]:9100", "add -t 9000-9001": "conflict: TCP [*]:9000-9001",
		"delete -t 9001:8080 -t 9009": "there is no rule -t 9009:9009", "delete 9001": "there is no rule -t 9001:9001; there is -t 9001:8080",
		"add": "no ports are given", "add -t": "requires an argument -- 't'", "add -t -u 5": "requires an argument -- 't'", "add -x 5": "invalid option '-x'",
		"change -t 5": "none of list, add and delete", "list 5": "nothing that '5'", "": "is missing", "add -t none": "names no port", "add -t x": "Invalid port specifier 'x'",
	} {
		if st, out := ask(lab, s.g, "forward", strings.Fields(args)...); st != 1 || !strings.Contains(out, want) {
			t.Errorf("forward %s: status %d: %s, want %q", args, st, out, want)
		}
	}
	if got := options(); got != all {
		t.Errorf("after errors: %s, want %s", got, all)
	}

	must("delete", "-t", "9001:8080", "9002:8081", "-T", "7002:7001")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9001", "")
	s.reaches(lab.Remote, "udp", netlab.Host4+":9001", "8080")
	s.reaches(s.g.NS, "tcp", "127.0.0.1:7002", "")

	many := []string{"add"}
	for i := range 300 {
		many = append(many, fmt.Sprintf("127.0.0.1/%d:8080", 20000+2*i))
	}
	must(many...)
	s.reaches(lab.Host, "tcp", "127.0.0.1:20598", "8080")
	if got := strings.Count(options(), "-t "); got != 300 {
		t.Errorf("%d rules", got)
	}
	must(append([]string{"delete"}, many[1:]...)...)

	// The other socket, which shows the same.
	r := rawRequest(t, lab, s.g.Proc.PID, &api.Request{Version: api.Version, Command: api.Forward, Forward: &api.ForwardSpec{Specs: []string{"-t 9004:8080"}}})
	if !strings.Contains(r.Error, "--control") {
		t.Errorf("by the status socket: %+v", r)
	}
	if r := rawRequest(t, lab, s.g.Proc.PID, &api.Request{Version: api.Version, Command: api.Forwards}); len(r.Forwards) != 1 {
		t.Errorf("by the status socket: %+v", r)
	}
	if got := options(); got != "-u 9001:8080" {
		t.Errorf("in the end: %s", got)
	}
	g := lab.Guest("-t", "9005")
	if st, out := ask(lab, g, "forward", "add", "-t", "9006"); st != 1 || !strings.Contains(out, "--control PATH") {
		t.Errorf("without --control: status %d: %s", st, out)
	}
}

// rawRequest says something to the status socket of an instance.
func rawRequest(t *testing.T, lab *netlab.Lab, pid int, r *api.Request) (reply api.Reply) {
	t.Helper()
	err := lab.Host.Do(func() error {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: fmt.Sprintf("@%s%d", api.Prefix, pid), Net: "unix"})
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if err := json.NewEncoder(c).Encode(r); err != nil {
			return err
		}
		return json.NewDecoder(c).Decode(&reply)
	})
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// TestForwardBesidePesto: a client of -c whose tables are not those in force any more,
// since --control has changed them, undoes nothing.
func TestForwardBesidePesto(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	dir := socketDir(t)
	path, control := filepath.Join(dir, "s"), filepath.Join(dir, "control")
	s := &steered{t: t, lab: lab, path: path, g: lab.Guest("-c", path, "--control", control)}
	s.answer(8080)
	var c *net.UnixConn
	if err := lab.Host.Do(func() (err error) {
		c, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	tables, err := wire.ReadHello(bufio.NewReader(c))
	if err != nil {
		t.Fatal(err)
	}
	if st, out := ask(lab, s.g, "forward", "add", "-t", "9001:8080"); st != 0 {
		t.Fatalf("status %d: %s", st, out)
	}
	if _, err := c.Write(wire.AppendTables(nil, tables)); err != nil {
		t.Fatal(err)
	}
	_ = c.CloseWrite()
	if err := wire.ReadAnswer(c); err == nil || !strings.Contains(err.Error(), "another client has changed the rules meanwhile") {
		t.Errorf("%v", err)
	}
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9001", "8080")
	s.must("-D -t 9001:8080") // whoever looks again
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9001", "")
}
