// SPDX-License-Identifier: Apache-2.0

//go:build seccompgen

// Command generate compiles the lists of policy/calls to BPF with libseccomp,
// for each architecture, and writes the programs with their readable form
// beside them. It needs cgo and libseccomp's development files:
//
//	CGO_ENABLED=1 go run -tags seccompgen ./policy/generate -o policy/filters -doc docs/security-calls.md
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	seccomp "github.com/seccomp/libseccomp-golang"

	"aldente/policy/calls"
)

// highestCall bounds the search for names; the kernel's tables end well below.
const highestCall = 1024

func main() {
	out := flag.String("o", "policy/filters", "directory to write to")
	doc := flag.String("doc", "", "document whose tables of system calls are to be made anew")
	flag.Parse()
	err := run(*out)
	if err == nil && *doc != "" {
		err = fill(*doc)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(out string) error {
	for _, arch := range calls.Arches() {
		a, err := seccomp.GetArchFromString(arch)
		if err != nil {
			return fmt.Errorf("architecture %s: %w", arch, err)
		}
		if err := writeNames(filepath.Join(out, "names_"+arch+".txt"), a); err != nil {
			return err
		}
		for _, all := range calls.All() {
			list := all.For(arch)
			for suffix, action := range map[string]seccomp.ScmpAction{
				"":      seccomp.ActKillProcess,
				"-trap": seccomp.ActTrap,
			} {
				base := filepath.Join(out, list.Name+suffix+"_"+arch)
				if err := writeFilter(base, &list, arch, a, action); err != nil {
					return fmt.Errorf("%s for %s: %w", list.Name, arch, err)
				}
			}
		}
	}
	return nil
}

// fill makes the tables of a document anew.
func fill(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := calls.Fill(string(b))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// writeFilter compiles one list. The readable form is written for the real
// filter only: that of the debug variant differs in one word.
func writeFilter(base string, list *calls.List, arch string, a seccomp.ScmpArch, action seccomp.ScmpAction) error {
	f, err := compile(list, arch, a, action)
	if err != nil {
		return err
	}
	defer f.Release()
	if err := export(base+".bpf", f.ExportBPF); err != nil {
		return err
	}
	if action != seccomp.ActTrap {
		if err := export(base+".pfc", f.ExportPFC); err != nil {
			return err
		}
	}
	return mend(base, arch)
}

func compile(list *calls.List, arch string, a seccomp.ScmpArch, action seccomp.ScmpAction) (*seccomp.ScmpFilter, error) {
	f, err := seccomp.NewFilter(action)
	if err != nil {
		return nil, err
	}
	native, err := seccomp.GetNativeArch()
	if err != nil {
		return nil, err
	}
	if a != native {
		// In this order: there is no filter of two byte orders.
		if err := f.RemoveArch(native); err != nil {
			return nil, err
		}
		if err := f.AddArch(a); err != nil {
			return nil, err
		}
	}
	// Calls of another architecture, and x32, end like forbidden ones.
	if err := f.SetBadArchAction(action); err != nil {
		return nil, err
	}
	// A binary tree instead of a chain: the cost of a call does not depend on
	// its place in the list.
	if err := f.SetOptimize(2); err != nil {
		return nil, err
	}
	for i := range list.Rules {
		r := &list.Rules[i]
		if r.Arch != "" && r.Arch != arch {
			continue
		}
		if err := addRule(f, r); err != nil {
			return nil, fmt.Errorf("rule %d, %s: %w", i, r.Call, err)
		}
	}
	return f, nil
}

func addRule(f *seccomp.ScmpFilter, r *calls.Rule) error {
	// libseccomp takes the native number and translates it by name.
	nr, err := seccomp.GetSyscallFromName(known(r.Call))
	if err != nil {
		return err
	}
	if len(r.Args) == 0 {
		return f.AddRule(nr, seccomp.ActAllow)
	}
	conds := make([]seccomp.ScmpCondition, 0, len(r.Args))
	for _, a := range r.Args {
		op, values := seccomp.CompareMaskedEqual, []uint64{a.Mask, a.Value}
		if a.Mask == ^uint64(0) {
			op, values = seccomp.CompareEqual, []uint64{a.Value}
		}
		c, err := seccomp.MakeCondition(a.Index, op, values...)
		if err != nil {
			return err
		}
		conds = append(conds, c)
	}
	return f.AddRuleConditional(nr, seccomp.ActAllow, conds)
}

// export writes one form of a filter to a new file.
func export(path string, write func(*os.File) error) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := write(file); err != nil {
		file.Close()
		return fmt.Errorf("%s: %w", path, err)
	}
	return file.Close()
}

// writeNames writes one line for each call of the architecture: number, name.
func writeNames(path string, a seccomp.ScmpArch) error {
	var b strings.Builder
	for nr := range highestCall {
		name, err := seccomp.ScmpSyscall(nr).GetNameByArch(a)
		if err != nil && a == seccomp.ArchRISCV64 && nr == hwprobeNumber {
			name, err = hwprobe, nil
		}
		if err == nil {
			fmt.Fprintf(&b, "%d %s\n", nr, name)
		}
	}
	return os.WriteFile(path, []byte(b.String()), 0o644)
}
