// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"golang.org/x/net/dns/dnsmessage"

	"aldente/ipc/domain"
)

// wireName is a name as dnsmessage has it, with a dot at the end. Domain names are short
// enough.
func wireName(n domain.Name) dnsmessage.Name {
	var w dnsmessage.Name
	w.Length = uint8(copy(w.Data[:], n))
	w.Data[w.Length] = '.'
	w.Length++
	return w
}

// sameName compares as RFC 4343 says.
func sameName(a, b *dnsmessage.Name) bool {
	return a.Length == b.Length && endsIn(a, b)
}

// endsIn reports whether a name is another, or below it.
func endsIn(n, end *dnsmessage.Name) bool {
	if end.Length == 1 {
		return true // the root
	}
	at := int(n.Length) - int(end.Length)
	if at < 0 || at > 0 && n.Data[at-1] != '.' {
		return false
	}
	for i, c := range end.Data[:end.Length] {
		if lower(n.Data[at+i]) != lower(c) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// lowered is a name in lower case: compressed names of an answer end in the question, and
// have letters in the case in which chance has put them.
func lowered(n dnsmessage.Name) dnsmessage.Name {
	for i, c := range n.Data[:n.Length] {
		n.Data[i] = lower(c)
	}
	return n
}

// appendName appends a name to data of a record, not compressed: so that the data can
// be written into any message.
func appendName(b []byte, n *dnsmessage.Name) []byte {
	if n.Length <= 1 {
		return append(b, 0)
	}
	label, low := 0, lowered(*n)
	for i, c := range low.Data[:n.Length] {
		if c == '.' {
			b = append(b, byte(i-label))
			b = append(b, low.Data[label:i]...)
			label = i + 1
		}
	}
	return append(b, 0)
}
