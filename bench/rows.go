// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net"
	"time"

	"aldente/bench/report"
	"aldente/test/netlab"
)

func bulkRow(mtu, sysctl, flows int, down bool) row {
	return bulkOver(report.BulkRow(mtu, sysctls[sysctl].name, flows, down), outbound, sysctl, flows, down)
}

func bulkOver(name string, over func(*entrant, *netlab.Lab) path, sysctl, flows int, down bool) row {
	return row{name: name, sysctl: sysctl, kernel: true, measure: func(e *entrant, lab *netlab.Lab, span time.Duration) (map[string]float64, error) {
		gbit, cpu, err := bulk(e, over(e, lab), flows, down, span)
		v := map[string]float64{name + "|Gbit/s": gbit}
		if cpu > 0 {
			v[name+"|CPU s/GiB"] = cpu
		}
		return v, err
	}}
}

func rateRow(name string, f func(e *entrant, lab *netlab.Lab, span time.Duration) (rate, error)) row {
	return row{name: name, kernel: true, measure: func(e *entrant, lab *netlab.Lab, span time.Duration) (map[string]float64, error) {
		var r rate
		var err error
		cpu, calls := e.cost(func() { r, err = f(e, lab, span) })
		v := map[string]float64{name + "|1/s": r.PerSecond, name + "|p50 µs": r.P50, name + "|p99 µs": r.P99}
		if cpu > 0 && r.Calls > 0 {
			v[name+"|CPU µs"] = float64(cpu) / 1e3 / float64(r.Calls)
		}
		if calls > 0 && r.Calls > 0 {
			v[name+"|system calls"] = float64(calls) / float64(r.Calls)
		}
		return v, err
	}}
}

// forwardRows are of ports: from the remote, and from the host's loopback.
// The client is outside, and up is away from it.
func forwardRows() []row {
	var rows []row
	for _, w := range []struct {
		name string
		over func(*entrant, *netlab.Lab) path
	}{{"inbound", inbound}, {"host's loopback", loopback}} {
		for _, down := range []bool{false, true} {
			rows = append(rows, bulkOver(fmt.Sprintf("%s TCP %s, 1 flows", w.name, report.Direction(down)), w.over, 0, 1, down))
		}
		for _, network := range []string{"tcp4", "udp4"} {
			for _, n := range []int{1, 16, 64, 256} {
				if n > 16 && network == "tcp4" {
					continue
				}
				rows = append(rows, roundTripsRow(w.name+" ", w.over, network, n))
			}
		}
		rows = append(rows, rateRow(w.name+" connect/request/close, 16 clients",
			func(e *entrant, lab *netlab.Lab, span time.Duration) (rate, error) {
				return connections(w.over(e, lab), 16, span)
			}))
	}
	return rows
}

func datagramRows(sizes []int) []row {
	var rows []row
	add := func(what string, l load, size int) {
		for _, down := range []bool{false, true} {
			name := fmt.Sprintf("UDP %s, %d bytes%s", report.Direction(down), size, what)
			rows = append(rows, row{name: name, kernel: true, measure: func(e *entrant, lab *netlab.Lab, span time.Duration) (map[string]float64, error) {
				gbit, err := datagrams(outbound(e, lab), size, down, l, span)
				return map[string]float64{name + "|Gbit/s": gbit}, err
			}})
		}
	}
	for _, size := range sizes {
		add("", plainLoad, size)
	}
	add(", UDP_SEGMENT", segmentLoad, 1400)
	return rows
}

func roundTripsRow(where string, over func(*entrant, *netlab.Lab) path, network string, clients int) row {
	return rateRow(fmt.Sprintf("%srequest/response %s, %d clients", where, network[:3], clients),
		func(e *entrant, lab *netlab.Lab, span time.Duration) (rate, error) {
			return roundTrips(over(e, lab), network, clients, 0, span)
		})
}

// pacedRow is of clients that together ask that often in a second, whoever is measured: how
// long they wait for an answer compares at equal load only, since who is faster has the
// clients and the server keep the processors busier.
func pacedRow(network string, clients, perSecond int) row {
	return rateRow(fmt.Sprintf("request/response %s, %d clients at %d/s", network[:3], clients, perSecond),
		func(e *entrant, lab *netlab.Lab, span time.Duration) (rate, error) {
			return roundTrips(outbound(e, lab), network, clients, time.Second*time.Duration(clients)/time.Duration(perSecond), span)
		})
}

