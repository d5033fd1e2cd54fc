// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"aldente/broker/fork"
	"aldente/broker/netns/nofile"
)

// Exit statuses of a command that could not be executed, as shells use them.
const (
	statusCannotExec = 126
	statusNotFound   = 127
)

// maxHostname is __NEW_UTS_LEN, include/uapi/linux/utsname.h.
const maxHostname = 64

// Command is what Create starts.
type Command struct {
	Path string   // looked up in PATH of Env if it has no slash
	Args []string // with Args[0]; empty: Path alone
	Env  []string // nil: our own environment

	HostnamePrefix string // put before the host's name; empty: the name stays
	NoPIDNS        bool   // --no-pidns: our PID namespace and /proc, but no CAP_SYS_PTRACE
	HideSockets    bool   // new and empty /run and /tmp, but for the working directory
	ResolvConf     []byte // what the command sees as /etc/resolv.conf; empty: the host's

	// Owner outside of user 0 and group 0 inside. Only root may name others
	// than itself.
	UID, GID int
}

// Child is a command in namespaces of its own, waiting to be released.
type Child struct {
	Namespace
	PID int // as the broker sees it

	steps  *fork.List
	sync   int
	status int
	path   string
	ready  bool // Ready has read its part of status
}

// ExecError tells that the command could not be executed.
type ExecError struct {
	Path   string // the command
	Err    error  // of execve(2)
	Status int    // 127 if it was not found, else 126
}

func (e *ExecError) Error() string {
	return fmt.Sprintf("failed to start %s: %v", e.Path, e.Err)
}

// Unwrap returns the error of execve(2).
func (e *ExecError) Unwrap() error { return e.Err }

// Create starts a process in new user, network, mount, IPC, UTS and, unless told
// otherwise, PID namespaces. User 0 inside is Command.UID outside. The process
// mounts its own /proc, names its host, opens ping sockets to its group 0, and
// waits; its namespaces can be used at once. It becomes the command when Release
// is called. It is killed if the thread that called Create ends, so do not call
// Create on a locked thread that ends before the process.
func Create(c Command) (*Child, error) {
	spec, sync, status, err := c.spec()
	if err != nil {
		return nil, err
	}
	steps, err := commandSteps(spec)
	var pid int
	if err == nil {
		var errno syscall.Errno
		if pid, errno = c.start(steps, spec.flags); errno != 0 {
			err = fmt.Errorf("cannot create namespaces: %w%s", errno, hint(errno))
		}
	}
	unix.Close(spec.sync)
	unix.Close(spec.status)
	if err != nil {
		unix.Close(sync)
		unix.Close(status)
		return nil, err
	}
	child := &Child{PID: pid, steps: steps, sync: sync, status: status, path: c.Path}
	child.Namespace = Namespace{User: -1, Net: -1, pid: pid, name: "of the command",
		agentIDs: true, agentIDsInside: true}
	if err := child.begin(&c); err != nil {
		child.Kill()
		return nil, err
	}
	return child, nil
}

// start starts the child. Root need not be its owner for what begin does.
func (c *Command) start(steps *fork.List, flags uintptr) (int, syscall.Errno) {
	if ownIDs(c.UID, c.GID) {
		defer fork.Dumpable()()
	}
	return steps.Start(flags, nil)
}

// begin gives the child its identity and takes hold of its namespaces.
func (c *Child) begin(cmd *Command) error {
	if err := writeMaps(c.PID, cmd.UID, cmd.GID); err != nil {
		return err
	}
	if err := c.signal(); err != nil {
		return err
	}
	dir := "/proc/" + strconv.Itoa(c.PID) + "/ns/"
	var err error
	if c.User, err = openNamespace(dir+"user", unix.CLONE_NEWUSER); err != nil {
		return err
	}
	c.Net, err = openNamespace(dir+"net", unix.CLONE_NEWNET)
	return err
}

// Ready waits until the command's process has done its part, and returns what
// it could not do and the command may not need.
func (c *Child) Ready() (warnings []string, err error) {
	c.ready = true
	for {
		r, e := c.steps.Read(fdReader(c.status))
		switch f := r.Failed; {
		case e != nil:
			return nil, fmt.Errorf("the command's process died while starting%s", hint(unix.EPERM))
		case f == nil:
			return warnings, err
		case f.Phase == phaseIdentity:
			return nil, fmt.Errorf("cannot %s: %w%s", f.Phase, f, hint(f.Errno))
		case f.Phase == phaseHide:
			err = fmt.Errorf("cannot %s: %w (--no-hide-sockets leaves them)", f.Phase, f)
		default:
			warnings = append(warnings, fmt.Sprintf("cannot %s: %v", f.Phase, f))
		}
	}
}

// Release lets the command run.
func (c *Child) Release() error {
	err := c.signal()
	unix.Close(c.sync)
	c.sync = -1
	return err
}

