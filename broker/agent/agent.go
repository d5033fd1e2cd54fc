// SPDX-License-Identifier: Apache-2.0

// Package agent is both ends of what happens inside the guest's namespace: the
// agent's own loop (Main) and the broker's handle on it (Client).
//
// The agent is our own executable, started by netns.SpawnAgent with
// CAP_NET_ADMIN and CAP_NET_BIND_SERVICE over the namespace and nothing else. It
// makes the tap, configures the network, and then waits at its channel until
// the broker wants something or is gone.
package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"

	"aldente/broker/netns"
	"aldente/broker/ports"
	"aldente/broker/wait"
	"aldente/ipc"
	"aldente/policy"
	"aldente/policy/quiet"
)

// failure is an error that says what was tried, apart from the error number, so
// that both can cross the channel.
type failure struct {
	what string
	err  error
}

func (f *failure) Error() string {
	if f.err == nil {
		return f.what
	}
	return f.what + ": " + f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// server is the agent's state.
type server struct {
	channel  int
	setup    ipc.AgentSetup
	changes  []ipc.AgentChange
	active   bool // a description is being received
	updating bool // and it is of a change

	confined bool // there is nothing left to set up

	// Taps made, by name. They stay open: destroying an interface takes the
	// kernel tens of milliseconds, in whoever closes it last. That is to be this
	// process, for which nobody waits, not the broker or the worker.
	taps map[string]tap
	tun  int // clone device of the first, -1: to be opened

	noTun unix.Errno // why there is no clone device, and no path to it

	// Answers to requests for sockets, held back while there are more requests:
	// the broker is to be woken once for all of them.
	held []answer

	scanner  *ports.Scanner // nil: not asked for
	follower *follower      // nil: not asked for
	scan     scan

	set wait.Set // what is waited for: the channel, and the scans' timer
}

// answer is a record with its descriptor, or -1.
type answer struct {
	rec []byte
	fd  int
}

// maxHeld bounds the answers held back.
const maxHeld = 16

// tap is one interface that this process made.
type tap struct {
	fd      int
	offload uint32
}

// Main is the whole life of the agent. It returns when the broker has closed the
// channel, and ends the process if the broker does not speak our language.
func Main() {
	// The name that ps shows would be a number. Tracing is for nobody.
	policy.SetName(netns.AgentName)
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	// A request leaves nothing behind. With the collector's own ideas, four
	// megabytes of that would gather before it looks.
	debug.SetGCPercent(25)
	quiet.Collector()
	// A goroutine that is bound to a thread has another thread wait for it, and is
	// woken by that one.
	runtime.UnlockOSThread()
	s := &server{channel: netns.AgentChannel, taps: make(map[string]tap), tun: -1}
	unix.CloseOnExec(s.channel)
	if len(os.Args) > 2 && os.Args[1] == netns.AgentHasTun {
		if n, _ := strconv.Atoi(os.Args[2]); n != 0 {
			s.noTun = unix.Errno(n)
		} else {
			s.tun = netns.AgentTun
			unix.CloseOnExec(s.tun)
		}
	}
	if err := s.serve(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", netns.AgentName, err)
		os.Exit(1)
	}
}

// serve answers requests until the channel ends.
func (s *server) serve() error {
	if err := s.set.Open(); err != nil {
		return err
	}
	defer s.set.Close()
	if err := s.set.Add(s.channel); err != nil {
		return err
	}
	buf := make([]byte, ipc.MaxRecord)
	for {
		n, fd, err := ipc.Receive(s.channel, buf, unix.MSG_DONTWAIT)
		if s.scan.on {
			if err := s.goOn(); err != nil {
				return err
			}
		}
		if errors.Is(err, unix.EAGAIN) {
			if err := s.answer(); err != nil {
				return err
			}
			if err := s.await(); err != nil {
				return err
			}
			continue
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil
		}
		if err != nil {
			return err
		}
		if fd >= 0 {
			unix.Close(fd)
		}
		kind, err := ipc.ToAgent.Check(buf[:n], fd >= 0, s.phase())
		if err == nil {
			err = s.handle(kind, buf[:n])
		} else if s.captive(buf[:n]) {
			err = nil
		}
		if err != nil {
			return err
		}
	}
}

// await returns when there is something to do.
func (s *server) await() error {
	if s.scan.on {
		return nil
	}
	if err := s.set.Wait(); err != nil {
		return err
	}
	s.tick()
	return nil
}

func (s *server) phase() ipc.Phase {
	if s.confined {
		return ipc.Running
	}
	return ipc.Starting
}

// handle takes one record. An error is a broken channel, not a failed request.
func (s *server) handle(kind ipc.Kind, b []byte) error {
	if kind != ipc.AgentKindOpen {
		if err := s.answer(); err != nil {
			return err
		}
	}
	switch kind {
	case ipc.AgentKindSetup:
		s.active, s.changes = true, nil
		return s.setup.Decode(b)
	case ipc.AgentKindChange:
		return s.change(b)
	case ipc.AgentKindCommit:
		var c ipc.AgentCommit
		if err := c.Decode(b); err != nil {
			return err
		}
		if !s.active || c.ID != s.setup.ID || int(c.Changes) != len(s.changes) {
			return fmt.Errorf("%w: commit of %d changes for %d", ipc.ErrMalformed, c.Changes, c.ID)
		}
		s.active = false
		if s.updating {
			return s.update()
		}
		if s.setup.Flags&ipc.AgentSetupNoLink != 0 {
			return s.commitLoopback()
		}
		return s.commit()
	case ipc.AgentKindOpen:
		return s.open(b)
	case ipc.AgentKindScan:
		return s.startScan(b)
	case ipc.AgentKindUpdate:
		return s.startUpdate(b)
	default:
		return fmt.Errorf("%w: nobody takes kind %#x", ipc.ErrMalformed, uint16(kind))
	}
}

func (s *server) change(b []byte) error {
	var c ipc.AgentChange
	if err := c.Decode(b); err != nil {
		return err
	}
	removal := c.Type == ipc.AgentNoAddress || c.Type == ipc.AgentNoRoute
	if !s.active || c.ID != s.setup.ID || len(s.changes) == ipc.MaxChanges || removal && !s.updating {
		return fmt.Errorf("%w: change %d out of place", ipc.ErrMalformed, c.ID)
	}
	c.Body = append([]byte(nil), c.Body...)
	s.changes = append(s.changes, c)
	return nil
}

// commit makes the interface and answers the set-up.
func (s *server) commit() error {
	name := unix.ByteSliceToString(s.setup.Name[:])
	t, ours := s.taps[name]
	if !ours {
		var err error
		if t.fd, t.offload, err = s.openTap(name); err != nil {
			return s.report(err, true)
		}
		s.taps[name] = t // whatever else fails, for another try
	}
	link, warnings, err := configure(name, &s.setup, s.changes)
	s.changes = nil
	for _, w := range warnings {
		if err := s.report(w, false); err != nil {
			return err
		}
	}
	if err != nil {
		return s.report(err, true)
	}
	if err := s.openScanner(); err != nil {
		return s.report(err, true)
	}
	if err := s.openFollower(link.index); err != nil {
		return s.report(err, true)
	}
	if err := s.confine(); err != nil {
		return err
	}
	answer := ipc.AgentTap{ID: s.setup.ID, Index: uint32(link.index), MAC: link.mac, Offload: t.offload, Name: s.setup.Name}
	return ipc.Send(s.channel, answer.Encode(), t.fd)
}

// commitLoopback answers a set-up without an interface.
func (s *server) commitLoopback() error {
	if err := bringUpLoopback(); err != nil {
		return s.report(err, true)
	}
	if err := s.openScanner(); err != nil {
		return s.report(err, true)
	}
	if err := s.confine(); err != nil {
		return err
	}
	return ipc.Send(s.channel, (&ipc.AgentDone{ID: s.setup.ID}).Encode(), -1)
}

// report sends a warning or failure.
func (s *server) report(e error, fatal bool) error {
	r := ipc.AgentReport{ID: s.setup.ID}
	what := e.Error()
	var f *failure
	if errors.As(e, &f) {
		what = f.what
	}
	r.Errno = errno(e)
	if fatal {
		r.Fatal = 1
	}
	r.Text, _ = ipc.MakeName(what[:min(len(what), ipc.MaxDomain)])
	return ipc.Send(s.channel, r.Encode(), -1)
}

// errno is the error number in e, zero if there is none.
func errno(e error) uint16 {
	var n unix.Errno
	if errors.As(e, &n) {
		return uint16(n)
	}
	return 0
}

// errnoError is the error that a number stands for, nil for zero.
func errnoError(n uint16) error {
	if n == 0 {
		return nil
	}
	return unix.Errno(n)
}
