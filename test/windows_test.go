// SPDX-License-Identifier: Apache-2.0

package test

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// windowsEnv has TestWindows stop before every system call, not only around those
// that change what others may do.
const windowsEnv = "ALDENTE_WINDOWS"

// controlArg stands for a control socket in a folder of its own, in window.args.
const controlArg = "control.sock"

// Users of TestWindows besides netlab.Nobody, who is the ordinary one.
var (
	realNobody = &netlab.User{UID: 65534, GID: 65534}
	stranger   = &netlab.User{UID: 61235, GID: 61235}
)

// looker is a hostile process.
type looker struct {
	user  *netlab.User
	guest bool // as user 0 of the user namespace of the guest, in our PID namespace
	bare  bool // and the agent's program is one that its user may read, so that it may trace the agent
	kills bool // it may signal: it is the same user
}

// window is a start-up that is looked at.
type window struct {
	name    string
	user    *netlab.User // who starts it
	passt   bool
	target  string // "": a command, "PID", "path", "netns" (a path of that namespace alone)
	args    []string
	lookers []looker
	program string // where the programs are, empty: as they are installed
}

// TestWindows starts an instance in every way there is, stops each of its processes
// wherever something has changed, or is about to, until every looker has been through,
// kills the worker, and does the same with the next. Nobody may have seen anything.
func TestWindows(t *testing.T) {
	needRoot(t)
	heavy(t)
	others := []looker{{user: realNobody}, {user: stranger}}
	guest := looker{user: netlab.Nobody, guest: true, kills: true}
	ofRoots := looker{user: netlab.Nobody, guest: true}
	of := func(l looker) []looker { return append([]looker{l}, others...) }
	readable := guest
	readable.bare = true
	usersOwn := programs(t, 0o755, netlab.Nobody)
	for _, w := range []window{
		{"command, sockets hidden", netlab.Nobody, false, "", []string{"--hide-sockets"}, others, ""},
		{"PID", netlab.Nobody, false, "PID", nil, of(guest), ""},
		{"path", netlab.Nobody, false, "path", nil, of(guest), ""},
		{"PID, control socket", netlab.Nobody, false, "PID", []string{"-c", controlArg}, of(guest), ""},
		{"passt", netlab.Nobody, true, "", nil, others, ""},
		{"root's command, sockets hidden", netlab.Root, false, "", []string{"--hide-sockets"}, others, ""},
		{"root's PID", netlab.Root, false, "PID", nil, of(ofRoots), ""},
		{"root's PID, control socket", netlab.Root, false, "PID", []string{"-c", controlArg}, of(ofRoots), ""},
		{"root's path", netlab.Root, false, "path", nil, of(ofRoots), ""},
		{"root's path, without user namespace", netlab.Root, false, "netns", nil, of(ofRoots), ""},
		{"root's passt", netlab.Root, true, "", nil, others, ""},
		{"command as another", netlab.Root, false, "", []string{"--runas", "61236:61236"}, others, ""},
		{"passt as another", netlab.Root, true, "", []string{"--runas", "61236:61236"}, others, ""},
		{"command, one's own program", netlab.Nobody, false, "", nil, others, usersOwn},
		{"PID, one's own program", netlab.Nobody, false, "PID", nil, of(readable), usersOwn},
	} {
		t.Run(w.name, func(t *testing.T) { w.run(t, netlab.New(t, netlab.Options{NoRemote: true})) })
	}
}

// argv is the command line, for the process or namespace given.
func (w *window) argv(t *testing.T, holder int) []string {
	dir := cmp.Or(w.program, filepath.Dir(netlab.Pasta()))
	if w.passt {
		return append([]string{filepath.Join(dir, "passt"), "-f", "-s", filepath.Join(openDir(t), "s")}, w.args...)
	}
	argv := append([]string{filepath.Join(dir, "pasta"), "-f", "--config-net"}, netlab.NoForward()...)
	for _, a := range w.args {
		if a == controlArg {
			a = filepath.Join(openDir(t), a)
		}
		argv = append(argv, a)
	}
	switch w.target {
	case "PID":
		return append(argv, strconv.Itoa(holder))
	case "path":
		dir := fmt.Sprintf("/proc/%d/ns/", holder)
		return append(argv, "--userns", dir+"user", "--netns", dir+"net")
	case "netns":
		return append(argv, "--netns-only", "--netns", fmt.Sprintf("/proc/%d/ns/net", holder))
	}
	return append(argv, "--", commandName, "100")
}

