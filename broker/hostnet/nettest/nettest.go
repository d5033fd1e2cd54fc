// SPDX-License-Identifier: Apache-2.0

// Package nettest gives tests network namespaces to build hosts in.
package nettest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inside marks the run of a test binary in a user namespace of its own.
const inside = "ALDENTE_TEST_USERNS"

// Main runs the tests, as user 0 of a new user namespace if the caller has no
// privileges, so that Host works for everybody where the kernel allows it.
func Main(m *testing.M) {
	if os.Geteuid() != 0 && os.Getenv(inside) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Args[0] = os.Args[0]
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = userNamespace()
		err := cmd.Run()
		if cmd.ProcessState != nil && cmd.ProcessState.Exited() {
			os.Exit(cmd.ProcessState.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "tests run without a user namespace:", err)
	}
	os.Exit(m.Run())
}

// Host moves the test to a new, empty network namespace with lo up. It lasts as
// long as the test's goroutine, which stays on its thread.
func Host(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip(8) of iproute2")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs a network namespace: unshare: %v", err)
	}
	IP(t, "link set lo up")
}

// IP runs ip(8), once for each line, in the namespace of the test's thread.
func IP(t *testing.T, lines ...string) {
	t.Helper()
	for _, l := range lines {
		Run(t, "ip", strings.Fields(l)...)
	}
}

// Try runs a program with the words of a line, in the namespace of the test's
// thread.
func Try(name, line string) error {
	return exec.Command(name, strings.Fields(line)...).Run()
}

// Run runs a program in the namespace of the test's thread and returns its
// output.
func Run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Veth makes an interface that is up, its other end too.
func Veth(t *testing.T, name string) {
	t.Helper()
	// Without the end's own link-local address: its detection takes a second.
	IP(t, "link add "+name+" type veth peer name "+name+"p", "link set "+name+" addrgenmode none",
		"link set "+name+"p addrgenmode none up", "link set "+name+" up")
}
