// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// mustWorker returns the worker's process id.
func mustWorker(t *testing.T, g *netlab.Guest) int {
	t.Helper()
	for range 100 {
		if w := g.Worker(); w != 0 {
			return w
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("no worker among %v", g.Processes())
	return 0
}

// TestWorkerFromOutside looks at a running worker as the host sees it.
func TestWorkerFromOutside(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	g := lab.Guest()
	g.Must("ping", "-c", "1", "192.0.2.9")
	dir := fmt.Sprintf("/proc/%d/", mustWorker(t, g))

	for _, ns := range []string{"user", "mnt", "net", "pid", "ipc", "uts", "cgroup"} {
		theirs, err := os.Readlink(dir + "ns/" + ns)
		if err != nil {
			t.Error(err)
		}
		for _, other := range []int{os.Getpid(), g.Proc.PID, g.Holder} {
			if l, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", other, ns)); l == theirs {
				t.Errorf("%s namespace is that of process %d", ns, other)
			}
		}
	}
	if entries, err := os.ReadDir(dir + "root"); err != nil || len(entries) != 0 {
		t.Errorf("root directory: %v, %v", entries, err)
	}
	workerStatus(t, dir)
	workerDescriptors(t, dir)
}

func workerStatus(t *testing.T, dir string) {
	tasks, _ := filepath.Glob(dir + "task/*/status")
	if len(tasks) == 0 {
		t.Error("no thread found")
	}
	want := map[string]string{"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"}
	for _, f := range tasks {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		seen := 0
		for line := range strings.Lines(string(b)) {
			k, v, _ := strings.Cut(line, ":")
			if w, ok := want[k]; ok {
				if seen++; strings.TrimSpace(v) != w {
					t.Errorf("%s: %s is %s, want %s", f, k, strings.TrimSpace(v), w)
				}
			}
		}
		if seen != len(want) {
			t.Errorf("%s: %d of %d lines found", f, seen, len(want))
		}
	}
}

// workerDescriptors checks what the worker holds: the tap, its epoll and
// memory, the channels to the broker, and no socket of its own namespace.
func workerDescriptors(t *testing.T, dir string) {
	fds, err := os.ReadDir(dir + "fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		l, _ := os.Readlink(dir + "fd/" + fd.Name())
		switch {
		case strings.HasPrefix(l, "socket:"), strings.HasPrefix(l, "pipe:"), strings.HasPrefix(l, "anon_inode:"),
			strings.HasPrefix(l, "/memfd:"), strings.HasSuffix(l, "/net/tun"), strings.HasSuffix(l, "/null"), l == "":
		default:
			t.Errorf("descriptor %s is %s", fd.Name(), l)
		}
	}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "udplite", "raw", "raw6", "icmp", "icmp6", "packet", "unix", "netlink"} {
		b, err := os.ReadFile(dir + "net/" + table)
		if err != nil {
			continue // not in this kernel
		}
		for i, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
			// The kernel's own netlink sockets belong to no process.
			if f := strings.Fields(line); i > 0 && !(table == "netlink" && len(f) > 2 && f[2] == "0") {
				t.Errorf("a socket in the worker's namespace: %s: %s", table, line)
			}
		}
	}
}

// TestWorkerReplaced kills the worker: the namespace loses its flows and
// nothing else. Where root has started the instance, the next worker is the same
// user as the first.
func TestWorkerReplaced(t *testing.T) {
	needOurs(t)
	t.Run("user", func(t *testing.T) { replaceWorker(t, netlab.Nobody) })
	t.Run("root", func(t *testing.T) {
		needRoot(t)
		replaceWorker(t, netlab.Root)
	})
}

