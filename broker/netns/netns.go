// SPDX-License-Identifier: Apache-2.0

// Package netns makes or joins the namespaces that a guest of pasta lives in:
// Create starts a command in new ones, Open finds existing ones, SpawnAgent
// starts our agent inside either, Watch tells when they are gone.
//
// A Go program cannot join a user namespace, because it always has several
// threads. The few steps that need it run in a child made by a raw clone(2),
// in the files *_unsafe.go.
package netns

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// NamedDir is where ip-netns(8) keeps namespaces by name.
const NamedDir = "/run/netns"

// Target says which existing namespace is meant, by process or by path.
type Target struct {
	PID  int    // of a process in the namespaces; zero: Path counts
	Path string // --netns: a path if it has a slash, else a name in NamedDir

	UserPath  string // --userns: instead of the process's own
	NetnsOnly bool   // --netns-only: stay in our user namespace; implied by Path without UserPath
}

// Namespace is a network namespace and the user namespace that gives us power
// over it. Its descriptors are close-on-exec.
type Namespace struct {
	User int // descriptor of the user namespace to join, -1: ours already
	Net  int // descriptor of the network namespace

	pid  int      // process that it was found by or made for, else zero
	proc *process // that of a path below /proc/PID, once it was found by one
	path string   // path that it was found by, if pid is zero
	name string   // for messages

	// Identity of the agent, if it is to differ from ours.
	agentIDs       bool
	agentUID       int
	agentGID       int
	agentIDsInside bool // the numbers above are those of the user namespace joined
}

// Close closes the descriptors.
func (n *Namespace) Close() {
	if n.User >= 0 {
		unix.Close(n.User)
	}
	if n.Net >= 0 {
		unix.Close(n.Net)
	}
	n.User, n.Net = -1, -1
	n.proc.close()
	n.proc = nil
}

// SetAgentIDs makes the agent take a user and group of ours before it joins. It
// is for a caller that is root and is going to be somebody else. Inside of a user
// namespace they need not mean anything: the agent has its capabilities anyway.
func (n *Namespace) SetAgentIDs(uid, gid int) {
	n.agentIDs, n.agentIDsInside, n.agentUID, n.agentGID = true, false, uid, gid
}

// Open finds an existing namespace.
func Open(t Target) (*Namespace, error) {
	n := &Namespace{User: -1, Net: -1, pid: t.PID}
	netPath, userPath := t.paths()
	n.name = netPath
	if t.PID == 0 {
		n.path = netPath
	}
	var err error
	if n.Net, err = n.open(netPath, unix.CLONE_NEWNET); err != nil {
		n.Close()
		return nil, err
	}
	if userPath == "" {
		return n, nil
	}
	if n.User, err = n.open(userPath, unix.CLONE_NEWUSER); err != nil {
		n.Close()
		return nil, err
	}
	// Joining the one that we are in is an error to the kernel (EINVAL).
	same, err := sameFile(n.User, "/proc/self/ns/user")
	if err != nil {
		n.Close()
		return nil, err
	}
	if same {
		unix.Close(n.User)
		n.User = -1
	} else {
		n.agentIDs, n.agentIDsInside = true, true
	}
	return n, nil
}

// paths returns the paths of network and user namespace; the latter is empty
// if none is to be joined.
func (t *Target) paths() (net, user string) {
	if t.PID != 0 {
		net = "/proc/" + strconv.Itoa(t.PID) + "/ns/net"
		user = "/proc/" + strconv.Itoa(t.PID) + "/ns/user"
	} else if net = t.Path; !strings.Contains(net, "/") {
		net = NamedDir + "/" + net
	}
	switch {
	case t.NetnsOnly:
		user = ""
	case t.UserPath != "":
		user = t.UserPath
	}
	return net, user
}

// open opens a namespace's file. Those of a process are all opened by one handle
// of it, so that they are those of one process, even if its number is given to
// another meanwhile.
func (n *Namespace) open(path string, kind int) (int, error) {
	pid, name := procEntry(path)
	if pid == 0 || n.proc != nil && n.proc.pid != pid {
		return openNamespace(path, kind)
	}
	if n.proc == nil {
		var err error
		if n.proc, err = hold(pid); err != nil {
			return -1, cannotOpen(path, kind, err)
		}
	}
	return openNamespaceAt(n.proc.dir, name, path, kind)
}

// openNamespace opens a namespace's file and makes sure that it is one.
func openNamespace(path string, kind int) (int, error) {
	return openNamespaceAt(unix.AT_FDCWD, path, path, kind)
}

func openNamespaceAt(dir int, name, path string, kind int) (int, error) {
	// Non-blocking: the path may be a FIFO by mistake.
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, cannotOpen(path, kind, err)
	}
	got, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || got != kind {
		unix.Close(fd)
		return -1, fmt.Errorf("%s is not a %s namespace", path, kindName(kind))
	}
	return fd, nil
}

func kindName(kind int) string {
	if kind == unix.CLONE_NEWUSER {
		return "user"
	}
	return "network"
}

func cannotOpen(path string, kind int, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		hint = " (is the process or namespace still there?)"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		hint = " (it belongs to another user, or lies in a user namespace of another user)"
	}
	return fmt.Errorf("cannot open %s namespace %s: %w%s", kindName(kind), path, err, hint)
}

func sameFile(fd int, path string) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstat(fd, &a); err != nil {
		return false, err
	}
	if err := unix.Stat(path, &b); err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}

// hint explains why namespaces cannot be made or used, as far as the kernel's
// settings tell.
func hint(err error) string {
	zero := func(path string) bool { return setting(path) == "0" }
	switch {
	case zero("/proc/sys/kernel/unprivileged_userns_clone"):
		return " (user namespaces are disabled: set sysctl kernel.unprivileged_userns_clone=1)"
	case zero("/proc/sys/user/max_user_namespaces"):
		return " (user namespaces are disabled: raise sysctl user.max_user_namespaces)"
	case zero("/proc/sys/user/max_net_namespaces"):
		return " (network namespaces are disabled: raise sysctl user.max_net_namespaces)"
	case errors.Is(err, unix.ENOSPC):
		return " (too many namespaces, or nested too deep: see sysctl user.max_user_namespaces and its neighbours)"
	case setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
		return " (AppArmor restricts user namespaces: give this program a profile with the userns rule," +
			" or set sysctl kernel.apparmor_restrict_unprivileged_userns=0)"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return " (user namespaces are forbidden here: by a seccomp filter, an LSM, or a chroot)"
	case errors.Is(err, unix.EAGAIN):
		return " (too many processes: raise the limit of the user, ulimit -u, or of the control group, pids.max)"
	case errors.Is(err, unix.EUSERS):
		return " (user namespaces are nested too deep: start it further out)"
	case errors.Is(err, unix.ENOSYS):
		return " (the kernel has no user namespaces, CONFIG_USER_NS, or a seccomp filter hides them; as root, --netns joins a namespace without)"
	case errors.Is(err, unix.EINVAL):
		return " (the kernel lacks one of the namespaces)"
	}
	return ""
}

func setting(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
