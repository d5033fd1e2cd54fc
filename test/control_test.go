// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// steered is an instance with a control socket, and a guest that answers on any port
// that it is asked to, each time with the port's number.
type steered struct {
	t    *testing.T
	lab  *netlab.Lab
	g    *netlab.Guest
	path string
	user *netlab.User // of the instance and its clients, nil: nobody
}

// socketDir is a folder in which the instance's user may make files.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// steer starts an instance with a control socket.
func steer(t *testing.T, lab *netlab.Lab, args ...string) *steered {
	t.Helper()
	needOurs(t)
	path := filepath.Join(socketDir(t), "s")
	return &steered{t: t, lab: lab, g: lab.Guest(append(args, "-c", path)...), path: path}
}

// answer has the guest answer on ports, by both protocols, with the port's number.
func (s *steered) answer(ports ...int) {
	s.t.Helper()
	for _, p := range ports {
		text := strconv.Itoa(p)
		at := ":" + text
		ln := s.g.Listen("tcp", at)
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					b := make([]byte, 512)
					for {
						n, err := c.Read(b)
						if n > 0 {
							_, err = io.WriteString(c, text)
						}
						if err != nil {
							return
						}
					}
				}()
			}
		}()
		u := s.g.ListenUDP("udp", at)
		go func() {
			b := make([]byte, 512)
			for {
				_, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo([]byte(text), from)
			}
		}()
	}
}

// pesto runs our client as the instance's user on the host and returns its status and
// what it prints.
func (s *steered) pesto(args ...string) (int, string) {
	s.t.Helper()
	user := netlab.Nobody
	if s.user == netlab.Root {
		user = nil
	}
	p := s.lab.For(s.t).Host.Start(netlab.Spec{Args: append([]string{filepath.Join(netlab.Stage(), "pesto")}, append(args, s.path)...), User: user})
	return p.Wait(), p.Output()
}

// must is pesto where it has to succeed without a word.
func (s *steered) must(args string) {
	s.t.Helper()
	if st, out := s.pesto(strings.Fields(args)...); st != 0 || out != "" {
		s.t.Fatalf("pesto %s: status %d\n%s", args, st, out)
	}
}

// rules are those that are in force, one a line.
func (s *steered) rules() string {
	s.t.Helper()
	st, out := s.pesto()
	head, rules, _ := strings.Cut(out, "\n")
	if st != 0 || !strings.HasPrefix(head, "passt/pasta configuration (") {
		s.t.Fatalf("status %d: %s", st, out)
	}
	return rules
}

// reaches asks a port of the host's for the number of the guest's, "" for none.
func (s *steered) reaches(ns *netlab.NS, network, at, want string) {
	s.t.Helper()
	got, err := netlab.Ask(ns, network, at, "?")
	if (err == nil) != (want != "") || err == nil && got != want {
		s.t.Errorf("%s %s: %q, %v, want %q", network, at, got, err, want)
	}
}

