// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// Descriptors that every worker, and names, is started with. 0 and 1 are /dev/null.
const (
	LogFD        = 2 // pipe to the broker: log lines, and what the runtime says when it dies
	ControlFD    = 3 // SOCK_SEQPACKET to the broker
	ExecutableFD = 4 // O_PATH of the process's own program, closed by its second stage
)

// Stages of a worker, and of names.
const (
	StageEnter   = "enter"   // fresh from clone: mounts and capabilities, then exec of itself
	StageReplace = "replace" // the same, where the file system is empty already
	StageRun     = "run"     // confines itself and does its work
)

// Environment is all that a worker, and names, find in their environment when they
// confine themselves: one processor, because there is one event loop, and no preemption
// by signals, which would only interrupt its system calls. Neither can be set in the
// source without a cost at each start.
var Environment = []string{"GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=1"}

// Modes of a worker, by what its link to the guest is, and that of names.
const (
	ModeTap       = "tap"
	ModeStream    = "stream"     // a socket for virtual machines
	ModeVhostUser = "vhost-user" // the guest's memory
	ModeNames     = "names"      // no worker: aldente-names
)

// Arguments is the command line of a worker or of names, written by the broker and by
// the process's first stage for its second. It comes from trusted code.
type Arguments struct {
	Stage      string  // Stage*
	Mode       string  // Mode*
	Namespaces uintptr // CLONE_NEW* flags it was started with
	Strict     bool    // refuse to run unless all layers are in force
	Debug      bool    // report the layers
	FileSize   int64   // bytes that a file may have to which it writes, negative: any number
	Files      int     // descriptors that it may hold; 0: as it was given
	Extra      string  // test builds only
}

// Strings returns the argument vector.
func (a *Arguments) Strings() []string {
	program := "aldente-worker"
	if a.Mode == ModeNames {
		program = "aldente-names"
	}
	return []string{program, a.Stage, a.Mode, NamespaceNames(a.Namespaces),
		strconv.FormatBool(a.Strict), strconv.FormatBool(a.Debug), strconv.FormatInt(a.FileSize, 10), strconv.Itoa(a.Files), a.Extra}
}

// ParseArguments reads an argument vector.
func ParseArguments(argv []string) (Arguments, error) {
	if len(argv) != 9 {
		return Arguments{}, fmt.Errorf("started with %d arguments: only the broker can start this program", len(argv))
	}
	a := Arguments{Stage: argv[1], Mode: argv[2], Namespaces: ParseNamespaces(argv[3]), Extra: argv[8]}
	var err error
	if a.Strict, err = strconv.ParseBool(argv[4]); err != nil {
		return a, err
	}
	if a.Debug, err = strconv.ParseBool(argv[5]); err != nil {
		return a, err
	}
	if a.FileSize, err = strconv.ParseInt(argv[6], 10, 64); err != nil {
		return a, err
	}
	if a.Files, err = strconv.Atoi(argv[7]); err != nil {
		return a, err
	}
	if a.Files < 0 || a.Stage != StageEnter && a.Stage != StageReplace && a.Stage != StageRun || !ValidMode(a.Mode) {
		return a, fmt.Errorf("arguments %q", strings.Join(argv[1:], " "))
	}
	return a, nil
}

// ValidMode tells whether there is such a mode.
func ValidMode(m string) bool {
	return m == ModeTap || m == ModeStream || m == ModeVhostUser || m == ModeNames
}
