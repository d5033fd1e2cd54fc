// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"fmt"
	"strings"
)

// Counters reads the namespace's network counters, named as nstat(8) names
// them: TcpRetransSegs, TcpExtTCPTimeouts, UdpInDatagrams, Ip6InReceives.
func (n *NS) Counters() map[string]int64 {
	n.tb.Helper()
	m := map[string]int64{}
	for _, file := range []string{"/proc/net/snmp", "/proc/net/netstat"} {
		lines := strings.Split(n.Read(file), "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			keys, vals := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for j := 1; j < len(keys) && j < len(vals); j++ {
				var v int64
				fmt.Sscan(vals[j], &v)
				m[strings.TrimSuffix(keys[0], ":")+keys[j]] = v
			}
		}
	}
	return m
}

// Since returns the named counters' growth since an earlier reading.
func (n *NS) Since(before map[string]int64, names ...string) map[string]int64 {
	n.tb.Helper()
	now, diff := n.Counters(), map[string]int64{}
	for _, k := range names {
		diff[k] = now[k] - before[k]
	}
	return diff
}
