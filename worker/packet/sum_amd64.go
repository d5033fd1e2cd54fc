// SPDX-License-Identifier: Apache-2.0

package packet

import "golang.org/x/sys/cpu"

// wide says that sumWide is there. A variable, so that tests reach the code of
// processors without it.
var wide = cpu.X86.HasAVX2

// sumWide sums the little-endian 32-bit words of b, of which a multiple of 128
// bytes is looked at. Modulo 65535 that is the sum of the 16-bit words. It
// overflows beyond 2^34 bytes, and is zero only if all words are.
func sumWide(b []byte) uint64 { return sumAVX2(b) }

//go:noescape
func sumAVX2(b []byte) uint64
