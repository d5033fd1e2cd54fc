// SPDX-License-Identifier: Apache-2.0

// Package startup looks, before anything else is done, for what would end the
// program later with a message that helps nobody. Such is the Go runtime's own
// when it gets no thread, or no memory. Each error names the limit and what to
// do.
//
// What it asks the kernel it asks by raw system calls: the runtime must not be
// given a reason to make a thread yet.
package startup

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tasks is what one instance takes at most besides what it has by now: threads and
// processes of broker, worker, agent and command together, as seen.
const tasks = 22

// How often and how long to wait for more of them.
const (
	waits = 25
	pause = 20 * time.Millisecond
)

// addressSpace is what the worker reserves, and its runtime and its tables
// besides; most of it is never touched.
const addressSpace = 3 << 30

// files is what broker and worker hold open at most before the first connection.
const files = 128

// Limits checks what this process may use. uid and gid are those that it is
// going to have, or -1.
func Limits(uid, gid int) error {
	if err := size("address space (ulimit -v)", unix.RLIMIT_AS); err != nil {
		return err
	}
	if err := size("data (ulimit -d)", unix.RLIMIT_DATA); err != nil {
		return err
	}
	// The limit in force is raised to the highest allowed, so only that counts.
	if n := limit(unix.RLIMIT_NOFILE).Max; n < files {
		return fmt.Errorf("the limit on open files (ulimit -Hn) is %d: at least %d are needed, and one for each connection; "+
			"raise it, for services by LimitNOFILE=", n, files)
	}
	return threads(uid, gid)
}

func limit(what int) unix.Rlimit {
	r := unix.Rlimit{Cur: math.MaxUint64, Max: math.MaxUint64}
	_ = unix.Getrlimit(what, &r)
	return r
}

// size checks a limit on memory.
func size(name string, what int) error {
	if n := limit(what).Cur; n < addressSpace {
		return fmt.Errorf("the limit on %s is %d kB: at least %d are needed, most of them only reserved; "+
			"raise it, or lift it with \"unlimited\"", name, n>>10, addressSpace>>10)
	}
	return nil
}

// threads checks whether enough of them can be made.
func threads(uid, gid int) error {
	if group, left := cgroupRoom(); left < tasks {
		return fmt.Errorf("the control group %s has room for %d more processes and threads: %d are needed; "+
			"raise its pids.max, for services by TasksMax=, for containers by --pids-limit", group, left, tasks)
	}
	n := limit(unix.RLIMIT_NPROC).Cur
	// Others of the same user count as well. How many there are the kernel does
	// not tell, but how many there are of everybody: only if these and ours are too
	// many is it worth a trial.
	if all, ok := everybody(); ok && all+tasks <= n {
		return nil
	}
	got := try(tasks, uid, gid)
	for tries := 0; got < tasks && tries < waits; tries++ {
		sleep(pause) // those of an instance that has just ended count until the kernel is done with them
		got = try(tasks, uid, gid)
	}
	if got < tasks {
		return fmt.Errorf("the limit on processes (ulimit -u) is %d, of which %d are left: %d are needed, threads included; "+
			"raise it, for services by LimitNPROC=", n, got, tasks)
	}
	return nil
}

// everybody returns the number of threads on the system, proc_loadavg(5).
func everybody() (uint64, bool) {
	_, rest, _ := strings.Cut(readFile("/proc/loadavg"), "/")
	total, _, _ := strings.Cut(rest, " ")
	n, err := strconv.ParseUint(total, 10, 64)
	return n, err == nil
}

// cgroupRoot is where version 2 of control groups is mounted.
const cgroupRoot = "/sys/fs/cgroup"

// cgroupRoom returns how many processes and threads our control group still takes,
// and the name of the group that sets that limit, which may be one further up.
func cgroupRoom() (group string, left uint64) {
	left = math.MaxUint64
	_, path, ok := strings.Cut("\n"+readFile("/proc/self/cgroup"), "\n0::")
	if !ok {
		return "", left
	}
	path, _, _ = strings.Cut(path, "\n")
	for ; ; path = path[:strings.LastIndexByte(path, '/')] {
		limit, err1 := strconv.ParseUint(readFile(cgroupRoot+path+"/pids.max"), 10, 64)
		if err1 == nil {
			used, err := strconv.ParseUint(readFile(cgroupRoot+path+"/pids.current"), 10, 64)
			if room := limit - min(used, limit); err == nil && room < left {
				group, left = path, room
			}
		}
		if !strings.Contains(path, "/") {
			return group, left
		}
	}
}

// readFile returns the first page of a small file without its last newline, "" if
// it cannot be read.
func readFile(path string) string {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var b [4096]byte
	n, _ := unix.Read(fd, b[:])
	return strings.TrimSuffix(string(b[:max(n, 0)]), "\n")
}

// sleep is time.Sleep, which would have the runtime make a thread.
func sleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil)
}
