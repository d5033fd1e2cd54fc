// SPDX-License-Identifier: Apache-2.0

// Command permissions finds permissions that nobody uses. It runs a command,
// end-to-end tests for one, records which system calls broker, agent and worker
// make meanwhile once they are confined, with their arguments, and compares with
// the lists of policy/calls. A rule that permitted nothing is an error, unless
// the list of exceptions says why it has to stay; so is an exception for a rule
// that does not exist.
//
// It is the mirror of the tests from inside, which show that nothing is possible
// beyond the lists. It needs root and the kernel's tracing file system; without
// them it says so and runs the command all the same.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	var o options
	flag.StringVar(&o.exceptions, "exceptions", "test/permissions/exceptions.txt", "rules that need not be used, and why")
	flag.BoolVar(&o.json, "json", false, "the verdict as go test -json prints that of a test")
	flag.BoolVar(&o.counts, "counts", false, "how often each rule was seen, at least")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "permissions: a command is expected, such as: make e2e")
		os.Exit(2)
	}
	status, err := run(&o, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "permissions:", err)
		status = max(status, 1)
	}
	os.Exit(status)
}

type options struct {
	exceptions   string
	json, counts bool
}

// run returns the status that the program ends with: the command's if that is not
// zero, one if a rule is wrong.
func run(o *options, command []string) (int, error) {
	excused, err := readExceptions(o.exceptions)
	if err != nil {
		return 1, err
	}
	u := newUsage()
	// Interrupted, the command ends, and we after it: the kernel would trace on.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, unix.SIGTERM)
	t, unrecorded := startTrace(u)
	if unrecorded != nil {
		fmt.Println("permissions: not recorded:", unrecorded)
	}
	c := exec.Command(command[0], command[1:]...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	runErr := c.Run()
	status := 0
	if exit := (*exec.ExitError)(nil); errors.As(runErr, &exit) {
		status, runErr = max(exit.ExitCode(), 1), nil
	}
	if unrecorded != nil || runErr != nil {
		return status, runErr
	}
	lost, err := t.stop()
	if err != nil {
		return max(status, 1), err
	}
	bad := u.judge(excused)
	if o.counts {
		u.tell(os.Stdout)
	}
	for _, b := range bad {
		fmt.Println(b)
	}
	fmt.Printf("permissions: %d of %d rules used, %d excused, %d wrong\n", u.used(), u.total(), len(excused), len(bad))
	if len(bad) > 0 && lost > 0 {
		// One of them may have been the use of a rule.
		fmt.Printf("permissions: not judged: %d events were lost\n", lost)
		return status, nil
	}
	if o.json {
		verdict(len(bad) == 0)
	}
	if len(bad) > 0 {
		status = max(status, 1)
	}
	return status, nil
}

// verdict prints an event of test2json, for test/summary.
func verdict(good bool) {
	e := struct{ Action, Package, Test string }{"pass", "aldente/test/permissions", "Permissions"}
	if !good {
		e.Action = "fail"
	}
	b, _ := json.Marshal(e)
	fmt.Println(string(b))
}
