// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"aldente/policy"
	"aldente/policy/calls"
)

// Names that our processes go by in the kernel: a broker has that of the command
// it was started by, or "exe" in the background.
const (
	workerComm  = "aldente-worker"
	agentComm   = "aldente-agent"
	namesComm   = "aldente-names"
	removerComm = "aldente-socket"
	readerComm  = "aldente-reader"
)

var brokerComms = []string{"pasta", "passt", "aldente", "exe"}

// process is one of ours, by its thread group.
type process struct {
	lists    []string // names of the filters in force, in order of loading
	uid, gid uint64   // real ones, when it loaded the last
}

// rule is a permission and how often it was used, as far as that was reported.
type rule struct {
	calls.Rule
	here calls.Rule // with the constants of this architecture
	list string
	seen int
}

func (r *rule) String() string { return r.list + " " + calls.Describe(&r.Rule) }

// usage notes which rules permitted something.
type usage struct {
	mu    sync.Mutex
	procs map[int]*process // by thread group
	rules []*rule
	other []string                      // rules of another architecture
	by    map[string]map[string][]*rule // list, call
	names map[int]string
}

func newUsage() *usage {
	u := &usage{procs: map[int]*process{}, by: map[string]map[string][]*rule{}, names: map[int]string{}}
	for _, l := range calls.All() {
		m, here := map[string][]*rule{}, l.For(runtime.GOARCH)
		for i, r := range l.Rules {
			one := &rule{Rule: r, here: here.Rules[i], list: l.Name}
			if r.Arch != "" && r.Arch != runtime.GOARCH {
				u.other = append(u.other, calls.Describe(&r))
				continue
			}
			if strings.HasSuffix(r.Why, calls.ByReplacement) || copied(l.Name, &r) {
				continue // a copy of one of the worker's, or of another mode's
			}
			u.rules = append(u.rules, one)
			m[r.Call] = append(m[r.Call], one)
		}
		u.by[l.Name] = m
	}
	return u
}

// copied tells whether a rule of a list for vhost-user is one of the list for other links.
func copied(list string, r *calls.Rule) bool {
	for _, l := range calls.All() {
		if plain := strings.Replace(list, "-vhost", "", 1); plain != list && l.Name == plain {
			return slices.ContainsFunc(l.Rules, func(o calls.Rule) bool { return o.Call == r.Call && o.Arch == r.Arch && slices.Equal(o.Args, r.Args) })
		}
	}
	return false
}

// line takes one event, a line of trace_pipe with record-tgid:
//
//	COMM-TID ( TGID) [CPU] FLAGS TIME: sys_enter: NR N (ARG, ARG, ARG, ARG, ARG, ARG)
//	COMM-TID ( TGID) [CPU] FLAGS TIME: sched_process_fork: … child_pid=TID
func (u *usage) line(s string) {
	head, event, ok := strings.Cut(s, ": ")
	task, rest, ok2 := strings.Cut(head, "(")
	group, _, ok3 := strings.Cut(rest, ")")
	dash := strings.LastIndexByte(task, '-')
	if !ok || !ok2 || !ok3 || dash < 0 {
		return
	}
	comm, tgid := strings.TrimSpace(task[:dash]), number(group)
	if call, ok := strings.CutPrefix(event, "sys_enter: NR "); ok {
		nr, list, _ := strings.Cut(call, " (")
		var args [6]uint64
		for i := range args {
			var one string
			one, list, _ = strings.Cut(list, ", ")
			args[i], _ = strconv.ParseUint(strings.TrimSuffix(one, ")"), 16, 64)
		}
		u.called(comm, tgid, number(nr), args)
		return
	}
	if _, child, ok := strings.Cut(event, " child_pid="); ok {
		u.forked(tgid, number(child))
	}
}

func number(s string) int {
	n, _ := strconv.Atoi(strings.TrimSpace(s))
	return n
}

// forked notes a child, which inherits its parent's filters. A thread's number
// becomes that of no thread group and does no harm.
func (u *usage) forked(parent, child int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.procs, child)
	if p := u.procs[parent]; p != nil {
		u.procs[child] = &process{slices.Clone(p.lists), p.uid, p.gid}
	}
}

// called notes one call.
func (u *usage) called(comm string, tgid, nr int, args [6]uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.procs[tgid]
	if p == nil {
		p = &process{}
		u.procs[tgid] = p
	}
	for _, list := range p.lists {
		for _, r := range u.by[list][u.name(nr)] {
			if p.permitted(&r.here, tgid, args) {
				r.seen++
			}
		}
	}
	if nr == unix.SYS_SECCOMP && args[0] == unix.SECCOMP_SET_MODE_FILTER {
		p.lists = append(p.lists, next(comm, p.lists)...)
		p.uid, p.gid = realIDs(tgid)
	}
}

// realIDs are the real user and group of a process that has made a call just now.
func realIDs(pid int) (uid, gid uint64) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		_, _ = fmt.Sscanf(line, "Uid: %d", &uid)
		_, _ = fmt.Sscanf(line, "Gid: %d", &gid)
	}
	return uid, gid
}

