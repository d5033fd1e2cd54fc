// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Namespace is one kind of namespace.
type Namespace struct {
	Name string  // as in /proc/PID/ns
	Flag uintptr // for clone(2)
}

// Namespaces lists all that the worker gets new and empty.
var Namespaces = [...]Namespace{
	{"user", unix.CLONE_NEWUSER},
	{"mnt", unix.CLONE_NEWNS},
	{"net", unix.CLONE_NEWNET},
	{"pid", unix.CLONE_NEWPID},
	{"ipc", unix.CLONE_NEWIPC},
	{"uts", unix.CLONE_NEWUTS},
	{"cgroup", unix.CLONE_NEWCGROUP},
}

// NamespaceNames returns the names of the namespaces in flags, comma-separated.
func NamespaceNames(flags uintptr) string {
	var names []string
	for _, n := range Namespaces {
		if flags&n.Flag != 0 {
			names = append(names, n.Name)
		}
	}
	return strings.Join(names, ",")
}

// ParseNamespaces is the inverse of NamespaceNames. Unknown names are ignored.
func ParseNamespaces(names string) (flags uintptr) {
	for name := range strings.SplitSeq(names, ",") {
		for _, n := range Namespaces {
			if n.Name == name {
				flags |= n.Flag
			}
		}
	}
	return flags
}

// CheckNamespaces reports which namespaces a process was started in, as told
// by the one that started it. The process identifier is the one thing that can
// be seen from inside.
func CheckNamespaces(flags uintptr) Layer {
	const name = "namespaces"
	var missing uintptr
	for _, n := range Namespaces {
		if flags&n.Flag == 0 {
			missing |= n.Flag
		}
	}
	switch {
	case flags&unix.CLONE_NEWPID != 0 && unix.Getpid() != 1:
		return Layer{name, Missing, "not the first process of its namespace"}
	case missing != 0:
		return Layer{name, Missing, "without " + NamespaceNames(missing)}
	}
	return Layer{name, InForce, NamespaceNames(flags)}
}
