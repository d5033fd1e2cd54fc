// SPDX-License-Identifier: Apache-2.0

//go:build captive && !race

package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"aldente/ipc"
	"aldente/policy"
)

// The captive is the worker with its translator replaced by a prisoner: it goes
// through the real lock-down and then tries one forbidden thing, named in
// Arguments.Extra as "attempt=NAME" or, to test the layers behind a filter,
// "attempt=NAME skip=seccomp". It says on the control channel how the attempt
// ended, if it still can.

type captive struct {
	control int
	attempt string
	held    held
}

// held are the descriptors that the broker gave it, one of each class.
type held struct {
	link     int // as KindLink
	listener int // as KindListener
	flow     int // as KindCapture: a connected socket
}

// extra returns the value of one key of Arguments.Extra.
func extra(args policy.Arguments, key string) (values []string) {
	for word := range strings.FieldsSeq(args.Extra) {
		if k, v, ok := strings.Cut(word, "="); ok && k == key {
			values = append(values, v)
		}
	}
	return values
}

// unlessSkipped leaves out a layer that "skip=NAME" names.
func unlessSkipped(args policy.Arguments, name string, layer func() policy.Layer) policy.Layer {
	if slices.Contains(extra(args, "skip"), name) {
		return policy.Layer{Name: name, State: policy.Missing, Detail: "left out by the test"}
	}
	return layer()
}

func prepare(control int) (translator, error) {
	c := &captive{control: control, held: held{-1, -1, -1}}
	// As the translators do for their secrets: the vDSO maps its state now.
	var secret [16]byte
	_, _ = rand.Read(secret[:])
	buf := make([]byte, ipc.MaxRecord)
	for {
		n, fd, err := ipc.Receive(control, buf, 0)
		if err != nil {
			return nil, err
		}
		h, err := ipc.ParseHeader(buf[:n])
		if err != nil {
			return nil, err
		}
		switch h.Kind {
		case ipc.KindLink:
			c.held.link = fd
		case ipc.KindListener:
			c.held.listener = fd
		case ipc.KindCapture:
			c.held.flow = fd
		case ipc.KindStart:
			return c, nil
		}
	}
}

func (c *captive) Run() error {
	if _, err := unix.Write(c.control, ipc.Empty(ipc.KindReady)); err != nil {
		return err
	}
	args, err := policy.ParseArguments(os.Args)
	if err != nil {
		return err
	}
	for _, name := range extra(args, "attempt") {
		do, ok := attempts[name]
		if !ok {
			return fmt.Errorf("no attempt %q", name)
		}
		if _, err := unix.Write(c.control, []byte(outcome(do(c.held)))); err != nil {
			return err
		}
	}
	var b [1]byte
	for {
		if n, err := unix.Read(c.control, b[:]); n == 0 || err != nil && err != unix.EINTR {
			return nil
		}
	}
}

func outcome(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "succeeded"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}
