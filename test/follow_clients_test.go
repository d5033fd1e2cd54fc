// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"aldente/test/netlab"
)

// aside starts a daemon in a guest, with folders of its own in the place of those that it
// would write to.
func aside(t *testing.T, g *netlab.Guest, folders []string, args ...string) *netlab.Proc {
	t.Helper()
	script := "for d in " + strings.Join(folders, " ") + "; do mkdir -p $d; mount -t tmpfs none $d; done; exec \"$@\""
	p := g.Start(netlab.Spec{Args: append([]string{"unshare", "-m", "sh", "-ec", script, "sh"}, args...)})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s: %s", strings.Join(args, " "), p.Output())
		}
	})
	return p
}

// writeFile writes a file of a test's own and returns its path.
func writeFile(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// dhcpcd starts that client, which writes each resolver that it is told of to the file returned.
func dhcpcd(t *testing.T, g *netlab.Guest) (resolvers string) {
	t.Helper()
	resolvers = filepath.Join(t.TempDir(), "resolvers")
	script := writeFile(t, "script", "#!/bin/sh\ncase $reason in BOUND|RENEW|REBIND|REBOOT) echo \"$new_domain_name_servers\" >"+resolvers+";; esac\n", 0o755)
	conf := writeFile(t, "conf", "script "+script+"\nnoarp\noption domain_name_servers, classless_static_routes, interface_mtu\n", 0o644)
	aside(t, g, []string{"/run", "/var/lib/dhcpcd"}, "dhcpcd", "-d", "-B", "-f", conf, g.Interface())
	return resolvers
}

// networkd starts systemd-networkd; it writes no file that others read.
func networkd(t *testing.T, g *netlab.Guest) {
	t.Helper()
	conf := "[Match]\nName=" + g.Interface() + "\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\n"
	script := `mount -o remount,ro,bind /sys 2>/dev/null || mount -t sysfs -o ro none /sys
mkdir -p /run/systemd/network /run/systemd/netif; printf '` + strings.ReplaceAll(conf, "\n", `\n`) + `' >/run/systemd/network/1.network
chown -R systemd-network /run/systemd/netif; SYSTEMD_LOG_LEVEL=debug exec /lib/systemd/systemd-networkd`
	aside(t, g, []string{"/run", "/etc/systemd/network"}, "sh", "-ec", script)
}

// TestFollowClients: clients that ask for their network again when their link was away learn
// at once what has changed, by a link that goes and comes back. A connection whose address
// stays goes on.
func TestFollowClients(t *testing.T) {
	needOurs(t)
	needRoot(t) // the clients become users of their own, and have folders of their own
	for _, name := range []string{"dhcpcd", "networkd"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "networkd" {
				if _, err := exec.LookPath("/lib/systemd/systemd-networkd"); err != nil {
					t.Skip("systemd-networkd is not installed")
				}
			} else {
				netlab.Have(t, name)
			}
			testFollowClient(t, name)
		})
	}
}

func testFollowClient(t *testing.T, name string) {
	lab := netlab.New(t, netlab.Options{})
	near := lab.Remote.Listen("tcp", lab.Remote4+":8")
	resolv := writeFile(t, "resolv.conf", "nameserver 192.0.2.53\n", 0o644)
	g := lab.GuestWith(netlab.GuestSpec{Args: []string{"--dhcp-dns"}, ResolvAt: resolv})
	dev := g.Interface()
	g.IP("link set " + dev + " up")
	resolvers := ""
	if name == "dhcpcd" {
		resolvers = dhcpcd(t, g)
	} else {
		networkd(t, g)
	}
	has := func(addr string) bool {
		return ipSays(g.NS, " "+addr+"/", "-4", "addr") && ipSays(g.NS, "default via 192.0.2.1", "-4", "route")
	}
	first := func() bool { return has("192.0.2.2") }
	if name == "networkd" && !eventually(soonEnough, first) {
		t.Skip("systemd-networkd does not work here, beside the system's own")
	}
	comesTrue(t, "the guest has its first address", first)
	away := awaySince(t, g, dev)

	lab.Host.IP("addr del 192.0.2.2/24 dev h0", "addr add 192.0.2.7/24 dev h0", "route replace default via 192.0.2.1")
	comesTrue(t, "the guest has its new address", func() bool { return has("192.0.2.7") && !ipSays(g.NS, "192.0.2.2/", "addr") })
	if n := away(); n != 1 {
		t.Errorf("the carrier was lost %d times", n)
	}
	if from := sees(t, g.NS, near); from != "192.0.2.7" {
		t.Errorf("connections come from %s", from)
	}
	on := hold(t, g.NS, near)

	if err := os.WriteFile(resolv, []byte("nameserver 192.0.2.54\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	comesTrue(t, "the link was away again", func() bool { return away() == 2 })
	if resolvers != "" {
		comesTrue(t, "the guest has its new resolver", func() bool {
			b, _ := os.ReadFile(resolvers)
			return strings.TrimSpace(string(b)) == "192.0.2.54"
		})
	}
	comesTrue(t, "the guest has its address", func() bool { return has("192.0.2.7") })
	if err := on.talks(); err != nil {
		t.Errorf("a connection that has its address still: %v", err)
	}
}

// awaySince returns how often the kernel has told of a carrier that is lost, from now on.
func awaySince(t *testing.T, g *netlab.Guest, dev string) func() int {
	t.Helper()
	p := g.Start(netlab.Spec{Args: []string{"ip", "-o", "monitor", "link", "dev", dev}})
	return func() int { return strings.Count(p.Output(), "NO-CARRIER") }
}
