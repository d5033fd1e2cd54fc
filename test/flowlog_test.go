// SPDX-License-Identifier: Apache-2.0

package test

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// flowLine waits until a flow log has a line that an expression matches.
func flowLine(t *testing.T, file, want string) {
	t.Helper()
	re := regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} info: ` + want + `$`)
	read := func() string { b, _ := os.ReadFile(file); return string(b) }
	if !eventually(10*time.Second, func() bool { return re.MatchString(read()) }) {
		t.Errorf("no %s in\n%s", want, read())
	}
}

// sends opens a connection, sends n bytes, gets them back from a server that echoes,
// and closes.
func sends(t *testing.T, ns *netlab.NS, addr string, n int) {
	t.Helper()
	text := strings.Repeat("x", n)
	if got, err := netlab.Ask(ns, "tcp", addr, text); got != text {
		t.Fatalf("%s: %d bytes came back, %v", addr, len(got), err)
	}
}

// TestFlowLog: each kind of flow has its line when it has ended, with what it has
// carried, and those that are refused have one at once.
func TestFlowLog(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	file := filepath.Join(openDir(t), "flows")
	g := lab.Guest("--flow-log", file, "-t", "10001", "-u", "10003", "-T", "10002", "--deny", "any:9", "--allow", "any")
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	for _, f := range families {
		any, guest := `[^ ]+`, `guest=[^ ]+:\d+`
		if f.name == "IPv6" {
			guest = `guest=\[[^ ]+\]:\d+`
		}
		at := func(addr, port string) string { return regexp.QuoteMeta(f.at(addr, port)) }
		t.Run(f.name, func(t *testing.T) {
			go netlab.Echo(lab.Remote.Listen("tcp", f.at(f.remote, "7")))
			go netlab.EchoUDP(lab.Remote.ListenUDP("udp", f.at(f.remote, "7")))
			sends(t, g.NS, f.at(f.remote, "7"), 300_000)
			flowLine(t, file, `flow ended protocol=tcp direction=out `+guest+` remote=`+at(f.remote, "7")+
				` verdict=allowed rule="--allow any" sent=300000 received=300000 sent_packets=[1-9]\d* received_packets=[1-9]\d* seconds=\d+\.\d{3} end=closed`)

			ln := g.Listen("tcp", ":10001")
			go netlab.Echo(ln)
			sends(t, lab.Remote, f.at(f.host, "10001"), 5)
			flowLine(t, file, `flow ended protocol=tcp direction=in `+guest[:len(guest)-3]+`10001 remote=`+any+` verdict=allowed rule="-t 10001" sent=5 received=5 `+
				`sent_packets=[1-9]\d* received_packets=[1-9]\d* seconds=\d+\.\d{3} end=closed`)
			sends(t, lab.Host, f.at(f.lo, "10001"), 70_000)
			flowLine(t, file, `flow ended protocol=tcp direction=bypass-in guest=[^ ]+:10001 remote=`+regexp.QuoteMeta(bracket(f.lo))+`:\d+ verdict=allowed rule="-t 10001" `+
				`sent=70000 received=70000 sent_packets=0 received_packets=0 seconds=\d+\.\d{3} end=closed`)
			ln.Close()

			hostLn := lab.Host.Listen("tcp", f.at(f.lo, "10002"))
			go netlab.Echo(hostLn)
			sends(t, g.NS, f.at(f.lo, "10002"), 9)
			flowLine(t, file, `flow ended protocol=tcp direction=bypass-out guest=[^ ]+ remote=`+at(f.lo, "10002")+` verdict=allowed rule=.* sent=9 received=9 .* end=closed`)
			hostLn.Close()

			if c, err := g.DialError("tcp", f.at(f.remote, "9"), time.Second); err == nil {
				c.Close()
				t.Error("not refused")
			}
			flowLine(t, file, `flow refused protocol=tcp direction=out `+guest+` remote=`+at(f.remote, "9")+` verdict=refused rule="--deny any:9" reason="egress rules"`)
			if c, err := g.DialError("tcp", f.at(f.remote, "8"), time.Second); err == nil {
				c.Close()
				t.Error("not refused by the remote")
			}
			flowLine(t, file, `flow ended protocol=tcp direction=out `+guest+` remote=`+at(f.remote, "8")+` verdict=allowed rule="--allow any" sent=0 received=0 .* end=refused`)

			c, s := connect(t, lab, g, f.at(f.remote, "10"))
			_, _ = io.WriteString(c, "hello")
			_, _ = io.ReadFull(s, make([]byte, 5))
			_ = s.(*net.TCPConn).SetLinger(0)
			s.Close()
			flowLine(t, file, `flow ended protocol=tcp direction=out `+guest+` remote=`+at(f.remote, "10")+` verdict=allowed rule="--allow any" sent=5 received=0 .* end=reset`)
			c.Close()
		})
	}
	if b, err := os.ReadFile(file); err != nil || strings.Contains(string(b), "hello") || strings.Contains(string(b), "xxx") {
		t.Errorf("contents of flows, %v:\n%s", err, b)
	}
}

// connect returns both ends of a connection of the guest's.
func connect(t *testing.T, lab *netlab.Lab, g *netlab.Guest, addr string) (guest, remote net.Conn) {
	t.Helper()
	ln := lab.Remote.Listen("tcp", addr)
	guest = g.Dial("tcp", addr)
	remote, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{guest, remote} {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return guest, remote
}

func bracket(addr string) string {
	if strings.Contains(addr, ":") {
		return "[" + addr + "]"
	}
	return addr
}

// TestFlowLogWithoutEnd: flows whose end nobody has seen. Those of a worker that dies are
// lost, those that outlive the instance are told of as it ends.
func TestFlowLogWithoutEnd(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	file := filepath.Join(openDir(t), "flows")
	if err := os.WriteFile(file, []byte("of before\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	_ = os.Chmod(file, 0o666)
	g := lab.Guest("--flow-log", file, "-t", "10001", "-u", "10003")
	go netlab.EchoUDP(lab.Remote.ListenUDP("udp", "192.0.2.9:7"))
	begin := func() (all []io.Closer) {
		ln := lab.Remote.Listen("tcp", "192.0.2.9:7")
		go netlab.Echo(ln)
		in := g.Listen("tcp", ":10001")
		go netlab.Echo(in)
		inUDP := g.ListenUDP("udp", ":10003")
		go netlab.EchoUDP(inUDP)
		all = append(all, ln, in, inUDP)
		for _, d := range []struct {
			ns            *netlab.NS
			network, addr string
		}{
			{g.NS, "tcp", "192.0.2.9:7"}, {g.NS, "udp", "192.0.2.9:7"}, {lab.Remote, "tcp", "192.0.2.2:10001"}, {lab.Host, "tcp", "127.0.0.1:10001"},
			{lab.Remote, "udp", "192.0.2.2:10003"}, {lab.Host, "udp", "127.0.0.1:10003"},
		} {
			c := d.ns.Dial(d.network, d.addr)
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = io.WriteString(c, "x")
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatalf("%v: %v\n%s", d, err, g.Proc.Output())
			}
			all = append(all, c)
		}
		g.Must("ping", "-c", "1", "192.0.2.9")
		return all
	}
	want := func(end string) {
		t.Helper()
		for _, w := range []string{
			`protocol=tcp direction=out guest=[^ ]+ remote=192\.0\.2\.9:7`, `protocol=udp direction=out guest=[^ ]+ remote=192\.0\.2\.9:7`,
			`protocol=tcp direction=in guest=[^ ]+:10001 remote=192\.0\.2\.9:\d+`, `protocol=tcp direction=bypass-in guest=[^ ]+:10001 remote=127\.0\.0\.1:\d+`,
			`protocol=udp direction=in guest=[^ ]+:10003 remote=192\.0\.2\.9:\d+`, `protocol=udp direction=bypass-in guest=[^ ]+:10003 remote=127\.0\.0\.1:\d+`,
			`protocol=icmp direction=out guest=[^ ]+:\d+ remote=192\.0\.2\.9`,
		} {
			flowLine(t, file, `flow ended `+w+` verdict=allowed rule=("-[tu] \d+")? seconds=\d+\.\d{3} end=`+end)
		}
	}
	all := begin()
	old := g.Worker()
	_ = syscall.Kill(old, syscall.SIGKILL)
	want("lost")
	for _, c := range all {
		c.Close()
	}
	if !eventually(10*time.Second, func() bool {
		w := g.Worker()
		s, _ := netlab.Ask(g.NS, "udp", "192.0.2.9:7", "x")
		return w != 0 && w != old && s == "x"
	}) {
		t.Fatalf("no new worker\n%s", g.Proc.Output())
	}
	all = begin()
	g.Close()
	want("stopped")
	for _, c := range all {
		c.Close()
	}
	b, err := os.ReadFile(file)
	if err != nil || !strings.HasPrefix(string(b), "of before\n") {
		t.Errorf("what was in the file is lost, %v", err)
	}
	if n := strings.Count(string(b), "direction=bypass-in"); n != 4 {
		t.Errorf("%d flows past the link, want 4:\n%s", n, b)
	}
}

// TestFlowLogDatagrams: flows of datagrams, and echo, have what they have carried.
func TestFlowLogDatagrams(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	file := filepath.Join(openDir(t), "flows")
	g := lab.Guest("--flow-log", file, "--limit", "udp=2", "--limit", "icmp=2")
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			go netlab.EchoUDP(lab.Remote.ListenUDP("udp", f.at(f.remote, "7")))
			for k := range 3 { // the third makes room
				if s, err := netlab.Ask(g.NS, "udp", f.at(f.remote, "7"), strings.Repeat("y", 100)); len(s) != 100 {
					t.Fatalf("%d: %q, %v", k, s, err)
				}
			}
			flowLine(t, file, `flow ended protocol=udp direction=out guest=[^ ]+ remote=`+regexp.QuoteMeta(f.at(f.remote, "7"))+
				` verdict=allowed rule= sent=100 received=100 sent_packets=1 received_packets=1 seconds=\d+\.\d{3} end=evicted`)
		})
	}
}

// TestFlowLogBad: what cannot be written to is an error, and a disk that is full is
// told of once, while flows go on.
func TestFlowLogBad(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	st, p := pastaRun(t, lab, "", "--config-net", "--flow-log", "/nonexistent/flows", "--", "true")
	if st != 1 || !strings.Contains(p.Output(), "flow log /nonexistent/flows: no such file or directory (create the directory first)\n") {
		t.Errorf("status %d\n%s", st, p.Output())
	}
	both := filepath.Join(openDir(t), "log")
	st, p = pastaRun(t, lab.For(t), "", "--config-net", "--log-file", both, "--flow-log", both, "--", "true")
	if st != 1 || !strings.Contains(p.Output(), "flow log "+both+": that is the log file (name another)\n") {
		t.Errorf("status %d\n%s", st, p.Output())
	}
	st, p = pastaRun(t, lab.For(t), "", "--config-net", "--flow-log", "/dev/full", "--", "sh", "-c", "ping -c 2 -i 0.1 192.0.2.9 && exit 7")
	want := `flow log: lines are lost until there is room path=/dev/full error="no space left on device"`
	if n := strings.Count(p.Output(), want); st != 7 || n != 1 {
		t.Errorf("status %d, told %d times\n%s", st, n, p.Output())
	}
}

// TestFlowLogFlood: however many flows a guest has refused, the file stays within its
// size and has whole lines.
func TestFlowLogFlood(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	file := filepath.Join(openDir(t), "flows")
	g := lab.Guest("--flow-log", file, "--log-size", "40960", "--deny", "any:1000-4000")
	c := g.ListenUDP("udp", "0.0.0.0:0")
	for port := 1000; port <= 4000; port++ {
		_, _ = c.WriteToUDP([]byte("x"), &net.UDPAddr{IP: net.IPv4(192, 0, 2, 9), Port: port})
		if port%100 == 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	flowLine(t, file, `flow refused protocol=udp direction=out guest=[^ ]+ remote=192\.0\.2\.9:4000 verdict=refused rule="--deny any:1000-4000" reason="egress rules"`)
	b, err := os.ReadFile(file)
	if err != nil || len(b) > 40960 || len(b) < 15000 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	whole := regexp.MustCompile(`^\d{4}-\S+ \S+ info: flow refused .* reason="egress rules"\n$`)
	for l := range strings.Lines(string(b)) {
		if !whole.MatchString(l) {
			t.Fatalf("line %q", l)
		}
	}
}

// TestFlowLogJournal: with "syslog" lines are where other lines are, with fields.
func TestFlowLogJournal(t *testing.T) {
	needOurs(t)
	needRoot(t)
	netlab.Have(t, "setpriv")
	netlab.Have(t, "unshare")
	lab := netlab.New(t, netlab.Options{})
	dir := openDir(t)
	read := journal(t, dir)
	args := append(append([]string{netlab.Pasta()}, netlab.NoForward()...), "--config-net", "--flow-log", "syslog", "--deny", "any:9", "--",
		"sh", "-c", "ping -c 1 192.0.2.9 && exit 7")
	p := lab.Host.Start(netlab.Spec{Args: inJournal(dir, false, args...), Timeout: 60 * time.Second})
	if st := p.Wait(); st != 7 {
		t.Fatalf("status %d\n%s", st, p.Output())
	}
	want := regexp.MustCompile(`^MESSAGE=flow ended protocol=icmp .* end=stopped\nPRIORITY=6\n(.*\n)*ALDENTE_PROTOCOL=icmp\nALDENTE_DIRECTION=out\nALDENTE_GUEST=.*\n` +
		`ALDENTE_REMOTE=192\.0\.2\.9\nALDENTE_VERDICT=allowed\nALDENTE_RULE=\nALDENTE_SECONDS=.*\nALDENTE_END=stopped\n$`)
	if !eventually(10*time.Second, func() bool { return slices.ContainsFunc(read(), want.MatchString) }) {
		t.Errorf("%q", read())
	}
	st, p := pastaRun(t, lab.For(t), "", "--config-net", "--flow-log", "syslog", "--", "true")
	if _, err := os.Stat("/dev/log"); err != nil && (st != 1 || !strings.Contains(p.Output(), "flow log: there is no system log (--flow-log FILE: name a file)")) {
		t.Errorf("without a system log: status %d\n%s", st, p.Output())
	}
}