// Wait returns the command's exit status, 128 and the number of the signal if
// one ended it. The error is an *ExecError if the command never ran.
func (c *Child) Wait() (int, error) {
	if !c.ready {
		_, _ = c.Ready() // a child that died says so below
	}
	var failed error
	if r, err := c.steps.Read(fdReader(c.status)); err == nil && r.Failed != nil {
		failed = r.Failed.Errno // of execve(2)
		if r.Failed.Phase != phaseCommand {
			failed = fmt.Errorf("cannot %s: %w", r.Failed.Phase, r.Failed)
		}
	}
	unix.Close(c.status)
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(c.PID, &ws, 0, nil)
		if err == unix.EINTR || err == nil && !ws.Exited() && !ws.Signaled() {
			continue
		}
		if err != nil {
			return 1, fmt.Errorf("wait for the command: %w", err)
		}
		break
	}
	if failed != nil {
		return ws.ExitStatus(), &ExecError{Path: c.path, Err: failed, Status: ws.ExitStatus()}
	}
	if ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), nil
}

// Kill ends a child that is not to be released, and everything in its PID
// namespace.
func (c *Child) Kill() {
	if c.sync >= 0 {
		unix.Close(c.sync)
	}
	unix.Close(c.status)
	unix.Kill(c.PID, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(c.PID, nil, 0, nil); err != unix.EINTR {
			break
		}
	}
	c.Close()
}

func (c *Child) signal() error {
	if _, err := unix.Write(c.sync, []byte{0}); err != nil {
		return fmt.Errorf("the command's process died while starting: %w", err)
	}
	return nil
}

// writeMaps makes uid:gid the namespace's 0:0. Without privileges the kernel
// wants setgroups(2) forbidden first. With them, the child still has to call
// it, to be rid of the caller's groups.
func writeMaps(pid, uid, gid int) error {
	dir := "/proc/" + strconv.Itoa(pid) + "/"
	files := []struct{ name, text string }{
		{"setgroups", "deny"},
		{"gid_map", fmt.Sprintf("0 %d 1\n", gid)},
		{"uid_map", fmt.Sprintf("0 %d 1\n", uid)},
	}
	if !ownIDs(uid, gid) {
		files = files[1:]
	}
	for _, f := range files {
		if err := writeFile(dir+f.name, f.text); err != nil && !(f.name == "setgroups" && err == unix.ENOENT) {
			return fmt.Errorf("cannot write %s of the new user namespace: %w%s", f.name, err, hint(err))
		}
	}
	return nil
}

func ownIDs(uid, gid int) bool { return uid == os.Geteuid() && gid == os.Getegid() }

func writeFile(path, text string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(text))
	return err
}

// spec lays out everything for the child, and returns our ends of its pipes.
func (c *Command) spec() (s *commandSpec, sync, status int, err error) {
	s = &commandSpec{
		flags:   unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		mount:   !c.NoPIDNS,
		noTrace: c.NoPIDNS,
		dropIDs: !ownIDs(c.UID, c.GID),
		limit:   nofile.Original,
	}
	if !c.NoPIDNS {
		s.flags |= unix.CLONE_NEWPID
	}
	if c.HostnamePrefix != "" {
		s.hostname = hostname(c.HostnamePrefix)
	}
	s.resolv = c.ResolvConf
	if c.HideSockets {
		if s.hide, err = planHiding(c.Path); err != nil {
			return nil, -1, -1, err
		}
		if path, err := filepath.EvalSymlinks(resolvConf); err == nil && isHidden(path) && len(s.resolv) == 0 {
			s.resolv, _ = os.ReadFile(path)
		}
	}
	args, env := c.Args, c.Env
	if len(args) == 0 {
		args = []string{c.Path}
	}
	if env == nil {
		env = os.Environ()
	}
	if c.HideSockets {
		env = hiddenEnvironment(env)
	}
	s.paths, s.args, s.env = candidates(c.Path, env), args, env
	var a, b [2]int
	if err := unix.Pipe2(a[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, -1, fmt.Errorf("pipe: %w", err)
	}
	if err := unix.Pipe2(b[:], unix.O_CLOEXEC); err != nil {
		unix.Close(a[0])
		unix.Close(a[1])
		return nil, -1, -1, fmt.Errorf("pipe: %w", err)
	}
	s.sync, s.status, s.parent = a[0], b[1], [2]int{a[1], b[0]}
	return s, a[1], b[0], nil
}

// candidates returns the paths that execvp(3) would try.
func candidates(name string, env []string) []string {
	if name == "" {
		return nil
	}
	if strings.Contains(name, "/") {
		return []string{name}
	}
	list := "/usr/local/bin:/bin:/usr/bin" // _PATH_DEFPATH and what distributions add
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			list = v
			break
		}
	}
	var all []string
	for _, dir := range strings.Split(list, ":") {
		if dir == "" {
			dir = "."
		}
		all = append(all, dir+"/"+name)
	}
	return all
}

func hostname(prefix string) []byte {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil
	}
	name := prefix + unix.ByteSliceToString(u.Nodename[:])
	return []byte(name[:min(len(name), maxHostname)])
}

// fdReader reads a descriptor that package os does not know about, without
// the runtime's poller.
type fdReader int

func (f fdReader) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(f), b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}
