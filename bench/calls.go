// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// callCounter counts the system calls of processes.
type callCounter struct{ events []*os.File }

// countsCalls says whether system calls are counted. It takes the rights of root,
// and makes each system call of the machine a little slower.
var countsCalls bool

// start starts to count: the processes' threads, and those that they start.
func (c *callCounter) start(pids []int) error {
	b, err := os.ReadFile("/sys/kernel/tracing/events/raw_syscalls/sys_enter/id")
	if err != nil {
		return err
	}
	id, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return err
	}
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Size: unix.PERF_ATTR_SIZE_VER0, Config: id, Bits: unix.PerfBitInherit}
	for _, pid := range pids {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		for _, task := range tasks {
			tid, _ := strconv.Atoi(filepath.Base(task))
			fd, err := unix.PerfEventOpen(&attr, tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
			if err == unix.ESRCH {
				continue
			}
			if err != nil {
				c.stop()
				return fmt.Errorf("perf_event_open: %w", err)
			}
			c.events = append(c.events, os.NewFile(uintptr(fd), "calls"))
		}
	}
	return nil
}

// stop ends the counting and returns the sum.
func (c *callCounter) stop() (sum uint64) {
	for _, f := range c.events {
		var b [8]byte
		if n, err := f.Read(b[:]); n == 8 && err == nil {
			sum += binary.NativeEndian.Uint64(b[:])
		}
		f.Close()
	}
	c.events = nil
	return sum
}
