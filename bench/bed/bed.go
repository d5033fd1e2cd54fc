// SPDX-License-Identifier: Apache-2.0

// Package bed lets benchmarks, which are programs, use what tests use: it
// stands in for *testing.T.
package bed

import (
	"errors"
	"fmt"
	"os"
)

// Bed is a netlab.TB outside of tests. A failure is a panic that Try turns into
// an error, and clean-up is run by Close.
type Bed struct {
	name     string
	cleanups []func()
}

// New returns a Bed for the program of that name.
func New(name string) *Bed { return &Bed{name: name} }

type failure struct{ error }

// Helper does nothing.
func (b *Bed) Helper() {}

// Logf prints to standard error.
func (b *Bed) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// Fatalf ends the function that Try runs.
func (b *Bed) Fatalf(format string, args ...any) { Fail(fmt.Errorf(format, args...)) }

// Fail is Fatalf for an error.
func Fail(err error) { panic(failure{err}) }

// Cleanup has f called by Close.
func (b *Bed) Cleanup(f func()) { b.cleanups = append(b.cleanups, f) }

// Failed is always false: who calls Try learns of failures.
func (b *Bed) Failed() bool { return false }

// Name is the name given to New.
func (b *Bed) Name() string { return b.name }

// Close undoes what was set up, last first.
func (b *Bed) Close() {
	for i := len(b.cleanups) - 1; i >= 0; i-- {
		b.cleanups[i]()
	}
	b.cleanups = nil
}

// Try runs f and returns its failure.
func Try(f func()) (err error) {
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
