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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/policy"
	"aldente/policy/calls"
)

// For running the test binary where there is no Go tool chain.
var prebuilt = flag.String("captive", "", "worker built with the captive tag")

var (
	buildCaptive = sync.OnceValues(func() (string, error) { return build(Worker.File, "aldente/worker") })
	buildNames   = sync.OnceValues(func() (string, error) { return build(Names.File, "aldente/names") })
)

func build(file, pkg string) (string, error) {
	dir, err := os.MkdirTemp("", "captive")
	if err != nil {
		return "", err
	}
	// It may run as another user than the test.
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, file)
	cmd := exec.Command("go", "build", "-tags", "captive", "-trimpath", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the captive: %v\n%s", err, out)
	}
	return path, nil
}

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if *prebuilt != "" {
		os.Exit(code)
	}
	for _, b := range []func() (string, error){buildCaptive, buildNames} {
		if path, err := b(); err == nil {
			os.RemoveAll(filepath.Dir(path))
		}
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

// held are the descriptors that captives get.
type held struct{ link, listener, datagram, flow, stream, echo, capture, live *os.File }

func newHeld(t testing.TB) *held {
	t.Helper()
	h := &held{}
	file := func(c interface{ File() (*os.File, error) }, err error) *os.File {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		f, err := c.File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	link, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	h.link = link
	lo := net.IPv4(127, 0, 0, 1)
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: lo})
	h.listener = file(listener, err)
	datagram, err := net.ListenUDP("udp4", &net.UDPAddr{IP: lo})
	h.datagram = file(datagram, err)
	flow, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: lo, Port: 9})
	h.flow = file(flow, err)
	stream, err := net.DialTCP("tcp4", nil, listener.Addr().(*net.TCPAddr))
	h.stream = file(stream, err)
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP); err == nil {
		_ = unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		h.echo = os.NewFile(uintptr(fd), "echo")
	}
	// Without a name, so that nothing is left for a test that may remove nothing.
	if fd, err := unix.Open(os.TempDir(), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600); err == nil {
		h.capture = os.NewFile(uintptr(fd), "pcap")
	}
	reader, live, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	h.live = live
	t.Cleanup(func() {
		for _, c := range []io.Closer{link, other, listener, datagram, flow, stream, h.echo, h.capture, reader, live} {
			c.Close()
		}
	})
	return h
}

// send passes them in start-up records; connected sockets as the answers to
// requests would.
func (h *held) send(control int) error {
	listener := func(proto uint8) []byte { return (&ipc.Listener{ID: 1, Proto: proto}).Encode(ipc.KindListener) }
	opened := func(proto uint8) []byte {
		b := make([]byte, ipc.OpenedSize)
		(&ipc.Opened{Token: uint64(proto)}).Encode(b)
		return b
	}
	var errs []error
	for _, r := range []struct {
		rec  []byte
		file *os.File
	}{
		{ipc.Empty(ipc.KindLink), h.link},
		{listener(ipc.ProtoTCP), h.listener},
		{listener(ipc.ProtoUDP), h.datagram},
		{opened(ipc.ProtoUDP), h.flow},
		{opened(ipc.ProtoTCP), h.stream},
		{opened(ipc.ProtoICMP), h.echo},
		{ipc.Empty(ipc.KindCapture), h.capture},
		{ipc.Empty(ipc.KindLive), h.live},
	} {
		if r.file != nil {
			errs = append(errs, ipc.Send(control, r.rec, int(r.file.Fd())))
		}
	}
	return errors.Join(append(errs, ipc.Send(control, ipc.Empty(ipc.KindStart), -1))...)
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

// newPrison prepares captives that hold one descriptor of each class that a
// worker holds; a pipe stands in for the tap.
func newPrison(t testing.TB, change func(*Options)) *prison {
	t.Helper()
	p := &prison{
		said:  make(chan string, 100),
		ready: make(chan struct{}, 100),
		exits: make(chan Exit, 100),
		log:   &logBuffer{},
	}
	held := newHeld(t)
	opts := Options{
		Logger:  slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Program: Worker,
		Mode:    "tap",
		Setup:   held.send,
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
	if opts.Executable == "" {
		opts.Executable = captivePath(t)
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
	case <-time.After(soonEnough):
		t.Fatalf("no outcome\nlog:\n%s", p.log)
		return
	}
}

// refusedByKernel are calls that the running worker's list has to permit, and
// that lead nowhere on the descriptors that a worker holds.
var refusedByKernel = []struct{ attempt, want string }{
	{"write-listener", "EDESTADDRREQ"},  // an unconnected datagram socket has no peer
	{"splice-listener", "EDESTADDRREQ"}, //
	{"write-tcplistener", "EPIPE"},      //
	{"read-capture", "EBADF"},           // open to be written only
	{"read-live", "EBADF"},              //
	{"splice-live", "EBADF"},            //
}

func TestRefusedByKernel(t *testing.T) {
	for _, tt := range refusedByKernel {
		t.Run(tt.attempt, func(t *testing.T) {
			p := newPrison(t, func(o *Options) { o.Extra = "attempt=" + tt.attempt })
			p.start(t)
			if said, exit := p.outcome(t); said != tt.want {
				t.Errorf("said %q, ended by %q; want %s", said, exit.Cause, tt.want)
			}
		})
	}
}

// TestSharedMemory: a worker maps what shares a guest's memory. Of the descriptors
// that it holds besides, it can map none, and workers for other links may not try.
func TestSharedMemory(t *testing.T) {
	for attempt, want := range map[string]string{
		"share-capture": "EACCES", // open to be written only
		"share-stream":  "EPERM",  // TCP can be mapped to be read
		"share-flow":    "ENODEV",
		"share-link":    "EACCES", // a pipe, here
		"share-channel": "ENODEV",
		"share-live":    "EACCES",
	} {
		t.Run(attempt, func(t *testing.T) {
			t.Parallel()
			p := newPrison(t, func(o *Options) { o.Mode, o.Extra = policy.ModeVhostUser, "attempt="+attempt })
			p.start(t)
			if said, exit := p.outcome(t); said != want {
				t.Errorf("said %q, ended by %q; want %s", said, exit.Cause, want)
			}
			for _, mode := range []string{policy.ModeTap, policy.ModeStream} {
				p := newPrison(t, func(o *Options) { o.Mode, o.Extra = mode, "attempt="+attempt })
				p.start(t)
				if said, exit := p.outcome(t); said != "" || exit.Status.Signal() != unix.SIGSYS {
					t.Errorf("%s: said %q, ended by %q; want SIGSYS", mode, said, exit.Cause)
				}
			}
		})
	}
}

func TestForbiddenCallsKill(t *testing.T) {
	for _, mode := range []string{policy.ModeTap, policy.ModeStream, policy.ModeVhostUser} {
		for _, tt := range forbidden {
			t.Run(mode+"/"+tt.attempt, func(t *testing.T) {
				t.Parallel()
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
	for _, mode := range []string{policy.ModeTap, policy.ModeStream, policy.ModeVhostUser} {
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

// TestEveryLimitIsTried: for each call whose arguments are limited, something
// beyond the limits is tried.
func TestEveryLimitIsTried(t *testing.T) {
	for _, list := range []calls.List{calls.Worker(), calls.WorkerVhost()} {
		for _, r := range list.Rules {
			tried := slices.ContainsFunc(forbidden, func(f struct{ attempt, call string }) bool { return f.call == r.Call })
			if len(r.Args) > 0 && !tried {
				t.Errorf("%s: nothing is tried of %s", list.Name, r.Call)
			}
		}
	}
}
