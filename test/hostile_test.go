// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"aldente/test/netlab"
)

// hostileGuest starts the real broker with a worker that follows a script
// instead of translating, see worker/captive.go. The script travels as the
// guest's host name.
func hostileGuest(t *testing.T, lab *netlab.Lab, script string, args ...string) *netlab.Guest {
	t.Helper()
	args = append([]string{"--config-net", "--hostname", script}, args...)
	return lab.For(t).GuestWith(netlab.GuestSpec{Binary: filepath.Join(captives(t, captiveWorker), "pasta"), Args: args})
}

// told waits for what the script said of a word.
func told(t *testing.T, g *netlab.Guest, word string) string {
	t.Helper()
	line := regexp.MustCompile(`(?m)^captive: ` + regexp.QuoteMeta(word) + `: (.*?) component=worker`)
	var m []string
	if !eventually(time.Minute, func() bool { m = line.FindStringSubmatch(g.Proc.Output()); return m != nil }) {
		t.Fatalf("nothing said of %s:\n%s", word, g.Proc.Output())
	}
	return m[1]
}

// ended waits for the worker's end and returns the cause that the log gives.
func ended(t *testing.T, g *netlab.Guest) string {
	t.Helper()
	line := regexp.MustCompile(`(?m)^worker ended cause="?(.*?)"? lived=`)
	var m []string
	if !eventually(20*time.Second, func() bool { m = line.FindStringSubmatch(g.Proc.Output()); return m != nil }) {
		t.Fatalf("the worker lives:\n%s", g.Proc.Output())
	}
	return m[1]
}

// counted counts datagrams that arrive at an address.
func counted(ns *netlab.NS, addr string) *atomic.Int64 {
	u := ns.ListenUDP("udp", addr)
	var n atomic.Int64
	go func() {
		b := make([]byte, 2048)
		for {
			if _, _, err := u.ReadFrom(b); err != nil {
				return
			}
			n.Add(1)
		}
	}()
	return &n
}

// vital are figures of a process that must not grow.
type vital struct{ rss, fds int }

