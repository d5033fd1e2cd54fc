// SPDX-License-Identifier: Apache-2.0

//go:build !race

package stage

import (
	"fmt"
	"math"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"aldente/policy"
)

// Enter is the first stage. It replaces the process by the second one, which
// looks at what has been achieved; so what an old or restricted system refuses
// here is told there. It returns what kept it from that.
func Enter(args policy.Arguments) error {
	if err := policy.CheckExecutable(); err != nil {
		return err
	}
	// Descriptors that the broker inherited and its child with it. Kernels
	// before 5.11 refuse: there the broker's own close_range has to do.
	_ = unix.CloseRange(policy.ExecutableFD+1, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	giveUp(args)
	args.Stage = policy.StageRun
	return execSelf(args.Strings(), policy.Environment)
}

// execSelf replaces the process by the program that policy.ExecutableFD names.
// There may be no file system left to find it by name.
func execSelf(argv, env []string) error {
	argp, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return err
	}
	envp, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return err
	}
	unix.CloseOnExec(policy.ExecutableFD)
	empty := [1]byte{}
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, policy.ExecutableFD,
		uintptr(unsafe.Pointer(&empty[0])), uintptr(unsafe.Pointer(&argp[0])),
		uintptr(unsafe.Pointer(&envp[0])), unix.AT_EMPTY_PATH, 0)
	return fmt.Errorf("exec of the second stage: %w%s", errno, policy.ExecHint(errno))
}
