// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
	user := s.user
	switch user {
	case nil:
		user = netlab.Nobody
	case netlab.Root:
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
