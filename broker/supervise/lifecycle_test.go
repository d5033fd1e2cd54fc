// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/policy"
)

// soonEnough is how long anything may take on a machine that has other things to do.
const soonEnough = 20 * time.Second

// await waits for a worker to become ready.
func (p *prison) await(t *testing.T) {
	t.Helper()
	select {
	case <-p.ready:
	case <-time.After(soonEnough):
		t.Fatalf("no worker ready within %v\nlog:\n%s", soonEnough, p.log)
	}
}

func (p *prison) died(t *testing.T) Exit {
	t.Helper()
	select {
	case e := <-p.exits:
		return e
	case <-time.After(soonEnough):
		t.Fatalf("worker lives\nlog:\n%s", p.log)
		return Exit{}
	}
}

// TestReplacedWithin100ms: nothing is waited for. On a machine that has other things to do
// one of ten shows it.
func TestReplacedWithin100ms(t *testing.T) {
	fastest := soonEnough
	for range 10 {
		p := newPrison(t, nil)
		p.start(t)
		p.await(t)
		first := p.Pid()
		p.Kill()
		if e := p.died(t); e.Status.Signal() != unix.SIGKILL {
			t.Errorf("cause %q", e.Cause)
		}
		dead := time.Now()
		p.await(t)
		fastest = min(fastest, time.Since(dead))
		if second := p.Pid(); second == first || second <= 0 {
			t.Errorf("pid %d after %d", second, first)
		}
		if p.Stop(); fastest < 100*time.Millisecond {
			return
		}
	}
	t.Errorf("replaced after %v", fastest)
}