// permitted is Rule.Permits with what the loader of the filter puts in place.
func (p *process) permitted(r *calls.Rule, tgid int, args [6]uint64) bool {
	for _, a := range r.Args {
		switch a.Value {
		case calls.Self:
			a.Value = uint64(tgid)
		case calls.OwnUID:
			a.Value = p.uid
		case calls.OwnGID:
			a.Value = p.gid
		}
		if !a.Holds(args[a.Index]) {
			return false
		}
	}
	return true
}

// next is the filter that a process loads when it has those. Which of those for
// vhost-user and for other links it is does not matter: what one of them permits and
// the other does not can be used under that one only.
func next(comm string, have []string) []string {
	switch {
	case comm == agentComm:
		return []string{policy.FilterAgent}
	case comm == removerComm:
		return []string{policy.FilterRemover}
	case comm == namesComm && slices.Contains(have, policy.FilterNamesStart):
		return []string{policy.FilterNames}
	case comm == namesComm:
		return []string{policy.FilterNamesStart}
	case comm == readerComm:
		return []string{policy.FilterReader}
	case comm != workerComm:
		return []string{policy.FilterBroker, policy.FilterBrokerVhost}
	case slices.Contains(have, policy.FilterWorkerStart):
		return []string{policy.FilterWorker, policy.FilterWorkerVhost}
	}
	return []string{policy.FilterWorkerStart, policy.FilterWorkerVhostStart}
}

func (u *usage) name(nr int) string {
	n, ok := u.names[nr]
	if !ok {
		n = policy.CallName(nr)
		u.names[nr] = n
	}
	return n
}

// filter is what the kernel is to report: calls of our processes, without those
// that no rule is left to be used by. The kernel takes a page at most. A worker
// that replaces another is subject to the broker's list, too.
func (u *usage) filter() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	parts := []string{
		u.without(fmt.Sprintf("comm == %q", workerComm), policy.FilterWorkerStart, policy.FilterWorker, policy.FilterWorkerVhostStart, policy.FilterWorkerVhost, policy.FilterBroker),
		u.without(fmt.Sprintf("comm == %q", agentComm), policy.FilterAgent),
		u.without(fmt.Sprintf("comm == %q", removerComm), policy.FilterRemover),
		u.without(fmt.Sprintf("comm == %q", namesComm), policy.FilterNamesStart, policy.FilterNames),
		u.without(fmt.Sprintf("comm == %q", readerComm), policy.FilterReader),
	}
	var brokers []string
	for _, c := range brokerComms {
		brokers = append(brokers, fmt.Sprintf("comm == %q", c))
	}
	return strings.Join(append(parts, u.without("("+strings.Join(brokers, " || ")+")", policy.FilterBroker, policy.FilterBrokerVhost)), " || ")
}

// without is a filter of tasks less the calls that lists have seen enough of.
func (u *usage) without(tasks string, lists ...string) string {
	for nr := range 512 {
		if nr != unix.SYS_SECCOMP && u.done(u.name(nr), lists) {
			tasks += fmt.Sprintf(" && id != %d", nr)
		}
	}
	return "(" + tasks + ")"
}

// done tells whether all rules for a call in lists were used.
func (u *usage) done(call string, lists []string) bool {
	found := false
	for _, list := range lists {
		for _, r := range u.by[list][call] {
			if r.seen == 0 {
				return false
			}
			found = true
		}
	}
	return found
}

func (u *usage) total() int { return len(u.rules) }

func (u *usage) used() (n int) {
	for _, r := range u.rules {
		if r.seen > 0 {
			n++
		}
	}
	return n
}

// tell lists all rules with what was seen of them, the rarest first.
func (u *usage) tell(to io.Writer) {
	all := slices.Clone(u.rules)
	slices.SortStableFunc(all, func(a, b *rule) int { return a.seen - b.seen })
	for _, r := range all {
		fmt.Fprintf(to, "%8d %v\n", r.seen, r)
	}
}

// judge returns what is wrong, a line each.
func (u *usage) judge(excused map[string]string) (bad []string) {
	meant := map[string]bool{}
	for _, r := range u.rules {
		what := calls.Describe(&r.Rule)
		ok := false
		for _, list := range []string{"*", r.list} {
			if _, found := excused[list+" "+what]; found {
				meant[list+" "+what], ok = true, true
			}
		}
		if r.seen == 0 && !ok {
			bad = append(bad, "never used: "+r.String())
		}
	}
	for e := range excused {
		_, what, _ := strings.Cut(e, " ")
		if !meant[e] && !slices.Contains(u.other, what) {
			bad = append(bad, "an exception for no rule: "+e)
		}
	}
	slices.Sort(bad)
	return bad
}

// readExceptions reads lines of "LIST CALL: LIMIT # reason"; the list may be "*".
func readExceptions(path string) (map[string]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		what, why, ok := strings.Cut(line, " # ")
		if !ok || strings.TrimSpace(why) == "" {
			return nil, fmt.Errorf("%s: %q has no reason", path, line)
		}
		all[strings.TrimSpace(what)] = why
	}
	return all, nil
}
