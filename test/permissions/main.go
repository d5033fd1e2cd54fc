// SPDX-License-Identifier: Apache-2.0

// Command permissions finds permissions that nobody uses. It runs a command,
// end-to-end tests for one, records which system calls broker, agent and worker
// make meanwhile once they are confined, with their arguments, and compares with
// the lists of policy/calls. A rule that permitted nothing is an error, unless
// the list of exceptions says why it has to stay; so is an exception for a rule
// that does not exist.
//
// It is the mirror of the tests from inside, which show that nothing is possible
// beyond the lists. It needs root and the kernel's tracing file system.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
)

func main() {
	if os.Geteuid() != 0 {
		fmt.Println("permissions: skipped: tracing system calls needs root")
		return
	}
	exceptions := flag.String("exceptions", "test/permissions/exceptions.txt", "rules that need not be used, and why")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "permissions: a command is expected, such as: make e2e SHORT=1")
		os.Exit(2)
	}
	status, err := run(*exceptions, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "permissions:", err)
		status = max(status, 1)
	}
	os.Exit(status)
}

func run(exceptions string, command []string) (int, error) {
	excused, err := readExceptions(exceptions)
	if err != nil {
		return 1, err
	}
	u := newUsage()
	t, err := startTrace(u)
	if err != nil {
		fmt.Println("permissions: skipped:", err)
		return 0, nil
	}
	c := exec.Command(command[0], command[1:]...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	runErr := c.Run()
	if err := t.stop(); err != nil {
		return 1, err
	}
	bad := u.judge(excused)
	for _, b := range bad {
		fmt.Println(b)
	}
	fmt.Printf("permissions: %d of %d rules used, %d excused, %d wrong\n", u.used(), u.total(), len(excused), len(bad))
	if runErr != nil {
		return 1, fmt.Errorf("%s: %w", command[0], runErr)
	}
	if len(bad) > 0 {
		return 1, nil
	}
	return 0, nil
}
