// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

const (
	remote4 = "192.0.2.9"
	remote6 = "2001:db8:1::9"
)

// TestDefault is a container without any option about the network.
func TestDefault(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := newEngine(t, lab, "")
	if out := e.podman("info", "-f", "{{.Host.Pasta.Executable}}"); out != netlab.Pasta() {
		t.Fatalf("Podman uses %s, not %s", out, netlab.Pasta())
	}
	c := e.run("plain")

	t.Run("addresses", func(t *testing.T) {
		c := e.For(t).container("plain")
		for _, want := range []string{netlab.Host4 + "/24", netlab.Host6 + "/64"} {
			if out := c.exec("ip", "address"); !strings.Contains(out, want) {
				t.Errorf("%s is missing:\n%s", want, out)
			}
		}
		out := e.For(t).once(nil, "ip", "address") // read as soon as it can be
		if !strings.Contains(out, netlab.Host6+"/64") || strings.Contains(out, "tentative") && !original() {
			t.Errorf("not usable at the start:\n%s", out)
		}
	})
	t.Run("names", func(t *testing.T) {
		e := e.For(t)
		if out := e.once(nil, "cat", "/etc/resolv.conf"); !strings.HasPrefix(out, "nameserver 169.254.1.1\n") {
			t.Errorf("resolv.conf: %q", out)
		}
		if out := e.once(nil, "nslookup", "www.example.org"); !strings.Contains(out, answered) {
			t.Errorf("nslookup: %s", out)
		}
	})
	t.Run("outbound", func(t *testing.T) {
		for _, network := range []string{"tcp", "udp"} {
			serve(lab.For(t).Remote, network, 7000)
			sees(t, c.NS, network, remote4+":7000", netlab.Host4)
			sees(t, c.NS, network, "["+remote6+"]:7000", netlab.Host6)
		}
		for _, addr := range []string{remote4, remote6} {
			e.For(t).once([]string{"--cap-add", "NET_RAW"}, "ping", "-c", "1", "-W", "3", addr)
		}
	})
	t.Run("transfer", func(t *testing.T) {
		for _, down := range []bool{false, true} {
			if err := netlab.Transfer(c.NS, lab.For(t).Remote, ":7001", remote4+":7001", bulk(), down, 30*time.Second); err != nil {
				t.Errorf("down %v: %v", down, err)
			}
		}
	})
	t.Run("host", func(t *testing.T) {
		e := e.For(t)
		serve(e.lab.Host, "tcp", 7002)
		out := e.once(nil, "grep", "host.containers.internal", "/etc/hosts")
		if !strings.HasPrefix(out, "169.254.1.2") {
			t.Errorf("/etc/hosts: %s", out)
		}
		from(t, c.NS, "tcp", "169.254.1.2:7002")
		loopback := e.lab.Host.Listen("tcp", "127.0.0.1:7003")
		go netlab.Echo(loopback)
		for _, addr := range []string{netlab.Gateway4, "169.254.1.2", "127.0.0.1"} {
			silent(t, c.NS, "tcp", addr+":7003")
		}
	})
	t.Run("daemon", testDaemon)
	t.Run("status", func(t *testing.T) {
		if st, out := e.For(t).try("run", "--rm", image, "sh", "-c", "exit 42"); st != 42 {
			t.Errorf("status %d: %s", st, out)
		}
	})
	c.remove()
	e.gone()
}

