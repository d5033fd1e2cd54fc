// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"aldente/bench/bed"
	"aldente/bench/report"
	"aldente/test/netlab"
)

// sysctls are the two settings of the kernel's socket buffers.
var sysctls = []struct{ name, wmem, rmem string }{
	{"default", "4096 16384 4194304", "4096 131072 6291456"},
	{"tuned", "4096 4194304 67108864", "4096 4194304 67108864"},
}

// group is the rows that share a lab.
type group struct {
	mtu  int
	rows []row
	// Of a group with instances of its own: what serves them, and who starts them.
	prepare func(lab *netlab.Lab)
	start   func(lab *netlab.Lab, c contestant, mtu int) *entrant
	who     string // the only one who takes part; empty: all do
}

// row is one line of the table, or several that one measurement yields.
type row struct {
	name    string
	sysctl  int // index into sysctls
	kernel  bool
	once    bool // and not again: the figure hardly varies, or takes long
	measure func(e *entrant, lab *netlab.Lab, span time.Duration) (map[string]float64, error)
}

// most is how many connections are measured beside at the most. Both ends of each
// are ours, and some machines grant less than that takes.
func most() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 50_000
	}
	return min(50_000, max((int(min(limit.Cur, 1<<20))-1000)/2000*1000, 2000))
}

// shortRows are what is measured in three minutes: one of each kind, and those in which
// others were ahead at some time.
var shortRows = regexp.MustCompile(`^(TCP (up|down), MTU (1500, default, 1|65520, default, [14]|65520, tuned, 1) flows` +
	`|(inbound|host's loopback) (TCP down, 1 flows|request/response (tcp|udp), 1 clients)` +
	`|inbound request/response tcp, 16 clients` +
	`|UDP .*, 1400 bytes.*|request/response (tcp, .*|udp, (1|16) clients)|request/response tcp beside 4 flows.*|connect/request/close, (1|16) clients` +
	`|memory|wake-ups|1000 idle flows)$`)

// wanted leaves the rows that are to be measured.
func (o options) wanted(all []row) (some []row) {
	for _, r := range all {
		if o.only.MatchString(r.name) && (!o.short || shortRows.MatchString(r.name)) {
			some = append(some, r)
		}
	}
	return some
}

// groups returns what is measured in one round.
func groups(short bool) []group {
	mtus, flows, clients, sizes, idle := []int{1500, 9000, 65520}, []int{1, 4, 64}, []int{1, 16, 256}, []int{64, 1400, 60000}, []int{1000, most()}
	if short {
		mtus, idle = []int{1500, 65520}, []int{1000}
	}
	var all []group
	for _, mtu := range mtus {
		g := group{mtu: mtu}
		for s := range sysctls {
			for _, n := range flows {
				g.rows = append(g.rows, bulkRow(mtu, s, n, false), bulkRow(mtu, s, n, true))
			}
		}
		if mtu == 65520 {
			g.rows = append(g.rows, forwardRows()...)
			g.rows = append(g.rows, datagramRows(sizes)...)
			g.rows = append(g.rows, requestRows(clients)...)
			g.rows = append(g.rows, quietRows(idle)...)
		}
		all = append(all, g)
	}
	return append(all, namesGroup(), hellosGroup())
}

// measure runs the group's rows for each contestant, in turn; every other round goes
// backward, since what ran before warms or wears out the machine.
func (g group) measure(o options, t *report.Table, round int) error {
	rows, backward := o.wanted(g.rows), round%2 == 1
	first := g.mtu == 1500 && o.only.MatchString("start-up and idle memory")
	if len(rows) == 0 && !first {
		return nil
	}
	b := bed.New("bench")
	defer b.Close()
	var lab *netlab.Lab
	if err := bed.Try(func() {
		lab = netlab.New(b, netlab.Options{MTU: g.mtu})
		ports(lab.Host, otherPorts)
		ports(lab.Remote, otherPorts)
		g.serve(lab)
	}); err != nil {
		return err
	}
	if first {
		startups(o, lab, t)
	}
	entrants := enter(o, lab, &g, backward)
	if first {
		time.Sleep(time.Second)
		for _, e := range entrants {
			if m := e.pss(); m > 0 {
				t.Add("memory idle", "MiB PSS", e.name, m)
			}
		}
	}
	for _, r := range rows {
		for again := range o.repeat {
			for _, e := range entrants {
				kernel := e.pids() == nil
				if kernel && !r.kernel || o.short && kernel && again > 0 || r.once && round+again > 0 {
					continue
				}
				once(o, lab, t, r, e)
			}
			slices.Reverse(entrants)
		}
	}
	return nil
}

// serve starts what the group's instances ask.
func (g *group) serve(lab *netlab.Lab) {
	if g.prepare != nil {
		g.prepare(lab)
	}
}

// enter starts all contestants, in the order in which they are measured: who starts
// last is slower by a tenth in some rows, whichever program it is. One that fails is
// left out with a message.
func enter(o options, lab *netlab.Lab, g *group, backward bool) (all []*entrant) {
	cs := contestants(o)
	if backward {
		slices.Reverse(cs)
	}
	for _, c := range cs {
		if g.who != "" && c.name != g.who {
			continue
		}
		start := c.start
		if g.start != nil {
			if c.name == "slirp4netns" {
				continue // whose resolver is the machine's
			}
			start = g.start
		}
		if err := bed.Try(func() { all = append(all, start(lab, c, g.mtu)) }); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s left out: %v\n", c.name, err)
		}
	}
	return all
}

func once(o options, lab *netlab.Lab, t *report.Table, r row, e *entrant) {
	lab.Host.Sysctl("net/ipv4/tcp_wmem", sysctls[r.sysctl].wmem)
	lab.Host.Sysctl("net/ipv4/tcp_rmem", sysctls[r.sysctl].rmem)
	lab.Remote.Sysctl("net/ipv4/tcp_wmem", sysctls[r.sysctl].wmem)
	lab.Remote.Sysctl("net/ipv4/tcp_rmem", sysctls[r.sysctl].rmem)
	var values map[string]float64
	var err error
	if fail := bed.Try(func() { values, err = r.measure(e, lab, o.span) }); fail != nil {
		err = fail
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %s, %s: %v\n", r.name, e.name, err)
		return
	}
	for name, v := range values {
		what, unit, _ := strings.Cut(name, "|")
		t.Add(what, unit, e.name, v)
	}
}
