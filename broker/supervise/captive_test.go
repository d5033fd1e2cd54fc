// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
)

// For running the test binary where there is no Go tool chain.
var prebuilt = flag.String("captive", "", "worker built with the captive tag")

var buildCaptive = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "captive")
	if err != nil {
		return "", err
	}
	// The worker may run as another user than the test.
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, program)
	cmd := exec.Command("go", "build", "-tags", "captive", "-trimpath", "-o", path, "aldente/worker")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the captive: %v\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if *prebuilt != "" {
		os.Exit(code)
	}
	if path, err := buildCaptive(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func captivePath(t testing.TB) string {
	t.Helper()
	if *prebuilt != "" {
		return *prebuilt
	}
	path, err := buildCaptive()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// record sends a start-up record with a descriptor.
func record(control int, kind ipc.Kind, fd int) error {
	return ipc.Send(control, ipc.Empty(kind), fd)
}

// prison is a supervisor of captives and what they said.
type prison struct {
	*Supervisor
	said  chan string
	ready chan struct{}
	exits chan Exit
	log   *logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newPrison prepares captives that hold one descriptor of each class: a tap's
// stand-in, a listener, a connected UDP socket.
func newPrison(t testing.TB, change func(*Options)) *prison {
	t.Helper()
	p := &prison{
		said:  make(chan string, 100),
		ready: make(chan struct{}, 100),
		exits: make(chan Exit, 100),
		log:   &logBuffer{},
	}
	link, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	flow, err := net.Dial("udp4", "127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	listenerFile, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	flowFile, err := flow.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range []io.Closer{link, other, listener, flow, listenerFile, flowFile} {
			c.Close()
		}
	})
	opts := Options{
		Logger:     slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Executable: captivePath(t),
		Mode:       "tap",
		Setup: func(control int) error {
			return errors.Join(
				record(control, ipc.KindLink, int(link.Fd())),
				record(control, ipc.KindListener, int(listenerFile.Fd())),
				record(control, ipc.KindCapture, int(flowFile.Fd())),
				record(control, ipc.KindStart, -1))
		},
		Serve: func(control int) error {
			buf := make([]byte, ipc.MaxRecord)
			for {
				n, _, err := ipc.Receive(control, buf, 0)
				if err != nil {
					return err
				}
				p.said <- string(buf[:n])
			}
		},
		OnReady: func() { p.ready <- struct{}{} },
		OnExit:  func(e Exit) { p.exits <- e },
	}
	if change != nil {
		change(&opts)
	}
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	p.Supervisor = s
	return p
}

// start starts the captive and arranges its end.
func (p *prison) start(t testing.TB) {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatalf("start: %v\nlog:\n%s", err, p.log)
	}
	t.Cleanup(p.Stop)
}

// outcome waits for how an attempt ended: what the captive said of it, or how
// it died.
func (p *prison) outcome(t testing.TB) (said string, exit Exit) {
	t.Helper()
	select {
	case said = <-p.said:
		return said, Exit{}
	case exit = <-p.exits:
		select {
		case said = <-p.said: // it spoke first
			return said, exit
		default:
		}
		return "", exit
	case <-time.After(10 * time.Second):
		t.Fatalf("no outcome\nlog:\n%s", p.log)
		return
	}
}

// forbidden are calls that the running worker's list does not contain, or not
// with these arguments. Each must end the process with SIGSYS, for this call.
var forbidden = []struct{ attempt, call string }{
	{"openat", "openat"},
	{"openat-proc", "openat"},
	{"openat2", "openat2"},
	{"memfd_create", "memfd_create"},
	{"mkdirat", "mkdirat"},
	{"name-handle", "open_by_handle_at"},
	{"execveat-self", "execveat"},
	{"execve", "execve"},
	{"chroot", "chroot"},
	{"pivot_root", "pivot_root"},
	{"mount", "mount"},
	{"mount-proc", "mount"},
	{"umount2", "umount2"},
	{"fsopen", "fsopen"},
	{"fcntl-dup", "fcntl"},
	{"ioctl-tap", "ioctl"},
	{"socket-tcp", "socket"},
	{"socket-udp", "socket"},
	{"socket-mptcp", "socket"},
	{"socket-unix", "socket"},
	{"socket-netlink", "socket"},
	{"socket-raw", "socket"},
	{"socket-vsock", "socket"},
	{"socketpair", "socketpair"},
	{"connect", "connect"},
	{"bind", "bind"},
	{"listen", "listen"},
	{"sendto-aimed", "sendto"},
	{"sendto-null", "sendto"},
	{"sendmsg-aimed", "sendmsg"},
	{"sendmmsg", "sendmmsg"},
	{"sockopt-bindtodevice", "setsockopt"},
	{"sockopt-mark", "setsockopt"},
	{"sockopt-filter", "setsockopt"},
	{"sockopt-wrong-level", "setsockopt"},
	{"sockopt-pktinfo", "setsockopt"},
	{"getsockopt-other", "getsockopt"},
	{"accept-plain", "accept"},
	{"accept4-blocking", "accept4"},
	{"mmap-exec", "mmap"},
	{"mmap-rwx", "mmap"},
	{"mmap-shared", "mmap"},
	{"mmap-file", "mmap"},
	{"mmap-high-bits", "mmap"},
	{"mprotect-exec", "mprotect"},
	{"mremap", "mremap"},
	{"madvise-remove", "madvise"},
	{"madvise-inject", "madvise"},
	{"userfaultfd", "userfaultfd"},
	{"pkey_mprotect", "pkey_mprotect"},
	{"kill-parent", "kill"},
	{"kill-all", "kill"},
	{"tgkill-other", "tgkill"},
	{"tkill", "tkill"},
	{"pidfd_open", "pidfd_open"},
	{"pidfd_getfd", "pidfd_getfd"},
	{"ptrace", "ptrace"},
	{"ptrace-traceme", "ptrace"},
	{"process_vm_readv", "process_vm_readv"},
	{"kcmp", "kcmp"},
	{"clone-process", "clone"},
	{"clone-newuser", "clone"},
	{"clone3", "clone3"},
	{"unshare-user", "unshare"},
	{"unshare-net", "unshare"},
	{"setns", "setns"},
	{"bpf", "bpf"},
	{"perf_event_open", "perf_event_open"},
	{"io_uring_setup", "io_uring_setup"},
	{"keyctl", "keyctl"},
	{"add_key", "add_key"},
	{"prctl-seccomp", "prctl"},
	{"prctl-dumpable", "prctl"},
	{"prctl-ambient", "prctl"},
	{"seccomp", "seccomp"},
	{"capset", "capset"},
	{"setuid", "setuid"},
	{"sethostname", "sethostname"},
	{"reboot", "reboot"},
	{"init_module", "init_module"},
	{"landlock", "landlock_create_ruleset"},
	{"prlimit", "prlimit64"},
	{"syslog", "syslog"},
	{"shmget", "shmget"},
	{"rt_sigaction", "rt_sigaction"},
	{"epoll_create1", "epoll_create1"},
	{"nosys", "call 1000"},
}