// TestPesto: rules are added, deleted and replaced while the instance runs: both
// protocols, both families, ranges, addresses, interfaces, both directions.
func TestPesto(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	lab.Host.Sysctl("net/ipv4/icmp_ratelimit", "0")
	lab.Host.Sysctl("net/ipv6/icmp/ratelimit", "0")
	s := steer(t, lab, "-t", "9001")
	s.answer(80, 81, 82, 9001)
	go netlab.Echo(lab.Host.Listen("tcp", "127.0.0.1:7001"))
	both := []string{"tcp", "udp"}

	if got, want := s.rules(), "  HOST\n    TCP [*]:9001  =>  9001 \n  SPLICE\n"; got != want {
		t.Errorf("rules at start:\n%s", got)
	}
	s.must("-A -t 9002:80 -u 9002:80")
	for _, f := range families {
		for _, network := range both {
			s.reaches(lab.Remote, network, f.at(f.host, "9002"), "80")
			s.reaches(lab.Host, network, f.at(f.lo, "9002"), "80")
		}
		s.reaches(lab.Remote, "tcp", f.at(f.host, "9001"), "9001")
	}
	s.must("--add -t 9002:80") // what exists

	// A range, of which the middle goes later; a rule of one family, of one address, of
	// one interface.
	s.must("-A -t 9010-9012:80-82 -t 0.0.0.0/9020:80 -t [::]/9021:80 -t 127.0.0.1/9022:81 -t %h0/9023:82")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9011", "81")
	s.reaches(lab.Remote, "tcp", "["+netlab.Host6+"]:9012", "82")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9020", "80")
	s.reaches(lab.Remote, "tcp", "["+netlab.Host6+"]:9020", "")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9021", "")
	s.reaches(lab.Remote, "tcp", "["+netlab.Host6+"]:9021", "80")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9022", "")
	s.reaches(lab.Host, "tcp", "127.0.0.1:9022", "81")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9023", "82")
	s.reaches(lab.Host, "tcp", "127.0.0.1:9023", "")
	s.must("-D -t 9010-9012:80-82 -A -t 9010-9012:80-82,~9011")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9010", "80")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9011", "")

	// From the namespace to the host.
	s.reaches(s.g.NS, "tcp", "127.0.0.1:7002", "")
	s.must("-A -T 7002:7001")
	for _, lo := range []string{"127.0.0.1:7002", "[::1]:7002"} {
		want := "?"
		if lo[0] == '[' {
			want = "" // nobody listens on ::1
		}
		s.reaches(s.g.NS, "tcp", lo, want)
	}
	s.must("-D -T 7002:7001")
	s.reaches(s.g.NS, "tcp", "127.0.0.1:7002", "")

	// Replaced as a whole.
	s.must("-t 9030:80 -u 9002:80")
	if got, want := s.rules(), "  HOST\n    TCP [*]:9030  =>  80 \n    UDP [*]:9002  =>  80 \n  SPLICE\n"; got != want {
		t.Errorf("rules in the end:\n%s", got)
	}
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9001", "")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9030", "80")
	s.reaches(lab.Remote, "udp", netlab.Host4+":9002", "80")
	s.must("-C HOST")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9030", "")
	s.reaches(lab.Remote, "udp", netlab.Host4+":9002", "")
}

// TestPestoLowPorts: ports that need a privilege can be had later by who had it at the
// start, by both protocols and both ways, and by nobody else.
func TestPestoLowPorts(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	path := filepath.Join(socketDir(t), "s")
	s := &steered{t: t, lab: lab, path: path, user: netlab.Root,
		g: lab.GuestWith(netlab.GuestSpec{User: netlab.Root, Args: []string{"--config-net", "-t", "9001:8080", "-c", path}})}
	s.answer(8080)
	go netlab.Echo(lab.Host.Listen("tcp", "127.0.0.1:7001"))
	for range 2 {
		s.must("-A -t 83:8080 -u 83:8080 -T 84:7001 -D -t 9001:8080 -A -t 127.0.0.1/9001:8080")
		for _, network := range []string{"tcp", "udp"} {
			for _, f := range families {
				s.reaches(lab.Remote, network, f.at(f.host, "83"), "8080")
			}
		}
		s.reaches(s.g.NS, "tcp", "127.0.0.1:84", "?")
		s.reaches(lab.Host, "tcp", "127.0.0.1:9001", "8080")
		s.reaches(lab.Remote, "tcp", netlab.Host4+":9001", "")
		s.must("-t 9001:8080 -T none")
	}
	if netlab.Nested() {
		return // whoever runs there is root of it
	}
	s = steer(t, lab)
	if st, out := s.pesto("-A", "-t", "83"); st != 1 || !strings.Contains(out, "CAP_NET_BIND_SERVICE") || s.rules() != "  HOST\n  SPLICE\n" {
		t.Errorf("status %d: %s", st, out)
	}
}

