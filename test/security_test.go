// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/policy"
	"aldente/test/netlab"
)

// byProgram returns the translator's processes by what they are.
func byProgram(t *testing.T, g *netlab.Guest) map[string]int {
	t.Helper()
	m := map[string]int{"broker": g.Proc.PID, "worker": mustWorker(t, g)}
	for _, p := range g.Processes() {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p))
		switch strings.TrimSpace(string(comm)) {
		case "aldente-agent":
			m["agent"] = p
		case "aldente-names":
			m["names"] = p
		}
	}
	if m["agent"] == 0 {
		t.Fatalf("no agent among %v", g.Processes())
	}
	return m
}

// statusLines returns the lines of /proc/PID/task/*/status by their keys, all
// threads' values that differ joined.
func statusLines(t *testing.T, pid int) map[string]string {
	t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if len(files) == 0 {
		t.Fatalf("process %d is gone", pid)
	}
	all := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		for line := range strings.Lines(string(b)) {
			k, v, _ := strings.Cut(line, ":")
			v = strings.Join(strings.Fields(v), " ")
			if old, ok := all[k]; ok && old != v {
				v = old + " and " + v
			}
			all[k] = v
		}
	}
	return all
}

const (
	noCapability = "0000000000000000"
	bindOnly     = "0000000000000400" // CAP_NET_BIND_SERVICE
	adminOnly    = "0000000000001000" // CAP_NET_ADMIN
)

// TestProcessesFromOutside looks at all threads of broker, agent, worker and names once
// a guest is connected.
func TestProcessesFromOutside(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	g := lab.GuestWith(netlab.GuestSpec{Args: []string{"--config-net", "--allow", "pypi.test"}, Resolv: "nameserver 192.0.2.9\n"})
	all := byProgram(t, g)
	if all["names"] == 0 {
		t.Fatalf("no aldente-names among %v", g.Processes())
	}
	for who, pid := range all {
		t.Run(who, func(t *testing.T) {
			got, kept := statusLines(t, pid), noCapability
			if who == "agent" {
				kept = adminOnly // it changes the guest's network when the host's changes
			}
			for k, want := range map[string]string{"CapInh": noCapability, "CapPrm": kept, "CapEff": kept,
				"CapAmb": noCapability, "NoNewPrivs": "1", "Seccomp": "2"} {
				if got[k] != want {
					t.Errorf("%s is %s, want %s", k, got[k], want)
				}
			}
			if who != "broker" && got["CapBnd"] != noCapability {
				t.Errorf("CapBnd is %s", got["CapBnd"])
			}
			// Files of a process that cannot be dumped belong to user 0 of its
			// memory's user namespace; agent and worker have their own, where
			// that is who started them.
			var st syscall.Stat_t
			if err := syscall.Stat(fmt.Sprintf("/proc/%d/mem", pid), &st); err != nil || who == "broker" && st.Uid != 0 {
				t.Errorf("/proc/PID/mem belongs to user %d (%v): the process can be dumped", st.Uid, err)
			}
			limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
			if err != nil {
				t.Fatal(err)
			}
			for _, what := range []string{"Max core file size", "Max locked memory", "Max msgqueue size"} {
				if !regexp.MustCompile(what + ` +0 +0 `).Match(limits) {
					t.Errorf("%s is not zero", what)
				}
			}
			if most, ok := map[string]int{"worker": policy.MaxMemory, "names": policy.MaxNamesMemory}[who]; ok &&
				!regexp.MustCompile(fmt.Sprintf(`Max data size +%d +%d `, most, most)).Match(limits) {
				t.Error("its memory is not limited")
			}
			if entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", pid)); who != "broker" && (err != nil || len(entries) > 0) {
				t.Errorf("its root directory has %d entries, %v", len(entries), err)
			}
			mapsOf(t, pid)
		})
	}
}

