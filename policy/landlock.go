// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// rightsOf lists, for one Landlock ABI, what it added. The lists are spelled
// out instead of taken from the library's presets: a newer library must not
// begin to deny something that nobody here has tried.
type rightsOf struct {
	abi   int
	fs    landlock.AccessFSSet
	net   landlock.AccessNetSet
	scope landlock.ScopedSet
}

// landlockABIs follows Documentation/userspace-api/landlock.rst of the kernel.
var landlockABIs = [...]rightsOf{
	{abi: 1, fs: ll.AccessFSExecute | ll.AccessFSWriteFile | ll.AccessFSReadFile | ll.AccessFSReadDir |
		ll.AccessFSRemoveDir | ll.AccessFSRemoveFile | ll.AccessFSMakeChar | ll.AccessFSMakeDir |
		ll.AccessFSMakeReg | ll.AccessFSMakeSock | ll.AccessFSMakeFifo | ll.AccessFSMakeBlock | ll.AccessFSMakeSym},
	{abi: 2, fs: ll.AccessFSRefer},
	{abi: 3, fs: ll.AccessFSTruncate},
	{abi: 4, net: ll.AccessNetBindTCP | ll.AccessNetConnectTCP},
	{abi: 5, fs: ll.AccessFSIoctlDev},
	{abi: 6, scope: ll.ScopeAbstractUnixSocket | ll.ScopeSignal},
	{abi: 9, fs: ll.AccessFSResolveUnix},
	{abi: 10, net: ll.AccessNetBindUDP | ll.AccessNetConnectSendUDP},
}

// completeABI is the first that covers files, TCP and signals. What came later
// is closed by other layers as well, so older kernels are not called partial
// for it.
const completeABI = 6

// LandlockABI returns the running kernel's Landlock ABI, 0 without Landlock.
func LandlockABI() int {
	v, _ := landlockVersion()
	return v
}

func landlockVersion() (int, error) {
	const createRulesetVersion = 1 // LANDLOCK_CREATE_RULESET_VERSION, include/uapi/linux/landlock.h
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, createRulesetVersion)
	if errno != 0 {
		return 0, errno
	}
	return int(v), nil
}

// noLandlock says why there is none. A kernel that has it and was started with a list of
// security modules that lacks it answers EOPNOTSUPP.
func noLandlock() string {
	if _, err := landlockVersion(); err == unix.EOPNOTSUPP {
		return "Landlock is switched off: add landlock to lsm= on the kernel's command line"
	}
	return "kernel without Landlock"
}

// rights adds up what a kernel with the given ABI can deny.
func rights(abi int) (r rightsOf) {
	r.abi = abi
	for _, added := range landlockABIs {
		if added.abi <= abi {
			r.fs |= added.fs
			r.net |= added.net
			r.scope |= added.scope
		}
	}
	return r
}

// LandlockNothing denies all that Landlock can deny and grants nothing: no
// file, no TCP bind or connect, no signal or abstract socket beyond the
// process. It judges the caller: descriptors that were passed in and are bound
// or connected go on working.
func LandlockNothing() Layer {
	r := rights(LandlockABI())
	return restrict(r, "nothing granted", r.fs, r.net, r.scope)
}

// Paths are the files that a process keeps under LandlockFiles.
type Paths struct {
	Read    []string // files and directories to read
	Execute []string // programs to start
	Sockets []string // directories of UNIX sockets to connect to
}

// LandlockFiles limits the file system to the paths given; those that do not
// exist are skipped. Abstract sockets of others are out of reach. The network is
// left alone: this is for processes that open sockets. So are signals, since the
// kernel counts the one by which children die with their parent.
//
// Under such a domain neither the process nor a child of it can mount or
// pivot_root, nor trace or look into a process that is not under it.
func LandlockFiles(p Paths) Layer {
	r := rights(LandlockABI())
	read := landlock.AccessFSSet(ll.AccessFSReadFile|ll.AccessFSReadDir) & r.fs
	execute := landlock.AccessFSSet(ll.AccessFSExecute|ll.AccessFSReadFile) & r.fs
	what := "no file"
	switch len(p.Execute) {
	case 0:
	case 1:
		what += " but the worker's program"
	default:
		what += " but the programs of worker and names"
	}
	if len(p.Sockets) > 0 {
		what += ", sockets"
	}
	return restrict(r, what, r.fs, 0, r.scope&^ll.ScopeSignal, grants(read, p.Read), grants(execute, p.Execute),
		grants(ll.AccessFSResolveUnix&r.fs, p.Sockets))
}

// grants gives files only the rights that files have: the kernel refuses a
// rule that grants making a directory entry beneath a file.
func grants(access landlock.AccessFSSet, paths []string) []landlock.Rule {
	const onFiles = landlock.AccessFSSet(ll.AccessFSExecute | ll.AccessFSWriteFile | ll.AccessFSReadFile |
		ll.AccessFSTruncate | ll.AccessFSIoctlDev)
	var rules []landlock.Rule
	if access == 0 {
		return nil // the kernel cannot deny it, and refuses a rule without rights
	}
	for _, path := range paths {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil {
			continue
		}
		a := access
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			a &= onFiles
		}
		rules = append(rules, landlock.PathAccess(a, path).IgnoreIfMissing())
	}
	return rules
}

func restrict(r rightsOf, what string, fs landlock.AccessFSSet, net landlock.AccessNetSet, scope landlock.ScopedSet, rules ...[]landlock.Rule) Layer {
	l := Layer{Name: "landlock", State: InForce, Detail: fmt.Sprintf("ABI %d, %s", r.abi, what)}
	if r.abi == 0 {
		return Layer{l.Name, Missing, noLandlock()}
	}
	c, err := landlock.NewConfig(fs, net, scope)
	if err != nil {
		return Layer{l.Name, Missing, err.Error()}
	}
	var all []landlock.Rule
	for _, rs := range rules {
		all = append(all, rs...)
	}
	defer Awake()()
	if err := c.Restrict(all...); err != nil {
		return Layer{l.Name, Missing, err.Error()}
	}
	if r.abi < completeABI {
		l.State = Partial
	}
	return l
}