func (w *window) run(t *testing.T, lab *netlab.Lab) {
	guest := 0
	if w.target != "" {
		guest = holder(t, lab)
	}
	dir := openDir(t)
	ctl, err := openControl(filepath.Join(dir, "control"))
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "found")
	if err := os.WriteFile(out, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	_ = os.Chmod(out, 0o666)
	for i, l := range w.lookers {
		argv := []string{filepath.Join(netlab.Stage(), "hold"), lookArg, filepath.Join(dir, "control"), out, strconv.Itoa(i), "-"}
		if l.kills {
			argv[5] += "kills"
		}
		if l.guest {
			if argv[5] += "guest"; l.bare {
				argv[5] += "bare"
			}
			argv = append([]string{"nsenter", "-t", strconv.Itoa(guest), "-U", "--preserve-credentials", "--"}, argv...)
		}
		p := lab.Host.Start(netlab.Spec{Args: argv, User: l.user, Timeout: 5 * time.Minute})
		defer p.Kill()
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	tr := &tracer{ctl: ctl, lookers: len(w.lookers), every: os.Getenv(windowsEnv) != "", spawns: !w.passt && w.target == "", threads: map[int]*thread{}}
	err = lab.Host.Do(func() error {
		// The thread is this goroutine's until the end of it.
		if err := tr.start(w.argv(t, guest), w.user, log); err != nil {
			return err
		}
		defer tr.end()
		first, err := tr.settleWith("aldente-worker", 0)
		if err != nil {
			return err
		}
		_ = unix.Kill(first, unix.SIGKILL)
		_, err = tr.settleWith("aldente-worker", first)
		return err
	})
	said, _ := os.ReadFile(log.Name())
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	found, _ := os.ReadFile(out)
	for line := range strings.Lines(string(found)) {
		t.Error(strings.TrimSpace(line))
	}
	for i := range w.lookers {
		if ctl.passes[i].Load() == 0 {
			t.Errorf("looker %d did not look", i)
		}
	}
	t.Logf("%d stops", tr.stops)
}

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

// TestCommandSeesNothing: a command with our own PID namespace in sight, and user 0
// of its user namespace, can look into none of our processes.
func TestCommandSeesNothing(t *testing.T) {
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	script := fmt.Sprintf("exec %s %s $PPID", filepath.Join(netlab.Stage(), "hold"), lookArg)
	for _, u := range []*netlab.User{netlab.Nobody, netlab.Root} {
		if u == netlab.Root && netlab.Nested() {
			continue
		}
		argv := append([]string{netlab.Pasta(), "--config-net", "--no-pidns"}, netlab.NoForward()...)
		p := lab.Host.Start(netlab.Spec{User: u, Timeout: time.Minute, Args: append(argv, "--", "sh", "-c", script)})
		if st := p.Wait(); st != 0 || !strings.Contains(p.Output(), "looked around") {
			t.Errorf("user %d: status %d\n%s", u.UID, st, p.Output())
		}
	}
}

// programs makes copies of the programs, for an instance to be started with that are
// not as they are installed.
func programs(t *testing.T, mode os.FileMode, owner *netlab.User) (dir string) {
	t.Helper()
	dir = openDir(t)
	for name, mode := range map[string]os.FileMode{"aldente": mode, "aldente-worker": 0o755, "aldente-names": 0o755} {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(netlab.Pasta()), name))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		err = os.WriteFile(path, b, 0o700)
		if err == nil && owner != netlab.Root {
			err = os.Chown(path, int(owner.UID), int(owner.GID))
		}
		if err == nil {
			err = os.Chmod(path, mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"pasta", "passt"} {
		if err := os.Symlink("aldente", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// agentOf waits for a broker's agent.
func agentOf(t *testing.T, broker int) int {
	t.Helper()
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(5 * time.Millisecond) {
		for _, p := range childrenOf(broker) {
			if nameOf(fmt.Sprintf("/proc/%d/", p)) == "aldente-agent" {
				return p
			}
		}
	}
	t.Fatal("no agent")
	return 0
}

// TestProgramStaysAsItIs: user 0 of a guest that is the same user as the caller opens
// the agent's program, which is the caller's own file, and writes to it once nothing
// runs it any more.
func TestProgramStaysAsItIs(t *testing.T) {
	needRoot(t)
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	program := filepath.Join(programs(t, 0o755, netlab.Nobody), "pasta")
	before, _ := os.ReadFile(program)
	guest := holder(t, lab)
	argv := append([]string{program, "-f", "--config-net"}, netlab.NoForward()...)
	broker := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: append(argv, strconv.Itoa(guest))})
	agent := agentOf(t, broker.PID)
	script := fmt.Sprintf(`exec 9</proc/%d/exe && echo opened; kill -9 %d; sleep 0.5; echo overwritten >/proc/self/fd/9`, agent, broker.PID)
	p := lab.Host.Start(netlab.Spec{User: netlab.Nobody, Args: []string{"nsenter", "-t", strconv.Itoa(guest), "-U", "--preserve-credentials", "--",
		"bash", "-c", script}})
	p.Wait()
	if !strings.Contains(p.Output(), "opened") {
		t.Skipf("the agent's program is out of reach:\n%s", p.Output())
	}
	after, err := os.ReadFile(program)
	if err != nil || string(after) != string(before) {
		t.Errorf("the caller's program was overwritten, %v", err)
	}
	if !strings.Contains(p.Output(), "Read-only") {
		t.Errorf("unexpected: %s", p.Output())
	}
}
