// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Children returns the live processes below pid, itself first, leaving out
// those in skip and all below them.
func Children(pid int, skip ...int) []int {
	parents := map[int][]int{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		f := Stat(n)
		if len(f) > 1 {
			ppid, _ := strconv.Atoi(f[1])
			parents[ppid] = append(parents[ppid], n)
		}
	}
	var all []int
	var walk func(int)
	walk = func(p int) {
		for _, s := range skip {
			if s == p {
				return
			}
		}
		all = append(all, p)
		for _, c := range parents[p] {
			walk(c)
		}
	}
	walk(pid)
	return all
}

// Stat returns the fields of /proc/PID/stat from the third, the state, on; nil
// when there is no such process.
func Stat(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b[bytes.LastIndexByte(b, ')')+2:]))
}

// Processes returns the translator's own processes: not the guest's command.
func (g *Guest) Processes() []int { return Children(g.Proc.PID, g.Holder) }

// Switches returns the context switches of a process, all threads together.
func Switches(pid int) int64 {
	var sum int64
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.HasSuffix(k, "voluntary_ctxt_switches") && k[0] == 'v' {
				n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
				sum += n
			}
		}
	}
	return sum
}

// PSS returns the proportional set size of a process in KiB.
func PSS(pid int) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pss:"); ok {
			var n int64
			fmt.Sscan(v, &n)
			return n
		}
	}
	return 0
}

// Worker returns the process id of the translator's worker, or 0: the process
// that runs under seccomp with an empty root directory.
func (g *Guest) Worker() int {
	for _, p := range g.Processes() {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p))
		if strings.Contains(filepath.Base(exe), "aldente-worker") {
			return p
		}
	}
	return 0
}
