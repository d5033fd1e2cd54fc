// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"strings"
	"testing"

	"aldente/test/netlab"
)

// TestRestart has ports taken again as soon as they are let go, many times.
func TestRestart(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := newEngine(t, lab, "")
	e.run("again", "-p", "8080-8089:8080-8089", "-p", "8080-8089:8080-8089/udp")
	for range 10 {
		e.podman("restart", "-t", "0", "again")
	}
	c := e.container("again")
	serve(c.NS, "udp", 8085)
	sees(t, lab.Remote, "udp", netlab.Host4+":8085", remote4)
	c.remove()
	for range 5 {
		e.once([]string{"-p", "8080:80", "-p", "8080:80/udp"}, "true")
	}
	e.gone()
}

// TestUserNamespaces is containers whose namespace belongs to another user
// namespace than Podman's own.
func TestUserNamespaces(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := newEngine(t, lab, "")
	serve(lab.Remote, "tcp", 7000)
	for _, mode := range []string{"keep-id", "nomap", "auto:size=1024"} {
		t.Run(mode, func(t *testing.T) {
			e := e.For(t)
			c := e.run("u", "--userns="+mode, "-p", "8080:8080", "-p", "8080:8080/udp")
			for _, network := range []string{"tcp", "udp"} {
				serve(c.NS, network, 8080)
				sees(t, lab.Remote, network, netlab.Host4+":8080", remote4)
			}
			sees(t, c.NS, "tcp", remote4+":7000", netlab.Host4)
			if out := c.exec("nslookup", "a.example"); !strings.Contains(out, answered) {
				t.Errorf("nslookup: %s", out)
			}
			c.remove()
			e.gone()
		})
	}
}

// TestOffline is a host without any network but its loopback.
func TestOffline(t *testing.T) {
	lab := newLab(t, netlab.NoInterface)
	e := newEngine(t, lab, "")
	c := e.run("alone", "-p", "8080:80", "-p", "8080:80/udp")
	for _, network := range []string{"tcp", "udp"} {
		serve(c.NS, network, 80)
		from(t, lab.Host, network, "127.0.0.1:8080")
	}
	c.remove()
	e.gone()
}

// TestOneFamily is hosts that know one version of IP only.
func TestOneFamily(t *testing.T) {
	for _, f := range []struct {
		name         string
		shape        netlab.Shape
		host, remote string
	}{
		{"IPv4", netlab.OnlyIPv4, netlab.Host4, remote4},
		{"IPv6", netlab.OnlyIPv6, "[" + netlab.Host6 + "]", remote6},
	} {
		t.Run(f.name, func(t *testing.T) {
			lab := newLab(t, f.shape)
			e := newEngine(t, lab, "")
			c := e.run("one", "-p", "8080:80", "-p", "8080:80/udp")
			for _, network := range []string{"tcp", "udp"} {
				serve(c.NS, network, 80)
				sees(t, lab.Remote, network, f.host+":8080", f.remote)
			}
			c.remove()
			e.gone()
		})
	}
}

// TestConfiguration is options from containers.conf.
func TestConfiguration(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := newEngine(t, lab, `
[network]
default_rootless_network_cmd = "pasta"
pasta_options = ["-a", "10.0.2.15", "-n", "24", "-g", "10.0.2.2", "--dns-forward", "10.0.2.3", "-m", "1500"]
`)
	out := e.once(nil, "sh", "-c", "ip address; cat /etc/resolv.conf; nslookup a.example")
	for _, want := range []string{"mtu 1500", "10.0.2.15/24", "nameserver 10.0.2.3", answered} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing:\n%s", want, out)
		}
	}
	out = e.once([]string{"--network=pasta:-a,10.0.2.16"}, "ip", "address")
	if !strings.Contains(out, "10.0.2.16/") || strings.Contains(out, "10.0.2.15/") {
		t.Errorf("not the later address:\n%s", out)
	}
	e.gone()
}

// TestBuild is commands of a build, for which Buildah starts pasta.
func TestBuild(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := newEngine(t, lab, "")
	e.write("context/Containerfile", "FROM "+image+"\nRUN ip address && nslookup a.example\n")
	p := e.start("podman", "build", "--network=pasta", "--no-cache", e.dir+"/context")
	if st := e.wait(p); st != 0 || !strings.Contains(p.Output(), netlab.Host4) || !strings.Contains(p.Output(), answered) {
		t.Errorf("status %d: %s", st, p.Output())
	}
	e.gone()
}
