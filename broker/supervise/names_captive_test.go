// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/policy"
	"aldente/policy/calls"
)

// sendNames passes names what it holds: a client by each protocol, and a channel.
func (h *held) sendNames(control int) error {
	return errors.Join(
		ipc.Send(control, (&ipc.NamesConfig{Resolvers: 1}).Encode(), -1),
		ipc.Send(control, (&ipc.Client{ID: 1, Proto: ipc.ProtoUDP, Port: 1}).Encode(), int(h.flow.Fd())),
		ipc.Send(control, (&ipc.Client{ID: 2, Proto: ipc.ProtoTCP, Port: 2}).Encode(), int(h.stream.Fd())),
		ipc.Send(control, ipc.Empty(ipc.NamesKindStart), int(h.link.Fd())))
}

// newNamesPrison prepares captives that are aldente-names.
func newNamesPrison(t testing.TB, script string) *prison {
	t.Helper()
	path, err := buildNames()
	if err != nil {
		t.Fatal(err)
	}
	held := newHeld(t)
	return newPrison(t, func(o *Options) {
		o.Program, o.Mode, o.Executable, o.Setup, o.Extra = Names, policy.ModeNames, path, held.sendNames, script
	})
}

// namesForbidden are calls beside forbidden that names may not make: those that a worker
// may, and others.
var namesForbidden = []struct{ attempt, call string }{
	{"worker-shutdown", "shutdown"}, {"worker-ttl", "setsockopt"}, {"worker-linger", "setsockopt"}, {"worker-nodelay", "setsockopt"},
	{"worker-error", "getsockopt"}, {"worker-info", "getsockopt"}, {"worker-accept", "accept4"}, {"worker-sockname", "getsockname"},
	{"worker-writev", "writev"}, {"worker-recvfrom", "recvfrom"}, {"worker-recvmmsg", "recvmmsg"}, {"worker-pipe", "pipe2"},
	{"worker-splice", "splice"}, {"worker-wait", "epoll_pwait2"},
	{"share-flow", "mmap"}, {"share-stream", "mmap"}, {"share-channel", "mmap"},
	{"openat-etc", "openat"}, {"openat-self", "openat"}, {"openat-environ", "openat"}, {"openat-tun", "openat"},
	{"socket-audit", "socket"}, {"socket-generic", "socket"}, {"socket-high-bits", "socket"}, {"socket-unnamed", "socket"},
	{"socketpair-inet", "socketpair"}, {"clone-thread-user", "clone"}, {"prlimit-other", "prlimit64"},
	{"acct", "acct"}, {"swapon", "swapon"}, {"quotactl", "quotactl"}, {"vhangup", "vhangup"}, {"clock_settime", "clock_settime"},
	{"delete_module", "delete_module"}, {"setdomainname", "setdomainname"},
}

// early are attempts that names does not get as far with as a worker would: their first
// call is another.
var early = map[string]string{"splice-gift": "splice", "fcntl-pipe": "fcntl", "tee-live": "tee", "vmsplice-live": "vmsplice"}

// TestNamesForbiddenCallsKill tries, from inside, all that captured code might: at least
// 160 things.
func TestNamesForbiddenCallsKill(t *testing.T) {
	all := slices.Concat(forbidden, namesForbidden)
	if len(all) < 160 {
		t.Errorf("only %d attempts", len(all))
	}
	for _, tt := range all {
		t.Run(tt.attempt, func(t *testing.T) {
			t.Parallel()
			p := newNamesPrison(t, "attempt="+tt.attempt)
			p.start(t)
			said, exit := p.outcome(t)
			if said != "" {
				t.Fatalf("the captive lives and says %q", said)
			}
			if w := exit.Status; !w.Signaled() || w.Signal() != unix.SIGSYS {
				t.Fatalf("ended by %q, want SIGSYS", exit.Cause)
			}
			want := tt.call
			if c, ok := early[tt.attempt]; ok {
				want = c
			}
			// The name is known only where the kernel's log can be read.
			if exit.Call != "" && exit.Call != want {
				t.Errorf("killed for %q, want %q", exit.Call, want)
			}
		})
	}
}

// TestNamesEveryLimitIsTried: for each call whose arguments are limited, something beyond
// the limits is tried.
func TestNamesEveryLimitIsTried(t *testing.T) {
	list := calls.Names()
	for _, r := range list.Rules {
		tried := slices.ContainsFunc(slices.Concat(forbidden, namesForbidden), func(f struct{ attempt, call string }) bool { return f.call == r.Call })
		if len(r.Args) > 0 && !tried {
			t.Errorf("nothing is tried of %s", r.Call)
		}
	}
}

// TestNamesRuntimeSurvivesFilter does what the runtime does of its own accord and what
// must not end the process.
func TestNamesRuntimeSurvivesFilter(t *testing.T) {
	for _, attempt := range []string{"nothing", "collect", "threads", "deep-stack", "random"} {
		t.Run(attempt, func(t *testing.T) {
			p := newNamesPrison(t, "attempt="+attempt)
			p.start(t)
			if said, exit := p.outcome(t); said != "succeeded" {
				t.Errorf("said %q, ended by %q %q", said, exit.Cause, exit.Panic)
			}
		})
	}
}

