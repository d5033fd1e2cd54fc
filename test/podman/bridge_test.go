// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// TestPod is containers that share a namespace, and one pasta.
func TestPod(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := newEngine(t, lab, "")
	e.podman("pod", "create", "--name", "p", "-p", "8080:80", "-p", "8080:80/udp")
	a := e.run("a", "--pod", "p")
	b := e.run("b", "--pod", "p")
	if a.Inode() != b.Inode() {
		t.Errorf("not one namespace")
	}
	serve(lab.Remote, "tcp", 7000)
	check := func(c *container) {
		t.Helper()
		for _, network := range []string{"tcp", "udp"} {
			serve(c.NS, network, 80)
			sees(t, lab.Remote, network, netlab.Host4+":8080", remote4)
			sees(t, lab.Remote, network, "["+netlab.Host6+"]:8080", remote6)
		}
		sees(t, c.NS, "tcp", remote4+":7000", netlab.Host4)
	}
	check(a)
	if out := b.exec("nslookup", "a.example"); !strings.Contains(out, answered) {
		t.Errorf("nslookup: %s", out)
	}
	e.podman("pod", "stop", "-t", "0", "p")
	e.gone()
	e.podman("pod", "start", "p")
	check(e.container("b"))
	e.podman("pod", "restart", "p")
	check(e.container("a"))
	e.podman("pod", "rm", "-f", "-t", "0", "p")
	e.gone()
}

// TestBridge is rootless bridge networks: all share one namespace that pasta
// connects, with netavark and aardvark-dns in it.
func TestBridge(t *testing.T) {
	lab := newLab(t, netlab.Dual)
	e := newEngine(t, lab, "")
	e.podman("network", "create", "--ipv6", "one")
	e.podman("network", "create", "two")
	a := e.run("a", "--network", "one", "-p", "8080:80", "-p", "8080:80/udp")
	b := e.run("b", "--network", "one")
	e.run("c", "--network", "two")
	if n := instances(); n != 1 {
		t.Errorf("%d instances of pasta for two networks: %v", n, processes())
	}

	t.Run("names", func(t *testing.T) {
		b := e.For(t).container("b")
		if out := b.exec("nslookup", "a"); !strings.Contains(out, "a.dns.podman") {
			t.Errorf("nslookup a: %s", out)
		}
		if out := b.exec("nslookup", "www.example.org"); !strings.Contains(out, answered) {
			t.Errorf("nslookup of a name outside: %s", out)
		}
	})
	t.Run("outbound", func(t *testing.T) {
		for _, network := range []string{"tcp", "udp"} {
			serve(lab.For(t).Remote, network, 7100)
			for _, c := range []*container{a, b} {
				sees(t, c.NS, network, remote4+":7100", netlab.Host4)
				sees(t, c.NS, network, "["+remote6+"]:7100", netlab.Host6)
			}
		}
		for _, down := range []bool{false, true} {
			if err := netlab.Transfer(a.NS, lab.For(t).Remote, ":7101", remote4+":7101", bulk(), down, 30*time.Second); err != nil {
				t.Errorf("down %v: %v", down, err)
			}
		}
	})
	t.Run("published", func(t *testing.T) {
		for _, network := range []string{"tcp", "udp"} {
			serve(a.NS, network, 80)
			from(t, lab.Remote, network, netlab.Host4+":8080") // Podman's own forwarder: it hides the client
			from(t, lab.Host, network, "127.0.0.1:8080")
		}
	})
	t.Run("unshare", func(t *testing.T) {
		e := e.For(t)
		out := e.podman("unshare", "--rootless-netns", "ip", "address")
		address6 := netlab.Host6 + "/64"
		if e.next {
			address6 = "fc00::3/64" // of Podman's choice since 6.0
		}
		for _, want := range []string{netlab.Host4 + "/24", address6, "podman1", "podman2"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s is missing:\n%s", want, out)
			}
		}
	})
	// Podman looks whether pasta lives by the number in its PID file, and
	// replaces it in the namespace that is there.
	t.Run("killed", func(t *testing.T) {
		e := e.For(t)
		pid := e.instance()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		e.gone()
		d := e.run("d", "--network", "one")
		if e.instance() == pid {
			t.Errorf("PID file: still %d", pid)
		}
		serve(e.lab.Remote, "tcp", 7102)
		for _, c := range []*container{a, d} {
			sees(t, c.NS, "tcp", remote4+":7102", netlab.Host4)
			sees(t, c.NS, "tcp", "["+remote6+"]:7102", netlab.Host6)
		}
		d.remove()
	})
	e.podman("rm", "-af", "-t", "0")
	e.gone()

	// And once more, from nothing.
	c := e.run("e", "--network", "two")
	serve(lab.Remote, "udp", 7103)
	sees(t, c.NS, "udp", remote4+":7103", netlab.Host4)
	c.remove()
	e.gone()
}

// instances counts the processes of the program under test that are not
// children of another.
func instances() (n int) {
	all := processes()
	for pid := range all {
		if stat := netlab.Stat(pid); len(stat) > 1 {
			if parent, _ := strconv.Atoi(stat[1]); all[parent] == "" {
				n++
			}
		}
	}
	return n
}

// instance is the process id in the PID file of the pasta for bridges.
func (e *engine) instance() int {
	e.t.Helper()
	var files []string
	_ = filepath.WalkDir(filepath.Join(e.dir, "run"), func(path string, _ os.DirEntry, _ error) error {
		if strings.HasSuffix(path, "rootless-netns-conn.pid") || strings.HasSuffix(path, "pasta.pid") {
			files = append(files, path)
		}
		return nil
	})
	if len(files) != 1 {
		e.t.Fatalf("PID files: %v", files)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		e.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		e.t.Fatalf("%s: %q", files[0], text)
	}
	return pid
}
