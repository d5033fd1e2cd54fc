// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// TestRootlessKit is the namespaces that rootless Docker and Kubernetes live in.
// With pasta, RootlessKit 2 has one port driver, which is pasta's: every port
// that is bound inside. It configures the interface itself, for IPv4 only.
func TestRootlessKit(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := newEngine(t, lab, "")
	for _, network := range []string{"tcp", "udp"} {
		serve(lab.Remote, network, 7000)
	}
	go netlab.Echo(lab.Host.Listen("tcp", "127.0.0.1:7003"))
	t.Run("attached", func(t *testing.T) { testRootlessKit(t, e.For(t), false) })
	t.Run("detached", func(t *testing.T) { testRootlessKit(t, e.For(t), true) })
}

func testRootlessKit(t *testing.T, e *engine, detach bool) {
	state := filepath.Join(e.dir, "run", filepath.Base(t.Name()))
	args := []string{"rootlesskit", "--state-dir=" + state, "--net=pasta", "--pasta-binary=" + netlab.Pasta(), "--port-driver=implicit",
		"--disable-host-loopback", "--mtu=1500", "--copy-up=/etc"}
	if detach {
		args = append(args, "--detach-netns")
	}
	kit := &kit{e: e, t: t, state: state}
	p := e.start(append(args, "sh", "-c", "echo up; exec sleep 600")...)
	guest := kit.up(p, detach)
	if out := guest.Must("ip", "address"); !strings.Contains(out, "mtu 1500") || !strings.Contains(out, " 10.0.2.") {
		t.Errorf("%s", out)
	}
	for _, network := range []string{"tcp", "udp"} {
		sees(t, guest, network, remote4+":7000", netlab.Host4)
	}
	silent(t, guest, "tcp", "10.0.2.2:7003") // --disable-host-loopback
	silent(t, guest, "tcp", netlab.Gateway4+":7003")
	for _, network := range []string{"tcp", "udp"} {
		serve(guest, network, 8080)
		soon(t, e.lab.Remote, network, netlab.Host4+":8080", remote4)
		from(t, e.lab.Host, network, "127.0.0.1:8080")
	}
	if out := guest.Must("busybox", "nslookup", "a.example", "10.0.2.3"); !strings.Contains(out, answered) {
		t.Errorf("nslookup: %s", out)
	}
	kit.down(p)
}

// TestRootlessKitPesto is RootlessKit 3, whose ports are added and removed by pesto.
func TestRootlessKitPesto(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := makeEngine(t, lab, "", true)
	t.Run("attached", func(t *testing.T) { testRootlessKitPesto(t, e.For(t), false) })
	t.Run("detached", func(t *testing.T) { testRootlessKitPesto(t, e.For(t), true) })
}