func vitals(t *testing.T, pid int) (v vital) {
	t.Helper()
	for line := range strings.Lines(statusOf(pid)) {
		fmt.Sscanf(line, "VmRSS: %d kB", &v.rss)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	v.fds = len(fds)
	return v
}

func statusOf(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return string(b)
}

// TestHostileRecords: whatever a worker sends, the broker lives; a malformed
// record is its sender's last, and one that goes on like that is held back.
func TestHostileRecords(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for name, hex := range map[string]string{
		"no header":        "ff",
		"unknown kind":     "c800080000000000",
		"broker's record":  "0600080000000000",
		"ready again":      "0800080000000000",
		"half of a record": "090044000000000001000000",
	} {
		t.Run(name, func(t *testing.T) {
			g := hostileGuest(t, lab, "record="+hex)
			if cause := ended(t, g); !strings.Contains(cause, "killed by the broker: malformed record") {
				t.Errorf("cause %q", cause)
			}
			time.Sleep(time.Second)
			ends := func() int { return strings.Count(g.Proc.Output(), "worker ended") }
			eventually(soonEnough, func() bool { return ends() >= 2 })
			if n := ends(); n < 2 || n > 6 {
				t.Errorf("%d ends within a second: not replaced, or not held back", n)
			}
			if g.Proc.Exited() {
				t.Error("the broker is gone")
			}
		})
	}
}

// TestHostileFlood: valid records as fast as they go, answers read or not.
func TestHostileFlood(t *testing.T) {
	heavy(t)
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	arrived := counted(lab.Remote, "192.0.2.9:7")
	for _, tt := range []struct{ script, want string }{
		{"burst=96000,udp,192.0.2.9,7", "96000 answers"},
		{"events=96000", "sent"},
		{"unread=100000,udp,192.0.2.9,7", ""},
	} {
		t.Run(tt.script, func(t *testing.T) {
			g := hostileGuest(t, lab, "sleep=200ms "+tt.script)
			before := vitals(t, g.Proc.PID)
			start := time.Now()
			if tt.want == "" {
				if cause := ended(t, g); !strings.Contains(cause, "killed by the broker") {
					t.Errorf("cause %q", cause)
				}
			} else if got := told(t, g, tt.script); got != tt.want {
				t.Errorf("said %q", got)
			}
			took, after := time.Since(start), vitals(t, g.Proc.PID)
			t.Logf("%v; before %+v, after %+v", took, before, after)
			if after.rss > before.rss+8<<10 || after.fds > before.fds+16 {
				t.Errorf("grown from %+v to %+v", before, after)
			}
			// The bucket's burst apart, 100,000 a second.
			if tt.want != "" && took < 700*time.Millisecond {
				t.Errorf("96,000 records handled within %v", took)
			}
			if g.Proc.Exited() {
				t.Error("the broker is gone")
			}
		})
	}
	if n := arrived.Load(); n != 0 {
		t.Errorf("%d datagrams of sockets that were only opened", n)
	}
}

// TestHostileHold opens flows and closes none: it gets as many as its limit on
// open files says, the broker keeps none of them, and is there for the next.
func TestHostileHold(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	const limit = 600
	g := lab.GuestWith(netlab.GuestSpec{Binary: filepath.Join(captives(t, captiveWorker), "pasta"),
		Wrap: []string{"bash", "-c", fmt.Sprintf(`ulimit -n %d; exec "$@"`, limit), "bash"},
		Args: []string{"--config-net", "--hostname", "sleep=200ms hold=3000,udp,192.0.2.9,7"}})
	before := vitals(t, g.Proc.PID)
	said := told(t, g, "hold=3000,udp,192.0.2.9,7")
	var held int
	if _, err := fmt.Sscanf(said, "%d held, then none", &held); err != nil || held < limit/2 || held >= limit {
		t.Errorf("said %q", said)
	}
	if after := vitals(t, g.Proc.PID); after.fds > before.fds+2 {
		t.Errorf("the broker holds %d descriptors, %d before", after.fds, before.fds)
	}
	old := mustWorker(t, g)
	_ = syscall.Kill(old, syscall.SIGKILL)
	if !eventually(5*time.Second, func() bool { w := g.Worker(); return w != 0 && w != old }) || g.Proc.Exited() {
		t.Errorf("not replaced\n%s", g.Proc.Output())
	}
}

// TestHostileDestinations asks for what the egress rules deny, in every form, and
// watches the places.
func TestHostileDestinations(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	allowed := counted(lab.Remote, "192.0.2.9:7")
	denied := []*atomic.Int64{counted(lab.Remote, "192.0.2.9:9"), counted(lab.Remote, "198.51.100.9:7"),
		counted(lab.Host, "127.0.0.1:7"), counted(lab.Host, "192.0.2.2:7"), counted(lab.Remote, "[2001:db8:1::9]:7"),
		counted(lab.Remote, "198.51.100.9:10108")} // behind the bypass
	words := []struct{ word, want string }{
		{"open=udp,192.0.2.9,7", "opened 192.0.2.9, written: <nil>"},
		{"open=udp,192.0.2.9,9", "prohibited"},
		{"open=udp,::ffff:192.0.2.9,9", "prohibited"},
		{"open=udp,198.51.100.9,7", "prohibited"},
		{"open=tcp,198.51.100.9,7", "prohibited"},
		{"open=udp,192.0.2.2,7", "prohibited"},
		{"open=udp,192.0.2.1,7", "prohibited"}, // the gateway, mapped to loopback
		{"open=udp,127.0.0.1,7", "EACCES"},
		{"open=udp,2001:db8:1::9,7", "prohibited"},
		{"open=udp,192.0.2.9,0", "EACCES"},
		{"open=icmp,192.0.2.9,0", "prohibited"},
		{"reply=127.0.0.1,7", "prohibited"},
		{"reply=192.0.2.2,7", "prohibited"},
		{"reply=198.51.100.9,7", "prohibited"},
		// A socket of the guest's own namespace leads to addresses of that only.
		{"bypass=udp,127.0.0.1,7,198.51.100.9", "EADDRNOTAVAIL"},
	}
	var script []string
	for _, w := range words {
		script = append(script, w.word)
	}
	// A host name is 253 bytes at most: two halves.
	for _, part := range [][2]int{{0, 8}, {8, len(words)}} {
		g := hostileGuest(t, lab, strings.Join(script[part[0]:part[1]], " "),
			"--allow", "udp:192.0.2.9:7", "--deny", "any", "-u", fmt.Sprint(10100+part[0]))
		for _, w := range words[part[0]:part[1]] {
			if got := told(t, g, w.word); got != w.want {
				t.Errorf("%s: %s, want %s", w.word, got, w.want)
			}
		}
	}
	if !eventually(soonEnough, func() bool { return allowed.Load() == 1 }) {
		t.Errorf("%d datagrams at the allowed place", allowed.Load())
	}
	for i, d := range denied {
		if n := d.Load(); n != 0 {
			t.Errorf("%d datagrams at denied place %d", n, i)
		}
	}
}

// TestHostileAim has a connected datagram socket of the host's namespace, and
// aims it elsewhere by every call that the kernel offers.
func TestHostileAim(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	peer := counted(lab.Remote, "192.0.2.9:7")
	elsewhere := counted(lab.Host, "127.0.0.1:9") // where the attempts aim
	for i, attempt := range []string{"sendto-aimed", "sendto-listener", "sendmsg-aimed", "sendmmsg", "reconnect", "disconnect",
		"bind", "io_uring_setup", "sockopt-ip-options", "sockopt-pktinfo", "sockopt-bindtodevice", "ioctl-flow", "socket-udp"} {
		t.Run(attempt, func(t *testing.T) {
			g := hostileGuest(t, lab, "open=udp,192.0.2.9,7 attempt="+attempt, "-u", fmt.Sprint(10200+i))
			if got := told(t, g, "open=udp,192.0.2.9,7"); got != "opened 192.0.2.9, written: <nil>" {
				t.Fatalf("no connected socket: %s", got)
			}
			if cause := ended(t, g); !strings.Contains(cause, "forbidden system call") {
				t.Errorf("cause %q", cause)
			}
		})
	}
	for attempt, want := range map[string]string{"write-listener": "EDESTADDRREQ", "splice-listener": "EDESTADDRREQ"} {
		g := hostileGuest(t, lab, "attempt="+attempt, "-u", "10300")
		if got := told(t, g, "attempt="+attempt); got != want {
			t.Errorf("%s: %s, want %s", attempt, got, want)
		}
		g.Close()
	}
	if peer.Load() == 0 {
		t.Error("nothing reached the peer: the sockets were no good")
	}
	if n := elsewhere.Load(); n != 0 {
		t.Errorf("%d datagrams went elsewhere", n)
	}
}

// TestCrashCauses: how a worker died is in the log, and another takes its place,
// at once, with the same link and listeners; one that goes on like that is held
// back longer each time.
func TestCrashCauses(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	for attempt, want := range map[string]string{
		"panic":      "panic: captive panics",
		"nil-deref":  "invalid memory address or nil pointer dereference",
		"exit-3":     "exit status 3",
		"socket-tcp": "forbidden system call",
	} {
		t.Run(attempt, func(t *testing.T) {
			port := fmt.Sprint(10350 + len(attempt))
			g := hostileGuest(t, lab, "held= sleep=100ms attempt="+attempt, "-t", port, "-u", port)
			if cause := ended(t, g); !strings.Contains(cause, want) {
				t.Errorf("cause %q, want %q", cause, want)
			}
			const all = "captive: held=: link, TCP listener, UDP listener component=worker"
			if !eventually(10*time.Second, func() bool { return strings.Count(g.Proc.Output(), all) >= 4 }) {
				t.Errorf("%d of 4 workers held what they should:\n%s", strings.Count(g.Proc.Output(), all), g.Proc.Output())
			}
			var pauses []string
			for _, m := range regexp.MustCompile(`restart_in=(\S+)`).FindAllStringSubmatch(g.Proc.Output(), 3) {
				pauses = append(pauses, m[1])
			}
			if got := strings.Join(pauses, " "); got != "0s 100ms 200ms" {
				t.Errorf("pauses %s", got)
			}
		})
	}
}

// TestCrashCall: where the kernel's log can be read, which started as root it
// can, the log names the forbidden call.
func TestCrashCall(t *testing.T) {
	needOurs(t)
	needRoot(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	g := lab.GuestWith(netlab.GuestSpec{Binary: filepath.Join(captives(t, captiveWorker), "pasta"), User: netlab.Root,
		Args: []string{"--config-net", "--hostname", "sleep=100ms attempt=socket-tcp"}})
	switch cause := ended(t, g); {
	case strings.HasSuffix(cause, "forbidden system call socket"):
	case strings.HasSuffix(cause, "forbidden system call"):
		t.Skip("needs seccomp's audit records in the kernel's log")
	default:
		t.Errorf("cause %q", cause)
	}
}

// TestAgentGone: a guest whose agent has ended, or was ended for what it sent,
// stays connected; nothing more is opened in its namespace.
func TestAgentGone(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	g := lab.Guest("-t", "10420")
	go netlab.Echo(g.Listen("tcp", ":10420"))
	if err := syscall.Kill(byProgram(t, g)["agent"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !eventually(5*time.Second, func() bool { return strings.Contains(g.Proc.Output(), "the agent has ended") }) {
		t.Errorf("nothing in the log:\n%s", g.Proc.Output())
	}
	for what, f := range map[string]func() (string, error){
		"out": func() (string, error) { return netlab.Ask(g.NS, "tcp", "192.0.2.9:7", "again") },
		"in":  func() (string, error) { return netlab.Ask(lab.Remote, "tcp", "192.0.2.2:10420", "again") },
	} {
		if s, err := f(); s != "again" {
			t.Errorf("%s: %q, %v", what, s, err)
		}
	}
	// By the bypass, which ends in the namespace: refused, not waited for.
	c, err := lab.Host.DialError("tcp", "127.0.0.1:10420", 2*time.Second)
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err = c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("by the bypass: %v", err)
		}
		c.Close()
	}
}

// TestDebugFilter: a build whose filters trap names the forbidden call wherever
// it runs.
func TestDebugFilter(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	g := lab.GuestWith(netlab.GuestSpec{Binary: filepath.Join(captives(t, captiveDebug), "pasta"),
		Args: []string{"--config-net", "--hostname", "sleep=100ms attempt=socket-tcp"}})
	if cause := ended(t, g); !strings.HasSuffix(cause, "SIGSYS: bad system call: socket") {
		t.Errorf("cause %q", cause)
	}
	if !strings.Contains(g.Proc.Output(), "DEBUG BUILD") {
		t.Errorf("it does not say what it is:\n%s", g.Proc.Output())
	}
}

// TestCrashRecovery ends the real worker by signals: a replacement serves the
// same tap and listeners within 100 ms, for which a loaded machine gets a second.
func TestCrashRecovery(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{})
	go netlab.Echo(lab.Remote.Listen("tcp", "192.0.2.9:7"))
	fastest := soonEnough
	for i, tt := range []struct {
		signal syscall.Signal
		cause  string
	}{
		{syscall.SIGKILL, "signal 9"},
		{syscall.SIGSEGV, "SIGSEGV"},
		{syscall.SIGBUS, "SIGBUS"},
		{syscall.SIGABRT, "SIGABRT"},
	} {
		t.Run(tt.signal.String(), func(t *testing.T) {
			port := fmt.Sprint(10400 + i)
			g := lab.For(t).Guest("-t", port)
			go netlab.Echo(g.Listen("tcp", ":"+port))
			old := mustWorker(t, g)
			if err := syscall.Kill(old, tt.signal); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			for g.Worker() == 0 || g.Worker() == old {
				if time.Since(start) > soonEnough {
					t.Fatalf("not replaced\n%s", g.Proc.Output())
				}
				time.Sleep(time.Millisecond)
			}
			took := time.Since(start)
			if s, err := netlab.Ask(g.NS, "tcp", "192.0.2.9:7", "again"); s != "again" {
				t.Errorf("the guest cannot connect at once: %q, %v", s, err)
			}
			served := time.Since(start)
			if s, err := netlab.Ask(lab.Remote, "tcp", "192.0.2.2:"+port, "again"); s != "again" {
				t.Errorf("the listener is lost: %q, %v", s, err)
			}
			t.Logf("replaced after %v, serving after %v", took, served)
			fastest = min(fastest, took)
			if cause := ended(t, g); !strings.Contains(cause, tt.cause) {
				t.Errorf("cause %q", cause)
			}
		})
	}
	if fastest > time.Second { // of a busy machine's four one is not kept waiting
		t.Errorf("replaced after %v", fastest)
	}
}
