// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"aldente/bench/bed"
	"aldente/bench/report"
	"aldente/names/hello/hellotest"
	"aldente/test/netlab"
)

// Ports of the remote: flows to the first range are looked at, those to the other are not.
const (
	lookedPorts = 10000
	plainPorts  = 30000
	eachPorts   = 20000
)

// hellosGroup is what --verify-sni costs a flow once its hello has passed: ours beside
// itself, in one instance, where only the port makes the difference.
func hellosGroup() group {
	start := func(lab *netlab.Lab, c contestant, mtu int) *entrant {
		return startForwarding(lab, c, mtu, append([]string{fmt.Sprintf("--verify-sni=%d-%d", lookedPorts, lookedPorts+eachPorts-1)}, ruleByName...)...)
	}
	return group{mtu: 65520, prepare: serveNames, start: start, who: report.Ours, rows: []row{hellosRow(false), hellosRow(true)}}
}

// hellosRow is of bulk behind a client hello, which the server has read before: a flow
// that was looked at, one that was not, and again the other way round.
func hellosRow(down bool) row {
	name := fmt.Sprintf("TCP %s behind a hello", report.Direction(down))
	return row{name: name, measure: func(e *entrant, lab *netlab.Lab, span time.Duration) (map[string]float64, error) {
		c, err := e.guest.DialError("udp4", net.JoinHostPort(e.resolver, "53"), 5*time.Second)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		if _, err := addressBy(c); err != nil {
			return nil, err
		}
		gbit, cpu := map[int]float64{}, map[int]float64{}
		for _, ports := range []int{lookedPorts, plainPorts, plainPorts, lookedPorts} {
			g, c, err := behindHello(e, lab, ports, down, span/2)
			if err != nil {
				return nil, err
			}
			gbit[ports] += g / 2
			cpu[ports] += c / 2
		}
		return map[string]float64{
			name + ", looked at|Gbit/s":        gbit[lookedPorts],
			name + ", not looked at|Gbit/s":    gbit[plainPorts],
			name + ", looked at|× without":     gbit[lookedPorts] / gbit[plainPorts],
			name + ", looked at|CPU s/GiB":     cpu[lookedPorts],
			name + ", not looked at|CPU s/GiB": cpu[plainPorts],
		}, nil
	}}
}

// behindHello is what one flow moves whose hello has arrived, in Gbit/s, and the processor
// seconds for each GiB.
func behindHello(e *entrant, lab *netlab.Lab, ports int, down bool, span time.Duration) (gbit, cpuGiB float64, err error) {
	addr := fmt.Sprintf("%s:%d", lab.Remote4, ports+int(lastPort.Add(1)%eachPorts))
	p := path{e.guest, lab.Remote, addr, addr}
	ln := p.server.Listen("tcp4", p.listen)
	defer ln.Close()
	near, far, err := p.connect(ln)
	if err != nil {
		return 0, 0, err
	}
	hello := hellotest.Hello(&tls.Config{ServerName: "www.bench.test"})
	_ = far.SetDeadline(time.Now().Add(5 * time.Second))
	_, err = near.Write(hello)
	if err == nil {
		_, err = io.ReadFull(far, make([]byte, len(hello)))
	}
	if err != nil {
		near.Close()
		far.Close()
		return 0, 0, fmt.Errorf("a hello: %w", err)
	}
	_ = far.SetDeadline(time.Time{})
	from, to := near, far
	if down {
		from, to = far, near
	}
	var b bed.Bulk
	defer b.Stop()
	if err := b.Flow(from, to); err != nil {
		return 0, 0, err
	}
	b.Start()
	time.Sleep(span / 4)
	bytes, cpu, start := b.Received.Load(), e.cpu(), time.Now()
	time.Sleep(span)
	bytes, cpu = b.Received.Load()-bytes, e.cpu()-cpu
	if bytes == 0 {
		return 0, 0, errors.New("nothing is moved")
	}
	return float64(bytes) * 8 / 1e9 / time.Since(start).Seconds(), cpu.Seconds() / (float64(bytes) / (1 << 30)), nil
}