func TestBackoffWhenItRepeats(t *testing.T) {
	p := newPrison(t, nil)
	p.start(t)
	p.await(t)
	for range 2 {
		p.Kill()
		p.died(t)
		started := time.Now()
		p.await(t)
		t.Logf("replaced after %v", time.Since(started))
	}
	// The third replacement waits.
	killed := time.Now()
	p.Kill()
	p.died(t)
	p.await(t)
	if after := time.Since(killed); after < firstDelay {
		t.Errorf("replaced after %v for the third time", after)
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	var got []time.Duration
	for range 9 {
		got = append(got, b.after(time.Second))
	}
	ms := time.Millisecond
	want := []time.Duration{0, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 5000 * ms, 5000 * ms}
	if !slices.Equal(got, want) {
		t.Errorf("delays %v, want %v", got, want)
	}
	if d := b.after(longLife); d != 0 {
		t.Errorf("after a long life %v, want none", d)
	}
	if d := b.after(0); d != firstDelay {
		t.Errorf("then %v, want %v", d, firstDelay)
	}
}

func TestCauseOfDeath(t *testing.T) {
	tests := []struct {
		attempt string
		cause   string
		panics  string
	}{
		{"panic", "exit status 2: panic: captive panics", "main.main()"},
		{"nil-deref", "exit status 2: panic: runtime error: invalid memory address or nil pointer dereference", "SIGSEGV"},
		{"exit-3", "exit status 3", ""},
		{"socket-tcp", "signal 31 (bad system call): forbidden system call", ""},
	}
	for _, tt := range tests {
		t.Run(tt.attempt, func(t *testing.T) {
			p := newPrison(t, func(o *Options) { o.Extra = "attempt=" + tt.attempt })
			p.start(t)
			e := p.died(t)
			if !strings.HasPrefix(e.Cause, tt.cause) {
				t.Errorf("cause %q, want %q", e.Cause, tt.cause)
			}
			if text := strings.Join(e.Panic, "\n"); !strings.Contains(text, tt.panics) {
				t.Errorf("text %q lacks %q", text, tt.panics)
			}
		})
	}
}

func TestMalformedRecordIsTheLast(t *testing.T) {
	p := newPrison(t, func(o *Options) {
		o.Extra = "attempt=nothing" // what it says of it is no record
		o.Serve = func(control int) error {
			buf := make([]byte, ipc.MaxRecord)
			n, _, err := ipc.Receive(control, buf, 0)
			if err != nil {
				return err
			}
			_, err = ipc.FromWorker.Check(buf[:n], false, ipc.Running)
			return err
		}
	})
	p.start(t)
	e := p.died(t)
	if e.Status.Signal() != unix.SIGKILL || !strings.HasPrefix(e.Cause, "killed by the broker: malformed record") {
		t.Errorf("cause %q", e.Cause)
	}
}

func TestStartFails(t *testing.T) {
	t.Run("no program", func(t *testing.T) {
		_, err := New(Options{Program: Worker, Logger: newPrison(t, nil).opts.Logger, Mode: "tap", Executable: "/nonexistent",
			Setup: func(int) error { return nil }, Serve: func(int) error { return nil }})
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("not the worker", func(t *testing.T) {
		p := newPrison(t, func(o *Options) { o.Executable = "/bin/false" })
		if err := p.Start(); err == nil {
			t.Error("started")
		}
		<-p.Done()
	})
	t.Run("setup fails", func(t *testing.T) {
		p := newPrison(t, func(o *Options) { o.Setup = func(int) error { return errors.New("no tap") } })
		if err := p.Start(); err == nil || !strings.Contains(err.Error(), "no tap") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("never ready", func(t *testing.T) {
		p := newPrison(t, func(o *Options) {
			o.Setup = func(int) error { return nil }
			o.ReadyTimeout = 50 * time.Millisecond
		})
		if err := p.Start(); err == nil || !strings.Contains(err.Error(), errNotReady.Error()) {
			t.Errorf("error %v", err)
		}
	})
}

func TestStop(t *testing.T) {
	defer func(d time.Duration) { stopGrace = d }(stopGrace)
	stopGrace = soonEnough // on a machine that has other things to do
	p := newPrison(t, nil)
	p.start(t)
	pid := p.Pid()
	started := time.Now()
	p.Stop()
	p.Stop()
	if d := time.Since(started); d >= stopGrace {
		t.Errorf("took %v: the worker did not end by itself", d)
	}
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Errorf("worker still there: %v", err)
	}
	if len(p.exits) != 0 {
		t.Error("OnExit called for Stop")
	}
	if err := p.Send(ipc.Empty(ipc.KindStart), -1); err != unix.EPIPE {
		t.Errorf("Send: %v", err)
	}
	if p.Control() != -1 {
		t.Error("Control after Stop")
	}
}

// TestStrict leaves out a layer: without --strict that is reported, with it
// the worker does not start.
func TestStrict(t *testing.T) {
	t.Run("all layers", func(t *testing.T) {
		p := newPrison(t, func(o *Options) { o.Strict, o.Debug = true, true })
		if err := p.Start(); err != nil {
			// A host without one of them is no fault of the code.
			if strings.Contains(err.Error(), policy.ErrNotConfined.Error()) {
				t.Skipf("this system lacks a layer: %v", err)
			}
			t.Fatal(err)
		}
		p.Stop() // and the log is complete
		if got := strings.Count(p.log.String(), "in force"); got < 10 {
			t.Errorf("%d layers reported:\n%s", got, p.log)
		}
	})
	for _, layer := range []string{"landlock", "seccomp"} {
		t.Run("without "+layer, func(t *testing.T) {
			p := newPrison(t, func(o *Options) { o.Strict, o.Extra = true, "skip="+layer })
			if err := p.Start(); err == nil || !strings.Contains(err.Error(), layer+": missing") {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Run("without namespaces", func(t *testing.T) {
		p := newPrison(t, func(o *Options) { o.Strict = true })
		p.spaces = 0
		if err := p.Start(); err == nil || !strings.Contains(err.Error(), "namespaces: missing") {
			t.Errorf("error %v", err)
		}
	})
}

// TestWithoutNamespaces is a system that grants none: the worker runs within
// the layers that are left, and its filter knows its process identifier.
func TestWithoutNamespaces(t *testing.T) {
	for attempt, want := range map[string]string{"nothing": "succeeded", "tgkill-self": "succeeded", "tgkill-other": "", "socket-tcp": ""} {
		p := newPrison(t, func(o *Options) { o.Extra = "attempt=" + attempt })
		p.spaces = 0
		p.start(t)
		said, exit := p.outcome(t)
		if said != want || want == "" && exit.Status.Signal() != unix.SIGSYS {
			t.Errorf("%s: said %q, ended by %q; want %q", attempt, said, exit.Cause, want)
		}
		p.Stop() // and the log is complete
		if !strings.Contains(p.log.String(), "namespaces: missing") {
			t.Errorf("not reported:\n%s", p.log)
		}
	}
}

// TestNonDumpableBroker starts a worker from a process whose /proc entries
// belong to root.
func TestNonDumpableBroker(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) }()
	p := newPrison(t, nil)
	p.start(t)
	if is, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); is != 0 || err != nil {
		t.Errorf("dumpable %d, %v", is, err)
	}
	if strings.Contains(p.log.String(), "missing") {
		t.Errorf("layers are missing:\n%s", p.log)
	}
}

// TestConfinedBroker replaces workers from a process that is confined as the
// broker is, which they inherit.
func TestConfinedBroker(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector's runtime makes calls that no list permits")
	}
	if os.Getenv("ALDENTE_TEST_CONFINED") == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe, "-test.run=^TestConfinedBroker$", "-test.v", "-captive="+captivePath(t))
		cmd.Env = append(os.Environ(), "ALDENTE_TEST_CONFINED=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	p := newPrison(t, func(o *Options) {
		o.Extra = "attempt=collect attempt=threads attempt=deep-stack attempt=random"
	})
	p.start(t)
	p.await(t)
	files, ok := p.Needs()
	if !ok {
		t.Skipf("this system grants no namespaces:\n%s", p.log)
	}
	confinement := policy.Confinement{Filter: policy.FilterBroker, Files: files}
	for _, l := range confinement.Apply() {
		// Test binaries are linked with cgo, where capabilities cannot be taken
		// from all threads.
		if l.State == policy.Missing && l.Name != "capabilities" {
			t.Skipf("this system lacks a layer: %v", l)
		}
	}
	for round := range 3 {
		for range 4 {
			if said, exit := p.outcome(t); said != "succeeded" {
				t.Fatalf("round %d: said %q, ended by %q %q", round, said, exit.Cause, exit.Panic)
			}
		}
		p.Kill()
		p.died(t)
		p.await(t)
	}
	if strings.Contains(p.log.String(), "missing") {
		t.Errorf("layers are missing:\n%s", p.log)
	}
	if testing.CoverMode() != "" && !t.Failed() {
		unix.Exit(0) // who is confined writes no profile
	}
}

// TestLogIsCleaned has the worker write a terminal's escape sequence.
func TestLogIsCleaned(t *testing.T) {
	p := newPrison(t, func(o *Options) { o.Extra = "attempt=say-escape" })
	p.start(t)
	p.outcome(t)
	p.Stop()
	if log := p.log.String(); !strings.Contains(log, "?[2Jcleared") || strings.Contains(log, "\x1b") {
		t.Errorf("log %q", log)
	}
}

func BenchmarkStart(b *testing.B) {
	p := newPrison(b, nil)
	opts := p.opts
	for b.Loop() {
		s, err := New(opts)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Start(); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		s.Stop()
		b.StartTimer()
		<-p.ready
	}
}

// TestRenewBehindSend: who may not wait does not, though one who may waits for a worker
// that reads nothing, and another has it replaced.
func TestRenewBehindSend(t *testing.T) {
	ours, its, err := ipc.Pair()
	if err != nil {
		t.Fatal(err)
	}
	rec := ipc.Empty(ipc.KindStart)
	for ipc.SendNow(ours, rec, -1) == nil {
	}
	l := &life{control: ours, pidfd: -1, reaped: true}
	l.ready.Store(true)
	s := &Supervisor{current: l}
	sent, renewed, passed := make(chan error, 1), make(chan bool, 1), make(chan error, 1)
	go func() { sent <- s.Send(rec, -1) }()
	time.Sleep(20 * time.Millisecond) // it waits, most likely
	go func() { s.Renew(); renewed <- true }()
	time.Sleep(20 * time.Millisecond)
	go func() { passed <- s.PassNow(rec, -1) }()
	select {
	case <-passed:
	case <-time.After(5 * time.Second):
		t.Error("it waits")
	}
	unix.Close(its)
	<-sent
	<-renewed
	if !s.takeRenewed() || s.takeRenewed() {
		t.Error("a renewal is told once")
	}
	unix.Close(ours)
}
