// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"aldente/test/netlab"
)

const damagedSize = 32 << 20

// TestDamagedHostLink puts the damage between the host's kernel and the
// remote's: nothing of it may show in what the guest sees.
func TestDamagedHostLink(t *testing.T) {
	heavy(t)
	t.Parallel()
	netlab.Have(t, "ethtool")
	lab := netlab.New(t, netlab.Options{Wire: &netlab.Bad})
	g := lab.Guest()
	before := g.Counters()
	damaged(t, g.NS, lab.Remote)
	t.Log("guest's counters:", g.Since(before, "TcpRetransSegs", "TcpInCsumErrors", "TcpExtTCPTimeouts"))
}

// TestDamagedTap puts the damage between the guest's kernel and the tap,
// where the translator's own TCP is the other end.
//
//	inner eth0 ── wire ── bridge ── tap ── translator
func TestDamagedTap(t *testing.T) {
	heavy(t)
	needOurs(t)
	t.Parallel()
	netlab.Have(t, "ethtool")
	lab := netlab.New(t, netlab.Options{})
	g := lab.GuestWith(netlab.GuestSpec{})
	inner := behindWire(t, g, netlab.Bad)
	before := inner.Counters()
	damaged(t, inner, lab.Remote)
	d := inner.Since(before, "TcpRetransSegs", "TcpInCsumErrors", "TcpExtTCPTimeouts")
	t.Log("guest's counters:", d)
	if d["TcpRetransSegs"] == 0 {
		t.Error("nothing was retransmitted: the wire did no damage")
	}
}

// damaged moves data both ways over both IP versions at the same time: the
// transfers wait more than they work.
func damaged(t *testing.T, client, server *netlab.NS) {
	var wg sync.WaitGroup
	for i, f := range families {
		for j, dir := range []string{"up", "down"} {
			if dir == "up" && !netlab.Ours() {
				continue // collapses to a few kilobytes a second
			}
			wg.Go(func() {
				addr, start := f.at(f.remote, fmt.Sprint(9000+2*i+j)), time.Now()
				if err := netlab.Transfer(client, server, addr, addr, damagedSize, dir == "down", 150*time.Second); err != nil {
					t.Errorf("%s %s: %v", f.name, dir, err)
				}
				t.Logf("%s %s: %d MiB in %v", f.name, dir, damagedSize>>20, time.Since(start).Round(time.Millisecond))
			})
		}
	}
	wg.Wait()
}

// behindWire moves the guest's addresses into a namespace behind a damaging
// wire and returns that namespace.
func behindWire(t *testing.T, g *netlab.Guest, d netlab.Damage) *netlab.NS {
	t.Helper()
	tap := g.Interface()
	inner := netlab.NewNS(t, "inner")
	g.Sysctl("net/ipv6/conf/all/disable_ipv6", "1")
	g.Sysctl("net/ipv6/conf/default/disable_ipv6", "1")
	netlab.Veth(inner, "eth0", g.NS, "w0", 1500)
	netlab.Veth(g.NS, "b0", g.NS, "w1", 1500)
	netlab.NoOffload(inner, "eth0")
	netlab.NoOffload(g.NS, "b0")
	g.IP("link add br0 type bridge stp_state 0 forward_delay 0", "link set br0 up",
		"link set b0 master br0", "link set "+tap+" mtu 1500 master br0", "link set "+tap+" up")
	netlab.NewWire(g.NS, "w0", "w1", d)
	inner.IP("addr add 192.0.2.2/24 dev eth0", "route add default via 192.0.2.1",
		"addr add 2001:db8:1::2/64 dev eth0 nodad", "-6 route add default via fe80::1 dev eth0")
	return inner
}
