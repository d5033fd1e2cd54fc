// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestFirstImage: where the system refuses what the worker's process is to do before
// it executes anything, a first image does it, and tells what it could not do; what was
// not achieved is said to be missing.
func TestFirstImage(t *testing.T) {
	if raceDetector {
		t.Skip("a build for the race detector always has a first image")
	}
	refusals := map[string]struct {
		nr   uint32
		told []string
	}{
		"mount":      {unix.SYS_MOUNT, []string{"private mounts: operation not permitted", "file system: missing"}},
		"pivot_root": {unix.SYS_PIVOT_ROOT, []string{"pivot", "file system: missing"}},
		"umount2":    {unix.SYS_UMOUNT2, []string{"file system: missing"}},
	}
	if r, ok := refusals[os.Getenv("ALDENTE_TEST_FIRST")]; ok {
		refuse(t, r.nr)
		testFirstImage(t, r.told)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for call := range refusals {
		cmd := exec.Command(exe, "-test.run=^TestFirstImage$", "-test.v", "-captive="+captivePath(t))
		cmd.Env = append(os.Environ(), "ALDENTE_TEST_FIRST="+call)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", call, err, out)
		}
	}
}

// testFirstImage is TestFirstImage where something is refused.
func testFirstImage(t *testing.T, told []string) {
	p := newPrison(t, func(o *Options) { o.Extra = "attempt=nothing" })
	p.start(t)
	if said, _ := p.outcome(t); said != "succeeded" {
		t.Errorf("the worker said %q", said)
	}
	p.Stop() // and the log is complete
	for _, want := range told {
		if !strings.Contains(p.log.String(), want) {
			t.Errorf("%q is not reported:\n%s", want, p.log)
		}
	}
	if strings.Contains(p.log.String(), "capabilities: missing") {
		t.Errorf("the first image has not gone on:\n%s", p.log)
	}
}

// refuse has a system call fail by EPERM, in all threads and children.
func refuse(t *testing.T, nr uint32) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the call's number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&filter))); errno != 0 {
		t.Skipf("seccomp: %v", errno)
	}
}
