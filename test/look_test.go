// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lookArg as first argument makes the test binary a process that tries, over and
// over, to look into others or to signal them.
const lookArg = "look-around"

// control is shared memory between the test and its lookers.
type control struct {
	targets [32]atomic.Uint32 // processes, the broker first, zero: none; with noSignal set: not to be signalled
	stop    atomic.Uint32     // number of the stop that they are in
	passes  [8]atomic.Uint32  // the last stop that each looker has been through
}

// has tells whether a process is among those that are looked at. While it is, its
// number is nobody else's: the tracer has not waited for it.
func (c *control) has(pid int) bool {
	for i := range c.targets {
		if int(c.targets[i].Load()&^noSignal) == pid {
			return true
		}
	}
	return false
}

// noSignal marks the command of a guest, which belongs to the same user as others do.
const noSignal = 1 << 31

// openControl maps the file, which it makes as large as it has to be.
func openControl(path string) (*control, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	const size = int(unsafe.Sizeof(control{}))
	_ = unix.Fchmod(fd, 0o666)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, err
	}
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*control)(unsafe.Pointer(&b[0])), nil
}

// marker is in the environment of every broker that is looked at.
const marker = "ALDENTE_TEST_MARKER=do-not-find-me"

// sight is one way to look into a process. It returns what it has seen, "" if
// nothing.
type sight struct {
	name string
	try  func(dir string, pid int) string
	// bare finds a process that has nothing to be seen: what an agent in a guest
	// that may trace it has to be.
	bare func(seen string) bool
}

func never(string) bool  { return false }
func always(string) bool { return true }

var sights = []sight{
	{"root", entries("root"), func(seen string) bool { return seen == "files: " }},
	{"cwd", entries("cwd"), func(seen string) bool { return seen == "files: " }},
	{"fd", descriptors, harmless},
	{"environ", content("environ"), func(seen string) bool { return !strings.Contains(seen, "do-not-find-me") }},
	{"auxv", content("auxv"), always},
	{"maps", content("maps"), always},
	{"syscall", content("syscall"), always},
	{"stack", content("stack"), never},
	{"mem", memory, always},
	{"map_files", mapFiles, always},
	{"exe", executable, always},
	{"process_vm_readv", vmRead, always},
	{"pidfd_getfd", getFD, always},
	{"kill", signal, never},
}

func entries(name string) func(string, int) string {
	return func(dir string, _ int) string {
		list, err := os.ReadDir(dir + name + "/")
		if err != nil {
			return ""
		}
		var names []string
		for _, e := range list {
			names = append(names, e.Name())
		}
		return "files: " + strings.Join(names, " ")
	}
}

func descriptors(dir string, _ int) string {
	list, err := os.ReadDir(dir + "fd")
	if err != nil {
		return ""
	}
	seen := ""
	for _, e := range list {
		if l, err := os.Readlink(dir + "fd/" + e.Name()); err == nil {
			seen += " " + l
		}
	}
	return seen // a number alone is none
}

// harmless are the descriptors that an agent has.
func harmless(seen string) bool {
	for _, l := range strings.Fields(seen) {
		kind, _, _ := strings.Cut(l, "[")
		switch kind {
		case "/dev/null", "/dev/net/tun", "socket:", "pipe:", "anon_inode:":
		default:
			return false
		}
	}
	return true
}

func content(name string) func(string, int) string {
	return func(dir string, _ int) string {
		b, err := os.ReadFile(dir + name)
		if err != nil || len(b) == 0 {
			return ""
		}
		return string(bytes.ReplaceAll(b[:min(len(b), 4096)], []byte{0}, []byte{' '}))
	}
}

// textStart is where the code of a Go program lies, nearly everywhere.
const textStart = 0x400000

func memory(dir string, _ int) string {
	f, err := os.Open(dir + "mem")
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 4)
	if n, _ := f.ReadAt(b, textStart); n <= 0 {
		return ""
	}
	return fmt.Sprintf("%q", b)
}

func mapFiles(dir string, _ int) string {
	if list, err := os.ReadDir(dir + "map_files"); err == nil && len(list) > 0 {
		return list[0].Name()
	}
	return ""
}

func executable(dir string, _ int) string {
	f, err := os.Open(dir + "exe")
	if err != nil {
		return ""
	}
	f.Close()
	return "opened"
}

func vmRead(_ string, pid int) string {
	b := make([]byte, 4)
	local := unix.Iovec{Base: &b[0]}
	local.SetLen(len(b))
	n, err := unix.ProcessVMReadv(pid, []unix.Iovec{local}, []unix.RemoteIovec{{Base: textStart, Len: len(b)}}, 0)
	if err != nil || n == 0 {
		return ""
	}
	return fmt.Sprintf("%q", b)
}

