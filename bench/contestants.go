// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"aldente/test/netlab"
)

// contestant is one of the translators, or the kernel.
type contestant struct {
	name    string
	version string
	binary  string
	start   func(lab *netlab.Lab, c contestant, mtu int) *entrant
}

// entrant is a contestant at work in a lab.
type entrant struct {
	name  string
	guest *netlab.NS
	pids  func() []int // its processes, none for the kernel
	port  int          // first of the ports that are forwarded to it

	resolver string // that the guest asks, of namesGroup
}

func cores() int { return runtime.NumCPU() }

// contestants returns who takes part, the kernel first and aldente last.
func contestants(o options) []contestant {
	if o.mode {
		return present(o, slirps(o))
	}
	return present(o, []contestant{
		{"veth", "the kernel alone: client on the host", "", startVeth},
		{"pasta", firstLine(o.pasta, "--version"), o.pasta, startPasta},
		{"slirp4netns", firstLine(o.slirp, "--version"), o.slirp, startSlirp},
		{"aldente", firstLine(netlab.Pasta(), "--version"), netlab.Pasta(), startPasta},
	})
}

// slirps are those who can be slirp4netns.
func slirps(o options) []contestant {
	ours := filepath.Join(filepath.Dir(netlab.Pasta()), "slirp4netns")
	return []contestant{
		{"veth", "the kernel alone: client on the host", "", startVeth},
		{"slirp4netns", firstLine(o.slirp, "--version"), o.slirp, startSlirp},
		{"aldente", firstLine(ours, "--version"), ours, startSlirp},
	}
}

// present leaves those who are there and wanted.
func present(o options, all []contestant) (some []contestant) {
	for _, c := range all {
		if (c.name == "veth" || c.version != "") && o.who.MatchString(c.name) {
			some = append(some, c)
		}
	}
	return some
}

// firstLine runs a program and returns the first line of what it prints, or
// nothing when it cannot run.
func firstLine(args ...string) string {
	if args[0] == "" {
		return ""
	}
	out, err := exec.Command(args[0], args[1:]...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

func startVeth(lab *netlab.Lab, c contestant, mtu int) *entrant {
	return &entrant{name: c.name, guest: lab.Host, pids: func() []int { return nil }, port: nextPorts()}
}

// startPasta starts passt's pasta or this one. The gateway is not mapped, so
// that every packet goes to the remote.
func startPasta(lab *netlab.Lab, c contestant, mtu int) *entrant {
	port := nextPorts()
	forward := fmt.Sprintf("%d-%d", port, port+forwarded-1)
	g := lab.GuestWith(netlab.GuestSpec{Binary: c.binary, Timeout: time.Hour,
		Args: []string{"--config-net", "--no-map-gw", "-m", fmt.Sprint(mtu), "-t", forward, "-u", forward}})
	ports(g.NS, guestPorts)
	return &entrant{name: c.name, guest: g.NS, pids: g.Processes, port: port}
}

// holder is a process in a namespace of its own, to be connected.
func holder(lab *netlab.Lab) *netlab.Proc {
	hold := lab.Host.Start(netlab.Spec{Args: []string{"unshare", "-Urn", "sleep", "3600"}, User: netlab.Nobody, Timeout: time.Hour})
	host := fmt.Sprintf("net:[%d]", lab.Host.Inode())
	wait(lab.TB, "unshare", func() bool {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", hold.PID))
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", hold.PID))
		return err == nil && link != host && strings.HasPrefix(string(comm), "sleep")
	})
	return hold
}

func startSlirp(lab *netlab.Lab, c contestant, mtu int) *entrant {
	hold := holder(lab)
	path := fmt.Sprintf("/proc/%d/ns/net", hold.PID)
	api := filepath.Join(socketDir(lab.TB), "api")
	p := lab.Host.Start(netlab.Spec{Args: []string{c.binary, "-c", "--mtu=" + fmt.Sprint(mtu), "--api-socket=" + api, fmt.Sprint(hold.PID), "tap0"},
		User: netlab.Nobody, Timeout: time.Hour})
	guest := netlab.OpenNS(lab.TB, "slirp's guest", path)
	wait(lab.TB, "slirp4netns", func() bool {
		if p.Exited() {
			lab.TB.Fatalf("slirp4netns: %s", p.Output())
		}
		st, out := guest.Run("ip", "-4", "route", "show", "default")
		_, err := os.Stat(api)
		return err == nil && st == 0 && strings.Contains(out, "default")
	})
	guest.SetCongestionControl()
	ports(guest, guestPorts)
	e := &entrant{name: c.name, guest: guest, pids: func() []int { return netlab.Children(p.PID) }, port: nextPorts()}
	for port := e.port; port < e.port+forwarded; port++ {
		if err := slirpForward(lab.Host, api, port); err != nil {
			lab.TB.Fatalf("%v", err)
		}
	}
	return e
}

// slirpForward has slirp4netns forward a port, slirp4netns(1).
func slirpForward(host *netlab.NS, api string, port int) error {
	for _, proto := range []string{"tcp", "udp"} {
		c, err := host.DialError("unix", api, 10*time.Second)
		if err != nil {
			return err
		}
		fmt.Fprintf(c, `{"execute":"add_hostfwd","arguments":{"proto":%q,"host_addr":"0.0.0.0","host_port":%d,"guest_port":%d}}`, proto, port, port)
		_ = c.(*net.UnixConn).CloseWrite()
		answer, err := io.ReadAll(c)
		c.Close()
		if err != nil || strings.Contains(string(answer), "error") {
			return fmt.Errorf("slirp4netns: port %d: %s %w", port, answer, err)
		}
	}
	return nil
}

var lastEntrant int

// nextPorts returns the first port for one more entrant.
func nextPorts() int {
	lastEntrant++
	return firstPort + lastEntrant%64*forwarded
}

// socketDir is a folder that slirp4netns may write to.
func socketDir(tb netlab.TB) string {
	dir, err := os.MkdirTemp("", "bench")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Ports that clients get. Some translators have a guest's datagrams leave by the port that
// they came from: where somebody else has that on the host, they are lost. So guests and
// everybody else have ranges of their own.
const (
	guestPorts = "8192 32767"
	otherPorts = "32768 65535"
)

// ports opens a wide range for clients: thousands of connections a second leave as many
// behind in TIME-WAIT.
func ports(n *netlab.NS, most string) {
	n.Sysctl("net/ipv4/ip_local_port_range", most)
	n.Sysctl("net/ipv4/tcp_tw_reuse", "1")
}

func wait(tb netlab.TB, what string, f func() bool) {
	for range 200 {
		if f() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	tb.Fatalf("%s is not up after 4 s", what)
}

// cpu returns the processor time that the entrant's processes have used.
func (e *entrant) cpu() time.Duration {
	var sum time.Duration
	for _, p := range e.pids() {
		sum += netlab.CPU(p)
	}
	return sum
}

// cost runs f and returns what that has cost the entrant's processes: time, and
// system calls where they are counted.
func (e *entrant) cost(f func()) (cpu time.Duration, calls uint64) {
	var c callCounter
	pids := e.pids()
	if countsCalls {
		if err := c.start(pids); err != nil {
			fmt.Fprintln(os.Stderr, "bench: system calls are not counted:", err)
			countsCalls = false
		}
	}
	before := e.cpu()
	f()
	return e.cpu() - before, c.stop()
}

// pss returns the proportional memory of the entrant's processes in MiB.
func (e *entrant) pss() float64 {
	var sum int64
	for _, p := range e.pids() {
		sum += netlab.PSS(p)
	}
	return float64(sum) / 1024
}
