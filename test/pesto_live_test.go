// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

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
