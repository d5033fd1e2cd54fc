// SPDX-License-Identifier: Apache-2.0

package fuzz

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// ParseDictionary reads a dictionary in libFuzzer's format: name="value" lines
// with escapes in hexadecimal, and comments.
func ParseDictionary(b []byte) (words []string, err error) {
	for line := range bytes.Lines(b) {
		s := strings.TrimSpace(string(line))
		if s == "" || s[0] == '#' {
			continue
		}
		if i := strings.IndexByte(s, '"'); i > 0 {
			s = s[i:]
		}
		w, err := strconv.Unquote(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s, err)
		}
		words = append(words, w)
	}
	return words, nil
}

// Spell turns an input into text. Go's fuzzer takes no dictionary, so bytes from
// 0x80 on stand for a word of the list; those below stand for themselves, and
// 0x7f for the byte behind it, whatever that is.
func Spell(b []byte, words []string) string {
	var s strings.Builder
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c >= 0x80:
			s.WriteString(words[int(c&0x7f)%len(words)])
		case c == 0x7f && i+1 < len(b):
			i++
			s.WriteByte(b[i])
		default:
			s.WriteByte(c)
		}
	}
	return s.String()
}

// Unspell is an input that Spell turns into text.
func Unspell(text string) []byte {
	var b []byte
	for i := range len(text) {
		if c := text[i]; c >= 0x7f {
			b = append(b, 0x7f)
		}
		b = append(b, text[i])
	}
	return b
}