// TestPestoAuto: "auto" begins and ends while running, both ways.
func TestPestoAuto(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	s := steer(t, lab)
	s.answer(8080)
	go netlab.Echo(lab.Host.Listen("tcp", "127.0.0.1:7001"))
	soon := func(ns *netlab.NS, at, want string) {
		t.Helper()
		var got string
		var err error
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if got, err = netlab.Ask(ns, "tcp", at, "?"); (err == nil) == (want != "") && got == want {
				return
			}
		}
		t.Errorf("%s: %q, %v, want %q", at, got, err, want)
	}
	s.must("-A -t auto -T auto")
	soon(lab.Remote, netlab.Host4+":8080", "8080")
	soon(s.g.NS, "127.0.0.1:7001", "?")
	s.answer(8081)
	soon(lab.Remote, netlab.Host4+":8081", "8081")
	s.must("-C HOST -C SPLICE")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":8080", "")
	s.reaches(s.g.NS, "tcp", "127.0.0.1:7001", "")
}

// TestPestoFails: a port that cannot be had is an error that names the rule, and all
// is as it was, whatever else was asked for in the same breath.
func TestPestoFails(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	s := steer(t, lab, "-t", "9001:80", "-u", "9001:80")
	s.answer(80, 81)
	taken := lab.Host.Listen("tcp", "127.0.0.1:9005")
	go netlab.Echo(taken)
	ns := s.g.Listen("tcp", "127.0.0.1:7005")
	go netlab.Echo(ns)
	before := s.rules()
	for _, tt := range []struct{ args, err string }{
		{"-A -t 9003:81 -u 9004:81 -t 9000-9009:80-89", "conflict"},
		{"-A -t 9003:81 -u 9004:81 -t 9005-9006", "for rule TCP [*]:9005-9006"},
		{"-C HOST -A -t 9001:81 -t 127.0.0.1/9005", "for rule TCP [127.0.0.1]:9005"},
		{"-t 9003:81 -T 7004 -T 7005", "for rule TCP [*]%lo:7005"},
		{"-A -t 203.0.113.77/9003", "for rule TCP [203.0.113.77]:9003"},
		{"-A -t %nosuch0/9003", "nosuch0"},
		{"-D -t 9001", "Couldn't find forwarding rule to delete"},
		{"-C NOWHERE", "Unsupported pif name NOWHERE"},
		{"-A -T 127.0.0.1/80", "not allowed"},
	} {
		st, out := s.pesto(strings.Fields(tt.args)...)
		if st != 1 || !strings.Contains(out, tt.err) {
			t.Errorf("pesto %s: status %d: %s", tt.args, st, out)
		}
		if after := s.rules(); after != before {
			t.Errorf("pesto %s: rules are\n%s", tt.args, after)
		}
		s.reaches(lab.Remote, "tcp", netlab.Host4+":9001", "80")
		s.reaches(lab.Remote, "udp", netlab.Host4+":9001", "80")
		s.reaches(lab.Remote, "tcp", netlab.Host4+":9003", "")
		s.reaches(s.g.NS, "tcp", "127.0.0.1:7004", "")
	}
	if text := s.g.Proc.Output(); !strings.Contains(text, "port rules stay as they are") || !strings.Contains(text, "for rule TCP [*]:9005-9006") {
		t.Errorf("the log: %s", text)
	}
}

// line is a connection that goes on, a datagram flow included.
type line struct {
	t    *testing.T
	c    net.Conn
	want string
}

func (s *steered) hold(ns *netlab.NS, network, at, want string) *line {
	s.t.Helper()
	c, err := ns.DialError(network, at, 5*time.Second)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	l := &line{s.t, c, want}
	l.works("at first")
	return l
}

func (l *line) works(when string) {
	l.t.Helper()
	_ = l.c.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 64)
	_, err := io.WriteString(l.c, "?")
	n := 0
	if err == nil {
		n, err = l.c.Read(b)
	}
	if err != nil || string(b[:n]) != l.want {
		l.t.Errorf("%s %s, %s: %q, %v", l.c.RemoteAddr().Network(), l.c.RemoteAddr(), when, b[:n], err)
	}
}

