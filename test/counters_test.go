// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"testing"

	"aldente/test/netlab"
)

// TestNoRetransmissionOnCleanLink asks for what a translator owes its guest
// where nothing is lost: no time-out and no retransmission but probes in the
// guest's kernel, whatever the MTU, the host's send buffers and the number of
// flows.
func TestNoRetransmissionOnCleanLink(t *testing.T) {
	needOurs(t)
	for _, mtu := range []int{1500, 65520} {
		for _, wmem := range []string{"4096 16384 4194304", "4096 4194304 67108864"} {
			name := "wmem 16K"
			if wmem != "4096 16384 4194304" {
				name = "wmem 4M"
			}
			t.Run(fmt.Sprintf("MTU %d/%s", mtu, name), func(t *testing.T) {
				lab := netlab.New(t, netlab.Options{MTU: mtu})
				lab.Host.Sysctl("net/ipv4/tcp_wmem", wmem)
				g := lab.Guest("-m", fmt.Sprint(mtu))
				for _, flows := range []int{1, 64} {
					for _, dir := range []string{"up", "down"} {
						t.Run(fmt.Sprintf("%d/%s", flows, dir), func(t *testing.T) {
							cleanRun(t, lab, g, flows, dir)
						})
					}
				}
			})
		}
	}
}

func cleanRun(t *testing.T, lab *netlab.Lab, g *netlab.Guest, flows int, dir string) {
	args := []string{"-t", "2", "-P", fmt.Sprint(flows)}
	if testing.Short() {
		args[1] = "1"
	}
	if dir == "down" {
		args = append(args, "-R")
	}
	before := g.Counters()
	r := runIperf(t, g.NS, lab.Remote, "192.0.2.9", args...)
	d := g.Since(before, "TcpExtTCPTimeouts", "TcpRetransSegs", "TcpExtTCPLossProbes", "TcpExtTCPFastRetrans",
		"TcpExtTCPLostRetransmit", "TcpExtTCPSackRecovery", "TcpInErrs", "TcpInCsumErrors")
	t.Logf("%.2f Gbit/s, %v", r.End.Received.Rate/1e9, d)
	// A loss probe (RFC 8985 section 7) is sent when an acknowledgement is
	// late by a few milliseconds, as on a busy machine; it follows no loss.
	d["TcpRetransSegs"] -= d["TcpExtTCPLossProbes"]
	delete(d, "TcpExtTCPLossProbes")
	for k, v := range d {
		if v > 0 {
			t.Errorf("guest's %s grew by %d", k, v)
		}
	}
	if t.Failed() {
		t.Log(g.Must("ip", "-s", "link", "show", "dev", g.Interface()))
	}
}
