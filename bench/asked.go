// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"aldente/bench/report"
	"aldente/broker/control/api"
	"aldente/test/netlab"
)

// askedRow is what it costs traffic that somebody asks for all flows and figures ten
// times a second: what is left of that without, measured directly before.
func askedRow() row {
	const name = "request/response tcp while flows and figures are asked for"
	return row{name: name, measure: func(e *entrant, lab *netlab.Lab, span time.Duration) (map[string]float64, error) {
		socket := statusSocket(e, lab)
		if socket == "" {
			return nil, nil // the others have nobody to ask
		}
		quiet, err := roundTrips(outbound(e, lab), "tcp4", 1, 0, span)
		if err != nil {
			return nil, err
		}
		stop, stopped := make(chan struct{}), make(chan error, 1)
		go func() { stopped <- askOften(lab, socket, stop) }()
		asked, err := roundTrips(outbound(e, lab), "tcp4", 1, 0, span)
		close(stop)
		if e := <-stopped; err == nil {
			err = e
		}
		return map[string]float64{name + "|1/s": asked.PerSecond, name + "|× without": asked.PerSecond / quiet.PerSecond}, err
	}}
}

// statusSocket is that of an entrant, "" if it has none. There is one instance.
func statusSocket(e *entrant, lab *netlab.Lab) string {
	if e.name != report.Ours {
		return ""
	}
	for line := range strings.Lines(lab.Host.Read("/proc/net/unix")) {
		if f := strings.Fields(line); len(f) == 8 && strings.HasPrefix(f[7], "@"+api.Prefix) {
			return f[7]
		}
	}
	return ""
}

// askOften asks until it is told to stop.
func askOften(lab *netlab.Lab, socket string, stop chan struct{}) error {
	for tick := time.Tick(100 * time.Millisecond); ; {
		for _, command := range []string{api.Flows, api.Counters} {
			c, err := lab.Host.DialError("unix", socket, time.Second)
			if err != nil {
				return err
			}
			_, _ = fmt.Fprintf(c, `{"version":%d,"command":%q}`+"\n", api.Version, command)
			n, err := io.Copy(io.Discard, c)
			c.Close()
			if err != nil || n == 0 {
				return fmt.Errorf("%s: %d bytes, %w", command, n, err)
			}
		}
		select {
		case <-stop:
			return nil
		case <-tick:
		}
	}
}