// TestPestoKeeps: connections outlive the rule that they came by, and the port can be
// had again at once, whatever connections are left.
func TestPestoKeeps(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	s := steer(t, lab, "-t", "9001:80", "-u", "9001:80", "-T", "7002:7001", "-U", "7002:7001")
	s.answer(80, 81)
	go netlab.Echo(lab.Host.Listen("tcp", "127.0.0.1:7001"))
	go netlab.EchoUDP(lab.Host.ListenUDP("udp", "127.0.0.1:7001"))
	var lines []*line
	for _, network := range []string{"tcp", "udp"} {
		for _, f := range families {
			lines = append(lines, s.hold(lab.Remote, network, f.at(f.host, "9001"), "80"), s.hold(lab.Host, network, f.at(f.lo, "9001"), "80"))
		}
		lines = append(lines, s.hold(s.g.NS, network, "127.0.0.1:7002", "?"))
	}
	all := func(when string) {
		t.Helper()
		for _, l := range lines {
			l.works(when)
		}
	}
	for range 3 {
		s.must("-C HOST -C SPLICE")
		all("the rule deleted")
		for _, f := range families {
			s.reaches(lab.Remote, "tcp", f.at(f.host, "9001"), "")
			s.reaches(lab.Host, "tcp", f.at(f.lo, "9001"), "")
		}
		s.reaches(s.g.NS, "tcp", "127.0.0.1:7002", "")
		s.must("-t 9001:81 -u 9001:81 -T 7002:7001 -U 7002:7001")
		all("another rule on the port")
		for _, network := range []string{"tcp", "udp"} {
			for _, f := range families {
				s.reaches(lab.Remote, network, f.at(f.host, "9001"), "81")
				s.reaches(lab.Host, network, f.at(f.lo, "9001"), "81")
			}
			s.reaches(s.g.NS, network, "127.0.0.1:7002", "?")
		}
	}
}

// TestPestoStorm: while clients connect as fast as they can, other rules come and go,
// and theirs gets another target: none is refused or reset. Nor is one refused whose
// port is bound to other addresses.
func TestPestoStorm(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	for _, ns := range []*netlab.NS{lab.Host, lab.Remote} {
		ns.Sysctl("net/ipv4/tcp_tw_reuse", "1")
	}
	s := steer(t, lab, "-t", "9001:80", "-t", "9002:80", "-t", "9003:80")
	s.answer(80, 81)
	var stop atomic.Bool
	var wg sync.WaitGroup
	var done [4]atomic.Int64
	for i, at := range []string{netlab.Host4 + ":9001", "[" + netlab.Host6 + "]:9001", netlab.Host4 + ":9002", netlab.Host4 + ":9003"} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for !stop.Load() {
				got, err := netlab.Ask(lab.Remote, "tcp", at, "?")
				if strings.HasSuffix(at, "3") && errors.Is(err, syscall.ECONNRESET) {
					continue // it was in the queue of the old socket, which nobody could have taken over
				}
				if err != nil || got != "80" && (got != "81" || strings.HasSuffix(at, "1")) {
					t.Errorf("%s: %q, %v", at, got, err)
					return
				}
				done[i].Add(1)
			}
		}()
	}
	changes := 0
	for deadline := time.Now().Add(4 * time.Second); time.Now().Before(deadline); changes += 5 {
		s.must("-A -t 9010-9020 -u 9010-9020")
		s.must("-D -t 9002:80 -A -t 9002:81 -D -t 9010-9020")       // another target: the same socket
		s.must("-D -t 9002:81 -A -t 9002:80")                       // and back
		s.must("-D -t 9003:80 -A -t 0.0.0.0/9003:80 -t ::/9003:80") // bound otherwise: beside
		s.must("-D -t 0.0.0.0/9003:80 -t ::/9003:80 -A -t 9003:80 -D -u 9010-9020")
	}
	stop.Store(true)
	wg.Wait()
	for i := range done {
		if done[i].Load() == 0 {
			t.Errorf("client %d never connected", i)
		}
	}
	t.Logf("%d changes, connections %d, %d, %d", changes, done[0].Load(), done[1].Load(), done[2].Load())
}

