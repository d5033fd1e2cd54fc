// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"fmt"
	"strings"
	"testing"
)

func TestPutName(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, tc := range []struct {
		name string
		room int
		want string // hexadecimal
	}{
		{"abc.de", 8, "03616263026465" + "00"},
		{"abc.de.", 8, "03616263026465" + "00"},
		{"a", 3, "016100"},
		{"abc.de", 7, ""},
		{"", 9, ""},
		{".", 9, ""},
		{"a..b", 9, ""},
		{".a", 9, ""},
		{"a..", 9, ""},
		{long, 65, "3f" + strings.Repeat("61", 63) + "00"},
		{long + "a", 300, ""},
		{strings.Repeat("a.", 126) + "a", 300, strings.Repeat("0161", 127) + "00"},
		{strings.Repeat("a.", 126) + "ab", 300, ""},
	} {
		b := make([]byte, tc.room)
		if got := fmt.Sprintf("%x", b[:PutName(b, []byte(tc.name))]); got != tc.want {
			t.Errorf("%q in %d bytes: %s, want %s", tc.name, tc.room, got, tc.want)
		}
	}
}
