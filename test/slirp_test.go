// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// slirp is an instance by the name of slirp4netns, with both its descriptors.
type slirp struct {
	*netlab.NS // the guest's
	host       *netlab.NS
	proc       *netlab.Proc
	exit       *os.File // the writing end of what it has for --exit-fd
	api        string   // path of its API socket
}

// slirpSpec says how to start one. The operands come behind Args.
type slirpSpec struct {
	Args   []string
	Before string // commands of a shell in the guest's namespace, before it is connected
	Path   bool   // by paths of the namespaces, not by a process
	User   *netlab.User
	Resolv string
	Binary string
}

func slirpProgram() string { return filepath.Join(netlab.Stage(), "slirp4netns") }

// startSlirp starts one, and waits until it says that it is ready.
func startSlirp(t *testing.T, lab *netlab.Lab, s slirpSpec) *slirp {
	t.Helper()
	needOurs(t)
	dir := openDir(t)
	guest := holderWith(t, lab, s.Before)
	in := &slirp{host: lab.Host, api: filepath.Join(dir, "api.sock"), NS: netlab.OpenNS(t, "guest", fmt.Sprintf("/proc/%d/ns/net", guest))}
	for _, name := range []string{"ready", "exit"} {
		if err := unix.Mkfifo(filepath.Join(dir, name), 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, name), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	// Both ends, so that the other's opening does not wait.
	var err error
	if in.exit, err = os.OpenFile(filepath.Join(dir, "exit"), os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.exit.Close() })
	ready, err := os.OpenFile(filepath.Join(dir, "ready"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	args := []string{strconv.Itoa(guest), "tap0"}
	if s.Path {
		args = []string{fmt.Sprintf("--userns-path=/proc/%d/ns/user", guest), "--netns-type=path", fmt.Sprintf("/proc/%d/ns/net", guest), "tap0"}
	}
	if s.Binary == "" {
		s.Binary = slirpProgram()
	}
	if s.User == nil {
		s.User = netlab.Nobody
	}
	in.proc = lab.StartPasta(netlab.GuestSpec{Binary: s.Binary, User: s.User, Resolv: s.Resolv, Timeout: 5 * time.Minute,
		Wrap: []string{"sh", "-c", `exec "$@" 3>"$0/ready" 4<"$0/exit"`, dir}},
		slices.Concat([]string{"-r", "3", "-e", "4", "-a", in.api}, s.Args, args)...)
	t.Cleanup(in.proc.Kill)
	if said := awaitReady(t, ready, in.proc); said != "1" {
		t.Fatalf("ready: %q\n%s", said, in.proc.Output())
	}
	return in
}

// awaitReady is all that is written to a FIFO until nobody has it open for that.
func awaitReady(t *testing.T, f *os.File, p *netlab.Proc) (said string) {
	t.Helper()
	_ = f.SetReadDeadline(time.Now().Add(30 * time.Second))
	b := make([]byte, 16)
	for {
		n, err := f.Read(b)
		said += string(b[:n])
		switch {
		case n > 0:
		case err == io.EOF && said == "" && !p.Exited():
			time.Sleep(5 * time.Millisecond) // nobody has opened it yet
		case err == io.EOF:
			return said
		default:
			t.Fatalf("ready: %q, %v\n%s", said, err, p.Output())
		}
	}
}

// ask is one client's turn at the API.
func (s *slirp) ask(t *testing.T, request string) string {
	t.Helper()
	c := s.host.Dial("unix", s.api)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.UnixConn).CloseWrite()
	answer, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Error(err)
	}
	return string(answer)
}

// ends waits for its end, after which its socket has gone.
func (s *slirp) ends(t *testing.T, want int) {
	t.Helper()
	if st, ok := s.proc.WaitFor(10 * time.Second); !ok || st != want {
		t.Errorf("ended %v with status %d, want %d\n%s", ok, st, want, s.proc.Output())
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, err := os.Lstat(s.api)
		if os.IsNotExist(err) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("its socket is still there: %v", err)
			return
		}
	}
}

// namesClient answers each TCP connection by the address that it came from.
func namesClient(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		_, _ = io.WriteString(c, host)
		c.Close()
	}
}

