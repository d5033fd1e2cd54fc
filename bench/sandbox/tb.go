// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
)

// bed stands in for *testing.T where netlab wants one: failures are panics
// that try turns into errors, and clean-up is run by close.
type bed struct {
	cleanups []func()
}

type failure struct{ error }

func (b *bed) Helper()                           {}
func (b *bed) Logf(format string, args ...any)   { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (b *bed) Fatalf(format string, args ...any) { panic(failure{fmt.Errorf(format, args...)}) }
func (b *bed) Cleanup(f func())                  { b.cleanups = append(b.cleanups, f) }
func (b *bed) Failed() bool                      { return false }
func (b *bed) Name() string                      { return "bench/sandbox" }

// close undoes what was set up, last first.
func (b *bed) close() {
	for i := len(b.cleanups) - 1; i >= 0; i-- {
		b.cleanups[i]()
	}
	b.cleanups = nil
}

// try runs f and returns its failure.
func try(f func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			var fail failure
			if e, ok := r.(error); ok && errors.As(e, &fail) {
				err = fail.error
				return
			}
			panic(r)
		}
	}()
	f()
	return nil
}
