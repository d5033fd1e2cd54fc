// SPDX-License-Identifier: Apache-2.0

// The runtime must not wake up by itself to read the number of processors, nor
// name its mappings by prctl, which the filter forbids.

//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
//go:debug decoratemappings=0

// Command aldente-worker translates between a guest's frames and sockets. It
// is the process that reads hostile packets, so it starts by giving up
// everything but the descriptors the broker hands it. Only the broker can
// start it.
//
// It comes without files and without capabilities, or it runs twice: the first time
// straight from clone(2), in new namespaces. Then it empties its file system and its
// capabilities and replaces itself by a fresh image: capabilities belong to threads, and
// only exec leaves none with any. After that it confines itself, reads what the broker
// sends, gives up what only that needed, and translates until the broker is
// gone.
package main

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"aldente/policy"
	"aldente/policy/stage"
)

// program is what this one is confined as. Nothing on the packet path allocates, so
// the collector is off unless something leaks.
var program = stage.Program{Name: "aldente-worker", Memory: policy.MaxMemory, Heap: 1 << 30, NoCollector: true}

func init() {
	// The main goroutine keeps the main thread: the one whose capabilities
	// are dropped, that execs, and whose name ps shows.
	runtime.LockOSThread()
}

func main() {
	args, err := policy.ParseArguments(os.Args)
	if err != nil {
		stage.Fail(err)
	}
	if args.Stage != policy.StageRun {
		// Ends in exec of this program, with the last stage, or in an error.
		stage.Fail(stage.Enter(args))
	}

	// 1. Lock down. From here on no file can be opened and no socket made.
	program.Tune()
	stage.Tell(args, program.Confine(args))

	// 2. Read the start-up records: configuration, the guest's link, listeners.
	translator, err := prepare(policy.ControlFD)
	if err != nil {
		stage.Fail(err)
	}

	// 3. Give up what only start-up needed.
	stage.Tell(args, stage.Tighten(args))

	// 4. Say that we are ready, and translate. The runtime takes the processor
	// from a goroutine every 10 ms: one that is bound to a thread gets it back
	// by two switches between threads, any other at once.
	runtime.UnlockOSThread()
	if err := translator.Run(); err != nil {
		stage.Fail(err)
	}
	unix.Exit(0)
}

// translator is what prepare returns: worker/lane, or the captive of tests.
type translator interface {
	// Run sends ipc.KindReady and translates until the broker's end of the
	// control channel is closed.
	Run() error
}