// TestPestoOften: changes without end leave no descriptor and no memory behind, in any
// process, and do not disturb what stays. ALDENTE_CHANGES says how many.
func TestPestoOften(t *testing.T) {
	changes, err := strconv.Atoi(os.Getenv("ALDENTE_CHANGES"))
	if err != nil {
		changes = 300
	}
	lab := netlab.New(t, netlab.Options{})
	s := steer(t, lab, "-t", "9001:80")
	s.answer(80)
	held := s.hold(lab.Remote, "tcp", netlab.Host4+":9001", "80")
	round := func(n int) {
		for i := range n / 2 {
			s.must(fmt.Sprintf("-A -t 9100-9107 -u 9100-9107 -T 9200-9203 -U %d", 9300+i%8))
			s.must(fmt.Sprintf("-D -t 9100-9107 -u 9100-9107 -T 9200-9203 -U %d", 9300+i%8))
		}
	}
	type use struct{ fds, rss int }
	look := func() map[int]use {
		all := map[int]use{}
		for _, pid := range s.g.Processes() {
			fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
			all[pid] = use{len(fds), rss(pid)}
		}
		return all
	}
	round(changes / 4)
	before := look()
	round(changes)
	// Workers close what they are told to a moment later.
	for range 100 {
		grown := false
		for pid, now := range look() {
			grown = grown || now.fds > before[pid].fds
		}
		if !grown {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	for pid, now := range look() {
		was, ok := before[pid]
		if !ok || now.fds > was.fds || now.rss > was.rss+8<<10 {
			t.Errorf("process %d: %d descriptors and %d KiB, before %d and %d", pid, now.fds, now.rss, was.fds, was.rss)
		}
	}
	held.works("in the end")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9001", "80")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9100", "")
}

// rss is how much of a process is in memory, in KiB.
func rss(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n
		}
	}
	return 0
}

// TestPestoClients: clients that are slow, stop amid what they say, or say nothing
// that makes sense disturb no traffic, and the next one has its turn.
func TestPestoClients(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	s := steer(t, lab, "-t", "9001:80")
	s.answer(80)
	for _, words := range []string{"", "\x01", "\x01\x00\x00\x00\x01half a rule", "GET / HTTP/1.0\r\n\r\n", "\x01\xff\xff\xff\xff"} {
		c, err := lab.Host.DialError("unix", s.path, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, words); err != nil {
			t.Error(err)
		}
		for range 20 {
			s.reaches(lab.Remote, "tcp", netlab.Host4+":9001", "80")
		}
		defer c.Close()
	}
	s.must("-A -t 9002:80")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9002", "80")
}