// testDaemon looks at what Podman leaves running.
func testDaemon(t *testing.T) {
	all := processes()
	if len(all) == 0 {
		t.Fatal("nothing runs")
	}
	for pid, line := range all {
		dir := fmt.Sprintf("/proc/%d/", pid)
		status, _ := os.ReadFile(dir + "status")
		wanted := []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n"}
		if !original() { // which keeps CAP_SYS_ADMIN and CAP_NET_BIND_SERVICE
			caps := 0
			if strings.HasPrefix(string(status), "Name:\taldente-reader\n") {
				caps = 1 << unix.CAP_DAC_READ_SEARCH // root's, to read resolv.conf as it was read at start
			}
			wanted = append(wanted, fmt.Sprintf("CapEff:\t%016x\n", caps))
		}
		for _, want := range wanted {
			if !strings.Contains(string(status), want) {
				t.Errorf("%s: not %q:\n%s", line, want, status)
			}
		}
		stat := netlab.Stat(pid)
		if parent, _ := strconv.Atoi(stat[1]); all[parent] != "" {
			continue // a helper of the one that Podman started
		}
		if stat[1] != "1" || stat[3] != strconv.Itoa(pid) {
			t.Errorf("%s: parent %s, session %s, process %d", line, stat[1], stat[3], pid)
		}
		for _, f := range []string{"0", "1", "2"} {
			if to, err := os.Readlink(dir + "fd/" + f); to != "/dev/null" {
				t.Errorf("%s: descriptor %s is %q, %v", line, f, to, err)
			}
		}
		if cwd, err := os.Readlink(dir + "cwd"); cwd != "/" {
			t.Errorf("%s: directory %q, %v", line, cwd, err)
		}
	}
}

// published is a way to a port of the container.
type published struct {
	at      *netlab.NS
	network string
	addr    string
	want    string // the client's address as the container sees it
}

