// SPDX-License-Identifier: Apache-2.0

// Package supervise starts the worker, or aldente-names, watches it, and replaces it
// when it ends. What it says of a worker holds for names, too.
//
// A guest may take the worker over, so nothing here takes its word. Its log
// lines are bounded and cleaned, its records are checked by the Serve function,
// and its first malformed record ends it.
package supervise

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/policy"
)

// Options says how to run the worker. Logger, Setup and Serve are required.
type Options struct {
	// Program is what is run.
	Program Program
	// Logger takes what workers log, and how they end.
	Logger *slog.Logger

	// Executable is the program's path; empty: found by Find.
	Executable string
	// Mode is one of policy.Mode*; it chooses the worker's list of system calls.
	Mode string
	// Identity is who workers are to be, if not who this process is. It owns
	// their user namespace. The process has to be privileged until Spawned, and
	// to have this as its real user and group after that.
	Identity *Identity
	// Strict refuses a worker that lacks any layer of confinement.
	Strict bool
	// Debug has the worker report each layer.
	Debug bool
	// Trace takes all that the worker logs: it logs a line for each packet.
	Trace bool
	// FileSize is how many bytes a file may have to which the worker writes,
	// negative: any number.
	FileSize int64
	// Files bounds the descriptors that a worker may hold; zero: the limit that
	// this process has.
	Files int
	// Extra is handed to test builds of the worker.
	Extra string

	// Setup sends the start-up records, all of them. It
	// is called for each new worker and blocks at most as long as that one
	// lives.
	Setup func(control int) error
	// Serve answers the records that follow the one of being ready, until the
	// channel ends (nil or io.EOF) or the worker has sent what it must not
	// (ipc.ErrMalformed, or any other error): then it is killed. The channel is
	// closed when Serve has returned and must not be used after that.
	Serve func(control int) error
	// OnReady, if set, is called whenever a worker has said that it is ready,
	// before Serve.
	OnReady func()
	// OnExit, if set, is called whenever a worker has ended, before the next
	// one is started. It is not called for the end that Stop brings about.
	OnExit func(Exit)
	// ReadyTimeout bounds the time from start to ready; zero: 10 seconds.
	ReadyTimeout time.Duration
}

// Identity is a user and a group.
type Identity struct{ UID, GID int }

// ErrStopped is returned by Start and Send after Stop.
var ErrStopped = errors.New("it is stopped")

// errNotReady is what a worker's life ends with if it never came up.
var errNotReady = errors.New("it did not become ready")

// Supervisor runs one worker at a time.
type Supervisor struct {
	opts   Options
	exe    int // the worker's program, the same for each new worker
	null   int // /dev/null
	kernel *kernelLog
	spaces uintptr       // CLONE_NEW* flags that the kernel has
	home   *home         // set once a worker has all that spaces says
	made   chan struct{} // closed by the first attempt to start one
	failed error         // of that attempt, to be read once made is closed
	first  chan error    // outcome of the first start
	tell   sync.Once     // for first
	done   chan struct{}
	stop   chan struct{}
	once   sync.Once // for stop

	mu      sync.RWMutex // who sends reads: nobody who may not wait is kept by one who does
	current *life        // nil between workers

	renewed atomic.Bool // current was ended by Renew
}

// New finds the worker's program and prepares to run it.
func New(opts Options) (*Supervisor, error) {
	if opts.Logger == nil || opts.Setup == nil || opts.Serve == nil {
		return nil, errors.New("supervise: Logger, Setup and Serve are required")
	}
	if !policy.ValidMode(opts.Mode) || opts.Program.File == "" {
		return nil, fmt.Errorf("supervise: mode %q", opts.Mode)
	}
	if opts.ReadyTimeout == 0 {
		opts.ReadyTimeout = 10 * time.Second
	}
	if opts.Executable == "" {
		path, err := opts.Program.Find()
		if err != nil {
			return nil, err
		}
		opts.Executable = path
	}
	exe, err := openProgram(opts.Executable)
	if err != nil {
		return nil, err
	}
	null, err := openSpare(os.DevNull, unix.O_RDWR)
	if err != nil {
		unix.Close(exe)
		return nil, err
	}
	return &Supervisor{
		opts:   opts,
		exe:    exe,
		null:   null,
		kernel: openKernelLog(),
		spaces: availableNamespaces(),
		made:   make(chan struct{}),
		first:  make(chan error, 1),
		done:   make(chan struct{}),
		stop:   make(chan struct{}),
	}, nil
}

// Spawned is closed once the first worker's process exists, or could not be
// made, which Start tells. What the supervisor does after that it can do from
// within a policy.Confinement with Needs.
func (s *Supervisor) Spawned() <-chan struct{} { return s.made }

// SpawnError is why the first worker's process could not be made, nil if it
// was. It is to be called once Spawned is closed.
func (s *Supervisor) SpawnError() error { return s.failed }

