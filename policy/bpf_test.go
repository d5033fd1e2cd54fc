// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// seccompData is struct seccomp_data, include/uapi/linux/seccomp.h.
type seccompData struct {
	nr   uint32
	arch uint32
	_    uint64 // instruction_pointer: no filter looks at it
	args [6]uint64
}

// word returns the 32 bits at a byte offset, in the byte order of the architecture: which
// half of an argument comes first.
func (d *seccompData) word(off uint32) uint32 {
	switch {
	case off == 0:
		return d.nr
	case off == 4:
		return d.arch
	case off >= 16 && off < 64 && off%4 == 0:
		v := d.args[(off-16)/8]
		if high := off%8 == 4; high != (d.arch == unix.AUDIT_ARCH_S390X) {
			v >>= 32
		}
		return uint32(v)
	}
	panic(fmt.Sprintf("load at offset %d", off))
}

// evaluate runs a filter as the kernel would: the few instructions that
// libseccomp uses, everything else is an error of the test.
func evaluate(prog []unix.SockFilter, d *seccompData) (action uint32) {
	var a uint32
	for pc := 0; ; pc++ {
		i := prog[pc]
		jump := func(taken bool) {
			if taken {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		}
		switch i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = d.word(i.K)
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= i.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(i.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(a == i.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(a > i.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(a >= i.K)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			jump(a&i.K != 0)
		case unix.BPF_RET | unix.BPF_K:
			return i.K
		default:
			panic(fmt.Sprintf("instruction %#x", i.Code))
		}
	}
}
