// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// TestPestoGuest: a command in the guest, of the same user and with the same files,
// changes nothing and learns nothing, in whatever namespaces of its own it asks.
func TestPestoGuest(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for _, program := range []string{"pasta", "aldente"} {
		t.Run(program, func(t *testing.T) {
			dir := socketDir(t)
			path := filepath.Join(dir, "s")
			pesto := filepath.Join(dir, "pesto") // aldente leaves of /tmp the working directory
			b, err := os.ReadFile(filepath.Join(netlab.Stage(), "aldentectl"))
			if err == nil {
				err = os.WriteFile(pesto, b, 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
			script := strings.Join([]string{
				`ls -l s`,
				`./pesto s; echo "show=$?"`,
				`./pesto -A -t 9002 s; echo "add=$?"`,
				`unshare -Ur ./pesto -A -t 9002 s; echo "user=$?"`,
				`unshare -Urn ./pesto -A -t 9002 s; echo "net=$?"`,
				`unshare -Urmpf ./pesto -A -t 9002 s; echo "pid=$?"`,
				`nsenter -t 1 -n ./pesto -A -t 9002 s; echo "init=$?"`,
				`touch ready; while ! test -e go; do sleep 0.05; done`,
			}, "\n")
			p := lab.For(t).StartPasta(netlab.GuestSpec{Binary: filepath.Join(netlab.Stage(), program), User: netlab.Nobody,
				Wrap: []string{"env", "-C", dir}}, "--config-net", "-t", "none", "-u", "none", "-T", "none", "-U", "none", "-c", path,
				"--", "sh", "-c", script)
			for range 400 {
				if _, err := os.Stat(filepath.Join(dir, "ready")); err == nil || p.Exited() {
					break
				}
				time.Sleep(50 * time.Millisecond)
			}
			s := &steered{t: t, lab: lab.For(t), path: path}
			if got := s.rules(); got != "  HOST\n  SPLICE\n" {
				t.Errorf("the guest has changed the rules to\n%s", got)
			}
			s.must("-A -t 9002") // who is outside may
			if got := s.rules(); !strings.Contains(got, "9002") {
				t.Errorf("rules are\n%s", got)
			}
			if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			p.Wait()
			out := p.Output()
			if !strings.Contains(out, "srw-------") {
				t.Errorf("the guest does not see the socket: the test shows nothing\n%s", out)
			}
			for _, what := range []string{"show", "add", "user", "net", "pid", "init"} {
				if !strings.Contains(out, what+"=") || strings.Contains(out, what+"=0\n") {
					t.Errorf("%s: not refused\n%s", what, out)
				}
			}
			if !strings.Contains(out, "in another network namespace") || strings.Contains(out, "HOST") {
				t.Errorf("%s", out)
			}
		})
	}
}

// TestPestoHeld: the broker alone has the control socket; the process that is to remove
// it has nothing else, and may do nothing else. With -c, captured code can do no more.
func TestPestoHeld(t *testing.T) {
	needOurs(t)
	needRoot(t) // descriptors of processes that cannot be dumped
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	s := steer(t, lab, "-t", "9001")
	inode := ""
	for line := range strings.Lines(lab.Host.Read("/proc/net/unix")) {
		if f := strings.Fields(line); len(f) == 8 && f[7] == s.path {
			inode = "socket:[" + f[6] + "]"
		}
	}
	removers := 0
	for _, pid := range s.g.Processes() {
		holds, fds := false, 0
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil || inode == "" {
			t.Fatal(err, inode)
		}
		for _, e := range entries {
			link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name()))
			holds, fds = holds || link == inode, fds+1
		}
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if holds != (pid == s.g.Proc.PID) {
			t.Errorf("%s holds the control socket: %v", comm, holds)
		}
		if string(comm) != "aldente-socket\n" {
			continue
		}
		removers++
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if !strings.Contains(string(status), "NoNewPrivs:\t1\n") || !strings.Contains(string(status), "Seccomp:\t2\n") || fds != 2 {
			t.Errorf("the remover has %d descriptors\n%s", fds, status)
		}
	}
	if removers != 1 {
		t.Errorf("%d removers", removers)
	}

	for _, who := range []string{"broker", "agent"} {
		for _, attempt := range strings.Fields("unlinkat renameat2 mkdirat openat-write socket-unix") {
			if got := tryCaptive(t, lab, who, attempt, "-c", filepath.Join(socketDir(t), "s")); got != "killed" {
				t.Errorf("%s, with -c: %s: %s", who, attempt, got)
			}
		}
	}
}

// TestPestoClientsOfOthers replays how Podman 6 and RootlessKit 3 call the two programs.
func TestPestoClientsOfOthers(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	dir := socketDir(t)
	path, pid := filepath.Join(dir, "pasta.sock"), filepath.Join(dir, "pid")
	hold := lab.Host.Start(netlab.Spec{Args: []string{"unshare", "-Urn", "sleep", "600"}, User: netlab.Nobody})
	own := lab.Host.Inode()
	ns := fmt.Sprintf("/proc/%d/ns/net", hold.PID)
	for range 400 {
		if link, err := os.Readlink(ns); err == nil && link != fmt.Sprintf("net:[%d]", own) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	podman := strings.Fields("--config-net --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet --map-guest-addr 169.254.1.2")
	p := lab.StartPasta(netlab.GuestSpec{User: netlab.Nobody}, append(podman, "--pid", pid, "-c", path, strconv.Itoa(hold.PID))...)
	if st := p.Wait(); st != 0 || p.Leaked() {
		t.Fatalf("status %d, output still open %v: %s", st, p.Leaked(), p.Output())
	}
	text, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	daemon, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	t.Cleanup(func() { _ = syscall.Kill(daemon, syscall.SIGKILL) })
	guest := netlab.OpenNS(t, "guest", ns)
	s := &steered{t: t, lab: lab, g: &netlab.Guest{NS: guest}, path: path}
	s.answer(8080, 8081, 8082)

	// Podman: one binding for each family; once more is nothing new.
	for range 2 {
		s.must("--add -t 0.0.0.0/8080 -t [::]/8080 -u 0.0.0.0/8081-8082 -u [::]/8081-8082")
	}
	for _, f := range families {
		s.reaches(lab.Remote, "tcp", f.at(f.host, "8080"), "8080")
		s.reaches(lab.Remote, "udp", f.at(f.host, "8082"), "8082")
	}
	s.must("--delete -t 0.0.0.0/8080 -t [::]/8080 -u 0.0.0.0/8081-8082 -u [::]/8081-8082")
	for _, f := range families {
		s.reaches(lab.Remote, "tcp", f.at(f.host, "8080"), "")
	}
	// RootlessKit.
	s.must("-A --tcp-ports=0.0.0.0/9090:8080")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9090", "8080")
	s.must("-D --tcp-ports=0.0.0.0/9090:8080")
	s.reaches(lab.Remote, "tcp", netlab.Host4+":9090", "")

	// Whoever stops it with SIGTERM finds nothing left.
	_ = syscall.Kill(daemon, syscall.SIGTERM)
	for range 300 {
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) && syscall.Kill(daemon, 0) != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the instance or its socket is left")
}
