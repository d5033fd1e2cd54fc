// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aldente/test/netlab"
)

// slirpProgram is slirp4netns, as it is called with the program under test.
func slirpProgram() string { return filepath.Join(filepath.Dir(netlab.Pasta()), "slirp4netns") }

// TestRootlessKitSlirp is RootlessKit, the version of Debian and the newest, with its other
// network: the tap is RootlessKit's, and ports are forwarded by itself or by the API.
func TestRootlessKitSlirp(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	for _, network := range []string{"tcp", "udp"} {
		serve(lab.Remote, network, 7000)
	}
	go netlab.Echo(lab.Host.Listen("tcp", "127.0.0.1:7003"))
	for name, next := range map[string]bool{"Debian's": false, "newest": true} {
		e := makeEngine(t, lab, "", next)
		for _, driver := range []string{"builtin", "slirp4netns"} {
			for _, detach := range []bool{false, true} {
				how := name + ", " + driver
				if detach {
					how += ", detached"
				}
				t.Run(how, func(t *testing.T) { testRootlessKitSlirp(t, e.For(t), driver, detach) })
			}
		}
	}
}

func testRootlessKitSlirp(t *testing.T, e *engine, driver string, detach bool) {
	state := filepath.Join(e.dir, "run", strings.NewReplacer(",", "", "_", "", "'", "").Replace(filepath.Base(t.Name())))
	args := []string{"rootlesskit", "--state-dir=" + state, "--net=slirp4netns", "--slirp4netns-binary=" + slirpProgram(), "--port-driver=" + driver,
		"--slirp4netns-sandbox=auto", "--slirp4netns-seccomp=auto", "--disable-host-loopback", "--mtu=65520", "--ipv6", "--copy-up=/etc"}
	if detach {
		args = append(args, "--detach-netns")
	}
	kit := &kit{e: e, t: t, state: state}
	p := e.start(append(args, "sh", "-c", "echo up; exec sleep 600")...)
	guest := kit.up(p, detach)
	if out := guest.Must("ip", "address"); !strings.Contains(out, "mtu 65520") || !strings.Contains(out, " 10.0.2.100/24") {
		t.Errorf("%s", out)
	}
	for _, network := range []string{"tcp", "udp"} {
		sees(t, guest, network, remote4+":7000", netlab.Host4)
	}
	global := func() bool {
		return strings.Contains(guest.Must("ip", "-6", "address", "show", "scope", "global", "-tentative"), "inet6 fd00::")
	}
	for deadline := time.Now().Add(20 * time.Second); !global(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no IPv6 by advertisements")
		}
	}
	sees(t, guest, "tcp", "["+remote6+"]:7000", netlab.Host6)
	silent(t, guest, "tcp", "10.0.2.2:7003") // --disable-host-loopback
	if out := guest.Must("busybox", "nslookup", "a.example", "10.0.2.3"); !strings.Contains(out, answered) {
		t.Errorf("nslookup: %s", out)
	}
	for _, down := range []bool{false, true} {
		if err := netlab.Transfer(guest, e.lab.Remote, ":9001", remote4+":9001", bulk(), down, 30*time.Second); err != nil {
			t.Errorf("down=%v: %v", down, err)
		}
	}

	client := remote4 // by the API it stays
	if driver == "builtin" {
		client = ""
	}
	for _, network := range []string{"tcp", "udp"} {
		if original() && network == "udp" && driver == "slirp4netns" {
			continue // there is no answer by it
		}
		serve(guest, network, 80)
		silent(t, e.lab.Remote, network, netlab.Host4+":8080")
		kit.must("add-ports", "0.0.0.0:8080:80/"+network, "127.0.0.1:8081:80/"+network)
		if client == "" {
			from(t, e.lab.Remote, network, netlab.Host4+":8080")
		} else {
			sees(t, e.lab.Remote, network, netlab.Host4+":8080", client)
		}
		from(t, e.lab.Host, network, "127.0.0.1:8081")
		silent(t, e.lab.Remote, network, netlab.Host4+":8081")
	}
	ln := e.lab.Host.Listen("tcp", "127.0.0.1:8090")
	if st, out := kit.ctl("add-ports", "127.0.0.1:8090:80/tcp"); st == 0 {
		t.Errorf("a port that is taken: %s", out)
	}
	ln.Close()
	for _, line := range strings.Split(kit.must("list-ports"), "\n")[1:] {
		kit.remove(line)
	}
	for _, network := range []string{"tcp", "udp"} {
		silent(t, e.lab.Remote, network, netlab.Host4+":8080")
	}
	kit.down(p)
}

// TestSlirp is Podman 5 with its other network.
func TestSlirp(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := makeEngine(t, lab, "", false)
	for _, network := range []string{"tcp", "udp"} {
		serve(lab.Remote, network, 7000)
	}
	serve(lab.Host, "tcp", 7003)
	for _, tt := range []struct {
		name    string
		network string
		ports   []string
		client  string // that a published port's server sees, "": it does not matter
		net     string
		loop    bool
	}{
		{"default", "slirp4netns", []string{"-p", "8080:80", "-p", "8080:80/udp"}, "", "10.0.2.", false},
		{"ports by the API", "slirp4netns:port_handler=slirp4netns,enable_ipv6=true", []string{"-p", "8080:80", "-p", "8080:80/udp"}, remote4, "10.0.2.", false},
		{"another network", "slirp4netns:cidr=10.9.8.0/24,mtu=9000,allow_host_loopback=true,outbound_addr=192.0.2.2", nil, "", "10.9.8.", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := e.For(t)
			c := e.run("c", append([]string{"--network=" + tt.network}, tt.ports...)...)
			if out := c.Must("ip", "address"); !strings.Contains(out, tt.net+"100/24") {
				t.Errorf("%s", out)
			}
			for _, network := range []string{"tcp", "udp"} {
				sees(t, c.NS, network, remote4+":7000", netlab.Host4)
			}
			if out := c.exec("nslookup", "a.example"); !strings.Contains(out, answered) {
				t.Errorf("nslookup: %s", out)
			}
			if tt.loop {
				from(t, c.NS, "tcp", tt.net+"2:7003")
			} else {
				silent(t, c.NS, "tcp", tt.net+"2:7003")
			}
			for _, network := range []string{"tcp", "udp"} {
				if tt.ports == nil {
					break
				}
				serve(c.NS, network, 80)
				if got := from(t, lab.Remote, network, netlab.Host4+":8080"); tt.client != "" && got != tt.client {
					t.Errorf("served to %s", got)
				}
			}
			c.remove()
			e.gone()
		})
	}
}

// TestSlirpAnswers holds the answers of slirp4netns's API that were written down against the
// newest slirp4netns, and ours.
func TestSlirpAnswers(t *testing.T) {
	newLab(t, netlab.NoInterface)
	cmd := exec.Command("/repo/build/e2e.test", "-test.v", "-test.run", "^TestSlirp(Original|API)$")
	cmd.Dir = "/repo/test"
	cmd.Env = append(os.Environ(), "ALDENTE_SLIRP4NETNS=/usr/bin/slirp4netns", netlab.PastaEnv+"=")
	out, err := cmd.CombinedOutput()
	for _, name := range []string{"TestSlirpOriginal", "TestSlirpAPI"} {
		if err != nil || !strings.Contains(string(out), "--- PASS: "+name) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
