// SPDX-License-Identifier: Apache-2.0

package test

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// tracer stops the processes of an instance. All of it happens on one thread.
type tracer struct {
	ctl     *control
	lookers int
	every   bool
	broker  int
	threads map[int]*thread
	command int // of a guest: what may be done to it is not ours
	spawns  bool
	stops   int
}

type thread struct {
	process int
	entered bool // in a system call
	changed bool // by the last one
}

// idle is how long an instance does nothing that has come up.
const idle = 300 * time.Millisecond

func (tr *tracer) start(argv []string, user *netlab.User, log *os.File) error {
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = append(os.Environ(), marker)
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if user != netlab.Root {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: user.UID, Gid: user.GID}
	}
	if err := c.Start(); err != nil {
		return err
	}
	tr.broker = c.Process.Pid
	var ws unix.WaitStatus
	if _, err := unix.Wait4(tr.broker, &ws, 0, nil); err != nil {
		return err
	}
	tr.threads[tr.broker] = &thread{process: tr.broker}
	tr.publish()
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK |
		unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(tr.broker, options); err != nil {
		return err
	}
	return unix.PtraceSyscall(tr.broker, 0)
}

// settleWith goes on until a program runs as another process than that, and nothing
// has happened for a while. On a busy machine the process may be long in coming.
func (tr *tracer) settleWith(name string, than int) (int, error) {
	for begin := time.Now(); time.Since(begin) < time.Minute; {
		if err := tr.settle(); err != nil {
			return 0, err
		}
		if pid := tr.find(name); pid != 0 && pid != than {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no %s came up beside process %d", name, than)
}

// settle goes on until nothing has happened for a while.
func (tr *tracer) settle() error {
	last := time.Now()
	for begin := last; time.Since(begin) < time.Minute; {
		var ws unix.WaitStatus
		tid, err := unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD|unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("the instance ended: %w", err)
		case tid == 0 && time.Since(last) > idle && tr.asleep():
			return nil
		case tid == 0:
			time.Sleep(100 * time.Microsecond)
		default:
			if err := tr.stopped(tid, ws); err != nil {
				return err
			}
			last = time.Now()
		}
	}
	return errors.New("the instance does not come to rest")
}

// asleep tells whether no thread wants a processor: on a busy machine, a while is too
// short for some.
func (tr *tracer) asleep() bool {
	for tid := range tr.threads {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", tid))
		_, state, _ := strings.Cut(string(b), ") ")
		if err == nil && (strings.HasPrefix(state, "R") || strings.HasPrefix(state, "D")) {
			return false
		}
	}
	return true
}

// stopped takes one event and lets the thread go on.
func (tr *tracer) stopped(tid int, ws unix.WaitStatus) error {
	th := tr.threads[tid]
	if ws.Exited() || ws.Signaled() {
		delete(tr.threads, tid)
		tr.publish()
		if tid == tr.broker {
			return fmt.Errorf("the broker ended with status %#x", ws)
		}
		return nil
	}
	sig := 0
	switch event := ws.TrapCause(); {
	case th == nil:
		th = &thread{process: processOf(tid)}
		th.changed = th.process == tid
		tr.threads[tid] = th
		if th.process == tid {
			if tr.spawns && tr.command == 0 {
				tr.command = tid // the first that it makes
			}
			tr.publish()
		}
	case ws.StopSignal() == unix.SIGTRAP|0x80:
		if th.entered = !th.entered; th.entered {
			if err := tr.wait(tid, th); err != nil {
				return err
			}
		}
	case event == unix.PTRACE_EVENT_EXEC:
		// The others are gone, and their ends are not told.
		for other, o := range tr.threads {
			if o.process == tid && other != tid {
				delete(tr.threads, other)
			}
		}
		th.process = tid
		th.changed = true
	case event > 0:
	default:
		sig = int(ws.StopSignal())
	}
	if err := unix.PtraceSyscall(tid, sig); err != nil && err != unix.ESRCH {
		return fmt.Errorf("letting %d go on: %w", tid, err)
	}
	return nil
}

// changing are the calls that change who may do what to a process, or what there is
// to be found. It is looked at before and after each of them.
var changing = []uint64{
	unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_CLONE, unix.SYS_CLONE3,
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_SETGROUPS, unix.SYS_SETSID,
	unix.SYS_PRCTL, unix.SYS_CAPSET, unix.SYS_SECCOMP, unix.SYS_LANDLOCK_RESTRICT_SELF,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_CHDIR, unix.SYS_DUP3, unix.SYS_CLOSE_RANGE,
}

// boring are options of prctl(2) of which there are many, for a capability each.
var boring = []uint64{unix.PR_CAPBSET_DROP, unix.PR_CAPBSET_READ, unix.PR_CAP_AMBIENT, unix.PR_SET_NAME, unix.PR_SET_VMA}

func (i *syscallInfo) changes() bool {
	switch i.nr {
	case unix.SYS_PRCTL:
		return !slices.Contains(boring, i.args[0])
	case unix.SYS_CLONE:
		return i.args[0]&unix.CLONE_THREAD == 0
	}
	return slices.Contains(changing, i.nr)
}

// syscallInfo is struct ptrace_syscall_info, include/uapi/linux/ptrace.h.
type syscallInfo struct {
	op     uint8
	_      [3]byte
	arch   uint32
	ip, sp uint64
	nr     uint64
	args   [6]uint64
}

// wait has everybody look at the processes as they are, before a system call.
func (tr *tracer) wait(tid int, th *thread) error {
	const getSyscallInfo = 0x420e // PTRACE_GET_SYSCALL_INFO
	var info syscallInfo
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno == unix.ESRCH {
		return nil
	}
	if errno != 0 {
		return fmt.Errorf("system call of %d: %w", tid, errno)
	}
	before := th.changed
	if th.changed = info.changes(); before || th.changed || tr.every {
		return tr.look()
	}
	return nil
}

// look waits until every looker has been through the processes, from first to last.
func (tr *tracer) look() error {
	tr.stops++
	tr.ctl.stop.Store(uint32(tr.stops))
	for begin := time.Now(); time.Since(begin) < 10*time.Second; {
		done := true
		for i := range tr.lookers {
			done = done && tr.ctl.passes[i].Load() == uint32(tr.stops)
		}
		if done {
			return nil
		}
		runtime.Gosched()
		time.Sleep(50 * time.Microsecond)
	}
	return errors.New("a looker does not look")
}

// publish tells the lookers which processes there are.
func (tr *tracer) publish() {
	var list []int
	for _, th := range tr.threads {
		if !slices.Contains(list, th.process) {
			list = append(list, th.process)
		}
	}
	slices.SortFunc(list, func(a, b int) int {
		switch tr.broker {
		case a:
			return -1
		case b:
			return 1
		}
		return a - b
	})
	for i := range tr.ctl.targets {
		target := uint32(0)
		if i < len(list) {
			if target = uint32(list[i]); list[i] == tr.command {
				target |= noSignal
			}
		}
		tr.ctl.targets[i].Store(target)
	}
}

// find returns the process of a program, or zero.
func (tr *tracer) find(name string) int {
	for _, th := range tr.threads {
		if nameOf(fmt.Sprintf("/proc/%d/", th.process)) == name {
			return th.process
		}
	}
	return 0
}

// end kills the instance and waits for all of it.
func (tr *tracer) end() {
	for i := range tr.ctl.targets {
		tr.ctl.targets[i].Store(0)
	}
	// Each by itself: what is left of it would be another instance's, for who traces
	// that by this thread.
	for _, th := range tr.threads {
		if fieldOf(th.process, "TracerPid:") == unix.Gettid() {
			_ = unix.Kill(th.process, unix.SIGKILL)
		}
	}
	for begin := time.Now(); len(tr.threads) > 0 && time.Since(begin) < 10*time.Second; {
		var ws unix.WaitStatus
		tid, err := unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD|unix.WNOHANG, nil)
		switch {
		case err == unix.ECHILD:
			return
		case err != nil || tid == 0:
			time.Sleep(time.Millisecond)
		case ws.Stopped():
			_ = unix.Kill(tid, unix.SIGKILL)
			_ = unix.PtraceCont(tid, 0)
		default:
			delete(tr.threads, tid)
		}
	}
}

// processOf is the process that a thread belongs to.
func processOf(tid int) int { return cmp.Or(fieldOf(tid, "Tgid:"), tid) }

// fieldOf is a number of a thread's status, zero if it has none.
func fieldOf(tid int, key string) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, key); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(v))
			return n
		}
	}
	return 0
}