// whom asks such a server; "" if nobody is there.
func whom(ns *netlab.NS, addr string) string {
	c, err := ns.DialError("tcp", addr, 5*time.Second)
	if err != nil {
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	b, _ := io.ReadAll(c)
	return string(b)
}

// TestSlirp is the contract with who calls slirp4netns: the guest's network, by each way
// to name it, with each user, as Podman calls it (-c), and as RootlessKit does, which
// makes and configures the tap itself.
func TestSlirp(t *testing.T) {
	netlab.Have(t, "unshare", "ip", "dig")
	lab := netlab.New(t, netlab.Options{})
	go namesClient(lab.Remote.Listen("tcp", ":7000"))
	go namesClient(lab.Host.Listen("tcp", "127.0.0.1:7001"))
	go namesClient(lab.Host.Listen("tcp", "[::1]:7001"))
	serveDNS(lab.Host, "127.0.0.53:53")
	const made = "ip tuntap add name tap0 mode tap; ip link set tap0 up"
	configure := []string{"addr add 10.0.2.100/24 dev tap0", "link set tap0 mtu 4000", "route add default via 10.0.2.2", "link set lo up"}
	for _, tt := range []struct {
		name  string
		spec  slirpSpec
		setup []string // what whoever made the tap goes on with
		mtu   string
		loop  bool // the host's loopback is there
		v6    bool
		net   string // first three numbers of the guest's network
	}{
		{"podman", slirpSpec{Args: []string{"--disable-host-loopback", "--mtu=65520", "--enable-sandbox", "--enable-seccomp", "--enable-ipv6", "-c"}, Path: true},
			nil, "65520", false, true, "10.0.2."},
		{"by process", slirpSpec{Args: []string{"-c"}}, nil, "1500", true, false, "10.0.2."},
		{"root", slirpSpec{Args: []string{"-c", "-6"}, User: netlab.Root}, nil, "1500", true, true, "10.0.2."},
		{"another network", slirpSpec{Args: []string{"-c", "--cidr=10.9.8.0/24", "--macaddress=02:00:00:00:00:07"}, Path: true}, nil, "1500", true, false, "10.9.8."},
		{"rootlesskit", slirpSpec{Args: []string{"--mtu", "65520", "--enable-ipv6"}, Before: made}, configure, "4000", true, true, "10.0.2."},
		{"rootlesskit detached", slirpSpec{Args: []string{"--mtu", "65520", "--disable-host-loopback"}, Before: made, Path: true}, configure, "4000", false, false, "10.0.2."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.spec.Resolv = "nameserver 127.0.0.53\n"
			s := startSlirp(t, lab.For(t), tt.spec)
			if tt.setup != nil {
				s.IP(tt.setup...)
			}
			address := s.Must("ip", "address")
			for _, want := range []string{"inet 127.0.0.1/8 scope host lo", "inet " + tt.net + "100/24", "mtu " + tt.mtu} {
				if !strings.Contains(address, want) {
					t.Errorf("no %q in\n%s", want, address)
				}
			}
			if want := tt.net + "100/24 brd " + tt.net + "255"; tt.setup == nil && !strings.Contains(address, want) {
				t.Errorf("no %q in\n%s", want, address)
			}
			if tt.setup == nil && tt.v6 && !strings.Contains(address, "inet6 fd00::64/64 scope global") {
				t.Errorf("no IPv6 in\n%s", address)
			}
			if slices.Contains(tt.spec.Args, "--macaddress=02:00:00:00:00:07") && !strings.Contains(address, "02:00:00:00:00:07") {
				t.Errorf("another hardware address in\n%s", address)
			}
			if got := whom(s.NS, "192.0.2.9:7000"); got != netlab.Host4 {
				t.Errorf("the remote is asked by %q", got)
			}
			if got, want := whom(s.NS, tt.net+"2:7001"), map[bool]string{true: "127.0.0.1"}[tt.loop]; got != want {
				t.Errorf("the host's loopback is asked by %q, want %q", got, want)
			}
			for _, nobody := range []string{"3", "7"} {
				if got := whom(s.NS, tt.net+nobody+":7001"); got != "" {
					t.Errorf("%s%s is somebody: %s", tt.net, nobody, got)
				}
			}
			s.resolves(t, tt.net+"3", "+notcp")
			s.resolves(t, tt.net+"3", "+tcp")
			if tt.v6 {
				s.six(t, tt.setup == nil, tt.loop)
			}
			s.exit.Close()
			s.ends(t, 0)
		})
	}
}

// resolves asks the resolver at an address of the guest's network.
func (s *slirp) resolves(t *testing.T, server, how string) {
	t.Helper()
	if out := s.Must("dig", "+short", "+time=5", "+tries=3", how, "@"+server, "name.example", "A"); !strings.Contains(out, "198.51.100.7") {
		t.Errorf("%s %s: %s", server, how, out)
	}
}

// six is what there is with --enable-ipv6. A guest that we have not configured does that by
// router advertisements.
func (s *slirp) six(t *testing.T, configured, loop bool) {
	t.Helper()
	if !configured {
		global := func() bool {
			return strings.Contains(s.Must("ip", "-6", "address", "show", "scope", "global", "-tentative"), "inet6 fd00::")
		}
		for deadline := time.Now().Add(30 * time.Second); !global(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no address by advertisements: %s", s.Must("ip", "address"))
			}
		}
	}
	if got := whom(s.NS, "[2001:db8:1::9]:7000"); got != netlab.Host6 {
		t.Errorf("the remote is asked by %q", got)
	}
	if got, want := whom(s.NS, "[fd00::2]:7001"), map[bool]string{true: "::1"}[loop]; got != want {
		t.Errorf("the host's loopback is asked by %q, want %q", got, want)
	}
	if got := whom(s.NS, "[fd00::7]:7001"); got != "" {
		t.Errorf("fd00::7 is somebody: %s", got)
	}
	s.resolves(t, "fd00::3", "+notcp")
}

