// SPDX-License-Identifier: Apache-2.0

package calls

import (
	"math/bits"
	"slices"
	"strings"
)

// Arches are the architectures that filters are made for.
func Arches() []string { return []string{"amd64", "arm64", "ppc64le", "riscv64", "s390x"} }

// Constants of amd64 that have another value elsewhere. Lists are written with
// these and not with those of x/sys, which are of the architecture that the
// generator or a test runs on.
const (
	mapNoReserve = 0x4000
	oNoFollow    = 0x20000
	soPeerCred   = 17
	soRcvLowAt   = 18
	soSndTimeO   = 21

	tunSetCarrier = 0x400454e2
)

// elsewhere says which of the named constants has another value than on amd64.
// TestConstants compares all names with x/sys.
var elsewhere = map[string]map[string]uint64{
	"arm64": {"O_NOFOLLOW": 0x8000},
	"ppc64le": {"O_NOFOLLOW": 0x8000, "MAP_NORESERVE": 0x40,
		"SO_RCVLOWAT": 16, "SO_SNDTIMEO": 19, "SO_PEERCRED": 21, "TUNSETCARRIER": 0x800454e2},
}

// For returns the list with the constants of an architecture, and with its arguments'
// places. Rules of another one are in it as they were.
func (l *List) For(arch string) List {
	here := List{Name: l.Name, Doc: l.Doc, Rules: make([]Rule, len(l.Rules))}
	for i, r := range l.Rules {
		if r.Arch == "" || r.Arch == arch {
			r.Args = r.argsOn(arch)
		}
		here.Rules[i] = r
	}
	return here
}

// argsOn returns the rule's conditions with an architecture's constants.
func (r *Rule) argsOn(arch string) []Arg {
	if arch == "s390x" {
		return r.argsOnS390x()
	}
	if elsewhere[arch] == nil || r.Args == nil {
		return r.Args
	}
	args := make([]Arg, len(r.Args))
	for i, a := range r.Args {
		if arg, ok := r.argument(a.Index); ok {
			a.Value = arg.on(arch, a.Value)
			if arg.flags {
				a.Mask = ^arg.on(arch, ^a.Mask)
			}
		}
		args[i] = a
	}
	return args
}

// argsOnS390x: mmap(2) has one argument there, the address of the six, which no filter
// can follow. clone(2) has the stack before the flags (CONFIG_CLONE_BACKWARDS2).
func (r *Rule) argsOnS390x() []Arg {
	switch r.Call {
	case "mmap":
		return nil
	case "clone":
		args := slices.Clone(r.Args)
		for i := range args {
			if args[i].Index == 0 {
				args[i].Index = 1
			}
		}
		return args
	}
	return r.Args
}

// on returns the value of an argument on an architecture.
func (arg *argument) on(arch string, v uint64) uint64 {
	if !arg.flags {
		if other, ok := elsewhere[arch][arg.values[v]]; ok {
			return other
		}
		return v
	}
	var there uint64
	for v != 0 {
		bit := uint64(1) << bits.TrailingZeros64(v)
		v &^= bit
		if other, ok := elsewhere[arch][arg.values[bit]]; ok {
			bit = other
		}
		there |= bit
	}
	return there
}

// argument returns what the argument of a call is called, and its values.
func (r *Rule) argument(index uint) (argument, bool) {
	switch {
	case strings.HasSuffix(r.Call, "sockopt") && index == 1:
		return argument{"level", levels, false}, true
	case strings.HasSuffix(r.Call, "sockopt") && index == 2:
		return argument{"option", optionNames[r.level()], false}, true
	}
	arg, ok := arguments[r.Call][index]
	return arg, ok
}

// level returns the level of a rule about a socket option.
func (r *Rule) level() uint64 {
	for _, a := range r.Args {
		if a.Index == 1 {
			return a.Value
		}
	}
	return ^uint64(0)
}
