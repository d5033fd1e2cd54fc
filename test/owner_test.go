// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// udpKind is one way in which an instance comes to have a UDP port.

// TestPortsOfNobody: started by root, an instance has its UDP ports to itself. The
// kernel lets sockets of one user share a port that set SO_REUSEPORT, as ours do, and
// nobody is the user of many. Whoever is the instance's own user could share: else
// the test would not say much.
func TestPortsOfNobody(t *testing.T) {
	needOurs(t)
	needRoot(t)
	for _, runAs := range []int{0, 61236} {
		t.Run(fmt.Sprint("runas ", runAs), func(t *testing.T) {
			lab := netlab.New(t, netlab.Options{})
			start := func(args ...string) *netlab.Guest {
				if args = append(args, "--config-net"); runAs != 0 {
					args = append(args, "--runas", fmt.Sprint(runAs, ":", runAs))
				}
				return lab.GuestWith(netlab.GuestSpec{User: netlab.Root, Args: args})
			}
			g := start("-u", "46801", "-u", netlab.Host4+"/46802", "-u", netlab.Host6+"/46802", "-U", "46806,46807")
			auto := start("-u", "46803,auto")
			o := &owned{T: t, lab: lab, others: []int{int(realNobody.UID), 0}}
			o.user = func(g *netlab.Guest) int {
				if runAs != 0 {
					return runAs
				}
				return 0x70000000 + g.Proc.PID
			}
			o.traffic(g, auto)
			o.look(g, auto, "first worker")
			for _, g := range []*netlab.Guest{g, auto} {
				old := mustWorker(t, g)
				_ = syscall.Kill(old, syscall.SIGKILL)
				for begin := time.Now(); g.Worker() == old || g.Worker() == 0; time.Sleep(10 * time.Millisecond) {
					if time.Since(begin) > 10*time.Second {
						t.Fatal("no other worker came up")
					}
				}
			}
			o.traffic(g, auto)
			o.look(g, auto, "next worker")
		})
	}
}

// owned looks whose ports are.
type owned struct {
	*testing.T
	lab     *netlab.Lab
	others  []int
	user    func(*netlab.Guest) int
	clients []*net.UDPConn
	served  bool
}

// Ports of the kinds that no option names.
const (
	portOnce   = "46804"
	portShared = "46805"
	portBypass = "46808"
)

// traffic has all kinds of sockets made.
func (o *owned) traffic(g, auto *netlab.Guest) {
	if !o.served {
		for _, f := range families {
			tellSource(o.lab.Remote, f.at(f.remote, "7"))
			tellSource(o.lab.Remote, f.at(f.remote, "8"))
			tellSource(o.lab.Host, f.at(f.lo, "46806"))
		}
		for port, in := range map[string]*netlab.NS{"46801": g.NS, "46802": g.NS, "46803": auto.NS} {
			tellSource(in, ":"+port)
		}
	}
	o.served = true
	for _, c := range o.clients {
		c.Close()
	}
	o.clients = nil
	for _, f := range families {
		for _, tt := range []struct {
			at   string // the guest's port
			from string // its address
			to   []string
		}{
			{portOnce, "", []string{f.at(f.remote, "7")}},
			{portShared, "", []string{f.at(f.remote, "7"), f.at(f.remote, "8")}},
			{portBypass, f.lo, []string{f.at(f.lo, "46806")}},
		} {
			c := g.ListenUDP(f.udp(), f.at(strings.Trim(tt.from, "[]"), tt.at))
			o.clients = append(o.clients, c)
			for _, to := range tt.to {
				if got := exchange(c, to, "q"); got != "q "+tt.at {
					o.Errorf("from %s to %s: %q", tt.at, to, got)
				}
			}
		}
		for _, port := range []string{"46801", "46802", "46803"} {
			deadline := time.Now().Add(20 * time.Second) // of a scan
			for got := ""; !strings.HasPrefix(got, "? "); got = askSoonFull2(o.lab.Remote, f.at(f.host, port), "?") {
				if time.Now().After(deadline) {
					o.Fatalf("no answer from port %s", port)
				}
			}
		}
	}
}

