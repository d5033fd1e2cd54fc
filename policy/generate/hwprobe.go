// SPDX-License-Identifier: Apache-2.0

//go:build seccompgen

package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"

	seccomp "github.com/seccomp/libseccomp-golang"
)

// riscv_hwprobe is younger than libseccomp 2.5.4. Such a library is given the
// call with the number above it, which no list has, and what comes out is searched for
// that number. The order of numbers, by which the tree of comparisons was made, stays.
const (
	hwprobe       = "riscv_hwprobe"
	hwprobeNumber = 258 // __NR_riscv_hwprobe, arch/riscv/include/uapi/asm/unistd.h
	flush         = "riscv_flush_icache"
	flushNumber   = 259
)

// known returns the name by which libseccomp can be given a call.
func known(call string) string {
	if call == hwprobe {
		if _, err := seccomp.GetSyscallFromName(call); err != nil {
			return flush
		}
	}
	return call
}

// standIn puts riscv_hwprobe where riscv_flush_icache stands for it.
func standIn(base, arch string) error {
	if arch != "riscv64" || known(hwprobe) == hwprobe {
		return nil
	}
	b, err := os.ReadFile(base + ".bpf")
	if err != nil {
		return err
	}
	const size, jeq = 8, 0x15 // of struct sock_filter; BPF_JMP|BPF_JEQ|BPF_K
	for i := 0; i+size <= len(b); i += size {
		if binary.LittleEndian.Uint16(b[i:]) == jeq && binary.LittleEndian.Uint32(b[i+4:]) == flushNumber {
			binary.LittleEndian.PutUint32(b[i+4:], hwprobeNumber)
		}
	}
	if err := os.WriteFile(base+".bpf", b, 0o644); err != nil {
		return err
	}
	text, err := os.ReadFile(base + ".pfc")
	if os.IsNotExist(err) {
		return nil // the debug variant has none
	} else if err != nil {
		return err
	}
	r := strings.NewReplacer(flush, hwprobe, fmt.Sprint("(", flushNumber, ")"), fmt.Sprint("(", hwprobeNumber, ")"),
		fmt.Sprint("$syscall == ", flushNumber, ")"), fmt.Sprint("$syscall == ", hwprobeNumber, ")"))
	return os.WriteFile(base+".pfc", []byte(r.Replace(string(text))), 0o644)
}
