// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"time"

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
}

// row is one line of the table, or several that one measurement yields.
type row struct {
	name    string
	sysctl  int // index into sysctls
	kernel  bool
	measure func(e *entrant, lab *netlab.Lab, span time.Duration) (map[string]float64, error)
}

// groups returns what is measured in one round.
func groups(short bool) []group {
	mtus, flows, clients, sizes := []int{1500, 9000, 65520}, []int{1, 4, 64}, []int{1, 16, 256}, []int{64, 1400, 60000}
	if short {
		mtus, flows, sizes = []int{1500, 65520}, []int{1, 4}, []int{1400}
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
			g.rows = append(g.rows, requestRows(sizes, clients)...)
		}
		all = append(all, g)
	}
	return all
}

var directions = map[bool]string{false: "up", true: "down"}

func bulkRow(mtu, sysctl, flows int, down bool) row {
	name := fmt.Sprintf("TCP %s, MTU %d, %s, %d flows", directions[down], mtu, sysctls[sysctl].name, flows)
	return row{name, sysctl, true, func(e *entrant, lab *netlab.Lab, span time.Duration) (map[string]float64, error) {
		gbit, cpu, err := bulk(e, lab.Remote, flows, down, span)
		v := map[string]float64{name + "|Gbit/s": gbit}
		if len(e.pids()) > 0 {
			v[name+"|CPU s/GiB"] = cpu
		}
		return v, err
	}}
}

// requestRows are the rows that do not depend on the MTU much.
func requestRows(sizes, clients []int) []row {
	var rows []row
	for _, size := range sizes {
		for _, down := range []bool{false, true} {
			name := fmt.Sprintf("UDP %s, %d bytes, delivered", directions[down], size)
			rows = append(rows, row{name, 0, true, func(e *entrant, lab *netlab.Lab, span time.Duration) (map[string]float64, error) {
				gbit, err := datagrams(e, lab.Remote, size, down, span)
				return map[string]float64{name + "|Gbit/s": gbit}, err
			}})
		}
	}
	add := func(name string, f func(e *entrant, lab *netlab.Lab, span time.Duration) (rate, error)) {
		rows = append(rows, row{name, 0, true, func(e *entrant, lab *netlab.Lab, span time.Duration) (map[string]float64, error) {
			r, err := f(e, lab, span)
			return map[string]float64{name + "|1/s": r.PerSecond, name + "|p50 µs": r.P50, name + "|p99 µs": r.P99}, err
		}})
	}
	for _, n := range clients {
		for _, network := range []string{"tcp4", "udp4"} {
			if network == "udp4" && n > 16 {
				continue // beyond what a socket's queue holds at once
			}
			add(fmt.Sprintf("request/response %s, %d clients", network[:3], n), func(e *entrant, lab *netlab.Lab, span time.Duration) (rate, error) {
				return roundTrips(e, lab.Remote, network, n, span)
			})
		}
	}
	for _, n := range clients {
		add(fmt.Sprintf("connect/request/close, %d clients", n), func(e *entrant, lab *netlab.Lab, span time.Duration) (rate, error) {
			return connections(e, lab.Remote, n, span)
		})
	}
	return append(rows, row{"memory", 0, false, func(e *entrant, lab *netlab.Lab, span time.Duration) (map[string]float64, error) {
		return map[string]float64{"memory after the load|MiB PSS": e.pss()}, nil
	}})
}

// measure runs the group's rows once for each contestant, in turn.
func (g group) measure(o options, t *table) error {
	var rows []row
	for _, r := range g.rows {
		if o.only.MatchString(r.name) {
			rows = append(rows, r)
		}
	}
	first := g.mtu == 1500 && o.only.MatchString("start-up and idle memory")
	if len(rows) == 0 && !first {
		return nil
	}
	b := &bed{}
	defer b.close()
	var lab *netlab.Lab
	if err := try(func() { lab = netlab.New(b, netlab.Options{MTU: g.mtu}); ports(lab.Host); ports(lab.Remote) }); err != nil {
		return err
	}
	if first {
		startups(o, lab, t)
	}
	entrants := enter(o, lab, g.mtu)
	if first {
		time.Sleep(time.Second)
		for _, e := range entrants {
			if m := e.pss(); m > 0 {
				t.add("memory idle|MiB PSS", e.name, m)
			}
		}
	}
	for _, r := range rows {
		for _, e := range entrants {
			if e.pids() == nil && !r.kernel {
				continue
			}
			once(o, lab, t, r, e)
		}
	}
	return nil
}

// enter starts all contestants; one that fails is left out with a message.
func enter(o options, lab *netlab.Lab, mtu int) (all []*entrant) {
	for _, c := range contestants(o) {
		if err := try(func() { all = append(all, c.start(lab, c, mtu)) }); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s left out: %v\n", c.name, err)
		}
	}
	return all
}

func once(o options, lab *netlab.Lab, t *table, r row, e *entrant) {
	lab.Host.Sysctl("net/ipv4/tcp_wmem", sysctls[r.sysctl].wmem)
	lab.Host.Sysctl("net/ipv4/tcp_rmem", sysctls[r.sysctl].rmem)
	lab.Remote.Sysctl("net/ipv4/tcp_wmem", sysctls[r.sysctl].wmem)
	lab.Remote.Sysctl("net/ipv4/tcp_rmem", sysctls[r.sysctl].rmem)
	var values map[string]float64
	var err error
	if fail := try(func() { values, err = r.measure(e, lab, o.span) }); fail != nil {
		err = fail
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %s, %s: %v\n", r.name, e.name, err)
		return
	}
	for name, v := range values {
		t.add(name, e.name, v)
	}
}

// startups times a command that ends at once, in a namespace that is made,
// configured and connected for it.
func startups(o options, lab *netlab.Lab, t *table) {
	for range 10 {
		for _, c := range contestants(o) {
			if c.binary == "" || c.name == "slirp4netns" { // which runs no command
				continue
			}
			args := append(append([]string{c.binary}, netlab.NoForward()...), "--config-net", "--", "true")
			start := time.Now()
			p := lab.Host.Start(netlab.Spec{Args: args, User: netlab.Nobody, Timeout: 10 * time.Second})
			if p.Wait() == 0 {
				t.add("start-up of --config-net -- true|ms", c.name, float64(time.Since(start))/1e6)
			}
		}
	}
}
