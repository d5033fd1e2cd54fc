// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tracefs is the kernel's tracing file system, Documentation/trace/ftrace.rst.
var tracefs = "/sys/kernel/tracing"

// trace is a tracing instance of our own that reports system calls at their
// entry, and new processes.
type trace struct {
	dir  string
	u    *usage
	pipe *os.File
	done chan error
	quit chan struct{}
}

// startTrace has u told of all calls of our programs from now on. It fails where
// the kernel cannot trace, or not for us.
func startTrace(u *usage) (*trace, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("tracing system calls needs root")
	}
	const prefix = "aldente-"
	left, _ := filepath.Glob(filepath.Join(tracefs, "instances", prefix+"*"))
	for _, dir := range left {
		if _, pid, _ := strings.Cut(filepath.Base(dir), prefix); !alive(pid) {
			os.Remove(dir)
		}
	}
	dir := filepath.Join(tracefs, "instances", prefix+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("no tracing instance: %w", err)
	}
	t := &trace{dir: dir, u: u, done: make(chan error, 1), quit: make(chan struct{})}
	err := errors.Join(
		t.write("options/record-tgid", "1"),
		t.write("options/event-fork", "1"),
		t.write("set_event_pid", threads()),
		t.write("buffer_size_kb", "65536"),
		t.write("events/raw_syscalls/sys_enter/filter", u.filter()),
		t.write("events/sched/sched_process_fork/enable", "1"),
		t.write("events/raw_syscalls/sys_enter/enable", "1"),
	)
	if err == nil {
		t.pipe, err = os.Open(filepath.Join(dir, "trace_pipe"))
	}
	if err != nil {
		os.Remove(dir)
		return nil, err
	}
	go t.read()
	go t.narrow()
	return t, nil
}

// threads are the numbers of all of ours. What they start is traced as well, and
// nothing else: others may be testing on the same machine.
func threads() string {
	var all strings.Builder
	tasks, _ := filepath.Glob("/proc/self/task/*")
	for _, task := range tasks {
		all.WriteString(filepath.Base(task) + " ")
	}
	return all.String()
}

func alive(pid string) bool {
	_, err := os.Stat("/proc/" + pid)
	return err == nil
}

func (t *trace) write(name, value string) error {
	return os.WriteFile(filepath.Join(t.dir, name), []byte(value), 0)
}

// read passes each line on until the pipe is closed.
func (t *trace) read() {
	s := bufio.NewScanner(t.pipe)
	s.Buffer(make([]byte, 1<<16), 1<<16)
	for s.Scan() {
		t.u.line(s.Text())
	}
	t.done <- nil
}

// narrow leaves out, five times a second, what need not be seen again: the calls of
// bulk would drown the others.
func (t *trace) narrow() {
	last := ""
	for {
		select {
		case <-t.quit:
			return
		case <-time.After(200 * time.Millisecond):
		}
		if f := t.u.filter(); f != last && t.write("events/raw_syscalls/sys_enter/filter", f) == nil {
			last = f
		}
	}
}

// stop ends the trace, lets the reader have what is left, and removes the
// instance. It returns how many events were lost.
func (t *trace) stop() (lost int, err error) {
	close(t.quit)
	err = errors.Join(t.write("events/raw_syscalls/sys_enter/enable", "0"), t.write("events/sched/sched_process_fork/enable", "0"))
	for range 100 {
		time.Sleep(100 * time.Millisecond)
		if t.left() == 0 {
			break
		}
	}
	t.pipe.SetReadDeadline(time.Now())
	t.pipe.Close()
	select {
	case <-t.done:
	case <-time.After(5 * time.Second):
	}
	lost = t.stat("overrun")
	return lost, errors.Join(err, os.Remove(t.dir))
}

// left is how many events wait to be read.
func (t *trace) left() int { return t.stat("entries") }

// stat sums a figure over the buffers of all processors.
func (t *trace) stat(name string) (sum int) {
	all, _ := filepath.Glob(filepath.Join(t.dir, "per_cpu/*/stats"))
	for _, f := range all {
		b, _ := os.ReadFile(f)
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, name+": "); ok {
				n, _ := strconv.Atoi(strings.TrimSpace(v))
				sum += n
			}
		}
	}
	return sum
}
