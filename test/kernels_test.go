// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/test/netlab"
)

// olderArg as first argument makes the test binary run a command on a kernel that
// seems to lack something: "N" has Landlock ABI N, any other word is one of lacking.
const olderArg = "older-kernel"

// lacking are system calls that seem not to be there: the number, the argument
// that has to have a value, and the error number returned.
var lacking = map[string]struct {
	nr, arg, value uint32
	errno          syscall.Errno
}{
	"landlock": {unix.SYS_LANDLOCK_CREATE_RULESET, 2, 1, unix.ENOSYS},     // LANDLOCK_CREATE_RULESET_VERSION
	"lsm":      {unix.SYS_LANDLOCK_CREATE_RULESET, 2, 1, unix.EOPNOTSUPP}, // not in lsm=
	"seccomp":  {unix.SYS_SECCOMP, 0, unix.SECCOMP_SET_MODE_FILTER, unix.EINVAL},
	"mdwe":     {unix.SYS_PRCTL, 0, unix.PR_SET_MDWE, unix.EINVAL},
	"pidfd":    {unix.SYS_CLOSE_RANGE, 2, unix.CLOSE_RANGE_CLOEXEC, unix.EINVAL}, // before 5.11
}

// older is the life of such a process. It ends with the command's status.
func older(what string, argv []string) int {
	if err := runOlder(what, argv); err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			return failed.ExitCode()
		}
		fmt.Fprintln(os.Stderr, err)
		return 125
	}
	return 0
}

// runOlder puts one thread under a filter and starts the command from it, which
// inherits that. Where the answer is to be something else than an error, another
// thread gives it.
func runOlder(what string, argv []string) error {
	runtime.LockOSThread()
	lack, plain := lacking[what]
	action := uint32(unix.SECCOMP_RET_ERRNO) | uint32(lack.errno)
	if !plain {
		lack, action = lacking["landlock"], unix.SECCOMP_RET_USER_NOTIF
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	const number, arguments = 0, 16 // of struct seccomp_data, include/uapi/linux/seccomp.h
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 3, K: lack.nr},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: arguments + 8*lack.arg},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: lack.value},
		{Code: unix.BPF_RET | unix.BPF_K, K: action},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	flags := uintptr(0)
	if !plain {
		flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	}
	// This thread alone: the others go on without, and answer.
	listener, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return fmt.Errorf("needs seccomp notifications: %w", errno)
	}
	if !plain {
		var abi int64
		if _, err := fmt.Sscan(what, &abi); err != nil {
			return err
		}
		go serveNotices(int(listener), abi)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd.Run()
}

// serveNotices gives val as the result of each call that the filter reports.
func serveNotices(listener int, val int64) {
	runtime.LockOSThread()
	const ( // include/uapi/linux/seccomp.h
		receive = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
		send    = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
	)
	for {
		var call [80]byte // struct seccomp_notif: id first
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), receive, uintptr(unsafe.Pointer(&call))); errno == unix.EINTR || errno == unix.ENOENT {
			continue
		} else if errno != 0 {
			return
		}
		reply := struct {
			id    [8]byte
			val   int64
			errno int32
			flags uint32
		}{id: [8]byte(call[:8]), val: val}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), send, uintptr(unsafe.Pointer(&reply)))
	}
}

// TestOlderKernels runs on kernels that seem to lack a layer: it is named, the
// guest is served without it, and --strict refuses; what a kernel has only in
// part is named and good enough.
func TestOlderKernels(t *testing.T) {
	needOurs(t)
	lab := netlab.New(t, netlab.Options{NoRemote: true})
	run := func(kernel, program string, args ...string) (int, string) {
		argv := append([]string{filepath.Join(netlab.Stage(), "hold"), olderArg, kernel,
			filepath.Join(filepath.Dir(netlab.Pasta()), program)}, args...)
		p := lab.Host.Start(netlab.Spec{Args: argv, User: netlab.Nobody})
		return p.Wait(), p.Output()
	}
	if st, out := run("pidfd", "aldente", "--self-test"); st != 0 {
		t.Skipf("this system lacks a layer of itself:\n%s", out)
	}
	none := []string{"-t", "none", "-u", "none", "-T", "none", "-U", "none", "--config-net"}
	for _, tt := range []struct {
		kernel  string
		layer   string // as reported of each process
		missing bool
	}{
		{"landlock", "landlock: missing (kernel without Landlock)", true},
		{"lsm", "landlock: missing (Landlock is switched off: add landlock to lsm= on the kernel's command line)", true},
		{"1", "landlock: partly in force (ABI 1, ", false},
		{"3", "landlock: partly in force (ABI 3, ", false},
		{"5", "landlock: partly in force (ABI 5, ", false},
		{"6", "landlock: in force (ABI 6, ", false},
		{"seccomp", ": missing (kernel without seccomp filters)", true},
		{"mdwe", "memory-deny-write-execute: partly in force (kernel before 6.3: by seccomp only)", false},
	} {
		t.Run(tt.kernel, func(t *testing.T) {
			st, out := run(tt.kernel, "aldente", "--self-test")
			if n := strings.Count(out, tt.layer); n < 3 || (st != 0) != tt.missing {
				t.Errorf("self-test: status %d, layer named %d times:\n%s", st, n, out)
			}
			st, out = run(tt.kernel, "pasta", append(none, "--", "ip", "-o", "link")...)
			if st != 0 || !strings.Contains(out, "state U") || strings.Contains(out, tt.layer) != (tt.missing || strings.Contains(tt.layer, "partly")) {
				t.Errorf("status %d:\n%s", st, out)
			}
			st, out = run(tt.kernel, "pasta", append(none, "--strict", "--", "true")...)
			if (st != 0) != tt.missing || tt.missing && !strings.Contains(out, tt.layer) {
				t.Errorf("--strict: status %d:\n%s", st, out)
			}
		})
	}
}
