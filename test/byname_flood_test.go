// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"aldente/broker/control/api"
	"aldente/test/netlab"
)

// manyAddrs are as many addresses as the one record that tells of a name has room for, a
// quarter of it.
func manyAddrs() (all []string) {
	for i := range 16 {
		all = append(all, netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + i)}).String())
	}
	return all
}

// atATime is how many sockets the guest asks by.
const atATime = 32

// flood asks for names of their own, each until it is answered, some at a time.
func flood(t *testing.T, g *netlab.Guest, questions int) {
	t.Helper()
	var next atomic.Int64
	var wait sync.WaitGroup
	deadline := time.Now().Add(10 * time.Minute)
	for range atATime {
		c := g.Dial("udp", "192.0.2.9:53")
		wait.Go(func() {
			for {
				i := int(next.Add(1))
				if i > questions {
					return
				}
				for !askOnce(c, uint16(i), fmt.Sprintf("%s%d.pythonhosted.test.", strings.Repeat("long-", 10), i)) {
					if time.Now().After(deadline) {
						t.Errorf("question %d is not answered", i)
						return
					}
				}
			}
		})
	}
	wait.Wait()
}

// askOnce asks for the address of a name and tells whether an answer came.
func askOnce(c net.Conn, id uint16, name string) bool {
	q := dnsmessage.Message{Header: dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	b, err := q.Pack()
	if err != nil {
		return true // no question: not answered ever
	}
	if _, err := c.Write(b); err != nil {
		return false
	}
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	answer := make([]byte, 4096)
	for {
		n, err := c.Read(answer)
		if err != nil {
			return false
		}
		if n > 12 && binary.BigEndian.Uint16(answer) == id {
			return true
		}
	}
}

// TestNamesFlood: ten thousand questions, each for a name of its own with many addresses,
// ten times as many as have room, leave broker and aldente-names with memory and
// descriptors that have bounds; what is asked then is answered, and leads where it should.
// Five times as many were measured for docs/egress.md.
func TestNamesFlood(t *testing.T) {
	needOurs(t)
	netlab.Have(t, "dig")
	questions := 10_000
	if testing.Short() {
		questions = 2_000
	}
	lab, z := namesLab(t)
	z.SetBelow("pythonhosted.test", 60, manyAddrs()...)
	g := lab.GuestWith(netlab.GuestSpec{Args: append([]string{"--config-net"}, byName...), Resolv: "nameserver 192.0.2.9\n"})
	if got := askIn(g, "+notcp", "pypi.test", "A", "192.0.2.9"); got != named4 {
		t.Fatalf("answer %q\n%s", got, g.Proc.Output())
	}
	pids := map[string]int{"broker": g.Proc.PID, "aldente-names": namesProcess(t, g.Proc.PID)}
	before := map[string]vital{}
	for who, pid := range pids {
		before[who] = vitals(t, pid)
	}
	start := time.Now()
	flood(t, g, questions)
	t.Logf("%d questions in %v", questions, time.Since(start).Round(time.Millisecond))
	const growth = 48 << 10 // KiB: the heap's bounds, and what the collector leaves until it runs
	for who, pid := range pids {
		after := vitals(t, pid)
		t.Logf("%s: %d KiB before, %d after; %d descriptors, %d after", who, before[who].rss, after.rss, before[who].fds, after.fds)
		if after.rss > before[who].rss+growth {
			t.Errorf("%s has grown from %d to %d KiB", who, before[who].rss, after.rss)
		}
		if !eventually(30*time.Second, func() bool { return vitals(t, pid).fds <= before[who].fds+atATime+16 }) {
			t.Errorf("%s has %d descriptors, %d before", who, vitals(t, pid).fds, before[who].fds)
		}
	}
	var limit api.Limit
	for _, l := range asked[*api.StatusReply](t, lab, g, "status").Limits {
		if l.Name == "addresses of names" {
			limit = l
		}
	}
	if limit.Used == 0 || limit.Used > limit.Max {
		t.Errorf("table: %+v", limit)
	}
	if namesProcess(t, g.Proc.PID) != pids["aldente-names"] {
		t.Errorf("aldente-names was replaced\n%s", g.Proc.Output())
	}
	if got := askIn(g, "+tcp", "pypi.test", "A", "192.0.2.9"); got != named4 {
		t.Errorf("answer %q\n%s", got, g.Proc.Output())
	}
	if _, err := g.DialError("tcp", named4+":443", 5*time.Second); err != nil {
		t.Errorf("what was granted: %v", err)
	}
}
