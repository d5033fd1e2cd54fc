// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
)

// again runs the tests that failed once more, package by package, by command, if there
// are at most so many. Those that pass count as passed, and are returned.
func (s *summary) again(most int, command []string) (unsteady []test) {
	if len(s.failures.tests) > most {
		return nil
	}
	second := newSummary("")
	for _, t := range s.failures.tests {
		fmt.Printf("again: %s %s\n", t.pkg, t.name)
		if err := second.run(append(slices.Clone(command), "-run", "^"+t.name+"$", t.pkg)); err != nil {
			fmt.Println("again:", err)
			return nil
		}
	}
	return s.forgive(second)
}

// run adds the events that a command prints. That tests fail is no error.
func (s *summary) run(command []string) error {
	c := exec.Command(command[0], command[1:]...)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		return err
	}
	err = s.read(out)
	_, _ = io.Copy(io.Discard, out)
	_ = c.Wait() // the events say what failed
	return err
}

// forgive counts as passed what has failed, and passed in a second run in which nothing
// of it failed.
func (s *summary) forgive(second *summary) (unsteady []test) {
	if second.broken {
		return nil
	}
	s.failures.tests = slices.DeleteFunc(s.failures.tests, func(t test) bool {
		if !second.passes[t] || second.failures.count[t] > 0 {
			return false
		}
		unsteady = append(unsteady, t)
		s.failed -= s.failures.count[t]
		s.passed += s.failures.count[t]
		return true
	})
	return unsteady
}