// TestSlirpVirtual: what the host has by an address of the guest's network the guest cannot
// name, though it is there.
func TestSlirpVirtual(t *testing.T) {
	lab := netlab.New(t, netlab.Options{})
	lab.Host.IP("addr add 10.0.2.7/24 dev h0", "addr add 10.0.2.3/24 dev h0", "addr add fd00::7/64 dev h0 nodad")
	go namesClient(lab.Host.Listen("tcp", ":7001"))
	for _, args := range [][]string{nil, {"--disable-host-loopback"}, {"--disable-dns"}} {
		t.Run(strings.Join(args, ""), func(t *testing.T) {
			s := startSlirp(t, lab.For(t), slirpSpec{Args: append([]string{"-c", "-6"}, args...)})
			for _, addr := range []string{"10.0.2.3", "10.0.2.7", "[fd00::7]"} {
				if got := whom(s.NS, addr+":7001"); got != "" {
					t.Errorf("%s of the host's is reached, by %s", addr, got)
				}
			}
			if got := whom(s.NS, netlab.Host4+":7001"); got == "" {
				t.Error("the server is not there")
			}
		})
	}
}

// TestSlirpEnds: each way to end one, after which its socket has gone.
func TestSlirpEnds(t *testing.T) {
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for name, tt := range map[string]struct {
		end  func(*slirp) error
		want int
	}{
		"data":    {func(s *slirp) error { _, err := s.exit.Write([]byte("x")); return err }, 0},
		"closed":  {func(s *slirp) error { return s.exit.Close() }, 0},
		"SIGTERM": {func(s *slirp) error { return s.proc.Signal(syscall.SIGTERM) }, 0},
		"SIGINT":  {func(s *slirp) error { return s.proc.Signal(syscall.SIGINT) }, 0},
		"SIGKILL": {func(s *slirp) error { return s.proc.Signal(syscall.SIGKILL) }, 137},
	} {
		for _, user := range []*netlab.User{netlab.Nobody, netlab.Root} {
			t.Run(fmt.Sprintf("%s, user %d", name, user.UID), func(t *testing.T) {
				s := startSlirp(t, lab.For(t), slirpSpec{Args: []string{"-c"}, User: user})
				if st, err := os.Lstat(s.api); err != nil || st.Mode() != os.ModeSocket|0o600 {
					t.Errorf("socket: %v, %v", st, err)
				}
				all := netlab.Children(s.proc.PID)
				if err := tt.end(s); err != nil {
					t.Fatal(err)
				}
				s.ends(t, tt.want)
				for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
					left := slices.DeleteFunc(slices.Clone(all), func(pid int) bool { f := netlab.Stat(pid); return f == nil || f[0] == "Z" })
					if len(left) == 0 {
						break
					}
					if time.Now().After(deadline) {
						t.Fatalf("processes are left: %v of %v", left, all)
					}
				}
			})
		}
	}
}

// TestSlirpFails: what cannot be is said, with status 1, and nothing is left.
func TestSlirpFails(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	guest := strconv.Itoa(holder(t, lab))
	other := filepath.Join(openDir(t), "file")
	if err := os.WriteFile(other, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ args, want string }{
		{"--bogus " + guest + " tap0", "unrecognized option '--bogus'"},
		{"-r 77 " + guest + " tap0", "descriptor 77 is not open"},
		{"-e 77 " + guest + " tap0", "descriptor 77 is not open"},
		{"-r 2 -e 2 " + guest + " tap0", "are the same descriptor"},
		{"-c 999999999 tap0", "is the process or namespace still there?"},
		{"-c --netns-type=path /nonexistent tap0", "is the process or namespace still there?"},
		{"-c --userns-path=/nonexistent " + guest + " tap0", "cannot open user namespace"},
		{"-c --outbound-addr=nosuch " + guest + " tap0", "nosuch"},
		{"-c -a /nonexistent/s " + guest + " tap0", "/nonexistent/s"},
		{"-c -a " + other + " " + guest + " tap0", "which is no socket"},
		{"-c " + guest + " lo", "lo"},
		{"--netns-type=tapfd 77", "no such descriptor is open"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			p := lab.For(t).StartPasta(netlab.GuestSpec{Binary: slirpProgram(), User: netlab.Nobody, Timeout: time.Minute}, strings.Fields(tt.args)...)
			if st := p.Wait(); st != 1 || !strings.Contains(p.Output(), tt.want) {
				t.Errorf("status %d, want %q in\n%s", st, tt.want, p.Output())
			}
		})
	}
	if b, err := os.ReadFile(other); string(b) != "mine" {
		t.Errorf("what is no socket has become %q, %v", b, err)
	}
}