// Needs says which files replacing a worker takes, after Spawned. It reports
// false if a replacement would have to do what no confined process can:
// make its namespaces anew, because the system did not grant the first one all.
func (s *Supervisor) Needs() (p policy.Paths, ok bool) {
	if s.home == nil {
		return p, false
	}
	return policy.Paths{Execute: []string{"/proc/self/fd/" + strconv.Itoa(s.exe)}}, true
}

// Start starts the first worker and returns when it is ready, or with the
// reason why it is not. After that, workers that end are replaced until Stop.
func (s *Supervisor) Start() error {
	go s.run()
	return <-s.first
}

// Stop ends the worker and waits until it is gone. It may be called more than
// once, and only after Start.
func (s *Supervisor) Stop() {
	s.once.Do(func() {
		s.mu.Lock()
		close(s.stop)
		if s.current != nil {
			s.current.end()
		}
		s.mu.Unlock()
	})
	<-s.done
}

// Done is closed when no worker runs and none will.
func (s *Supervisor) Done() <-chan struct{} { return s.done }

// Control returns the broker's end of the channel to the running worker, or -1
// between workers. It may be closed at any time: use Send to send.
func (s *Supervisor) Control() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.current == nil {
		return -1
	}
	return s.current.control
}

// Send sends one record to the running worker, with a descriptor unless fd is
// negative. Without a worker, or before it is ready, it returns unix.EPIPE:
// nothing may come between start-up records.
func (s *Supervisor) Send(rec []byte, fd int) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.current == nil || !s.current.ready.Load() {
		return unix.EPIPE
	}
	return ipc.Send(s.current.control, rec, fd)
}

// SendNow is Send without a descriptor and without waiting for room, which a worker that
// takes nothing may not make: then it returns unix.EAGAIN.
func (s *Supervisor) SendNow(rec []byte) error { return s.PassNow(rec, -1) }

// PassNow is SendNow with a descriptor.
func (s *Supervisor) PassNow(rec []byte, fd int) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.current == nil || !s.current.ready.Load() {
		return unix.EPIPE
	}
	return ipc.SendNow(s.current.control, rec, fd)
}

// Pid returns the process identifier of the running worker, or -1.
func (s *Supervisor) Pid() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.current == nil {
		return -1
	}
	return s.current.pid
}

// Ready tells whether a worker runs and has said that it is ready.
func (s *Supervisor) Ready() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.current != nil && s.current.ready.Load()
}

// Kill ends the running worker with SIGKILL; it is replaced like any that died.
func (s *Supervisor) Kill() {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.current != nil {
		s.current.kill()
	}
}

// Renew replaces the running worker by a new one, at once, with all that it knows
// and holds. Send reports unix.EPIPE until that is ready.
func (s *Supervisor) Renew() {
	s.mu.RLock() // who would write waits for who sends, and whoever comes then waits for that
	defer s.mu.RUnlock()
	if s.current != nil && s.current.ready.Swap(false) {
		s.renewed.Store(true)
		s.current.kill()
	}
}

// takeRenewed tells whether the worker that has ended was to.
func (s *Supervisor) takeRenewed() bool { return s.renewed.Swap(false) }

func (s *Supervisor) stopping() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// announce has Start return, and says whether it had not before.
func (s *Supervisor) announce(err error) (first bool) {
	s.tell.Do(func() {
		s.first <- err
		first = true
	})
	return first
}

// adopt makes l the running worker, unless Stop came first.
func (s *Supervisor) adopt(l *life) {
	s.mu.Lock()
	s.current = l
	stopping := s.stopping()
	s.mu.Unlock()
	if stopping {
		l.kill()
	}
}

// disown comes before the channel of a worker is closed.
func (s *Supervisor) disown() {
	s.mu.Lock()
	s.current = nil
	s.mu.Unlock()
}

// serve is what the broker says and hears on one worker's channel.
func (s *Supervisor) serve(l *life) error {
	if err := s.opts.Setup(l.control); err != nil {
		return fmt.Errorf("start-up records: %w", err)
	}
	if err := awaitReady(l.control, s.opts.Program.From, s.opts.ReadyTimeout); err != nil {
		return err
	}
	l.ready.Store(true)
	s.announce(nil)
	if s.opts.OnReady != nil {
		s.opts.OnReady()
	}
	if err := s.opts.Serve(l.control); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// awaitReady receives the record with which a worker's start-up ends.
func awaitReady(control int, from ipc.Direction, timeout time.Duration) error {
	p := []unix.PollFd{{Fd: int32(control), Events: unix.POLLIN}}
	deadline := time.Now().Add(timeout)
	for {
		n, err := unix.Poll(p, int(max(time.Until(deadline), 0).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("%w within %v", errNotReady, timeout)
		}
		break
	}
	buf := make([]byte, ipc.MaxRecord)
	n, fd, err := ipc.Receive(control, buf, 0)
	if err != nil {
		return err
	}
	if fd >= 0 {
		unix.Close(fd)
	}
	// There is no other kind in this phase.
	_, err = from.Check(buf[:n], fd >= 0, ipc.Starting)
	return err
}
