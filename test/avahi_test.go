// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"aldente/test/netlab"
)

// avahi starts a responder in a namespace, on an interface, under a name.
func avahi(t *testing.T, n *netlab.NS, iface, name string) {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "avahi-daemon.conf")
	text := fmt.Sprintf("[server]\nhost-name=%s\nallow-interfaces=%s\nenable-dbus=no\n[publish]\npublish-workstation=no\n", name, iface)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	const run = `mount -t tmpfs none /run && mkdir /run/avahi-daemon && mount --bind "$1" /etc/avahi/services && exec avahi-daemon -f "$2" --no-drop-root --no-chroot --no-proc-title`
	services := filepath.Join(dir, "services")
	if err := os.Mkdir(services, 0o700); err != nil {
		t.Fatal(err)
	}
	n.Start(netlab.Spec{Args: []string{"unshare", "-m", "sh", "-c", run, "sh", services, conf}})
}

// asksFor is a question for a host's address, RFC 1035 section 4.1.
func asksFor(id uint16, name string, v4 bool) string {
	b := binary.BigEndian.AppendUint16(nil, id)
	b = append(b, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	for label := range strings.SplitSeq(name, ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	typ := byte(28)
	if v4 {
		typ = 1
	}
	return string(append(b, 0, 0, typ, 0, 1))
}

// TestAvahi: a responder that people use, on the host's network and in the guest, is found
// from the other side by its name.
func TestAvahi(t *testing.T) {
	needOurs(t)
	needRoot(t)
	for _, program := range []string{"avahi-daemon", "unshare"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest("--multicast", "mdns", "--no-map-gw") // who asks here is the router, by IPv6
	avahi(t, lab.Remote, "r0", "printer")
	avahi(t, g.NS, g.Interface(), "guestbox")
	for _, f := range groupFamilies {
		t.Run(f.name, func(t *testing.T) {
			v4 := f.mdns.Addr().Is4()
			of := func(four, six string) string {
				if v4 {
					return string(netip.MustParseAddr(four).AsSlice())
				}
				return string(netip.MustParseAddr(six).AsSlice())
			}
			for _, tt := range []struct {
				from       *netlab.NS
				iface      string
				name, addr string
			}{
				{g.NS, g.Interface(), "printer.local", of("192.0.2.9", "2001:db8:1::9")},
				{lab.Remote, "r0", "guestbox.local", of(netlab.Host4, netlab.Host6)},
			} {
				// Who asks by another port than 5353 gets the answer by itself, with the
				// question's number: RFC 6762 section 6.7.
				k := talk(t, tt.from, tt.iface, &f, 0, netip.Addr{}, 255)
				answer := k.heard("\x12\x34\x84\x00", func() { k.say(f.mdns, asksFor(0x1234, tt.name, v4)) })
				if !strings.Contains(answer.what, tt.addr) {
					t.Errorf("%s, asked by %s: %q", tt.name, tt.from.Name, answer.what)
				}
				k.close()
			}
		})
	}
}
