// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// TestNamespaceByDescriptor: namespaces that come as descriptors, which Nix passes as standard
// streams, are joined, and not held by any process but the agent afterwards.
func TestNamespaceByDescriptor(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for name, tt := range map[string]struct {
		fds    string
		binary string
		args   []string
	}{
		"standard streams": {`</proc/%[1]d/ns/net >/dev/null 1</proc/%[1]d/ns/user`, "pasta",
			[]string{"-f", "-q", "--config-net", "-I", "tap0", "-t", "none", "-u", "none", "-T", "none", "-U", "none", "--netns", "/proc/self/fd/0", "--userns", "/proc/self/fd/1"}},
		"others": {`5</proc/%[1]d/ns/net 6</proc/%[1]d/ns/user`, "slirp4netns",
			[]string{"-c", "--netns-type=path", "--userns-path=/proc/self/fd/6", "/proc/self/fd/5", "tap0"}},
	} {
		t.Run(name, func(t *testing.T) {
			guest := holder(t, lab.For(t))
			link := func(what string) string {
				s, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", guest, what))
				return s
			}
			p := lab.For(t).StartPasta(netlab.GuestSpec{Binary: filepath.Join(netlab.Stage(), tt.binary), User: netlab.Nobody, Timeout: time.Minute,
				Wrap: []string{"sh", "-c", `exec "$0" "$@" ` + fmt.Sprintf(tt.fds, guest)}}, tt.args...)
			t.Cleanup(p.Kill)
			ns := netlab.OpenNS(t, "guest", fmt.Sprintf("/proc/%d/ns/net", guest))
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				if _, out := ns.Run("ip", "-4", "route"); strings.Contains(out, "default") {
					break
				}
				if p.Exited() || time.Now().After(deadline) {
					t.Fatalf("not connected: %s", p.Output())
				}
			}
			held := func() (all []string) {
				for _, pid := range append(netlab.Children(p.PID), p.PID) {
					fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
					for _, fd := range fds {
						if to, _ := os.Readlink(fd); to == link("net") || to == link("user") {
							all = append(all, fd+" -> "+to)
						}
					}
				}
				return all
			}
			for deadline := time.Now().Add(20 * time.Second); len(held()) > 0; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("still held: %q", held())
				}
			}
			time.Sleep(50 * time.Millisecond)
			if p.Exited() {
				t.Errorf("it has ended: %s", p.Output())
			}
		})
	}
}

// TestSlirpEventfd: the descriptor to end by may be of a kind that the runtime has as well, and
// one of that kind that nobody has named is not kept.
func TestSlirpEventfd(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	var events [2]*os.File
	for i := range events {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		events[i] = os.NewFile(uintptr(fd), "eventfd")
		defer events[i].Close()
	}
	ready, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	cmd := exec.Command(slirpProgram(), "-c", "-r", "3", "-e", "4", strconv.Itoa(holder(t, lab)), "tap0")
	cmd.ExtraFiles = []*os.File{theirs, events[0], events[1]}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if !netlab.Nested() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: netlab.Nobody.UID, Gid: netlab.Nobody.GID}
	}
	if err := lab.Host.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	defer func() { _ = cmd.Process.Kill() }()
	_ = ready.SetReadDeadline(time.Now().Add(30 * time.Second))
	if b, err := io.ReadAll(ready); string(b) != "1" {
		t.Fatalf("ready: %q, %v", b, err)
	}
	// Ours has CLOEXEC; that of the runtime, which may have taken the number since, too.
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/5", cmd.Process.Pid))
	own, e := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", events[1].Fd()))
	id := func(b []byte) string {
		_, id, _ := strings.Cut(string(b), "eventfd-id: ")
		return id
	}
	if e != nil || id(own) == "" {
		t.Log("the kernel does not tell one eventfd from another")
	} else if err == nil && id(info) == id(own) {
		t.Error("a descriptor that nobody has named is kept")
	}
	if _, err := events[0].Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it does not end")
	}
}
