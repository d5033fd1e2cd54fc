// SPDX-License-Identifier: Apache-2.0

package tcptest

import "encoding/binary"

// pattern is byte k of a stream, the same for all streams of a test: a shift
// or swap shows.
const patternPeriod = 65521

var pattern = func() []byte {
	b := make([]byte, patternPeriod+1<<16)
	x := uint64(88172645463325252)
	for i := 0; i < patternPeriod+8; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
	copy(b[patternPeriod:], b[:patternPeriod])
	copy(b[2*patternPeriod:], b)
	return b
}()

// Stream is n bytes, at most 65536, of the test stream from offset off.
func Stream(off, n int) []byte {
	off %= patternPeriod
	return pattern[off : off+n]
}
