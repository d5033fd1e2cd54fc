// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"aldente/broker/cli"
	"aldente/broker/hostnet/nettest"
	"aldente/broker/netns"
	"aldente/broker/plan"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// parsed is the configuration of a command line.
func parsed(t *testing.T, line string) *cli.Config {
	t.Helper()
	cfg, err := cli.Parse(strings.Fields(line))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestUsable: an address that is nobody's is a warning, and another user an error for
// those who may not be one.
func TestUsable(t *testing.T) {
	nettest.Host(t)
	nettest.IP(t, "addr add 192.0.2.5/32 dev lo", "addr add 2001:db8::5/128 dev lo nodad")
	for line, warnings := range map[string]int{
		"aldente":                                 0,
		"aldente -o 192.0.2.5":                    0,
		"aldente -o 192.0.2.6":                    1,
		"aldente -o 2001:db8::5":                  0,
		"aldente -o 2001:db8::6 -o 192.0.2.6":     2,
		"aldente -o 192.0.2.5 -o 2001:db8::beef ": 1,
	} {
		cfg := parsed(t, line)
		before := len(cfg.Warnings)
		if err := usable(cfg); err != nil || len(cfg.Warnings)-before != warnings {
			t.Errorf("%s: %v, %q", line, err, cfg.Warnings)
		}
	}
	if err := usable(&cli.Config{FD: 1 << 20}); err == nil {
		t.Error("a descriptor that is not there is accepted")
	}
	if !notOurs(netip.MustParseAddr("192.0.2.77")) || notOurs(netip.MustParseAddr("127.0.0.1")) {
		t.Error("which addresses are ours")
	}
}

// TestExplain: what to do about a command that could not be executed.
func TestExplain(t *testing.T) {
	for _, tt := range []struct {
		path string
		err  error
		want string // empty: nothing is added
	}{
		{"nosuchcommand", unix.ENOENT, "is it installed"},
		{"nosuchcommand", unix.EACCES, "is it installed"},
		{"./nosuchfile", unix.ENOENT, "the interpreter that it names"},
		{"./file", unix.EACCES, "chmod +x"},
		{"./file", unix.ENOEXEC, "architecture"},
		{"./file", unix.ENOMEM, ""},
	} {
		err := explain(&netns.ExecError{Path: tt.path, Err: tt.err, Status: 126})
		if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.want) || (tt.want == "") == strings.Contains(err.Error(), "(") {
			t.Errorf("%s, %v: %v", tt.path, tt.err, err)
		}
	}
	if err := explain(unix.ENOENT); err != unix.ENOENT {
		t.Errorf("another error: %v", err)
	}
}

// TestPassOnFiles: the process in the background has the link where it was, and never
// the pipe in its place.
func TestPassOnFiles(t *testing.T) {
	const none = ^uintptr(0)
	for _, tt := range []struct {
		link, secret int
		files        []uintptr
		at           int
	}{
		{-1, -1, []uintptr{0, 1, 2, 77}, 3},
		{0, -1, []uintptr{0, 1, 2, 77}, 3},
		{3, -1, []uintptr{0, 1, 2, 3, 77}, 4},
		{4, -1, []uintptr{0, 1, 2, 77, 4}, 3},
		{6, -1, []uintptr{0, 1, 2, 77, none, none, 6}, 3},
		{-1, 3, []uintptr{0, 1, 2, 3, 77}, 4},
		{4, 3, []uintptr{0, 1, 2, 3, 4, 77}, 5},
		{3, 0, []uintptr{0, 1, 2, 3, 77}, 4},
	} {
		if files, at := passOnFiles(77, tt.link, tt.secret); !slices.Equal(files, tt.files) || at != tt.at {
			t.Errorf("link %d, secret %d: %v at %d, want %v at %d", tt.link, tt.secret, files, at, tt.files, tt.at)
		}
	}
}

// TestReadyFD: only a descriptor that may be one, and nobody is told who is started
// from here.
func TestReadyFD(t *testing.T) {
	var p [2]int
	if err := unix.Pipe(p[:]); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	for value, want := range map[string]int{strconv.Itoa(p[1]): p[1], "": -1, "2": -1, "-1": -1, "x": -1} {
		t.Setenv(readyEnv, value)
		if got := readyFD(); got != want {
			t.Errorf("%q: %d, want %d", value, got, want)
		}
		if v, ok := os.LookupEnv(readyEnv); ok {
			t.Errorf("%q stays", v)
		}
	}
	if got := readyFD(); got != -1 {
		t.Errorf("unset: %d", got)
	}
	if flags, err := unix.FcntlInt(uintptr(p[1]), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("is inherited: %#x, %v", flags, err)
	}
}

