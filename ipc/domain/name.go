// SPDX-License-Identifier: Apache-2.0

// Package domain has names of the DNS, patterns for them, and what rules by name say of
// a name. Broker and names program share it, so that the two cannot differ.
package domain

import (
	"errors"
	"fmt"
	"strings"
)

// Bounds of a name, in octets of its text: RFC 1035 section 2.3.4, less the root's
// length octet and the first label's.
const (
	MaxName  = 253
	MaxLabel = 63
)

// Name is a domain name in text form: lower case, without a trailing dot, labels of
// letters, digits, "-" and "_", of 1 to MaxLabel octets each, MaxName octets at most.
// Labels of other scripts are A-labels (RFC 5890 section 2.3.2.1). Only Parse makes one.
type Name string

// What Parse does not take.
var (
	errEmpty      = errors.New("no name")
	errEmptyLabel = errors.New("a label is empty: write one dot between two labels")
	errLong       = fmt.Errorf("longer than %d octets, and no name is", MaxName)
	errLongLabel  = fmt.Errorf("a label is longer than %d octets, and none may be", MaxLabel)
	errUnicode    = errors.New("letters beyond ASCII: write the A-label, which begins with xn--, as idn(1) shows it")
)

// Parse reads a name. Case and one trailing dot make no difference (RFC 4343, RFC 1034
// section 3.1). An error says what to do about it.
func Parse(s string) (Name, error) {
	s = strings.TrimSuffix(s, ".")
	switch {
	case s == "":
		return "", errEmpty
	case strings.ContainsFunc(s, func(r rune) bool { return r > 0x7f }):
		return "", errUnicode
	case len(s) > MaxName:
		return "", errLong
	}
	start := 0
	for i := range len(s) + 1 {
		if i < len(s) && s[i] != '.' {
			if !inLabel(s[i]) {
				return "", fmt.Errorf("%q is in no name: labels are of letters, digits, \"-\" and \"_\"", s[i])
			}
			continue
		}
		switch n := i - start; {
		case n == 0:
			return "", errEmptyLabel
		case n > MaxLabel:
			return "", errLongLabel
		}
		start = i + 1
	}
	return Name(strings.ToLower(s)), nil
}

func inLabel(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

// last returns the name's last label.
func (n Name) last() string { return string(n[strings.LastIndexByte(string(n), '.')+1:]) }
