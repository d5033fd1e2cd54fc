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
	p := e.start(append(args, "sh", "-c", "echo up; exec sleep 600")...)
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(p.Stdout(), "up"); time.Sleep(20 * time.Millisecond) {
		if p.Exited() || time.Now().After(deadline) {
			t.Fatalf("not up: %s\n%v", p.Output(), processes())
		}
	}
	pid, err := os.ReadFile(filepath.Join(state, "child_pid"))
	if err != nil {
		t.Fatal(err)
	}
	path := "/proc/" + string(pid) + "/ns/net"
	if detach {
		path = filepath.Join("/proc/"+string(pid)+"/root", state, "netns")
	}
	guest := netlab.OpenNS(t, "guest", path)
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

	if t.Failed() {
		t.Logf("%s\n%v", p.Output(), processes())
	}
	_ = p.Signal(syscall.SIGTERM)
	if _, ok := p.WaitFor(5 * time.Second); !ok {
		t.Errorf("does not end: %s", p.Output())
		p.Kill()
	}
	e.gone()
}
