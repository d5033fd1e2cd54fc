// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

// tableEnv asks for the table of docs/network.md, of whichever pasta is tested.
const tableEnv = "ALDENTE_FOLLOW_TABLE"

// tablePatience is how long a row of the table waits for what may never come.
const tablePatience = 8 * time.Second

// rowsOf is a guest of whose network the host's changes.
type rowsOf struct {
	t    *testing.T
	kind string
	g    *netlab.Guest
}

// row makes a change, and says how long it takes until the guest has an address, and until
// its new connections come from there; and what becomes of one that was there before.
func (c *rowsOf) row(what, addr string, ln net.Listener, old *held, do func()) {
	c.t.Helper()
	do()
	start := time.Now()
	has, via := "never", "never"
	for time.Since(start) < tablePatience && (has == "never" || via == "never") {
		if has == "never" && ipSays(c.g.NS, " "+addr+"/", "-4", "addr") {
			has = fmt.Sprintf("%.1f s", time.Since(start).Seconds())
		}
		if via == "never" && sees(c.t, c.g.NS, ln) == addr {
			via = fmt.Sprintf("%.1f s", time.Since(start).Seconds())
		}
		time.Sleep(20 * time.Millisecond)
	}
	lives := "lives"
	_ = old.guest.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := old.guest.Read(make([]byte, 1)); err != nil && strings.Contains(err.Error(), "reset") {
		lives = "reset"
	} else if _, err := old.peer.Write([]byte("x")); err == nil {
		_ = old.guest.SetReadDeadline(time.Now().Add(4 * time.Second))
		if _, err := old.guest.Read(make([]byte, 1)); err != nil {
			lives = "hangs"
		}
	}
	c.t.Logf("TABLE | %s | %s | %s | %s | %s |", what, c.kind, has, via, lives)
}

// TestFollowTable prints, for a namespace with --config-net and one with a DHCP client, what becomes of
// it when the host's network changes: of the original's, too, by ALDENTE_PASTA.
func TestFollowTable(t *testing.T) {
	if os.Getenv(tableEnv) == "" {
		t.Skip("prints a table that nobody has asked for: " + tableEnv + "=1")
	}
	for _, kind := range []string{"--config-net", "dhcpcd"} {
		t.Run(kind, func(t *testing.T) { followTable(t, kind) })
	}
}

func followTable(t *testing.T, kind string) {
	lab := netlab.New(t, netlab.Options{})
	vpn := netlab.NewNS(t, "vpn")
	resolv := writeFile(t, "resolv.conf", "nameserver 192.0.2.53\n", 0o644)
	spec := netlab.GuestSpec{Args: []string{"--dhcp-dns"}, ResolvAt: resolv}
	if kind == "--config-net" {
		spec.Args = append(spec.Args, kind)
	}
	c := &rowsOf{t, kind, lab.GuestWith(spec)}
	resolvers := ""
	if kind != "--config-net" {
		c.g.IP("link set " + c.g.Interface() + " up")
		resolvers = dhcpcd(t, c.g)
	}
	comesTrue(t, "the guest has its first address", func() bool {
		return ipSays(c.g.NS, " 192.0.2.2/", "-4", "addr") && ipSays(c.g.NS, "default via", "-4", "route")
	})
	far, near := lab.Remote.Listen("tcp", "198.51.100.9:7"), lab.Remote.Listen("tcp", lab.Remote4+":8")
	on := hold(t, c.g.NS, near)
	c.row("address renewed", "192.0.2.7", far, &on, func() {
		lab.Host.IP("addr del 192.0.2.2/24 dev h0", "addr add 192.0.2.7/24 dev h0", "route replace default via 192.0.2.1")
	})
	if resolvers != "" {
		start, took := time.Now(), "never"
		if err := os.WriteFile(resolv, []byte("nameserver 192.0.2.54\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		for time.Since(start) < tablePatience+carrierPause && took == "never" {
			if b, _ := os.ReadFile(resolvers); strings.TrimSpace(string(b)) == "192.0.2.54" {
				took = fmt.Sprintf("%.1f s", time.Since(start).Seconds())
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Logf("TABLE | resolver changes | %s | %s | | |", kind, took)
		time.Sleep(carrierPause)
	}
	on = hold(t, c.g.NS, near)
	netlab.Veth(lab.Host, "v0", vpn, "v1", 1400)
	vpn.IP("addr add 203.0.113.1/24 dev v1", "addr add 198.51.100.9/32 dev lo")
	inside := vpn.Listen("tcp", "198.51.100.9:7")
	c.row("VPN comes", "203.0.113.2", inside, &on, func() {
		lab.Host.IP("route add default via 192.0.2.1 metric 600", "route del default via 192.0.2.1 metric 0",
			"addr add 203.0.113.2/24 dev v0", "route add default via 203.0.113.1 metric 50")
	})
	c.row("VPN goes", "192.0.2.7", far, &on, func() { lab.Host.IP("link del v0") })
	c.row("interface renamed", "192.0.2.7", far, &on, func() {
		lab.Host.IP("link set h0 down", "link set h0 name wan0", "link set wan0 up", "route add default via 192.0.2.1")
	})
	c.row("interface removed, another comes", "192.0.2.8", far, &on, func() {
		lab.Host.IP("link del wan0")
		netlab.Veth(lab.Host, "h0", lab.Remote, "r0", 1500)
		lab.Remote.IP("addr add 192.0.2.9/24 dev r0", "addr add 192.0.2.1/24 dev r0")
		lab.Host.IP("addr add 192.0.2.8/24 dev h0", "route add default via 192.0.2.1")
	})
}

// carrierPause is how long a link stays at least when it was away.
const carrierPause = 5 * time.Second