func replaceWorker(t *testing.T, user *netlab.User) {
	lab := netlab.New(t, netlab.Options{})
	g := lab.GuestWith(netlab.GuestSpec{User: user, Args: []string{"--config-net", "-t", "10001"}})
	owner := userOf(t, mustWorker(t, g))
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	go netlab.Echo(g.Listen("tcp", ":10001"))
	for round := range 2 {
		old := mustWorker(t, g)
		c := g.Dial("tcp", "192.0.2.9:7")
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if !eventually(10*time.Second, func() bool { w := g.Worker(); return w != 0 && w != old }) {
			t.Fatalf("round %d: no new worker\n%s", round, g.Proc.Output())
		}
		if got := userOf(t, g.Worker()); got != owner {
			t.Errorf("round %d: the new worker is user %s, not %s", round, got, owner)
		}
		for _, from := range []struct {
			ns   *netlab.NS
			addr string
		}{{g.NS, "192.0.2.9:7"}, {lab.Remote, "192.0.2.2:10001"}} {
			if !eventually(10*time.Second, func() bool { s, _ := netlab.Ask(from.ns, "tcp", from.addr, "again"); return s == "again" }) {
				t.Errorf("round %d: no connection to %s", round, from.addr)
			}
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprint(c, "x")
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a flow of the old worker is still there")
		}
	}
}

// userOf is who a process is: its users and groups, real, effective and saved.
func userOf(t *testing.T, pid int) (ids string) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "Uid:") || strings.HasPrefix(line, "Gid:") {
			ids += strings.TrimSpace(line) + " "
		}
	}
	return ids
}

func eventually(d time.Duration, f func() bool) bool {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if f() {
			return true
		}
	}
	return false
}

// readWithin reads, and waits as long as given for what need not come. While the whole
// machine stands still, that counts as one step: what came meanwhile is found.
func readWithin(c net.Conn, b []byte, d time.Duration) (n int, err error) {
	const step = 50 * time.Millisecond
	for ; d > 0; d -= step {
		_ = c.SetReadDeadline(time.Now().Add(step))
		if n, err = c.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	return n, err
}

// TestIdle counts how often the processes of instances that have nothing to do wake up: of
// one that follows the host and forwards nothing by itself, and of one that looks at
// what is bound on either side.
func TestIdle(t *testing.T) {
	heavy(t)
	needOurs(t)
	t.Parallel()
	lab := netlab.New(t, netlab.Options{})
	quiet, looks := lab.Guest(), lab.Guest("-t", "auto", "-u", "auto", "-T", "auto", "-U", "auto")
	quiet.Must("ping", "-c", "1", "192.0.2.9")
	before := map[int]int64{}
	for _, g := range []*netlab.Guest{quiet, looks} {
		// The guest's own kernel is not what is measured: it would solicit routers.
		g.Sysctl("net/ipv6/conf/"+g.Interface()+"/router_solicitations", "0")
		g.IP("link set " + g.Interface() + " multicast off")
	}
	time.Sleep(15 * time.Second) // start-up, and what the ping left behind
	for _, g := range []*netlab.Guest{quiet, looks} {
		for _, p := range g.Processes() {
			before[p] = netlab.Switches(p)
		}
	}
	const seconds = 30
	time.Sleep(seconds * time.Second)
	woken := func(g *netlab.Guest, most int64) (all int64) {
		for _, p := range g.Processes() {
			n := netlab.Switches(p) - before[p]
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p))
			t.Logf("%s (%d): %d in %d s", strings.TrimSpace(string(comm)), p, n, seconds)
			if n > most {
				t.Errorf("process %d wakes up more often than %d times", p, most)
			}
			all += n
		}
		return all
	}
	// The runtime's monitor of each process wakes up once a minute, by two switches.
	if n := woken(quiet, seconds/10); n > 8 {
		t.Errorf("all processes together wake up %d times", n)
	}
	// Each side looks four times in five seconds. Twice that is for a machine that does not keep up.
	if n := woken(looks, 2*seconds); n > 3*seconds {
		t.Errorf("with auto rules all processes together wake up %d times in %d s", n, seconds)
	} else if n < seconds {
		t.Errorf("with auto rules all processes together wake up %d times in %d s: nobody looks", n, seconds)
	}
}