func requestRows(clients []int) []row {
	var rows []row
	for _, n := range clients {
		rows = append(rows, roundTripsRow("", outbound, "tcp4", n), roundTripsRow("", outbound, "udp4", n))
	}
	rows = append(rows, roundTripsRow("", outbound, "udp4", 64), pacedRow("tcp4", 16, 10_000), pacedRow("udp4", 16, 10_000))
	for _, down := range []bool{false, true} {
		rows = append(rows, besideRow(4, down))
	}
	rows = append(rows, askedRow())
	for _, n := range clients {
		rows = append(rows, rateRow(fmt.Sprintf("connect/request/close, %d clients", n),
			func(e *entrant, lab *netlab.Lab, span time.Duration) (rate, error) {
				return connections(outbound(e, lab), n, span)
			}))
	}
	for _, n := range []int{1, 16} {
		rows = append(rows, rateRow(fmt.Sprintf("question and answer by a new UDP socket, %d clients", n),
			func(e *entrant, lab *netlab.Lab, span time.Duration) (rate, error) {
				// Not for long: how many flows of UDP begin in a second is limited.
				return questions(outbound(e, lab), n, min(span, 300*time.Millisecond))
			}))
	}
	return rows
}

// besideRow is of one client beside flows of bulk, which counts too.
func besideRow(flows int, down bool) row {
	name := fmt.Sprintf("request/response tcp beside %d flows %s, tuned", flows, report.Direction(down))
	var gbit float64
	r := rateRow(name, func(e *entrant, lab *netlab.Lab, span time.Duration) (r rate, err error) {
		r, gbit, err = beside(e, lab, flows, down, span)
		return r, err
	})
	r.sysctl = 1 // with the default the bulk of some hardly moves
	rates := r.measure
	r.measure = func(e *entrant, lab *netlab.Lab, span time.Duration) (map[string]float64, error) {
		v, err := rates(e, lab, span)
		if err == nil {
			v[name+", the flows|Gbit/s"] = gbit
		}
		return v, err
	}
	return r
}

// quietRows are what a guest costs that does little: memory, wake-ups, and what
// many connections cost that one which works.
func quietRows(idle []int) []row {
	rows := []row{{name: "memory", once: true, measure: func(e *entrant, lab *netlab.Lab, span time.Duration) (map[string]float64, error) {
		return map[string]float64{"memory after the load|MiB PSS": e.pss()}, nil
	}}, wakeUpsRow()}
	for _, n := range idle {
		rows = append(rows, row{name: fmt.Sprintf("%d idle flows", n), once: true,
			measure: func(e *entrant, lab *netlab.Lab, span time.Duration) (map[string]float64, error) {
				return idleFlows(e, lab, n, span)
			}})
	}
	return rows
}

// settling is how long after its start, or after load, a guest's kernel still solicits routers,
// and a translator still has connections that were closed.
const settling = 12 * time.Second

// wakeUpsRow counts context switches of the entrant's processes while nothing happens.
func wakeUpsRow() row {
	var quiet time.Time // since then nothing has happened to any of them
	return row{name: "wake-ups", once: true, measure: func(e *entrant, lab *netlab.Lab, span time.Duration) (map[string]float64, error) {
		if quiet.IsZero() {
			quiet = time.Now()
		}
		time.Sleep(time.Until(quiet.Add(settling)))
		count := func() (n int64) {
			for _, p := range e.pids() {
				n += netlab.Switches(p)
			}
			return n
		}
		before, long := count(), max(2*span, 4*time.Second) // a scan may come once a second
		time.Sleep(long)
		return map[string]float64{"wake-ups while idle|per second": float64(count()-before) / long.Seconds()}, nil
	}}
}

// idleFlows opens n connections that stay silent, and measures beside them.
func idleFlows(e *entrant, lab *netlab.Lab, n int, span time.Duration) (map[string]float64, error) {
	w := outbound(e, lab)
	ln := w.server.Listen("tcp4", w.listen)
	defer ln.Close()
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range n {
		near, far, err := w.connect(ln)
		if err != nil {
			return nil, fmt.Errorf("%d connections, then: %w", len(conns)/2, err)
		}
		conns = append(conns, near, far)
	}
	pss := e.pss()
	// One of the crowd, and the last, so that whoever searches a list does.
	b := make([]byte, 1)
	near, far := conns[len(conns)-2], conns[len(conns)-1]
	go func() { _, _ = io.Copy(far, far) }()
	r, err := requests(1, span, func(int) error {
		if _, err := near.Write(b); err != nil {
			return err
		}
		_, err := io.ReadFull(near, b)
		return err
	})
	return map[string]float64{
		fmt.Sprintf("memory with %d flows|MiB PSS", n):             pss,
		fmt.Sprintf("request/response tcp beside %d flows|1/s", n): r.PerSecond,
	}, err
}