func TestForbiddenCallsKill(t *testing.T) {
	for _, mode := range []string{"tap", "stream"} {
		for _, tt := range forbidden {
			t.Run(mode+"/"+tt.attempt, func(t *testing.T) {
				p := newPrison(t, func(o *Options) { o.Mode, o.Extra = mode, "attempt="+tt.attempt })
				p.start(t)
				said, exit := p.outcome(t)
				if said != "" {
					t.Fatalf("the captive lives and says %q", said)
				}
				if w := exit.Status; !w.Signaled() || w.Signal() != unix.SIGSYS {
					t.Fatalf("ended by %q, want SIGSYS", exit.Cause)
				}
				// The name is known only where the kernel's log can be read.
				if exit.Call != "" && exit.Call != tt.call {
					t.Errorf("killed for %q, want %q", exit.Call, tt.call)
				}
			})
		}
	}
}

// TestRuntimeSurvivesFilter does what the runtime does of its own accord and
// what must not end the worker.
func TestRuntimeSurvivesFilter(t *testing.T) {
	for _, mode := range []string{"tap", "stream"} {
		for _, attempt := range []string{"nothing", "collect", "threads", "deep-stack", "random"} {
			t.Run(mode+"/"+attempt, func(t *testing.T) {
				p := newPrison(t, func(o *Options) { o.Mode, o.Extra = mode, "attempt="+attempt })
				p.start(t)
				if said, exit := p.outcome(t); said != "succeeded" {
					t.Errorf("said %q, ended by %q %q", said, exit.Cause, exit.Panic)
				}
			})
		}
	}
}

// TestLayersBehindFilter takes the filter away and looks at what is left: no
// layer may rely on another.
func TestLayersBehindFilter(t *testing.T) {
	tests := []struct{ attempt, without, want string }{
		{"openat", "seccomp", "EACCES"},                             // Landlock: no directory may be read
		{"openat", "seccomp skip=landlock", "succeeded"},            // the empty root itself
		{"openat-proc", "seccomp skip=landlock", "ENOENT"},          // no /proc
		{"mkdirat", "seccomp skip=landlock", "EROFS"},               // read-only
		{"execve", "seccomp skip=landlock", "ENOENT"},               // nothing to start
		{"mount", "seccomp", "EPERM"},                               // no capability
		{"mount-proc", "seccomp skip=landlock", "EPERM"},            //
		{"umount2", "seccomp skip=landlock", "EPERM"},               //
		{"chroot", "seccomp", "EPERM"},                              //
		{"pivot_root", "seccomp skip=landlock", "EPERM"},            //
		{"unshare-net", "seccomp", "EPERM"},                         //
		{"sethostname", "seccomp", "EPERM"},                         //
		{"socket-raw", "seccomp", "EPERM"},                          //
		{"capset", "seccomp", "EPERM"},                              //
		{"prctl-ambient", "seccomp", "EPERM"},                       // locked by securebits
		{"reboot", "seccomp", "EPERM"},                              //
		{"ptrace", "seccomp", "EPERM"},                              // itself only
		{"tcp-connect-out", "seccomp", "EACCES"},                    // Landlock
		{"tcp-connect-out", "seccomp skip=landlock", "ENETUNREACH"}, // empty network namespace
		{"udp-send-out", "seccomp", "ENETUNREACH"},                  //
		{"mmap-rwx", "seccomp skip=landlock", "EACCES"},             // memory-deny-write-execute
		{"mprotect-exec", "seccomp skip=landlock", "EACCES"},        //
		{"kill-all", "seccomp", "ESRCH"},                            // alone in its pid namespace
		{"tgkill-other", "seccomp", "ESRCH"},                        //
		{"read-caps", "seccomp", "succeeded"},
	}
	for _, tt := range tests {
		t.Run(tt.attempt+" without "+tt.without, func(t *testing.T) {
			p := newPrison(t, func(o *Options) { o.Extra = "attempt=" + tt.attempt + " skip=" + tt.without })
			p.start(t)
			if said, exit := p.outcome(t); said != tt.want {
				t.Errorf("said %q, ended by %q; want %s", said, exit.Cause, tt.want)
			}
		})
	}
}
