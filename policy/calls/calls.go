// SPDX-License-Identifier: Apache-2.0

// Package calls says, as data, which system calls each process may make, with
// which arguments, why, and who makes them.
//
// The lists are read by the generator (policy/generate), which compiles them
// to BPF with libseccomp, by the tests that check the compiled programs
// against them, and by the tables in docs/security-calls.md. No program links them: the
// programs embed what was compiled.
//
// Lists have the constants of amd64, List.For gives them those of another
// architecture. What has the same value on all comes from golang.org/x/sys/unix,
// the rest from arch.go.
package calls

// Self stands in an argument rule for the identifier of the process that loads
// the filter; the loader replaces it. No process has this identifier, which is
// above the kernel's PID_MAX_LIMIT.
const Self = 0x53454c46

// OwnUID and OwnGID stand for the real user and group of the process that loads the
// filter, in the same way.
const (
	OwnUID = 0x5f554944
	OwnGID = 0x5f474944
)

// Rule permits one system call. A call that no rule permits ends the process.
type Rule struct {
	Call string // name in the kernel's tables, e.g. "accept4"
	Args []Arg  // conditions that must all hold; none means any arguments
	Why  string // what it is needed for
	User string // the part of the program that makes it
	Arch string // e.g. "amd64" where only that one has the call
}

// Arg is a condition on one argument: arg & Mask == Value. All 64 bits of the
// register count, so stray upper bits never widen a rule.
type Arg struct {
	Index uint   // 0 to 5
	Mask  uint64 // all ones: the whole argument
	Value uint64 // of the masked argument
}

// Holds says whether the condition is true of an argument.
func (a Arg) Holds(v uint64) bool { return v&a.Mask == a.Value }

// Permits says whether the rule permits a call with these arguments.
func (r *Rule) Permits(args [6]uint64) bool {
	for _, a := range r.Args {
		if !a.Holds(args[a.Index]) {
			return false
		}
	}
	return true
}

// List is everything one process may call in one phase.
type List struct {
	Name  string // name of the compiled filter, e.g. "worker"
	Doc   string // which process, when
	Rules []Rule // any of which permits a call
}

// Permits says whether any rule of the list permits the call on arch, for which For
// has made it.
func (l *List) Permits(arch, call string, args [6]uint64) bool {
	for i := range l.Rules {
		r := &l.Rules[i]
		if r.Call == call && (r.Arch == "" || r.Arch == arch) && r.Permits(args) {
			return true
		}
	}
	return false
}

// All returns every list.
func All() []List {
	return []List{WorkerStart(), Worker(), WorkerVhostStart(), WorkerVhost(), NamesStart(), Names(), Agent(), Broker(), BrokerVhost(), Remover(), Reader()}
}

// is requires an argument to have exactly one value.
func is(index uint, value uint64) Arg { return Arg{index, ^uint64(0), value} }

// within allows only the bits given.
func within(index uint, bits uint64) Arg { return Arg{index, ^bits, 0} }

// except requires value once the optional bits are set aside.
func except(index uint, optional, value uint64) Arg { return Arg{index, ^optional, value} }

// plain returns rules for calls whose arguments are not limited.
func plain(user, why string, names ...string) []Rule {
	rules := make([]Rule, 0, len(names))
	for _, n := range names {
		rules = append(rules, Rule{Call: n, Why: why, User: user})
	}
	return rules
}

// each returns one rule for each value that argument index may have.
func each(user, why, call string, index uint, values ...uint64) []Rule {
	rules := make([]Rule, 0, len(values))
	for _, v := range values {
		rules = append(rules, Rule{Call: call, Args: []Arg{is(index, v)}, Why: why, User: user})
	}
	return rules
}

// options returns one rule for each option of one level, for setsockopt and
// getsockopt.
func options(user, why, call string, level uint64, names ...uint64) []Rule {
	rules := make([]Rule, 0, len(names))
	for _, n := range names {
		rules = append(rules, Rule{Call: call, Args: []Arg{is(1, level), is(2, n)}, Why: why, User: user})
	}
	return rules
}

func join(parts ...[]Rule) []Rule {
	var all []Rule
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}