// TestPestoSocket: where the socket may be, who may use it, and that it goes with the
// instance, however that ends.
func TestPestoSocket(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	dir := socketDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("kept"), 0o666); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (int, string) {
		p := lab.For(t).StartPasta(netlab.GuestSpec{User: netlab.Nobody}, args...)
		return p.Wait(), p.Output()
	}
	// RootlessKit's question, and what a start would say to the same path.
	if st, out := run("--conf-path=/dev/null", "--version"); st != 0 {
		t.Errorf("status %d: %s", st, out)
	}
	for path, want := range map[string]string{
		"/dev/null": "no socket", file: "no socket", dir: "no socket",
		filepath.Join(dir, "none", "s"): "create the directory", strings.Repeat("x", 120): "at most 107 bytes",
	} {
		if st, out := run("--conf-path="+path, "--config-net", "--", "true"); st != 1 || !strings.Contains(out, want) {
			t.Errorf("-c %s: status %d: %s", path, st, out)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "kept" {
		t.Errorf("the file: %q, %v", b, err)
	}

	for _, end := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		s := steer(t, lab)
		if st, err := os.Lstat(s.path); err != nil || st.Mode() != os.ModeSocket|0o600 {
			t.Errorf("the socket is %v, %v", st.Mode(), err)
		}
		if st, out := run("-c", s.path, "--config-net", "--", "true"); st != 1 || !strings.Contains(out, "already in use") {
			t.Errorf("a second instance: status %d: %s", st, out)
		}
		s.must("-A -t 9002")
		if netlab.Nested() {
			// Of other users there is none in here.
		} else if p := lab.Host.Start(netlab.Spec{Args: []string{filepath.Join(netlab.Stage(), "pesto"), s.path}, User: &netlab.User{UID: 61235, GID: 61235}}); p.Wait() != 1 {
			t.Errorf("another user: %s", p.Output())
		}
		_ = s.g.Proc.Signal(end)
		s.g.Proc.WaitFor(5 * time.Second)
		gone := func() bool { _, err := os.Lstat(s.path); return errors.Is(err, os.ErrNotExist) }
		for range 200 {
			if gone() {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if !gone() {
			t.Errorf("the socket is left after %v", end)
		}
	}
}

// TestPestoGuest: a command in the guest, of the same user and with the same files,
// changes nothing and learns nothing, in whatever namespaces of its own it asks.
func TestPestoGuest(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for _, program := range []string{"pasta", "aldente"} {
		t.Run(program, func(t *testing.T) {
			dir := socketDir(t)
			path := filepath.Join(dir, "s")
			pesto := filepath.Join(dir, "pesto") // aldente leaves of /tmp the working directory
			b, err := os.ReadFile(filepath.Join(netlab.Stage(), "aldentectl"))
			if err == nil {
				err = os.WriteFile(pesto, b, 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
			script := strings.Join([]string{
				`ls -l s`,
				`./pesto s; echo "show=$?"`,
				`./pesto -A -t 9002 s; echo "add=$?"`,
				`unshare -Ur ./pesto -A -t 9002 s; echo "user=$?"`,
				`unshare -Urn ./pesto -A -t 9002 s; echo "net=$?"`,
				`unshare -Urmpf ./pesto -A -t 9002 s; echo "pid=$?"`,
				`nsenter -t 1 -n ./pesto -A -t 9002 s; echo "init=$?"`,
				`touch ready; while ! test -e go; do sleep 0.05; done`,
			}, "\n")
			p := lab.For(t).StartPasta(netlab.GuestSpec{Binary: filepath.Join(netlab.Stage(), program), User: netlab.Nobody,
				Wrap: []string{"env", "-C", dir}}, "--config-net", "-t", "none", "-u", "none", "-T", "none", "-U", "none", "-c", path,
				"--", "sh", "-c", script)
			for range 400 {
				if _, err := os.Stat(filepath.Join(dir, "ready")); err == nil || p.Exited() {
					break
				}
				time.Sleep(50 * time.Millisecond)
			}
			s := &steered{t: t, lab: lab.For(t), path: path}
			if got := s.rules(); got != "  HOST\n  SPLICE\n" {
				t.Errorf("the guest has changed the rules to\n%s", got)
			}
			s.must("-A -t 9002") // who is outside may
			if got := s.rules(); !strings.Contains(got, "9002") {
				t.Errorf("rules are\n%s", got)
			}
			if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			p.Wait()
			out := p.Output()
			if !strings.Contains(out, "srw-------") {
				t.Errorf("the guest does not see the socket: the test shows nothing\n%s", out)
			}
			for _, what := range []string{"show", "add", "user", "net", "pid", "init"} {
				if !strings.Contains(out, what+"=") || strings.Contains(out, what+"=0\n") {
					t.Errorf("%s: not refused\n%s", what, out)
				}
			}
			if !strings.Contains(out, "in another network namespace") || strings.Contains(out, "HOST") {
				t.Errorf("%s", out)
			}
		})
	}
}

// TestPestoHeld: the broker alone has the control socket; the process that is to remove
// it has nothing else, and may do nothing else. With -c, captured code can do no more.
func TestPestoHeld(t *testing.T) {
	needOurs(t)
	needRoot(t) // descriptors of processes that cannot be dumped
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	s := steer(t, lab, "-t", "9001")
	inode := ""
	for line := range strings.Lines(lab.Host.Read("/proc/net/unix")) {
		if f := strings.Fields(line); len(f) == 8 && f[7] == s.path {
			inode = "socket:[" + f[6] + "]"
		}
	}
	removers := 0
	for _, pid := range s.g.Processes() {
		holds, fds := false, 0
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil || inode == "" {
			t.Fatal(err, inode)
		}
		for _, e := range entries {
			link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name()))
			holds, fds = holds || link == inode, fds+1
		}
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if holds != (pid == s.g.Proc.PID) {
			t.Errorf("%s holds the control socket: %v", comm, holds)
		}
		if string(comm) != "aldente-socket\n" {
			continue
		}
		removers++
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if !strings.Contains(string(status), "NoNewPrivs:\t1\n") || !strings.Contains(string(status), "Seccomp:\t2\n") || fds != 2 {
			t.Errorf("the remover has %d descriptors\n%s", fds, status)
		}
	}
	if removers != 1 {
		t.Errorf("%d removers", removers)
	}

	for _, who := range []string{"broker", "agent"} {
		for _, attempt := range strings.Fields("unlinkat renameat2 mkdirat openat-write socket-unix") {
			if got := tryCaptive(t, lab, who, attempt, "-c", filepath.Join(socketDir(t), "s")); got != "killed" {
				t.Errorf("%s, with -c: %s: %s", who, attempt, got)
			}
		}
	}
}

// TestPestoClientsOfOthers replays how Podman 6 and RootlessKit 3 call the two programs.
func TestPestoClientsOfOthers(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	dir := socketDir(t)
	path, pid := filepath.Join(dir, "pasta.sock"), filepath.Join(dir, "pid")
	hold := lab.Host.Start(netlab.Spec{Args: []string{"unshare", "-Urn", "sleep", "600"}, User: netlab.Nobody})
	own := lab.Host.Inode()
	ns := fmt.Sprintf("/proc/%d/ns/net", hold.PID)
	for range 400 {
		if link, err := os.Readlink(ns); err == nil && link != fmt.Sprintf("net:[%d]", own) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	podman := strings.Fields("--config-net --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet --map-guest-addr 169.254.1.2")
	p := lab.StartPasta(netlab.GuestSpec{User: netlab.Nobody}, append(podman, "--pid", pid, "-c", path, strconv.Itoa(hold.PID))...)
	if st := p.Wait(); st != 0 || p.Leaked() {
		t.Fatalf("status %d, output still open %v: %s", st, p.Leaked(), p.Output())
	}
	text, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	daemon, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	t.Cleanup(func() { _ = syscall.Kill(daemon, syscall.SIGKILL) })
	guest := netlab.OpenNS(t, "guest", ns)
	s := &steered{t: t, lab: lab, g: &netlab.Guest{NS: guest}, path: path}
	s.answer(8080, 8081, 8082)

	// Podman: one binding for each family; once more is nothing new.
	for range 2 {
		s.must("--add -t 0.0.0.0/8080 -t [::]/8080 -u 0.0.0.0/8081-8082 -u [::]/8081-8082")
	}
	for _, f := range families {
		s.reaches(lab.Remote, "tcp", f.at(f.host, "8080"), "8080")
		s.reaches(lab.Remote, "udp", f.at(f.host, "8082"), "8082")
	}
	s.must("--delete -t 0.0.0.0/8080 -t [::]/8080 -u 0.0.0.0/8081-8082 -u [::]/8081-8082")
	for _, f := range families {
		s.reaches(lab.Remote, "tcp", f.at(f.host, "8080"), "")
	}
	// RootlessKit.
	s.must("-A --tcp-ports=0.0.0.0/9090:8080")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9090", "8080")
	s.must("-D --tcp-ports=0.0.0.0/9090:8080")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9090", "")

	// Whoever stops it with SIGTERM finds nothing left.
	_ = syscall.Kill(daemon, syscall.SIGTERM)
	for range 300 {
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) && syscall.Kill(daemon, 0) != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the instance or its socket is left")
}
