// SPDX-License-Identifier: Apache-2.0

package test

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"aldente/test/netlab"
)

// recipes are the commands of docs/egress.md, and what they promise.
var recipes = map[string]map[string]string{
	"aldente --config-net --allow tcp:192.0.2.10:3128 --deny any --dns none": {
		"tcp 192.0.2.10:3128": open, "udp 192.0.2.10:3128": prohibited, "tcp 192.0.2.10:80": prohibited, "udp 192.0.2.9:53": prohibited,
		"tcp 198.51.100.9:80": prohibited, "tcp [2001:db8:1::9]:80": prohibited, "icmp 192.0.2.10": prohibited,
	},
	"passt --deny private --deny link-local --deny host --dns-forward 169.254.0.53 --socket /run/vm.socket": {
		"tcp 10.9.8.7:7": prohibited, "tcp 169.254.9.9:7": prohibited, "tcp 192.0.2.1:7": prohibited, "tcp [fd12::7]:7": prohibited,
		"tcp 169.254.0.53:53": open, "udp 169.254.0.53:53": open, "tcp 10.9.8.7:53": open, "tcp 169.254.0.53:7": prohibited,
		"tcp 198.51.100.9:7": open, "udp [2001:db8:1::9]:7": open, "icmp 198.51.100.9": open,
	},
	"aldente --config-net --deny any --dns-forward 169.254.0.53": {
		"udp 169.254.0.53:53": open, "tcp 169.254.0.53:53": open, "tcp 169.254.0.53:7": prohibited,
		"tcp 198.51.100.9:53": prohibited, "tcp [2001:db8:1::9]:53": prohibited, "icmp 192.0.2.9": prohibited,
	},
	"aldente --config-net --map-host-loopback 192.0.2.1 --allow tcp:127.0.0.1:5432": {
		"tcp 192.0.2.1:5432": open, "tcp 192.0.2.1:7": prohibited, "udp 192.0.2.1:5432": prohibited,
		"tcp 192.0.2.9:7": open,
	},
	"aldente --config-net --redirect tcp:192.0.2.80:443=198.51.100.7:8443 --redirect udp:any:53=127.0.0.1:5353": {
		"tcp 192.0.2.80:443": open, "udp 198.51.100.9:53": open, "udp [2001:db8:1::9]:53": open, "tcp 198.51.100.7:8443": open,
		"udp 192.0.2.80:443": refused,
	},
	"aldente --config-net --via socks5://build@192.0.2.10:1080 --via-secret /etc/aldente/proxy.secret": {
		"tcp 203.0.113.77:7": open, "tcp [2001:db8:77::77]:7": open, "tcp 203.0.113.77:9005": refused, "tcp 192.0.2.10:1080": prohibited,
		"udp 192.0.2.9:7": prohibited, "icmp 192.0.2.9": prohibited,
	},
	"passt -t 8080:80 -t 2222:22 --allow-in host --allow-in 192.0.2.0/24:80 --deny-in any": {
		"from 192.0.2.9 192.0.2.2:8080": open, "from 192.0.2.9 192.0.2.2:2222": silent,
		"from 198.51.100.9 192.0.2.2:8080": silent, "from 2001:db8:1::9 [2001:db8:1::2]:8080": silent,
		"from the host 127.0.0.1:2222": open, "from the host [2001:db8:1::2]:8080": open,
	},
}

// comes asks a port of the host's from "ADDR", or from "the host" by the address that is
// asked. Whoever is refused gets no answer.
func comes(lab *netlab.Lab, what string) string {
	from, to, _ := strings.Cut(strings.TrimPrefix(what, "the "), " ")
	ns := lab.Remote
	if from == "host" {
		ns = lab.Host
		from, _, _ = net.SplitHostPort(to)
	}
	if call(ns, "tcp", from, to) == "" {
		return silent
	}
	return open
}

// TestRecipes takes the commands from the document: none is there that was not
// tried, and none was tried that is not there. A virtual machine's is tried with
// a namespace: the rules are the same.
func TestRecipes(t *testing.T) {
	needOurs(t)
	b, err := os.ReadFile(filepath.Join("..", "docs", "egress.md"))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)\n```").FindAllStringSubmatch(string(b), -1) {
		for line := range strings.Lines(block[1]) {
			command, _, _ := strings.Cut(strings.TrimSpace(line), " -- ")
			found = append(found, command)
		}
	}
	if len(found) != len(recipes) {
		t.Errorf("%d commands in the document, %d tried", len(found), len(recipes))
	}
	lab := netlab.New(t, netlab.Options{})
	addresses(lab)
	lab.Remote.IP("addr add 192.0.2.10/32 dev lo")
	serve(lab.Remote, "[::]", 7, 80, 3128)
	serve(lab.Remote, "10.9.8.7", 53) // answers come from the address that was asked
	lab.Remote.IP("addr add 192.0.2.80/32 dev lo", "addr add 198.51.100.7/32 dev lo")
	serve(lab.Remote, "198.51.100.7", 8443)
	serve(lab.Host, "[::]", 7, 5432, 5353)
	(&viaProxy{user: "build"}).listen(lab.Remote, "192.0.2.10")
	secret := writeStage(t, viaSecret)
	for _, command := range found {
		t.Run(command, func(t *testing.T) {
			want := recipes[command]
			if want == nil {
				t.Fatal("never tried")
			}
			s := netlab.GuestSpec{Resolv: "nameserver 10.9.8.7\n"}
			program, args, _ := strings.Cut(strings.Replace(command, "/etc/aldente/proxy.secret", secret, 1), " ")
			if program == "passt" {
				program, args = "pasta", "--config-net "+strings.Replace(args, " --socket /run/vm.socket", "", 1)
			}
			s.Binary, s.Args = filepath.Join(filepath.Dir(netlab.Pasta()), program), strings.Fields(args)
			g := lab.For(t).GuestWith(s)
			tellPeer(g.NS, ":22")
			tellPeer(g.NS, ":80")
			for what, want := range want {
				from, inbound := strings.CutPrefix(what, "from ")
				got := ""
				if inbound {
					got = comes(lab, from)
				} else {
					got = reach(g, what)
				}
				if got != want {
					t.Errorf("%s: %s, want %s", what, got, want)
				}
			}
		})
	}
}