// TestDescriptorsHeld lists what each process holds once a guest is connected:
// nothing that the caller left open, and of namespaces only those of worker and names, for
// their successors.
func TestDescriptorsHeld(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	g := lab.GuestWith(netlab.GuestSpec{Args: []string{"--config-net", "--allow", "pypi.test"}, Resolv: "nameserver 192.0.2.9\n",
		Wrap: []string{"bash", "-c", `exec 9</etc/passwd 77</ 200<&0; exec "$@"`, "bash"}})
	pids := byProgram(t, g)
	common := []string{"/dev/null", "/dev/net/tun", `pipe:\[\d+\]`, `socket:\[\d+\]`, `anon_inode:\[(eventpoll|eventfd|pidfd)\]`}
	own := func(who, ns string) string {
		l, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pids[who], ns))
		if err != nil {
			t.Fatal(err)
		}
		return regexp.QuoteMeta(l)
	}
	for who, more := range map[string][]string{
		"names":  nil,
		"broker": {".*/aldente-(worker|names)", own("worker", "user"), own("worker", "mnt"), own("names", "user"), own("names", "mnt"), "anon_inode:inotify", `/proc/\d+/fdinfo/\d+`, `/proc/\d+/net/sockstat6?`}, "agent": nil, "worker": nil,
	} {
		may := regexp.MustCompile("^(" + strings.Join(slices.Concat(common, more), "|") + ")$")
		dir := fmt.Sprintf("/proc/%d/fd/", pids[who])
		fds, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			if l, err := os.Readlink(dir + fd.Name()); err == nil && !may.MatchString(l) {
				t.Errorf("%s: descriptor %s is %s", who, fd.Name(), l)
			}
		}
	}
}

// mapsOf wants no memory of a process that can be written and executed.
func mapsOf(t *testing.T, pid int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[1][1] == 'w' && f[1][2] == 'x' {
			t.Errorf("writable code: %s", line)
		}
	}
}

// TestCapabilityKept: binding low ports, where forwarding needs it later, and
// that alone, in a broker that root has started.
func TestCapabilityKept(t *testing.T) {
	needOurs(t)
	needRoot(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"nothing forwarded", nil, noCapability},
		{"TCP below 1024", []string{"-t", "81"}, noCapability},
		{"UDP below 1024", []string{"-u", "81"}, bindOnly},
		{"UDP from 1024 on", []string{"-u", "8081"}, noCapability},
		{"on an interface", []string{"-t", "%h0/81"}, bindOnly},
		{"on an interface, once and for all", []string{"-t", "%h0/81", "--no-follow"}, noCapability},
		{"automatic", []string{"-t", "auto"}, noCapability},
		{"automatic and low by name", []string{"-t", "443,auto"}, bindOnly},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := lab.For(t).GuestWith(netlab.GuestSpec{User: netlab.Root, Args: append([]string{"--config-net"}, tt.args...)})
			got := statusLines(t, g.Proc.PID)
			// Nobody else's. The effective group is nobody's, for ping sockets.
			own := strconv.Itoa(0x70000000 + g.Proc.PID)
			for k, want := range map[string][]string{"Uid": {own, own, own, own}, "Gid": {own, "65534", own, "65534"}} {
				if ids := strings.Fields(got[k]); !slices.Equal(ids, want) {
					t.Errorf("%s is %s", k, got[k])
				}
			}
			for k, want := range map[string]string{"CapPrm": tt.want, "CapEff": tt.want, "CapInh": noCapability,
				"CapAmb": noCapability, "CapBnd": noCapability, "Seccomp": "2"} {
				if got[k] != want {
					t.Errorf("%s is %s, want %s", k, got[k], want)
				}
			}
		})
	}
}

