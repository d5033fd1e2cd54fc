// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// newForwarder is Podman 6 whose bridge networks publish ports by pasta.
func newForwarder(t *testing.T, lab *netlab.Lab) *engine {
	t.Helper()
	e := makeEngine(t, lab, "[network]\nrootless_port_forwarder = \"pasta\"\n", true)
	out := e.podman("--version")
	t.Log(out)
	if !strings.HasPrefix(out, "podman version 6.") {
		t.Fatal("that is not Podman 6")
	}
	e.podman("network", "create", "--ipv6", "one")
	e.podman("network", "create", "--ipv6", "two")
	return e
}

// TestForwarder is ports of containers in rootless bridge networks, forwarded by the
// pasta that connects all of them: Podman 6 changes its rules by pesto, and containers
// see who speaks to them.
func TestForwarder(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := newForwarder(t, lab)
	a := e.run("a", strings.Fields(`--network one -p 8080:80 -p 8080:80/udp -p 9000-9009:9100-9109 -p 9000-9009:9100-9109/udp
		-p 127.0.0.1:8081:81 -p 127.0.0.1:8081:81/udp -p [::1]:8082:82 -p [::1]:8082:82/udp
		-p 192.0.2.2:8083:83 -p 192.0.2.2:8083:83/udp -p [2001:db8:1::2]:8084:84 -p [2001:db8:1::2]:8084:84/udp`)...)
	const host4, host6 = netlab.Host4 + ":", "[" + netlab.Host6 + "]:"
	for _, network := range []string{"tcp", "udp"} {
		for _, port := range []int{80, 81, 82, 83, 84, 9100, 9109} {
			serve(a.NS, network, port)
		}
		for _, w := range []published{
			{lab.Remote, network, host4 + "8080", remote4},
			{lab.Remote, network, host6 + "8080", remote6},
			{lab.Remote, network, host4 + "9000", remote4},
			{lab.Remote, network, host4 + "9009", remote4},
			{lab.Remote, network, host6 + "9009", remote6},
			{lab.Remote, network, host4 + "8083", remote4},
			{lab.Remote, network, host6 + "8084", remote6},
			// The host: by loopback it is the gateway that Podman gives, by its address
			// what --map-guest-addr says, where that is the guest's address, too.
			{lab.Host, network, "127.0.0.1:8080", netlab.Gateway4},
			{lab.Host, network, "[::1]:8080", "fc00::1"},
			{lab.Host, network, host4 + "8080", "169.254.1.2"},
			{lab.Host, network, host6 + "8080", netlab.Host6},
			{lab.Host, network, "127.0.0.1:8081", netlab.Gateway4},
			{lab.Host, network, "[::1]:8082", "fc00::1"},
		} {
			sees(t, w.at, w.network, w.addr, w.want)
		}
		silent(t, lab.Remote, network, host4+"8081")
		silent(t, lab.Remote, network, host6+"8082")
		silent(t, lab.Host, network, "127.0.0.1:8083")
		silent(t, lab.Host, network, "[::1]:8084")
	}
	for _, addr := range []string{host4, host6} {
		if err := netlab.Transfer(lab.Remote, a.NS, ":9101", addr+"9001", bulk(), true, 30*time.Second); err != nil {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if n := instances(); n != 1 {
		t.Errorf("%d instances: %v", n, processes())
	}

	a.remove()
	e.gone()
	for _, network := range []string{"tcp", "udp"} {
		silent(t, lab.Remote, network, host4+"8080")
		silent(t, lab.Host, network, "[::1]:8082")
	}
	if left := e.sockets(); len(left) > 0 && !original() {
		t.Errorf("left behind: %v", left)
	}
}

// TestForwarderErrors is ports that somebody has: Podman says which, and all stays as it
// was. A container whose ports failed leaves, with any pasta, what keeps Podman 6.1 from
// taking its own namespace down: the namespace's pasta is ended here.
func TestForwarderErrors(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := newForwarder(t, lab)
	a := e.run("a", "--network", "one", "-p", "8080:80", "-p", "8080:80/udp")
	for _, network := range []string{"tcp", "udp"} {
		serve(a.NS, network, 80)
	}
	rules := e.rules()
	fails := func(publish, port, why string) {
		t.Helper()
		st, out := e.try("run", "--rm", "--network", "one", "-p", "8089:80", "-p", publish, image, "true")
		if st == 0 || !strings.Contains(out, "pesto failed: exit status 1") || !strings.Contains(out, port) || !strings.Contains(out, why) {
			t.Errorf("%s: status %d: %s", publish, st, out)
		}
		if now := e.rules(); now != rules {
			t.Errorf("%s: before\n%s\nafter\n%s", publish, rules, now)
		}
	}
	if !original() { // which ends with status 0 and does not forward
		for _, addr := range []string{"127.0.0.1", "[::1]", netlab.Host4} {
			ln := lab.Host.Listen("tcp", addr+":8090")
			fails(addr+":8090:80", "8090", "in use")
			ln.Close()
			c := lab.Host.ListenUDP("udp", addr+":8090")
			fails(addr+":8090:80/udp", "8090", "in use")
			c.Close()
		}
		fails("80:80", ":80", "ermission denied") // a user's are those from 1024
	}
	fails("8080:80", "8080", "conflict")
	fails("8000-8100:80-180/udp", "8000-8100", "conflict")
	for _, network := range []string{"tcp", "udp"} {
		sees(t, lab.Remote, network, netlab.Host4+":8080", remote4)
		silent(t, lab.Remote, network, netlab.Host4+":8089")
	}
	e.try("rm", "-af", "-t", "0")
	if instances() > 0 {
		_ = syscall.Kill(e.instance(), syscall.SIGTERM)
	}
	e.gone()
	if left := e.sockets(); len(left) > 0 && !original() {
		t.Errorf("left behind: %v", left)
	}
}

// TestForwarderChanges is what happens to published ports while containers come and go.
func TestForwarderChanges(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := newForwarder(t, lab)
	reached := func(c *container, port string) {
		t.Helper()
		for _, network := range []string{"tcp", "udp"} {
			serve(c.NS, network, 80)
			sees(t, lab.Remote, network, netlab.Host4+":"+port, remote4)
			sees(t, lab.Remote, network, "["+netlab.Host6+"]:"+port, remote6)
		}
	}
	unreached := func(port string) {
		t.Helper()
		for _, network := range []string{"tcp", "udp"} {
			silent(t, lab.Remote, network, netlab.Host4+":"+port)
			silent(t, lab.Remote, network, "["+netlab.Host6+"]:"+port)
		}
		if rules := e.rules(); strings.Contains(rules, port) {
			t.Errorf("rules of %s are left:\n%s", port, rules)
		}
	}
	publish := func(port string) []string {
		return []string{"--network", "one", "-p", port + ":80", "-p", port + ":80/udp"}
	}

	a := e.run("a", publish("8080")...)
	reached(a, "8080")
	stays := e.rules()
	open, err := lab.Remote.DialError("tcp", netlab.Host4+":8080", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()

	b := e.run("b", publish("8180")...)
	reached(b, "8180")
	e.podman("restart", "-t", "0", "b")
	b = e.container("b")
	reached(b, "8180")
	e.podman("stop", "-t", "0", "b")
	unreached("8180")
	e.podman("start", "b")
	reached(e.container("b"), "8180")
	e.podman("network", "reload", "b")
	sees(t, lab.Remote, "tcp", netlab.Host4+":8180", remote4)
	sees(t, lab.Remote, "udp", "["+netlab.Host6+"]:8180", remote6)
	e.podman("network", "connect", "two", "b")
	sees(t, lab.Remote, "tcp", netlab.Host4+":8180", remote4)
	sees(t, lab.Remote, "tcp", "["+netlab.Host6+"]:8180", remote6)
	e.podman("network", "disconnect", "one", "b")
	sees(t, lab.Remote, "tcp", netlab.Host4+":8180", remote4)
	sees(t, lab.Remote, "tcp", "["+netlab.Host6+"]:8180", remote6)
	e.podman("kill", "b")
	e.podman("rm", "-f", "b")
	unreached("8180")

	e.podman(append([]string{"pod", "create", "--name", "p"}, publish("8280")...)...)
	p := e.run("c", "--pod", "p")
	reached(p, "8280")
	e.podman("pod", "restart", "p")
	reached(e.container("c"), "8280")
	e.podman("pod", "rm", "-f", "-t", "0", "p")
	unreached("8280")

	// All the while, the first one's ports and its connection were left alone.
	if rules := e.rules(); rules != stays {
		t.Errorf("at first\n%s\nnow\n%s", stays, rules)
	}
	_ = open.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = open.Write([]byte("still"))
	_ = open.(*net.TCPConn).CloseWrite()
	if text, err := io.ReadAll(open); err != nil || string(text) != remote4+" still" {
		t.Errorf("the connection: %q, %v", text, err)
	}
	a.remove()
	e.gone()

	// And once more, from nothing.
	reached(e.run("d", publish("8080")...), "8080")
	e.podman("rm", "-f", "-t", "0", "d")
	e.gone()
}

// sockets are those of the pasta for bridges.
func (e *engine) sockets() (found []string) {
	_ = filepath.WalkDir(filepath.Join(e.dir, "run"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type()&os.ModeSocket != 0 && d.Name() == "pasta.sock" {
			found = append(found, path)
		}
		return nil
	})
	return found
}

// rules is what pesto shows of that pasta.
func (e *engine) rules() string {
	e.t.Helper()
	found := e.sockets()
	if len(found) != 1 {
		e.t.Fatalf("sockets of pasta: %v", found)
	}
	p := e.start(filepath.Join(filepath.Dir(netlab.Pasta()), "pesto"), "-s", found[0])
	if st := p.Wait(); st != 0 {
		e.t.Fatalf("pesto: status %d: %s", st, p.Output())
	}
	return p.Stdout()
}