func testRootlessKitPesto(t *testing.T, e *engine, detach bool) {
	state := filepath.Join(e.dir, "run", filepath.Base(t.Name()))
	args := []string{"rootlesskit", "--state-dir=" + state, "--net=pasta", "--pasta-binary=" + netlab.Pasta(), "--port-driver=pesto",
		"--pesto-binary=" + filepath.Join(filepath.Dir(netlab.Pasta()), "pesto"), "--ipv6", "--disable-host-loopback", "--copy-up=/etc"}
	if detach {
		args = append(args, "--detach-netns")
	}
	kit := &kit{e: e, t: t, state: state}
	p := e.start(append(args, "sh", "-c", "echo up; exec sleep 600")...)
	guest := kit.up(p, detach)
	for _, network := range []string{"tcp", "udp"} {
		serve(guest, network, 80)
		serve(guest, network, 8080)
		silent(t, e.lab.Remote, network, netlab.Host4+":8080") // nothing is forwarded unless asked
	}
	const host4, host6 = netlab.Host4 + ":", "[" + netlab.Host6 + "]:"
	// docker-proxy listens at the namespace's own address alone, and clients of the
	// host's loopback get there as well.
	for _, child := range []string{"10.0.2.100:8083", "[fd00::100]:8083"} {
		go netlab.Echo(guest.Listen("tcp", child))
		go netlab.EchoUDP(guest.ListenUDP("udp", child))
	}
	for _, network := range []string{"tcp", "udp"} {
		kit.must("add-ports", "0.0.0.0:8083:8083/"+network, "[::]:8083:8083/"+network+"6")
		for _, addr := range []string{"127.0.0.1:8083", "[::1]:8083", host4 + "8083", host6 + "8083"} {
			echoes(t, e.lab.Host, network, addr)
		}
		echoes(t, e.lab.Remote, network, host4+"8083")
		echoes(t, e.lab.Remote, network, host6+"8083")
	}
	for _, network := range []string{"tcp", "udp"} {
		ports := []string{"0.0.0.0:8080:80/" + network, "[::]:8080:80/" + network + "6", "127.0.0.1:8081:80/" + network, "[::1]:8082:80/" + network + "6"}
		for _, port := range ports {
			kit.must("add-ports", port)
		}
		list := kit.must("list-ports")
		if n := strings.Count(list, network); n != len(ports)+2 {
			t.Errorf("%d of %d: %s", n, len(ports)+2, list)
		}
		for _, w := range []published{
			{e.lab.Remote, network, host4 + "8080", remote4},
			{e.lab.Remote, network, host6 + "8080", remote6},
		} {
			sees(t, w.at, w.network, w.addr, w.want)
		}
		for _, addr := range []string{"127.0.0.1:8080", "[::1]:8080", "127.0.0.1:8081", "[::1]:8082"} {
			from(t, e.lab.Host, network, addr)
		}
		silent(t, e.lab.Remote, network, host4+"8081")
		silent(t, e.lab.Remote, network, host6+"8082")
	}

	ln := e.lab.Host.Listen("tcp", "127.0.0.1:8090")
	st, out := kit.ctl("add-ports", "127.0.0.1:8090:80/tcp")
	if !original() && (st == 0 || !strings.Contains(out, "8090") || !strings.Contains(out, "in use")) {
		t.Errorf("a port that is taken: status %d: %s", st, out)
	}
	ln.Close()
	if original() { // which says nothing, and does not forward
		kit.remove(out)
	}
	id := kit.must("add-ports", "127.0.0.1:8090:80/tcp")
	from(t, e.lab.Host, "tcp", "127.0.0.1:8090")
	kit.remove(id)
	silent(t, e.lab.Host, "tcp", "127.0.0.1:8090")
	if st, out := kit.ctl("add-ports", "0.0.0.0:8080:81/tcp4"); st == 0 || !strings.Contains(out, "conflict") {
		t.Errorf("a port that is forwarded already: status %d: %s", st, out)
	}

	for _, line := range strings.Split(kit.must("list-ports"), "\n")[1:] {
		kit.remove(line)
	}
	for _, network := range []string{"tcp", "udp"} {
		silent(t, e.lab.Remote, network, host4+"8080")
		silent(t, e.lab.Remote, network, host6+"8080")
		silent(t, e.lab.Host, network, "[::1]:8082")
	}
	kit.down(p)
}

// kit is a RootlessKit that runs.
type kit struct {
	e     *engine
	t     *testing.T
	state string
}

// up waits until it is up and returns its network namespace.
func (k *kit) up(p *netlab.Proc, detach bool) *netlab.NS {
	k.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(p.Stdout(), "up"); time.Sleep(20 * time.Millisecond) {
		if p.Exited() || time.Now().After(deadline) {
			k.t.Fatalf("not up: %s\n%v", p.Output(), processes())
		}
	}
	// It is written beside the command's start.
	pid, err := os.ReadFile(filepath.Join(k.state, "child_pid"))
	for deadline := time.Now().Add(20 * time.Second); (err != nil || len(pid) == 0) && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		pid, err = os.ReadFile(filepath.Join(k.state, "child_pid"))
	}
	if err != nil {
		k.t.Fatal(err)
	}
	path := "/proc/" + string(pid) + "/ns/net"
	if detach {
		path = filepath.Join("/proc/"+string(pid)+"/root", k.state, "netns")
	}
	return netlab.OpenNS(k.t, "guest", path)
}

// down ends it.
func (k *kit) down(p *netlab.Proc) {
	k.t.Helper()
	if k.t.Failed() {
		k.t.Logf("%s\n%v", p.Output(), processes())
	}
	_ = p.Signal(syscall.SIGTERM)
	if _, ok := p.WaitFor(5 * time.Second); !ok {
		k.t.Errorf("does not end: %s", p.Output())
		p.Kill()
	}
	k.e.gone()
}

// ctl asks it for something.
func (k *kit) ctl(args ...string) (int, string) {
	k.t.Helper()
	p := k.e.start(append([]string{"rootlessctl", "--socket=" + filepath.Join(k.state, "api.sock")}, args...)...)
	st := k.e.wait(p)
	return st, strings.TrimSpace(p.Output())
}

// must is ctl, which has to succeed.
func (k *kit) must(args ...string) string {
	k.t.Helper()
	st, out := k.ctl(args...)
	if st != 0 {
		k.t.Errorf("%v: status %d: %s", args, st, out)
	}
	return out
}

// remove removes the port that a line begins with.
func (k *kit) remove(line string) {
	k.t.Helper()
	id, _, _ := strings.Cut(strings.TrimSpace(line), " ")
	k.must("remove-ports", id)
}