// TestNamesLayersBehindFilter takes the filter away and looks at what is left.
func TestNamesLayersBehindFilter(t *testing.T) {
	for _, tt := range []struct{ attempt, without, want string }{
		{"openat", "seccomp", "EACCES"},                             // Landlock: no directory may be read
		{"openat-proc", "seccomp skip=landlock", "ENOENT"},          // no /proc
		{"mkdirat", "seccomp skip=landlock", "EROFS"},               // read-only
		{"execve", "seccomp skip=landlock", "ENOENT"},               // nothing to start
		{"mount", "seccomp", "EPERM"},                               // no capability
		{"unshare-net", "seccomp", "EPERM"},                         //
		{"socket-raw", "seccomp", "EPERM"},                          //
		{"prctl-ambient", "seccomp", "EPERM"},                       // locked by securebits
		{"ptrace", "seccomp", "EPERM"},                              // itself only
		{"tcp-connect-out", "seccomp", "EACCES"},                    // Landlock
		{"tcp-connect-out", "seccomp skip=landlock", "ENETUNREACH"}, // empty network namespace
		{"udp-send-out", "seccomp", "ENETUNREACH"},                  //
		{"mmap-rwx", "seccomp skip=landlock", "EACCES"},             // memory-deny-write-execute
		{"kill-all", "seccomp", "ESRCH"},                            // alone in its pid namespace
		{"read-caps", "seccomp", "succeeded"},
	} {
		t.Run(tt.attempt+" without "+tt.without, func(t *testing.T) {
			p := newNamesPrison(t, "attempt="+tt.attempt+" skip="+tt.without)
			p.start(t)
			if said, exit := p.outcome(t); said != tt.want {
				t.Errorf("said %q, ended by %q; want %s", said, exit.Cause, tt.want)
			}
		})
	}
}

// TestNamesSeenFromOutside reads /proc of a running process, and of one that replaced it.
func TestNamesSeenFromOutside(t *testing.T) {
	p := newNamesPrison(t, "attempt=threads")
	p.start(t)
	for _, which := range []string{"first", "replacement"} {
		p.await(t)
		p.outcome(t)
		if strings.Contains(p.log.String(), "missing") {
			t.Skipf("this system lacks a layer:\n%s", p.log)
		}
		t.Run(which, func(t *testing.T) {
			proc := fmt.Sprintf("/proc/%d", p.Pid())
			for _, n := range policy.Namespaces {
				if its := readlink(t, filepath.Join(proc, "ns", n.Name)); its == readlink(t, "/proc/self/ns/"+n.Name) {
					t.Errorf("%s namespace is the broker's: %s", n.Name, its)
				}
			}
			if entries, err := os.ReadDir(proc + "/root/"); err != nil || len(entries) != 0 {
				t.Errorf("root directory: %d entries, %v", len(entries), err)
			}
			tasks, err := os.ReadDir(proc + "/task")
			if err != nil || len(tasks) == 0 {
				t.Fatalf("%d threads, %v", len(tasks), err)
			}
			for _, task := range tasks {
				checkStatus(t, filepath.Join(proc, "task", task.Name(), "status"))
			}
			limits := readFile(t, proc+"/limits")
			for what, want := range map[string]string{"Max core file size": "0 0 bytes", "Max file size": "0 0 bytes",
				"Max data size": fmt.Sprintf("%d %d bytes", policy.MaxNamesMemory, policy.MaxNamesMemory)} {
				if got := limitLine(limits, what); got != want {
					t.Errorf("%s: %q, want %q", what, got, want)
				}
			}
			if got := strings.TrimSpace(readFile(t, proc+"/comm")); got != Names.File {
				t.Errorf("comm %q", got)
			}
		})
		p.Kill()
		p.died(t)
	}
}

// TestNamesMalformedRecordIsTheLast: a record that no process of ours sends ends it, and it
// is replaced; a worker's kinds are none of its own.
func TestNamesMalformedRecordIsTheLast(t *testing.T) {
	p := newNamesPrison(t, "sleep=1ms")
	p.opts.Serve = func(control int) error { return ipc.ErrMalformed }
	p.start(t)
	if exit := p.died(t); !strings.Contains(exit.Cause, "malformed") || exit.Program != Names.Name {
		t.Errorf("%+v", exit)
	}
	p.await(t)
}

// TestSlowProcess: a process that takes no records keeps those waiting who may wait, and
// nobody else; nor does it outlive Kill.
func TestSlowProcess(t *testing.T) {
	p := newNamesPrison(t, "sleep=1h")
	p.start(t)
	rec := make([]byte, ipc.NamedSize)
	waits := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			err = p.Send(rec, -1)
		}
		waits <- err
	}()
	full := func() bool {
		start := time.Now()
		err := p.PassNow(rec, -1)
		if took := time.Since(start); took > sendTimeout*time.Second*9/10 {
			t.Errorf("waited %v", took)
		}
		return errors.Is(err, unix.EAGAIN)
	}
	for end := time.Now().Add(20 * time.Second); !full(); {
		if time.Now().After(end) {
			t.Fatal("there is always room")
		}
	}
	for range 10 { // while the other waits
		if !full() {
			t.Error("there is room")
		}
		time.Sleep(10 * time.Millisecond)
	}
	start := time.Now()
	p.Kill()
	p.died(t)
	if err := <-waits; !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EAGAIN) {
		t.Error(err)
	}
	if took := time.Since(start); took > sendTimeout*time.Second*9/10 {
		t.Errorf("killed within %v", took)
	}
}