// TestCloseInherited: what nobody wants is closed, and nothing else.
func TestCloseInherited(t *testing.T) {
	var fds []int
	for range 4 {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	closeInherited(fds[:3], fds[1])
	for i, fd := range fds {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if open := i == 1 || i == 3; (err == nil) != open {
			t.Errorf("descriptor %d of %v: %v, want it open: %t", i, fds, err, open)
		}
		if err == nil {
			unix.Close(fd)
		}
	}
}

// TestPIDFile: it is written when all works, and goes if it never does.
func TestPIDFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	open := func() *instance {
		var said noted
		in := &instance{cfg: &cli.Config{PIDFile: path}, log: said.log(), pidFile: -1}
		if err := in.openPID(); err != nil {
			t.Fatal(err)
		}
		return in
	}
	in := open()
	if b, err := os.ReadFile(path); err != nil || len(b) != 0 {
		t.Errorf("before the end: %q, %v", b, err)
	}
	in.undo.all()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("is left: %v", err)
	}
	unix.Close(in.pidFile)
	for _, was := range []string{"", "123456789\n"} {
		if err := os.WriteFile(path, []byte(was), 0o600); err != nil {
			t.Fatal(err)
		}
		in = open()
		if b, _ := os.ReadFile(path); string(b) != was {
			t.Errorf("%q is %q before all works", was, b)
		}
		if err := in.writePID(4321); err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(path); string(b) != "4321\n" {
			t.Errorf("over %q: %q", was, b)
		}
	}
	in = &instance{cfg: &cli.Config{PIDFile: filepath.Join(path, "below")}, pidFile: -1}
	if err := in.openPID(); err == nil || !strings.Contains(err.Error(), "PID file "+path) {
		t.Errorf("below a file: %v", err)
	}
	full, err := unix.Open("/dev/full", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip(err)
	}
	in = &instance{cfg: &cli.Config{PIDFile: "/dev/full"}, pidFile: full}
	if err := in.writePID(1); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full device: %v", err)
	}
	in = &instance{cfg: &cli.Config{}, pidFile: -1}
	if err := errors.Join(in.openPID(), in.writePID(1)); err != nil || in.pidFile != -1 {
		t.Errorf("none asked for: %v", err)
	}
}

// TestEarlyStatus: the status of a start that a signal has ended, for whoever waits
// and for nobody.
func TestEarlyStatus(t *testing.T) {
	for _, tt := range []struct {
		signal  syscall.Signal
		awaited bool
		want    int
	}{
		{unix.SIGTERM, false, 0}, {unix.SIGQUIT, false, 0}, {unix.SIGINT, false, 130},
		{unix.SIGTERM, true, 143}, {unix.SIGQUIT, true, 131}, {unix.SIGINT, true, 130},
	} {
		if got := earlyStatus(tt.signal, tt.awaited); got != tt.want {
			t.Errorf("%v, awaited %t: %d, want %d", tt.signal, tt.awaited, got, tt.want)
		}
	}
	for s, want := range map[syscall.Signal]bool{unix.SIGINT: true, unix.SIGQUIT: true, unix.SIGTERM: false} {
		if got := passOn(nil, s); got != want {
			t.Errorf("%v is the command's: %t", s, got)
		}
	}
}

// TestIdentity: who a broker is going to be.
func TestIdentity(t *testing.T) {
	own := cli.IDs{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	other := cli.IDs{UID: own.UID + 1, GID: own.GID + 2}
	for _, tt := range []struct {
		name  string
		runAs *cli.IDs
		want  cli.IDs
	}{
		{"--runas of another", &other, other},
		{"--runas of ourselves", &own, own},
	} {
		id := unprivileged(&cli.Config{RunAs: tt.runAs})
		changes := tt.want != own
		if id.IDs != tt.want || id.own != tt.want || id.changes() != changes || (id.worker() != nil) != changes || guarded(&cli.Config{RunAs: tt.runAs}) != changes {
			t.Errorf("%s: %+v, changes %t, worker %+v", tt.name, id, id.changes(), id.worker())
		}
	}
	id := unprivileged(&cli.Config{})
	if own.UID == 0 && inInitialUserNamespace() {
		// A user that nobody else is, and a command that is nobody's.
		if id.UID != nobody || id.own.UID < firstPrivate || id.own.UID >= 1<<31 || !id.changes() {
			t.Errorf("root is going to be %+v", id)
		}
	} else if id.IDs != own || id.own != own || id.changes() {
		t.Errorf("we are going to be %+v, and are %+v", id, own)
	}
	if first := firstOpen(); first > 1024 {
		t.Errorf("everybody may bind ports from %d", first)
	}
}

// TestDiscover: what is read of a host is what it is, and is enough to plan with.
func TestDiscover(t *testing.T) {
	nettest.Host(t)
	nettest.Veth(t, "v0")
	nettest.IP(t, "addr add 192.0.2.5/24 dev v0", "route add default via 192.0.2.1", "addr add 2001:db8::5/64 dev v0 nodad", "-6 route add default via fe80::1 dev v0")
	var said noted
	for line, v4 := range map[string]bool{"aldente": true, "aldente -6": false, "passt -i v0": true, "pasta --deny host": true} {
		in := &instance{cfg: parsed(t, line), log: said.log()}
		h, err := in.discover()
		if err != nil {
			t.Fatal(err)
		}
		if h.Descriptors < 64 || h.UDPIdle == 0 || h.UDPStream == 0 || h.ClientPorts.First >= h.ClientPorts.Last {
			t.Errorf("%s: %+v", line, h)
		}
		if h.Network.V6.Link.Name != "v0" || (h.Network.V4.Address == netip.MustParsePrefix("192.0.2.5/24")) != v4 {
			t.Errorf("%s: %+v", line, h.Network)
		}
		if (h.Local != nil) != plan.AsksLocal(in.cfg) {
			t.Errorf("%s: who is the host is asked: %t", line, h.Local != nil)
		}
		if in.plan, err = plan.New(in.cfg, h); err != nil {
			t.Fatal(err)
		}
		in.makeFactory()
		if total, named := in.factory.Refused(); in.factory.Room(0) != nil || total != 0 || named != 0 {
			t.Errorf("%s: a factory with %d refusals", line, total)
		}
		if in.net.watcher != nil {
			in.net.watcher.Close()
		}
	}
	in := &instance{cfg: parsed(t, "pasta -i nosuchlink"), log: said.log()}
	if _, err := in.discover(); err == nil || !strings.Contains(err.Error(), `interface "nosuchlink"`) {
		t.Errorf("an interface that is not there: %v", err)
	}
	if n := sysctl("nosuchsetting", 17); n != 17 {
		t.Errorf("a setting that is not there: %d", n)
	}
}