// TestPublish is about -p.
func TestPublish(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := newEngine(t, lab, "")
	options := strings.Fields(`-p 8080:80 -p 8080:80/udp -p 9000-9099:9000-9099 -p 9000-9009:9100-9109/udp
		-p 127.0.0.1:8081:81 -p 127.0.0.1:8081:81/udp -p [::1]:8082:82 -p [::1]:8082:82/udp
		-p 192.0.2.2:8083:83 -p 192.0.2.2:8083:83/udp -p [2001:db8:1::2]:8084:84 -p [2001:db8:1::2]:8084:84/udp`)
	c := e.run("server", options...)
	for _, port := range []int{80, 81, 82, 83, 84, 9000, 9050, 9099} {
		serve(c.NS, "tcp", port)
	}
	for _, port := range []int{80, 81, 82, 83, 84, 9100, 9109} {
		serve(c.NS, "udp", port)
	}
	const host4, host6 = netlab.Host4 + ":", "[" + netlab.Host6 + "]:"
	ways := []published{
		{lab.Remote, "tcp", host4 + "9000", remote4},
		{lab.Remote, "tcp", host4 + "9050", remote4},
		{lab.Remote, "tcp", host6 + "9099", remote6},
		{lab.Remote, "udp", host4 + "9000", remote4},
		{lab.Remote, "udp", host6 + "9009", remote6},
	}
	for _, network := range []string{"tcp", "udp"} {
		ways = append(ways,
			published{lab.Remote, network, host4 + "8080", remote4},
			published{lab.Remote, network, host6 + "8080", remote6},
			published{lab.Host, network, "127.0.0.1:8080", netlab.Host4},
			published{lab.Host, network, "[::1]:8080", netlab.Host6},
			published{lab.Host, network, host4 + "8080", "169.254.1.2"},
			published{lab.Host, network, "127.0.0.1:8081", netlab.Host4},
			published{lab.Host, network, "[::1]:8082", netlab.Host6},
			published{lab.Remote, network, host4 + "8083", remote4},
			published{lab.Remote, network, host6 + "8084", remote6},
		)
		silent(t, lab.Remote, network, host4+"8081")
		silent(t, lab.Remote, network, host6+"8082")
		silent(t, lab.Host, network, "[::1]:8081")
		silent(t, lab.Host, network, "127.0.0.1:8082")
		silent(t, lab.Host, network, "127.0.0.1:8083")
		silent(t, lab.Host, network, "[::1]:8084")
	}
	for _, w := range ways {
		sees(t, w.at, w.network, w.addr, w.want)
	}
	if err := netlab.Transfer(lab.Remote, c.NS, ":9001", host4+"9001", bulk(), true, 30*time.Second); err != nil {
		t.Error(err)
	}

	t.Run("taken", func(t *testing.T) {
		e := e.For(t)
		e.lab.Host.Listen("tcp", "127.0.0.1:8090")
		before := len(processes())
		st, out := e.try("run", "--rm", "-p", "127.0.0.1:8090:80", image, "true")
		if st == 0 || !strings.Contains(out, "pasta failed with exit code 1") || !strings.Contains(out, "8090") {
			t.Errorf("status %d: %s", st, out)
		}
		for range 100 {
			if len(processes()) == before {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if n := len(processes()); n != before {
			t.Errorf("%d processes of pasta, before %d", n, before)
		}
	})
	c.remove()
	e.gone()
	for _, addr := range []string{"127.0.0.1:8080", "[::1]:8080"} {
		silent(t, lab.Host, "tcp", addr)
		silent(t, lab.Host, "udp", addr)
	}
}

// TestOptions is about --network=pasta:...
func TestOptions(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := newEngine(t, lab, "")

	t.Run("addresses", func(t *testing.T) {
		out := e.For(t).once([]string{"--network=pasta:--mtu,1500,-a,10.0.2.15,-n,24,-g,10.0.2.2,-I,tap7,--ipv4-only"},
			"sh", "-c", "ip address show tap7; ip route; ip -6 address show scope global")
		for _, want := range []string{"mtu 1500", "10.0.2.15/24", "default via 10.0.2.2 dev tap7"} {
			if !strings.Contains(out, want) {
				t.Errorf("%q is missing:\n%s", want, out)
			}
		}
		if strings.Contains(out, "2001:db8") {
			t.Errorf("IPv6 in spite of --ipv4-only:\n%s", out)
		}
	})
	t.Run("auto", func(t *testing.T) {
		e := e.For(t)
		c := e.run("auto", "--network=pasta:-t,auto,-u,auto")
		serve(c.NS, "tcp", 8100)
		serve(c.NS, "udp", 8100)
		for _, network := range []string{"tcp", "udp"} {
			soon(t, lab.Remote, network, netlab.Host4+":8100", remote4)
			soon(t, lab.Remote, network, "["+netlab.Host6+"]:8100", remote6)
		}
		c.remove()
		e.gone()
	})
	t.Run("map-gw", func(t *testing.T) {
		e := e.For(t)
		go netlab.Echo(e.lab.Host.Listen("tcp", "127.0.0.1:8110"))
		c := e.run("gateway", "--network=pasta:--map-gw")
		echoes(t, c.NS, "tcp", netlab.Gateway4+":8110")
		c.remove()
	})
	t.Run("map-host-loopback", func(t *testing.T) {
		e := e.For(t)
		go netlab.Echo(e.lab.Host.Listen("tcp", "127.0.0.1:8111"))
		c := e.run("mapped", "--network=pasta:--map-host-loopback,10.9.8.7")
		echoes(t, c.NS, "tcp", "10.9.8.7:8111")
		c.remove()
	})
	t.Run("-T and -U", func(t *testing.T) {
		e := e.For(t)
		go netlab.Echo(e.lab.Host.Listen("tcp", "127.0.0.1:8120"))
		go netlab.EchoUDP(e.lab.Host.ListenUDP("udp", "127.0.0.1:8120"))
		c := e.run("outbound", "--network=pasta:-T,8120,-U,8121:8120")
		echoes(t, c.NS, "tcp", "127.0.0.1:8120")
		echoes(t, c.NS, "udp", "127.0.0.1:8121")
		c.remove()
	})
	t.Run("map-guest-addr", func(t *testing.T) {
		e := e.For(t)
		go netlab.Echo(e.lab.Host.Listen("tcp", netlab.Host4+":8130"))
		c := e.run("guest", "--network=pasta:--map-guest-addr,11.11.11.11")
		echoes(t, c.NS, "tcp", "11.11.11.11:8130")
		if out := c.exec("grep", "host.containers.internal", "/etc/hosts"); !strings.HasPrefix(out, "11.11.11.11") {
			t.Errorf("/etc/hosts: %s", out)
		}
		c.remove()
	})
	t.Run("dns-forward", func(t *testing.T) {
		e := e.For(t)
		out := e.once([]string{"--network=pasta:--dns-forward,10.9.9.9"}, "sh", "-c", "cat /etc/resolv.conf; nslookup a.example")
		if !strings.HasPrefix(out, "nameserver 10.9.9.9\n") || !strings.Contains(out, answered) {
			t.Errorf("%s", out)
		}
	})
	t.Run("forwarded by option", func(t *testing.T) {
		e := e.For(t)
		c := e.run("option", "--network=pasta:-t,8140:80,-u,127.0.0.1/8141:80")
		serve(c.NS, "tcp", 80)
		serve(c.NS, "udp", 80)
		sees(t, lab.Remote, "tcp", netlab.Host4+":8140", remote4)
		from(t, lab.Host, "udp", "127.0.0.1:8141")
		silent(t, lab.Remote, "udp", netlab.Host4+":8141")
		c.remove()
	})
	t.Run("pcap", func(t *testing.T) {
		e := e.For(t)
		e.once([]string{"--network=pasta:--pcap," + e.dir + "/run/trace"}, "nslookup", "a.example")
		command(t, "test", "-s", e.dir+"/run/trace")
	})
	t.Run("deny", func(t *testing.T) {
		if original() {
			t.Skip("has no such option")
		}
		e := e.For(t)
		serve(e.lab.Remote, "tcp", 8150)
		c := e.run("denied", "--network=pasta:--deny,192.0.2.0/24")
		sees(t, c.NS, "tcp", netlab.Far4+":8150", netlab.Host4)
		silent(t, c.NS, "tcp", remote4+":8150")
		c.remove()
	})
	t.Run("invalid", func(t *testing.T) {
		for _, bad := range []string{"--no-such-option", "-t,99999", "-a,not.an.address"} {
			st, out := e.For(t).try("run", "--rm", "--network=pasta:"+bad, image, "true")
			if st == 0 || !strings.Contains(out, "pasta failed with exit code 1:") {
				t.Errorf("%s: status %d: %s", bad, st, out)
			}
			if _, text, _ := strings.Cut(out, "exit code 1:"); len(strings.TrimSpace(text)) < 10 {
				t.Errorf("%s: no reason: %s", bad, out)
			}
		}
	})
	e.gone()
}

// soon is sees for what comes about a second later.
func soon(t *testing.T, n *netlab.NS, network, addr, want string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		c, err := n.DialError(network, addr, time.Second)
		if err != nil {
			continue
		}
		_ = c.SetDeadline(time.Now().Add(200 * time.Millisecond))
		_, werr := c.Write([]byte("?"))
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.CloseWrite()
		}
		k, _ := c.Read(make([]byte, 64))
		c.Close()
		if werr == nil && k > 0 {
			break
		}
	}
	sees(t, n, network, addr, want)
}

