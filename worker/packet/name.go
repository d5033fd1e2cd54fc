// SPDX-License-Identifier: Apache-2.0

package packet

// PutName writes a domain name as RFC 1035 section 3.1 has it, without
// compression, and returns its length; 0 if it does not fit b or is no domain
// name. RFC 8106 and RFC 8415 section 10 ask for the same.
func PutName(b, name []byte) int {
	if len(name) > 0 && name[len(name)-1] == '.' {
		name = name[:len(name)-1]
	}
	n := len(name) + 2
	if len(name) == 0 || n > 255 || n > len(b) {
		return 0
	}
	label := 0 // where the current label's length goes
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '.' {
			b[i+1] = name[i]
			continue
		}
		size := i - label
		if size == 0 || size > 63 {
			return 0
		}
		b[label] = uint8(size)
		label = i + 1
	}
	b[n-1] = 0
	return n
}