// look tries to share each port.
func (o *owned) look(g, auto *netlab.Guest, when string) {
	for _, f := range families {
		for _, k := range []struct {
			name, port string
			addr       string
			of         *netlab.Guest
			in         *netlab.NS
		}{
			{"a listener, and its answers", "46801", f.any, g, o.lab.Host},
			{"a listener of one address", "46802", f.host, g, o.lab.Host},
			{"an automatic listener", "46803", f.any, auto, o.lab.Host},
			{"a flow", portOnce, f.any, g, o.lab.Host},
			{"several flows", portShared, f.any, g, o.lab.Host},
			{"a flow of the bypass", portBypass, f.any, g, o.lab.Host},
			{"a listener in the namespace", "46807", f.lo, g, g.NS},
		} {
			try := func(uid int, options ...int) error {
				c, err := boundUDP(k.in, f.udp(), f.at(strings.Trim(k.addr, "[]"), k.port), uid, options...)
				if err == nil {
					c.Close()
				}
				return err
			}
			name := fmt.Sprintf("%s: %s, %s", when, k.name, f.name)
			for _, uid := range o.others {
				for _, options := range [][]int{nil, {unix.SO_REUSEADDR}, {unix.SO_REUSEPORT}, {unix.SO_REUSEADDR, unix.SO_REUSEPORT}} {
					if try(uid, options...) == nil {
						o.Errorf("%s: user %d has it too, options %v", name, uid, options)
					}
				}
			}
			if err := try(o.user(k.of), unix.SO_REUSEPORT); err != nil {
				o.Errorf("%s: it is not user %d's: %v", name, o.user(k.of), err)
			}
		}
	}
}

// TestSocketOfNobody: who runs a virtual machine finds the socket of a passt that root
// has started where it was, nobody's, whatever user the process is by then.
func TestSocketOfNobody(t *testing.T) {
	needOurs(t)
	needRoot(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	path := filepath.Join(openDir(t), "s")
	p := lab.Host.Start(netlab.Spec{Args: []string{filepath.Join(filepath.Dir(netlab.Pasta()), "passt"), "-f", "-s", path}, Timeout: time.Minute})
	defer p.Kill()
	var c net.Conn
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		var err error
		if c, err = net.Dial("unix", path); err == nil {
			break
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("%v\n%s", err, p.Output())
		}
	}
	defer c.Close()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Uid != 65534 || st.Gid != 65534 || st.Mode&0o7777 != 0o600 {
		t.Errorf("user %d, group %d, mode %o, %v", st.Uid, st.Gid, st.Mode, err)
	}
	rc, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = rc.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil || cred.Uid != 65534 {
			t.Errorf("a client sees %+v, %v", cred, err)
		}
	})
	own := fmt.Sprint(0x70000000 + p.PID)
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		ids := strings.Fields(statusLines(t, p.PID)["Uid"])
		if slices.Equal(ids, []string{own, own, own, own}) {
			break
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("the process is %v", ids)
		}
	}
}

// TestControlRunAs: an instance that root has started as another user has its sockets made
// as that user, who changes it as root does; nobody else may.
func TestControlRunAs(t *testing.T) {
	needOurs(t)
	needRoot(t)
	lab := netlab.New(t, netlab.Options{})
	as, dir := &netlab.User{UID: 61235, GID: 61235}, socketDir(t)
	if err := errors.Join(os.Chown(dir, int(as.UID), int(as.GID)), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	conf, control := filepath.Join(dir, "conf"), filepath.Join(dir, "control")
	g := lab.GuestWith(netlab.GuestSpec{User: netlab.Root, Args: []string{"--config-net", "--runas", "61235:61235", "-c", conf, "--control", control}})
	for _, path := range []string{conf, control} {
		st, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if owner := st.Sys().(*syscall.Stat_t).Uid; st.Mode() != os.ModeSocket|0o600 || owner != as.UID {
			t.Errorf("%s: %v, of user %d", path, st.Mode(), owner)
		}
	}
	for _, c := range []struct {
		user   *netlab.User
		status int
	}{{as, 0}, {netlab.Root, 0}, {netlab.Nobody, 1}} {
		s := &steered{t: t, lab: lab, g: g, path: conf, user: c.user}
		if st, out := s.pesto("-A", "-t", "9002:80"); st != c.status {
			t.Errorf("pesto as %+v: status %d: %s", c.user, st, out)
		}
		if st, out := aldentectl(t, lab, c.user, "log-level", "info", "--socket", control); st != c.status {
			t.Errorf("aldentectl as %+v: status %d: %s", c.user, st, out)
		}
	}
	_ = g.Proc.Signal(syscall.SIGTERM)
	g.Proc.WaitFor(5 * time.Second)
	for _, path := range []string{conf, control} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}