// echoes fails the test unless what is sent comes back.
func echoes(t *testing.T, n *netlab.NS, network, addr string) {
	t.Helper()
	const message = "to and fro"
	if text, err := netlab.Ask(n, network, addr, message); err != nil || text != message {
		t.Errorf("%s: %s %s: %q, %v", n.Name, network, addr, text, err)
	}
}

// TestParallel starts containers side by side.
func TestParallel(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := newEngine(t, lab, "")
	const n = 8
	var started []*netlab.Proc
	for i := range n {
		s := strconv.Itoa(i)
		options := []string{"-p", "820" + s + ":80", "-p", "820" + s + ":80/udp"}
		started = append(started, e.start(slices.Concat([]string{"podman", "run", "-d", "--name", "c" + s}, options,
			[]string{image, "sleep", "600"})...))
	}
	for i, p := range started {
		if st := e.wait(p); st != 0 {
			t.Fatalf("container %d: status %d: %s", i, st, p.Output())
		}
	}
	for i := range n {
		s := strconv.Itoa(i)
		c := e.container("c" + s)
		for _, network := range []string{"tcp", "udp"} {
			serve(c.NS, network, 80)
			sees(t, lab.Remote, network, netlab.Host4+":820"+s, remote4)
			sees(t, lab.Remote, network, "["+netlab.Host6+"]:820"+s, remote6)
		}
	}
	e.podman("stop", "-a", "-t", "0")
	e.gone()

	// Stopped containers keep their options, and start anew.
	e.podman("start", "c0", "c1")
	c := e.container("c1")
	serve(c.NS, "tcp", 80)
	sees(t, lab.Remote, "tcp", netlab.Host4+":8201", remote4)
	e.podman("restart", "-t", "0", "c1")
	c = e.container("c1")
	serve(c.NS, "tcp", 80)
	sees(t, lab.Remote, "tcp", netlab.Host4+":8201", remote4)
	e.podman("kill", "c0", "c1")
	e.gone()
}
