// SPDX-License-Identifier: Apache-2.0

//go:build seccompgen

package main

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"strings"

	seccomp "github.com/seccomp/libseccomp-golang"
)

// Compiled filters are mended in three places where libseccomp cannot be told what is
// wanted. A test runs every filter over every call.

// riscv_hwprobe is younger than libseccomp 2.5.4. Such a library is given the
// call with the number above it, which no list has, and what comes out is searched for
// that number. The order of numbers, by which the tree of comparisons was made, stays.
const (
	hwprobe       = "riscv_hwprobe"
	hwprobeNumber = 258 // __NR_riscv_hwprobe, arch/riscv/include/uapi/asm/unistd.h
	flush         = "riscv_flush_icache"
	flushNumber   = 259
)

// socketcall(2) is permitted by libseccomp where a call is that it can make. Its
// arguments lie in memory, so that socketcall(SYS_SOCKET) would be permitted with
// any. We make none: its comparison is made one that leads to the same place whatever
// comes out.
const socketcallNumber = 102 // arch/s390, arch/powerpc

// What a filter of the other byte order returns, some of libseccomp 2.5.4's jumps that are
// too far for one instruction have in the order of the host.
var returned = []uint32{0x7fff0000, 0x80000000, 0x00030000} // SECCOMP_RET_ALLOW, _KILL_PROCESS, _TRAP

// struct sock_filter, include/uapi/linux/filter.h.
const (
	sizeofFilter                 = 8
	offCode, offJt, offJf        = 0, 2, 3
	offK                         = 4
	jumpIfEqual           uint16 = 0x15 // BPF_JMP|BPF_JEQ|BPF_K
	returns               uint16 = 0x06 // BPF_RET|BPF_K
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

// mend puts riscv_hwprobe where riscv_flush_icache stands for it, takes
// socketcall away, and puts what is returned in order.
func mend(base, arch string) error {
	var instruction func(b []byte, order binary.ByteOrder)
	var words []string
	equal := func(nr int) string { return fmt.Sprintf("if ($syscall == %d)", nr) }
	switch {
	case arch == "riscv64" && known(hwprobe) != hwprobe:
		words = []string{flush, hwprobe, fmt.Sprintf("(%d)", flushNumber), fmt.Sprintf("(%d)", hwprobeNumber), equal(flushNumber), equal(hwprobeNumber)}
		instruction = func(b []byte, order binary.ByteOrder) {
			if order.Uint32(b[offK:]) == flushNumber {
				order.PutUint32(b[offK:], hwprobeNumber)
			}
		}
	case arch == "s390x" || arch == "ppc64le":
		words = []string{equal(socketcallNumber), "if (false) # taken away by policy/generate"}
		instruction = func(b []byte, order binary.ByteOrder) {
			if order.Uint32(b[offK:]) == socketcallNumber {
				b[offJt] = b[offJf]
			}
		}
	default:
		return nil
	}
	if err := rewrite(base+".pfc", func(b []byte) []byte { return []byte(strings.NewReplacer(words...).Replace(string(b))) }); err != nil && !os.IsNotExist(err) {
		return err // the debug variant has none
	}
	return rewrite(base+".bpf", func(b []byte) []byte {
		var order binary.ByteOrder = binary.LittleEndian
		if arch == "s390x" {
			order = binary.BigEndian
		}
		for i := 0; i+sizeofFilter <= len(b); i += sizeofFilter {
			switch order.Uint16(b[i+offCode:]) {
			case jumpIfEqual:
				instruction(b[i:i+sizeofFilter], order)
			case returns:
				if k := bits.ReverseBytes32(order.Uint32(b[i+offK:])); slices.Contains(returned, k) {
					order.PutUint32(b[i+offK:], k)
				}
			}
		}
		return b
	})
}

func rewrite(path string, change func([]byte) []byte) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, change(b), 0o644)
}
