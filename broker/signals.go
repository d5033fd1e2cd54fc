// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/netns"
	"aldente/broker/output"
)

// catchSignals takes over the signals that end us. That a file may not become
// larger is told by EFBIG; the signal that comes with it is for nobody.
func catchSignals() chan os.Signal {
	c := make(chan os.Signal, 4)
	signal.Notify(c, unix.SIGTERM, unix.SIGQUIT, unix.SIGINT)
	signal.Notify(make(chan os.Signal, 1), unix.SIGXFSZ)
	return c
}

// ignoreSignals ignores those that must not end us. With --rules, SIGHUP has the rules
// read again.
func (in *instance) ignoreSignals() {
	signal.Ignore(unix.SIGPIPE)
	if len(in.cfg.RuleFiles) == 0 {
		signal.Ignore(unix.SIGHUP)
		return
	}
	in.rules.asked = make(chan os.Signal, 1)
	signal.Notify(in.rules.asked, unix.SIGHUP)
}

// passOn gives a signal to the command instead. Interrupts from the terminal
// have reached it already.
func passOn(c *netns.Child, s os.Signal) bool {
	switch s {
	case unix.SIGINT, unix.SIGQUIT:
		return true
	}
	return false
}

// endEarly ends the process when a signal comes while it starts, whatever it is
// waiting for at the time: a reader of a FIFO, a file system that does not answer,
// an agent. Children end with it. After started, signals are for who reads them.
// Where one has come before, started does not return: what start-up has made is being
// removed, which a process that goes on to be confined could not end.
// Awaited says that a process in the foreground waits for this one.
func (in *instance) endEarly(signals chan os.Signal, awaited bool) (started func()) {
	up := make(chan struct{})
	go func() {
		select {
		case s := <-signals:
			if !in.undo.last(up) {
				signals <- s // which there was room for
				return
			}
			os.Exit(earlyStatus(s.(syscall.Signal), awaited))
		case <-up:
		}
	}()
	return sync.OnceFunc(func() {
		in.undo.making.Lock()
		defer in.undo.making.Unlock()
		close(up)
	})
}

// earlyStatus is the exit status for a signal while starting. Whoever ends an
// instance in the foreground cannot know whether it had started: it is what it
// would be later. Where somebody awaits the start, zero would say that all works.
func earlyStatus(s syscall.Signal, awaited bool) int {
	if !awaited && (s == unix.SIGTERM || s == unix.SIGQUIT) {
		return 0
	}
	return 128 + int(s)
}

// undo lists what start-up has left in the file system, to be removed if it does
// not come to its end. Once confined, the process could not, and need not.
type undo struct {
	making sync.Mutex // held from before a file is made until it is noted
	mu     sync.Mutex
	files  []*output.Place
}

// add notes the file that st is about, which is at path. It has to stay in use.
func (u *undo) add(path string, st *unix.Stat_t) {
	p, err := output.PlaceOf(path, st)
	if err != nil {
		return // somebody has moved it already
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.files = append(u.files, p)
}

// all removes it, as far as this process still may.
func (u *undo) all() { u.each((*output.Place).Remove) }

// last is all before the process ends: nothing is made after it. What is being made
// it waits for, unless that has to wait for somebody itself, as a FIFO does. It
// reports false and does nothing if start-up has ended before.
func (u *undo) last(up <-chan struct{}) bool {
	locked := u.making.TryLock()
	for end := time.Now().Add(lastWait); !locked && time.Now().Before(end); locked = u.making.TryLock() {
		time.Sleep(time.Millisecond)
	}
	select {
	case <-up:
		if locked {
			u.making.Unlock()
		}
		return false
	default:
	}
	u.all()
	return true
}

// lastWait is how long making a file may take once a signal has come.
const lastWait = 250 * time.Millisecond

// forget leaves everything where it is, from now on.
func (u *undo) forget() { u.each((*output.Place).Close) }

func (u *undo) each(do func(*output.Place)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, p := range u.files {
		do(p)
	}
	u.files = nil
}
