// SPDX-License-Identifier: Apache-2.0

package tcptest

// Sequence numbers compare modulo 2^32, RFC 9293 section 3.4.

func before(a, b uint32) bool   { return int32(a-b) < 0 }
func after(a, b uint32) bool    { return int32(a-b) > 0 }
func notAfter(a, b uint32) bool { return int32(a-b) <= 0 }

func later(a, b uint32) uint32 {
	if after(a, b) {
		return a
	}
	return b
}
