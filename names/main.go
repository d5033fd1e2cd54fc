// SPDX-License-Identifier: Apache-2.0

// The runtime must not wake up by itself to read the number of processors, nor
// name its mappings by prctl, which the filter forbids.

//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
//go:debug decoratemappings=0

// Command aldente-names answers the guest's questions for names, where egress rules
// are by name. It reads what the guest asks and what resolvers answer, so it starts as
// the worker does: by giving up everything but the descriptors that the broker hands
// it. Where it may ask the broker decides, which is told what a name stands for and
// believes that of names alone: every rule by address holds, whatever this process says.
package main

import (
	"errors"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"aldente/names/kernel"
	"aldente/policy"
	"aldente/policy/quiet"
	"aldente/policy/stage"
)

// program is what this one is confined as. All that it keeps is bounded; what a question
// takes is garbage once it is answered.
var program = stage.Program{Name: "aldente-names", Memory: policy.MaxNamesMemory, Heap: 64 << 20}

func init() {
	// The main goroutine keeps the main thread: the one whose capabilities
	// are dropped, that execs, and whose name ps shows.
	runtime.LockOSThread()
}

func main() {
	args, err := policy.ParseArguments(os.Args)
	if err == nil && args.Mode != policy.ModeNames {
		err = errors.New("started as a worker")
	}
	if err != nil {
		stage.Fail(err)
	}
	if args.Stage != policy.StageRun {
		// Ends in exec of this program, with the last stage, or in an error.
		stage.Fail(stage.Enter(args))
	}

	// 1. Lock down. From here on no file can be opened and no socket made. No call on the
	// control channel is to wait, since the broker may be waiting for us.
	program.Tune()
	err = kernel.Nonblocking(policy.ControlFD)
	stage.Tell(args, program.Confine(args))
	if err != nil {
		stage.Fail(err)
	}

	// 2. Read the start-up records: how many resolvers there are, and the rules.
	r, err := prepare(policy.ControlFD, args.Files)
	if err != nil {
		stage.Fail(err)
	}

	// 3. Give up what only start-up needed.
	stage.Tell(args, stage.Tighten(args))

	// 4. Say that we are ready, and answer.
	runtime.UnlockOSThread()
	quiet.Collector()
	if err := r.Run(); err != nil {
		stage.Fail(err)
	}
	unix.Exit(0)
}

// resolver is what prepare returns: names/loop, or the captive of tests.
type resolver interface {
	// Run sends ipc.NamesKindReady and answers until the broker's end of the control
	// channel is closed.
	Run() error
}