// TestRootFollowsNoLink: what root has created where another user may put links
// is nothing of root's.
func TestRootFollowsNoLink(t *testing.T) {
	needOurs(t)
	needRoot(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	dir := t.TempDir()
	precious, link := filepath.Join(dir, "precious"), filepath.Join(dir, "link")
	if err := os.WriteFile(precious, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(precious, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Lchown(link, int(netlab.Nobody.UID), int(netlab.Nobody.GID)); err != nil {
		t.Fatal(err)
	}
	for _, option := range []string{"--pcap", "--log-file", "--pid"} {
		p := lab.Host.Start(netlab.Spec{User: netlab.Root, Timeout: 20 * time.Second,
			Args: []string{netlab.Pasta(), "-t", "none", "-u", "none", "-T", "none", "-U", "none", "--config-net", option, link, "--", "true"}})
		st := p.Wait()
		b, err := os.ReadFile(precious)
		if st != 1 || string(b) != "precious" || err != nil || !strings.Contains(p.Output(), "a link that another user could have put there") {
			t.Errorf("%s: status %d, the file is %q, %v\n%s", option, st, b, err, p.Output())
		}
	}
}

// TestCommandInheritsNothing compares what a command finds under pasta with what
// it finds without: nothing of the broker's own confinement may leak into it.
func TestCommandInheritsNothing(t *testing.T) {
	needOurs(t)
	const look = `grep -E '^(NoNewPrivs|Seccomp|SigIgn|SigBlk|CoreDumping):' /proc/self/status
		grep -vE 'pending signals|processes' /proc/self/limits; cat /proc/self/oom_score_adj`
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	lines := func(script string) (without, under []string) {
		plain := lab.Host.Start(netlab.Spec{Args: []string{"sh", "-c", script}, User: netlab.Nobody})
		if st := plain.Wait(); st != 0 {
			t.Fatalf("without pasta: status %d", st)
		}
		st, p := pastaRun(t, lab, "", "--config-net", "--", "sh", "-c", script)
		if st != 0 {
			t.Fatalf("under pasta: status %d", st)
		}
		return strings.Split(plain.Stdout(), "\n"), strings.Split(p.Stdout(), "\n")
	}
	without, under := lines(look)
	for i := range max(len(without), len(under)) {
		if i >= len(without) || i >= len(under) || without[i] != under[i] {
			t.Errorf("line %d of %d differs: %q, without pasta %q", i, len(without), under[min(i, len(under)-1)], without[min(i, len(without)-1)])
		}
	}
	// The caller may have left more open; the listing's own is the lowest free.
	without, under = lines("ls /proc/self/fd")
	for _, fd := range under {
		if !slices.Contains(without, fd) {
			t.Errorf("descriptor %s is open under pasta only, without are %q", fd, without)
		}
	}
}

// TestSelfTest wants every layer of every process named, and none missing where
// none is.
func TestSelfTest(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	run := func(wrap ...string) (int, string) {
		argv := append(wrap, filepath.Join(filepath.Dir(netlab.Pasta()), "aldente"), "--self-test")
		p := lab.Host.Start(netlab.Spec{Args: argv, User: netlab.Nobody})
		return p.Wait(), p.Output()
	}
	st, out := run()
	layers := []string{"capabilities", "limits", "no_new_privs", "non-dumpable", "memory-deny-write-execute", "landlock", "seccomp"}
	for who, more := range map[string][]string{"broker": nil, "agent": {"file system"}, "worker": {"namespaces", "file system", "memory limit"}, "names": {"namespaces", "file system", "memory limit"}} {
		for _, layer := range slices.Concat(layers, more) {
			if !strings.Contains(out, "\n"+who+": "+layer) && !strings.HasPrefix(out, who+": "+layer) {
				t.Errorf("nothing said of %s's %s", who, layer)
			}
		}
	}
	for _, f := range []string{"Linux ", "IPv6: ", "pings: ", "SO_PEEK_OFF, TCP and IPv4: ", "SO_PEEK_OFF, TCP and IPv6: ", "UDP_GRO: ", "SO_NETNS_COOKIE: ", "segmentation of UDP by the tap: "} {
		if !strings.Contains(out, "kernel: "+f) {
			t.Errorf("nothing said of the kernel's %s", f)
		}
	}
	missing := strings.Contains(out, ": missing") || strings.Contains(out, "FAILED")
	if (st == 0) == missing {
		t.Errorf("status %d", st)
	}
	if t.Failed() {
		t.Log(out)
	}
	// A system without user namespaces: it says so.
	st, out = run("unshare", "-Ur", "sh", "-c", `echo 0 >/proc/sys/user/max_user_namespaces; exec "$0" "$@"`)
	if st == 0 || !strings.Contains(out, "namespaces") {
		t.Errorf("without user namespaces: status %d\n%s", st, out)
	}
}

// TestLayersReported: -d names the layers of all processes, without it a
// complete sandbox is not mentioned; --strict accepts it.
func TestLayersReported(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	_, p := pastaRun(t, lab, "", "-d", "--config-net", "--dns", "192.0.2.9", "--allow", "pypi.test", "--", "true")
	if strings.Contains(p.Output(), ": missing") {
		t.Skipf("this system lacks a layer:\n%s", p.Output())
	}
	for _, who := range []string{"broker", "agent", "worker", "names"} {
		if n := len(regexp.MustCompile(`: in force.* component=`+who).FindAllString(p.Output(), -1)); n < 7 {
			t.Errorf("%d layers of the %s", n, who)
		}
	}
	st, p := pastaRun(t, lab, "", "--strict", "--config-net", "--dns", "192.0.2.9", "--allow", "pypi.test", "--", "true")
	if st != 0 || strings.Contains(p.Output(), "component=") {
		t.Errorf("--strict: status %d\n%s", st, p.Output())
	}
}