func getFD(_ string, pid int) string {
	p, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(p)
	for fd := range 12 {
		got, err := unix.PidfdGetfd(p, fd, 0)
		if err == nil {
			unix.Close(got)
			return "descriptor " + strconv.Itoa(fd)
		}
		if err != unix.EBADF {
			break
		}
	}
	return ""
}

func signal(_ string, pid int) string {
	if unix.Kill(pid, 0) != nil {
		return ""
	}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // for who looks for the reason
	if bytes.Contains(b, []byte("State:\tZ")) {
		return "" // it has ended, and waits to be forgotten: a command that nobody knows as one any more
	}
	seen := "permitted to user " + strconv.Itoa(os.Getuid())
	for line := range strings.Lines(string(b)) {
		if k, _, _ := strings.Cut(line, ":"); k == "Name" || k == "State" || k == "PPid" || k == "Uid" {
			seen += ", " + strings.TrimSpace(line)
		}
	}
	return seen
}

// traced tries to trace. It is apart from the others, since a process that the test
// itself traces nobody else can.
func traced(pid int) string {
	if err := unix.PtraceSeize(pid); err != nil {
		return ""
	}
	_ = unix.PtraceInterrupt(pid)
	_, _ = unix.Wait4(pid, nil, unix.WALL, nil)
	_ = unix.PtraceDetach(pid)
	return "traced"
}

// look goes through the targets until it is killed. In slot it counts, to out
// it writes what it has seen. A guest may see an agent that is bare, where the program
// is one that its user may read, and may signal what belongs to the user that it is
// outside, if it is the same.
func look(path, out string, slot int, guest, bare, mayKill bool) int {
	c, err := openControl(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	file, err := os.OpenFile(out, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	told := map[string]bool{}
	for {
		stop := c.stop.Load()
		for i := range c.targets {
			target := c.targets[i].Load()
			pid := int(target &^ noSignal)
			if pid == 0 {
				break
			}
			// User 0 of a user namespace may signal what is in it: the agent.
			spare := mayKill || target&noSignal != 0 || guest && i > 0 && nameOf(fmt.Sprintf("/proc/%d/", pid)) != "aldente-worker"
			for _, line := range lookAt(pid, bare, spare) {
				if !c.has(pid) {
					break // it has ended, and the number may be somebody else's by now
				}
				if what, _, _ := strings.Cut(line, ":"); !told[what] {
					told[what] = true
					fmt.Fprintf(file, "%s\n", line)
				}
			}
		}
		c.passes[slot].Store(stop)
		if c.stop.Load() == stop {
			time.Sleep(20 * time.Microsecond)
		}
	}
}

// lookAt returns what is to be seen of one process and should not be.
func lookAt(pid int, bare, mayKill bool) (found []string) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	for _, a := range sights {
		if a.name == "kill" && mayKill {
			continue
		}
		seen := a.try(dir, pid)
		if seen == "" {
			continue
		}
		// Only after that, so that an agent is none that was not one yet.
		who := nameOf(dir)
		if who == commandName || bare && (who == "aldente-agent" || who == noName) && a.bare(seen) {
			continue
		}
		found = append(found, fmt.Sprintf("%s of %s: %.200q", a.name, who, seen))
	}
	return found
}

// commandName is what guests run. What they may see of it nobody asks.
const commandName = "sleep"

// noName is the name of a process that has ended since.
const noName = "."

func nameOf(dir string) string {
	b, _ := os.ReadFile(dir + "cmdline")
	name, _, _ := bytes.Cut(b, []byte{0})
	return filepath.Base(string(name))
}

// lookMain is look as a program.
func lookMain(args []string) int {
	if len(args) == 1 { // once, at everything, also by tracing
		return lookOnce(args[0])
	}
	slot, _ := strconv.Atoi(args[2])
	has := func(flag string) bool { return strings.Contains(args[3], flag) }
	return look(args[0], args[1], slot, has("guest"), has("bare"), has("kills"))
}

// lookOnce looks a few times at all that belongs to a broker and says so.
func lookOnce(broker string) int {
	root, _ := strconv.Atoi(broker)
	for range 20 {
		for _, pid := range append(childrenOf(root), root) {
			if pid == os.Getpid() {
				continue
			}
			found := lookAt(pid, false, true)
			if seen := traced(pid); seen != "" {
				found = append(found, "traced "+nameOf(fmt.Sprintf("/proc/%d/", pid)))
			}
			for _, line := range found {
				fmt.Println(line)
			}
			if found != nil {
				return 1
			}
		}
	}
	fmt.Println("looked around")
	return 0
}

// childrenOf returns a process's children by what everybody may read.
func childrenOf(pid int) (list []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range dirs {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		rest := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(rest) > 1 && rest[1] == strconv.Itoa(pid) {
			n, _ := strconv.Atoi(strings.Split(f, "/")[2])
			list = append(list, n)
		}
	}
	return list
}
